"""A table of text for people and programs: terminal, Markdown, CSV. A cell always stays text.

Names of classes, files and runs are other people's text: no control character reaches a terminal,
no markup is obeyed, no spreadsheet takes a cell for a formula.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from runner.terminal.console import printable

_NAME_WIDTH = 20
_GAP = 2
_CELL_WIDTH = 8  # a column narrower than this shows nothing
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns.

    Attributes:
        title: the line above the table.
        columns: names of the columns, one per cell of a row.
        rows: cells of each row, already formatted.
        text_columns: names of the columns that hold words and not numbers.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: tuple[str, ...] = ()

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

    def drawn(self, width: int) -> RenderableType:
        """Return what a terminal of so many characters shows."""
        if width < _CELL_WIDTH * len(self.columns):  # no room for columns side by side
            cells = (pair for row in self.rows for pair in zip(self.columns, row, strict=True))
            return Group(*(Text(f"{column}: {printable(cell)}") for column, cell in cells))
        table = RichTable(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
        widths: Sequence[int | None] = self._widths(width) or [None] * len(self.columns)
        for column, own in zip(self.columns, widths, strict=True):
            table.add_column(
                Text(column),
                justify="left" if column in self.text_columns else "right",
                overflow="fold",
                width=own,
            )
        for row in self.rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        # A title of rich's would be folded to the width of the table.
        return Group(Text(printable(self.title), style="table.title"), table)

    def _widths(self, room: int) -> list[int] | None:
        """Characters per column; the widest columns are shortened if there is no room for all.

        As long as there is room, numbers are not split, and then words and names that are not too
        long. None if there is not even room for the numbers. (rich shortens the widest column
        first, and cuts off the last columns when no other column may get shorter.)
        """
        cells = [[column, *(row[i] for row in self.rows)] for i, column in enumerate(self.columns)]
        widths = [max(_width(cell) for cell in column) for column in cells]
        numbers = [
            max((_width(row[i]) for row in self.rows), default=0)
            if column not in self.text_columns
            else min(widths[i], _NAME_WIDTH if i == 0 else 1)
            for i, column in enumerate(self.columns)
        ]
        words = [
            max(
                least, *(min(_width(word), _NAME_WIDTH) for cell in column for word in cell.split())
            )
            if "".join(column).split()
            else least
            for least, column in zip(numbers, cells, strict=True)
        ]
        room -= _GAP * len(widths)
        for least in (words, numbers):
            if sum(least) <= room:
                while sum(widths) > room:
                    slack = [own - few for own, few in zip(widths, least, strict=True)]
                    widest = max(range(len(widths)), key=lambda i: (slack[i] > 0, widths[i]))
                    widths[widest] -= 1
                return widths
        return None

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
