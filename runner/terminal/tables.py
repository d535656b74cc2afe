"""A table of text for people and programs: terminal, Markdown, CSV. A cell always stays text.

Names of classes, files and runs are other people's text: no control character reaches a terminal,
no markup is obeyed, no spreadsheet takes a cell for a formula.
"""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from runner.terminal.console import printable

_LABEL_WIDTHS = (20, 12, 8)  # that a label is folded to; below the second, columns are left out
_WORD_WIDTH = 20  # words longer than this, such as paths, are broken
_GAP = 2
_MARGIN = 1  # left of a table
_INDENT = 4  # of a row below the name that it belongs to
_CELL_WIDTH = 8  # a column narrower than this shows nothing
_PIECES = re.compile(r"\s+(?=[(A-Za-z])")  # where the words after a number may be folded
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns.

    Attributes:
        title: the line above the table.
        columns: names of the columns, one per cell of a row.
        rows: cells of each row, already formatted.
        text_columns: names of the columns that hold words and not numbers.
        label_columns: names of the columns that are folded first; by default the first column.
        name_columns: names of the columns whose cells are copied, such as names of runs: they stay
            in one piece. Where there is no room, the first of them is on a line of its own.
        optional_columns: names of the columns that are left out where there is no room, in order.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: tuple[str, ...] = ()
    label_columns: tuple[str, ...] = ()
    name_columns: tuple[str, ...] = ()
    optional_columns: tuple[str, ...] = ()

    def without(self, *columns: str) -> "Table":
        """Return the same table without the named columns."""
        kept = [index for index, name in enumerate(self.columns) if name not in columns]
        return replace(
            self,
            columns=tuple(self.columns[index] for index in kept),
            rows=tuple(tuple(row[index] for index in kept) for row in self.rows),
        )

    def print(self, console: Console) -> None:
        """Print the table to a terminal, or to a pipe."""
        console.print(self.drawn(console.width))

    def left_out(self, width: int) -> tuple[str, ...]:
        """Return the columns for which a terminal of so many characters has no room."""
        kept = self._layout(width)[0].columns
        return tuple(name for name in self.columns if name not in kept)

    def lines_per_row(self, width: int) -> int:
        """Return the lines that a row takes: two if its name is on a line of its own."""
        return 2 if self._layout(width)[2] else 1

    def drawn(self, width: int) -> RenderableType:
        """Return what a terminal of so many characters shows."""
        # A title of rich's would be folded to the width of the table.
        title = Text(printable(self.title), style="table.title")
        shown, widths, has_name_lines = self._layout(width)
        if widths is None:  # no room for columns side by side
            cells = (pair for row in shown.rows for pair in zip(shown.columns, row, strict=True))
            return Group(title, *(Text(f"{column}: {printable(cell)}") for column, cell in cells))
        parts: list[RenderableType] = []
        if has_name_lines:
            at = shown.columns.index(shown.name_columns[0])
            rest = shown.without(shown.columns[at])
            head = rest.grid(widths, (), has_head=True)
            parts = [Padding(Text(shown.columns[at]), (0, 0, 0, _MARGIN)), _indented(head)]
            for row in shown.rows:
                name = Text(printable(row[at]), overflow="fold")
                cells_below = (*row[:at], *row[at + 1 :])
                line = rest.grid(widths, (cells_below,), has_head=False)
                parts += [Padding(name, (0, 0, 0, _MARGIN)), _indented(line)]
        else:
            parts = [Padding(shown.grid(widths, shown.rows, has_head=True), (0, 0, 0, _MARGIN))]
        return Group(title, Text(""), *parts, Text(""))

    def grid(
        self, widths: Sequence[int], rows: Sequence[Sequence[str]], *, has_head: bool
    ) -> RichTable:
        """Return ``rows`` as a table of rich.

        Args:
            widths: characters of each column.
            rows: rows with a cell for each column.
            has_head: whether the names of the columns come first.
        """
        table = RichTable(
            box=box.SIMPLE_HEAD,
            collapse_padding=True,
            pad_edge=False,
            show_edge=False,  # whose right side would take a character
            show_header=has_head,
        )
        for column, own in zip(self.columns, widths, strict=True):
            table.add_column(
                Text(column),
                justify="left" if column in self.text_columns else "right",
                overflow="fold",
                width=own,
            )
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        return table

    def _layout(self, width: int) -> "tuple[Table, Sequence[int] | None, bool]":
        """Decide what fits into ``width`` characters.

        Labels are folded first, then words; then columns are left out; then labels get narrow,
        and at last numbers are split from their signs. Words and headings are never broken.

        Returns:
            The table of the columns that are shown; their widths, None if they do not fit side by
            side; and whether names are on lines of their own, in which case the widths are those of
            the other columns.
        """
        shorter = [self]
        for name in self.optional_columns:
            if name in self.columns:
                shorter.append(shorter[-1].without(name))
        wide, usual, narrow = _LABEL_WIDTHS
        tries = [(self, wide, True), *((one, usual, True) for one in shorter)]
        tries += [(shorter[-1], narrow, True), (shorter[-1], narrow, False)]
        room = width - _MARGIN
        for one, label, is_whole in tries:
            if (widths := one.fitting_widths(room, label, is_whole=is_whole)) is not None:
                return one, widths, False
        for name in [one for one in self.name_columns if one in self.columns][:1]:
            for one, label, is_whole in tries:
                rest = one.without(name)
                widths = rest.fitting_widths(room - _INDENT, label, is_whole=is_whole)
                if widths is not None:
                    return one, widths, True
        return shorter[-1], None, False

    def fitting_widths(self, room: int, label_width: int, *, is_whole: bool) -> list[int] | None:
        """Return the characters per column; None if there is no room.

        Args:
            room: characters of a line.
            label_width: what labels may be folded to.
            is_whole: whether numbers with their signs and intervals stay in one piece.
        """
        if room + _GAP < _CELL_WIDTH * len(self.columns):
            return None
        labels = self.label_columns or self.columns[:1]
        widths, least = list[int](), list[int]()
        for i, column in enumerate(self.columns):
            cells = [row[i] for row in self.rows]
            widths.append(max(map(_width, [column, *cells])))
            heading = _longest(column.split())
            if column in self.name_columns:
                few = max(map(_width, cells), default=0)
            elif column in labels:
                few = min(widths[-1], label_width)
            elif column in self.text_columns or not is_whole:
                few = max((_longest(cell.split()) for cell in cells), default=0)
            else:
                pieces = (piece for cell in cells for piece in _PIECES.split(cell))
                few = max(map(_width, pieces), default=0)
            least.append(max(few, min(heading, _WORD_WIDTH)))
        room -= _GAP * (len(widths) - 1)
        if sum(least) > room:
            return None
        first = [i for i, column in enumerate(self.columns) if column in labels]
        while sum(widths) > room:
            slack = [own - few for own, few in zip(widths, least, strict=True)]
            folded = [i for i in first if widths[i] > max(least[i], _LABEL_WIDTHS[0])]
            folded = folded or [i for i in range(len(widths)) if i not in first and slack[i] > 0]
            folded = folded or [i for i in first if slack[i] > 0]
            widths[max(folded, key=lambda i: widths[i])] -= 1
        return widths

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown, under its title in bold."""
        lines = [
            _markdown_row(self.columns),
            "|" + "|".join(
                "---" if column in self.text_columns else "---:" for column in self.columns
            ) + "|",
            *(_markdown_row(row) for row in self.rows),
        ]  # fmt: skip
        return f"**{markdown_text(self.title)}**\n\n" + "\n".join(lines) + "\n"


def _width(cell: str) -> int:
    """Count the characters of a cell's longest line, as a terminal does."""
    return max((cell_len(line) for line in printable(cell).splitlines()), default=0)


def left_out_note(columns: Sequence[str], fix: str) -> str:
    """Return the sentence about the columns that a terminal has no room for.

    Args:
        columns: names of the columns; each is named once.
        fix: option that writes all columns.
    """
    names = "; ".join(dict.fromkeys(columns))  # a name may have a comma
    return f"left out of tables, because the terminal is narrow: {names} ({fix} has all columns)"


def _longest(words: Sequence[str]) -> int:
    """Return the characters of the longest word; words beyond a limit are broken."""
    return max((min(_width(word), _WORD_WIDTH) for word in words), default=0)


def _indented(table: RichTable) -> Padding:
    return Padding(table, (0, 0, 0, _MARGIN + _INDENT))


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Comma-separated values; numbers in full, None as an empty cell, no cell a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([inert(column) for column in columns])
    writer.writerows([inert(cell) for cell in row] for row in rows)
    return text.getvalue()


def inert(cell: object) -> object:
    """Change a cell so that no spreadsheet takes it for a formula; numbers stay numbers."""
    if not isinstance(cell, str):
        return cell
    return no_formula(printable(cell))


def no_formula(cell: str) -> str:
    """Return the cell, with an apostrophe in front if a spreadsheet would take it for a formula."""
    return f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(markdown_text(cell) for cell in cells) + " |"


def markdown_text(text: str) -> str:
    """Escape the characters that Markdown or HTML would obey."""
    text = printable(text).replace("\n", " ").replace("&", "&amp;").replace("<", "&lt;")
    for character in "\\`*_~|[]!#":
        text = text.replace(character, f"\\{character}")
    return text
