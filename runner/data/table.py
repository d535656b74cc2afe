"""A table of images: a CSV file with a path and a class in each line, and maybe a split.

Commas, semicolons, tabs or bars separate the cells: whichever gives the columns that are asked for.
UTF-8 and UTF-16 are read. Paths are relative to the table; they may lack their suffix, or have
backslashes. Spaces around a label are no part of it. Whatever is guessed is said in a note.
"""

import codecs
import csv
import io
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from runner.config.schema import Data
from runner.data.grouping import groups_by_pattern
from runner.data.images import SUFFIXES, FileImages
from runner.data.layout import Part, part_of
from runner.data.listing import (
    Listing,
    few_names,
    is_test_part,
    note_similar_classes,
    note_test_part,
    spelled,
)
from runner.data.places import existing_root
from runner.data.splitting import with_split
from runner.data.store import Progress
from runner.errors import DataError
from runner.machine.files import read_whole
from runner.terminal.pasted import override

_DELIMITERS = ",;\t|"
_MISSING = frozenset({"nan", "na", "n/a", "#n/a", "null", "none", "-", "?"})


@dataclass(frozen=True)
class _Row:
    """A row of the table: the number of its first line, and its cells."""

    line: int
    path: str
    label: str
    split: str = ""
    group: str = ""


def list_table(data: Data, cache: Path, split_seed: int, progress: Progress) -> Listing:
    """See :func:`runner.data.sources.list_images`."""
    table = existing_root(data)
    if not table.is_file():
        raise DataError("not a file", where=f"data.root={data.root}", fix="data.root=FILE.csv")
    rows = list(_rows(_text(table), data, table))
    if not rows:
        raise DataError("the table lists no images", where=str(table), fix="add a line per image")
    notes = _notes_on_labels(rows)
    parts: list[Part] = ["train"] * len(rows)
    if data.split_column is not None:
        rows, parts, more = _with_parts(rows, data, table)
        notes += more
    paths, more = _real_paths(rows, table.parent)
    notes += more
    _refuse_repeated(rows, paths, table)
    names = [row.label.strip() for row in rows]
    is_val, is_test = (np.array([part == one for part in parts]) for one in ("val", "test"))
    classes = tuple(
        sorted({name for name, part in zip(names, parts, strict=True) if part != "test"})
    )
    label_of = {name: label for label, name in enumerate(classes)}
    listing = Listing(
        name="table",
        classes=classes,
        images=FileImages(table.parent, tuple(paths)),
        labels=np.array([label_of[name] for name in names], np.int64),
        is_val=is_val,
        notes=notes,
        is_test=is_test if is_test.any() else None,
    )
    group_names = None
    if data.group_column is not None:
        group_names = [row.group.strip() for row in rows]
    elif data.group_pattern is not None:
        group_names = groups_by_pattern(data.group_pattern, paths)
    listing = with_split(
        listing,
        data,
        split_seed,
        own=f"data.split_column={data.split_column}" if is_val.any() else None,
        group_names=group_names,
        where=str(table),
    )
    return replace(listing, notes=listing.notes + note_similar_classes(classes))


def _text(table: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with its mark."""
    try:
        content = read_whole(table)
    except OSError as error:
        raise DataError(
            f"cannot read the table: {error.strerror or error}",
            where=str(table),
            fix="data.root=FILE.csv that you may read",
        ) from error
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_wide else "utf-8-sig")
        if "\0" not in text:
            return text
        reason, encoding = "it has zero bytes, so it is no text", "UTF-16LE"
    except UnicodeDecodeError as error:
        reason, encoding = f"it is not UTF-8 ({error.reason})", "WINDOWS-1252"
    name, copy = (shlex.quote(str(path)) for path in (table, table.with_suffix(".utf8.csv")))
    raise DataError(
        f"cannot read the table: {reason}",
        where=str(table),
        fix=f"if it is a table: iconv -f {encoding} -t UTF-8 {name} > {copy}, "
        f"and then {override('data.root', table.with_suffix('.utf8.csv'))}",
    )


def _rows(text: str, data: Data, table: Path) -> Iterator[_Row]:
    """Yield the lines of a table, without empty ones."""
    columns = {
        "path": data.path_column,
        "label": data.label_column,
        "split": data.split_column,
        "group": data.group_column,
    }
    wanted = {name: column for name, column in columns.items() if column is not None}
    line = 1
    empty: list[tuple[int, str]] = []
    try:
        header, delimiter = _header(text, [*wanted.values()])
        places = {
            name: _place(header, f"data.{name}_column", column, table)
            for name, column in wanted.items()
        }
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        next(reader)
        line = reader.line_num + 1
        for cells in reader:
            first, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if any(cell.strip() for cell in cells[len(header) :]):
                raise DataError(
                    f"{len(cells)} cells in a table of {len(header)} columns",
                    where=f"{table}, line {first}",
                    fix='put a cell that has separators into quotes: "a, b.png",cat',
                )
            found = {
                name: cells[place] if place < len(cells) else "" for name, place in places.items()
            }
            empty += [(first, wanted[name]) for name, cell in found.items() if not cell.strip()]
            yield _Row(first, **found)
    except csv.Error as error:
        raise DataError(
            f"cannot read the table: {error}",
            where=f"{table}, line {line}",
            fix="close the quotes of the cell, or write a quote inside quotes twice",
        ) from error
    if empty:
        raise _empty_cells(empty, table)


def _empty_cells(empty: Sequence[tuple[int, str]], table: Path) -> DataError:
    """Return what to raise for empty cells, each with its line and the name of its column."""
    lines = [str(line) for line in dict.fromkeys(line for line, _ in empty)]
    columns = few_names([*dict.fromkeys(column for _, column in empty)])
    several = "s" * (len(lines) > 1)
    return DataError(
        f"an empty cell in {len(lines)} row{several} of the table, in the columns {columns}"
        if several
        else f"an empty cell in the table, in the column {columns}",
        where=f"{table}, line{several} {few_names(lines)}",
        fix="fill it in or remove the line",
    )


def _header(text: str, columns: Sequence[str]) -> tuple[list[str], str]:
    """Return the names of the columns, and the separator that gives most of those asked for."""
    found = []
    for delimiter in _DELIMITERS:
        names = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        header = [name.strip() for name in names]
        found.append((sum(column in header for column in columns), len(header) > 1, delimiter))
    best = max(found, key=lambda one: one[:2])[2]
    names = next(csv.reader(io.StringIO(text, newline=""), delimiter=best), [])
    return [name.strip() for name in names], best


def _place(header: list[str], key: str, column: str, table: Path) -> int:
    if header.count(column) == 1:
        return header.index(column)
    if column in header:
        raise DataError(
            f"several columns of the table are called {column}",
            where=f"{key}={column} ({table})",
            fix="give each column a name of its own",
        )
    choices = [override(key, name) for name in header[:10] if name]
    raise DataError(
        f"the table has no column {column}",
        where=f"{key}={column} ({table})",
        fix=" or ".join(choices) or "a first line with the names of the columns: path,label",
    )


def _notes_on_labels(rows: Sequence[_Row]) -> tuple[str, ...]:
    labels = Counter(row.label for row in rows)
    notes = []
    if padded := [label for label in labels if label != label.strip()]:
        notes.append(
            f"spaces around labels are left out: {few_names([spelled(name) for name in padded])}"
        )
    if missing := [label for label in labels if label.strip().casefold() in _MISSING]:
        count = sum(labels[label] for label in missing)
        shown = few_names([spelled(label) for label in missing])
        notes.append(
            f"{shown} is a class of {count} images; if the label is missing there, remove the lines"
        )
    return tuple(notes)


def _with_parts(
    rows: Sequence[_Row], data: Data, table: Path
) -> tuple[list[_Row], list[Part], tuple[str, ...]]:
    """Return the rows that are used, the part of each, and notes."""
    where = f"data.split_column={data.split_column} ({table}"
    parts = [part for row in rows if (part := part_of(row.split)) is not None]
    if len(parts) < len(rows):
        wrong = [row for row in rows if part_of(row.split) is None]
        raise DataError(
            f"split must say train, val or test, not {few_names(sorted({r.split for r in wrong}))}",
            where=f"{where}, line {wrong[0].line})",
            fix="write train, val or test there, or data.split_column=null to draw the split",
        )
    if "train" not in parts or {*parts} == {"train"}:
        raise DataError(
            f"all rows of the table are {' or '.join(sorted({*parts}))}",
            where=f"{where})",
            fix="write train, val or test there, or data.split_column=null to draw the split",
        )
    if not (count := parts.count("test")):
        return list(rows), parts, ()
    both = list(zip(rows, parts, strict=True))
    names = [row.label.strip() for row, part in both if part == "test"]
    classes = [row.label.strip() for row, part in both if part != "test"]
    if is_test_part(names, classes, f"{table}"):
        return list(rows), parts, (note_test_part(count, "rows of the split test"),)
    kept = [(row, part) for row, part in both if part != "test"]
    note = f"{count:,} rows of the split test are left out: none has the label of a training image"
    return [row for row, _ in kept], [part for _, part in kept], (note,)


def _real_paths(rows: Sequence[_Row], folder: Path) -> tuple[list[str], tuple[str, ...]]:
    """Return the path of each row as a file has it, and notes on what was changed to find it."""
    paths: list[str] = []
    inside: dict[str, dict[str, list[str]]] = {}
    changed: dict[str, list[tuple[str, str]]] = defaultdict(list)
    missing: list[_Row] = []
    for row in rows:
        path, how = _real_path(row.path, folder, inside)
        if path is None:
            missing.append(row)
        elif how:
            changed[how].append((row.path, path))
        paths.append(path or row.path)
    if len(missing) == len(rows):
        raise DataError(
            f"no image of the table is at its path: {folder / missing[0].path} does not exist",
            where=f"{folder}, line {missing[0].line} of the table",
            fix=f"paths relative to {folder}, such as CLASS/IMAGE.jpg, or absolute ones; "
            "or move the table to the folder that its paths start from",
        )
    return paths, tuple(
        f"{len(pairs)} paths {how}: {pairs[0][0]} is {pairs[0][1]}"
        for how, pairs in sorted(changed.items())
    )


def _real_path(
    path: str, folder: Path, inside: dict[str, dict[str, list[str]]]
) -> tuple[str | None, str]:
    """Return the path of an existing file, and its difference from ``path``; None without one."""
    tries = {path: ""}
    tries.setdefault(path.strip(), "have spaces around them")
    tries.setdefault(path.strip().replace("\\", "/"), "have backslashes")
    for each, how in tries.items():
        if os.path.lexists(folder / each):
            return each, how
    for each, how in tries.items():
        parent, name = os.path.split(each)
        if parent not in inside:
            inside[parent] = _by_stem(folder / parent)
        found = inside[parent].get(name, [])
        if len(found) > 1:
            raise DataError(
                f"the table lists {path}, which may be {' or '.join(sorted(found))}",
                where=str(folder / parent),
                fix="write the suffixes into the table",
            )
        if found:
            return os.path.join(parent, found[0]), how or "have no suffix"  # noqa: PTH118
    return None, ""


def _by_stem(folder: Path) -> dict[str, list[str]]:
    """Return the names of the images in ``folder`` by their name without suffix."""
    found = defaultdict(list)
    try:
        for name in os.listdir(folder):  # noqa: PTH208  a string for millions
            stem, suffix = os.path.splitext(name)  # noqa: PTH122
            if suffix.lower() in SUFFIXES:
                found[stem].append(name)
    except (OSError, ValueError):  # the images are missing, which is reported where they are read
        return {}
    return found


def _refuse_repeated(rows: Sequence[_Row], paths: Sequence[str], table: Path) -> None:
    """Refuse a file that several rows name, in whatever way they spell its path."""
    first: dict[str, _Row] = {}
    for row, path in zip(rows, paths, strict=True):
        file = os.path.normpath(os.path.join(table.parent, path))  # noqa: PTH118
        earlier = first.setdefault(file, row)
        if earlier is not row:
            also = "" if earlier.path == row.path else f", also as {earlier.path}"
            labels = {earlier.label.strip(), row.label.strip()}
            under = f" under the labels {few_names(sorted(labels))}" if len(labels) > 1 else ""
            raise DataError(
                f"{row.path} is listed twice{also}{under}",
                where=f"{table}, lines {earlier.line} and {row.line}",
                fix="remove one of the two lines",
            )
