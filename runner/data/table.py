"""A table of images: a CSV file with a path and a class in each line, and maybe a split."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from runner.config.schema import Data
from runner.data.images import FileImages
from runner.data.listing import (
    Listing,
    check_same_classes,
    few_names,
    note_single_images,
    stratified_split,
)
from runner.data.places import existing_root
from runner.data.store import Progress
from runner.errors import DataError


def list_table(data: Data, cache: Path, split_seed: int, progress: Progress) -> Listing:
    """See :func:`runner.data.sources.list_images`."""
    path = existing_root(data)
    if not path.is_file():
        raise DataError("not a file", where=f"data.root={data.root}", fix="data.root=FILE.csv")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the table: {error}", where=str(path)) from error
    reader = csv.DictReader(io.StringIO(text))
    columns = {"data.path_column": data.path_column, "data.label_column": data.label_column}
    if data.split_column is not None:
        columns["data.split_column"] = data.split_column
    for key, column in columns.items():
        if column not in (reader.fieldnames or ()):
            raise DataError(
                f"the table has no column {column}",
                where=f"{key}={column} ({path})",
                fix=f"{key}= one of {', '.join(reader.fieldnames or ['nothing: it is empty'])}",
            )
    paths, names, splits = [], [], []
    for row in _rows(reader, path):
        cells = [row[column] for column in columns.values()]
        if any(not cell for cell in cells):
            raise DataError(
                "an empty cell in the table",
                where=f"{path}, line {reader.line_num}",
                fix="fill it in or remove the line",
            )
        paths.append(cells[0])
        names.append(cells[1])
        splits.append(cells[2].strip().lower() if len(cells) == 3 else "")
    if not paths:
        raise DataError("the table lists no images", where=str(path))
    if len(set(paths)) < len(paths):
        repeated = Counter(paths).most_common(1)[0][0]
        raise DataError(f"{repeated} is listed twice", where=str(path), fix="remove one line")
    classes = tuple(sorted(set(names)))
    label_of = {name: label for label, name in enumerate(classes)}
    labels = np.array([label_of[name] for name in names], np.int64)
    if data.split_column is None:
        is_val = stratified_split(labels, data.val_fraction, split_seed)
        notes = note_single_images(classes, labels)
    else:
        allowed = {"train": False, "val": True, "valid": True, "validation": True, "test": True}
        if wrong := sorted(set(splits) - set(allowed)):
            raise DataError(
                f"split must say train or val, not {few_names(wrong)}",
                where=f"data.split_column={data.split_column} ({path})",
            )
        is_val = np.array([allowed[split] for split in splits])
        notes = check_same_classes(classes, labels, is_val, f"{path}")
    images = FileImages(path.parent, tuple(paths))
    return Listing("table", classes, images, labels, is_val, notes=notes)


def _rows(reader: "csv.DictReader[str]", path: Path) -> Iterator[dict[str, str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(
            f"cannot read the table: {error}", where=f"{path}, line {reader.line_num}"
        ) from error
