"""A table of words for people and programs: terminal, Markdown, CSV. What a cell says stays text.

Names of classes, files and runs are other people's text: no control character reaches a terminal,
no markup is obeyed, no cell is a formula to a spreadsheet.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from runner.display import printable

_NAME_WIDTH = 20
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns.

    Attributes:
        title: of the table.
        columns: names, one per cell of a row.
        rows: cells, ready to be read.
        text_columns: names of the columns that hold words and not numbers.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: tuple[str, ...] = ()

    def without(self, *columns: str) -> "Table":
        """The same table without some columns."""
        kept = [index for index, name in enumerate(self.columns) if name not in columns]
        return replace(
            self,
            columns=tuple(self.columns[index] for index in kept),
            rows=tuple(tuple(row[index] for index in kept) for row in self.rows),
        )

    def print(self, console: Console) -> None:
        """Print it to a terminal, or to a pipe."""
        shown = RichTable(
            title=escape(printable(self.title)),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            collapse_padding=True,
            pad_edge=False,
        )
        for index, column in enumerate(self.columns):
            is_text = column in self.text_columns
            widest = max((len(row[index]) for row in self.rows), default=0)
            shown.add_column(
                escape(column),
                justify="left" if is_text else "right",
                overflow="fold",
                # Numbers stay in one piece, and names as far as there is room.
                min_width=min(widest, _NAME_WIDTH) if index == 0 or not is_text else None,
            )
        for row in self.rows:
            shown.add_row(*(escape(printable(cell)) for cell in row))
        console.print(shown)

    def markdown(self) -> str:
        """The table in GitHub's Markdown, under its title in bold."""
        lines = [
            _markdown_row(self.columns),
            "|" + "|".join(
                "---" if column in self.text_columns else "---:" for column in self.columns
            ) + "|",
            *(_markdown_row(row) for row in self.rows),
        ]  # fmt: skip
        return f"**{markdown_text(self.title)}**\n\n" + "\n".join(lines) + "\n"


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Comma-separated values; numbers in full, None as an empty cell, no cell a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([inert(cell) for cell in row] for row in rows)
    return text.getvalue()


def inert(cell: object) -> object:
    """A cell that no spreadsheet takes for a formula; numbers stay numbers."""
    if not isinstance(cell, str):
        return cell
    cell = printable(cell)
    return f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(markdown_text(cell) for cell in cells) + " |"


def markdown_text(text: str) -> str:
    """Characters that Markdown or HTML would obey, taken literally."""
    text = printable(text).replace("\n", " ").replace("&", "&amp;").replace("<", "&lt;")
    for character in "\\`*_|[]!#":
        text = text.replace(character, f"\\{character}")
    return text
