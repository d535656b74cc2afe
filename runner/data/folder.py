"""A folder with one folder of images per class, with or without folders for the splits.

Three layouts are known: CLASS/IMAGE, whose split is drawn; train/CLASS/IMAGE next to
val/CLASS/IMAGE; and CLASS/train/IMAGE next to CLASS/val/IMAGE. Splits may have the other names that
:func:`runner.data.layout.part_of` knows. Whatever else looks like splits is refused, because a
network that learns to tell splits apart looks like one that works.
"""

import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from runner.config.schema import Data
from runner.data.folds import drawn_split, refuse_folds
from runner.data.images import SUFFIXES, FileImages
from runner.data.layout import is_junk, is_ours, part_of
from runner.data.listing import (
    Listing,
    check_same_classes,
    few_names,
    note_similar_classes,
)
from runner.data.places import unpacked
from runner.data.scanning import ignored_note, leads_back, scan_files
from runner.data.store import Progress
from runner.errors import DataError
from runner.terminal.pasted import override

ClassFolders = Sequence[tuple[str, Path]]
"""Names of classes, each with a folder of its images; a class may have none or several."""


def list_folder(data: Data, cache: Path, split_seed: int, progress: Progress) -> Listing:
    """See :func:`runner.data.sources.list_images`."""
    outputs = cache.parent
    root = descend(unpacked(data, cache, None, progress), outputs)
    folders = _data_folders(root, outputs)
    if (splits := _split_folders(root, folders)) is not None:
        refuse_folds(data, f"the folder {splits[1].name}")
        return from_split_folders(root, *splits, name="folder", outputs=outputs)
    where = f"data.root={data.root}"
    if folders and all(part_of(folder.name) for folder in folders):
        raise DataError(
            f"the folders {few_names([folder.name for folder in folders])} look like splits, "
            "not classes, and have no class folders",
            where=where,
            fix="one folder per class in each of them, as train/CLASS and val/CLASS",
        )
    if (inner := _splits_of_classes(root, folders, outputs)) is not None:
        refuse_folds(data, "folders of splits in each class")
        return inner
    _refuse_equal_subfolders(folders, outputs, where)
    classes = [(folder.name, folder) for folder in folders]
    paths, names, ignored = _scan(classes, root, may_be_empty=False)
    ignored = _others(root, folders) + ignored
    if not paths:
        raise DataError(
            "no images found: expected CLASS/IMAGE files, or train/ and val/ with such folders",
            where=where,
            fix="data.root=PATH of a folder that holds one folder of images per class",
        )
    every = tuple(sorted({*names}))
    labels = np.array(_labels(names, every), np.int64)
    is_val, notes = drawn_split(data, every, labels, split_seed)
    notes += note_similar_classes(every) + ignored_note(ignored, root)
    images = FileImages(root, tuple(paths))
    return Listing("folder", every, images, labels, is_val, len(ignored), notes)


def _labels(names: Sequence[str], classes: Sequence[str]) -> list[int]:
    label_of = {name: label for label, name in enumerate(classes)}
    return [label_of[name] for name in names]


def _split_folders(
    root: Path, folders: Sequence[Path]
) -> tuple[Path, Path, tuple[str, ...]] | None:
    """The folders of training and validation images, with notes; None if there are no splits."""
    parts = {
        part: [folder for folder in folders if part_of(folder.name) == part]
        for part in ("train", "val", "test")
    }
    exact = {folder.name for folder in folders}
    if not parts["train"] or not (
        {"train", "val"} <= exact or any(_holds_classes(folder) for folder in parts["train"])
    ):
        return None  # or a class that is called train
    for same in parts.values():
        if len(same) > 1:
            raise DataError(
                f"several folders for one split: {few_names([folder.name for folder in same])}",
                where=str(root),
                fix="keep one of them here, and move the others elsewhere",
            )
    (train,) = parts["train"]
    if not (chosen := parts["val"] or parts["test"]):
        to_draw = override("data.root", train)
        raise DataError(
            f"there is a folder {train.name} with classes in it but no folder val next to it",
            where=f"data.root={root}",
            fix=f"rename the validation folder to val, or {to_draw} to draw it",
        )
    (val,) = chosen
    notes = []
    if (train.name, val.name) != ("train", "val"):
        notes.append(f"training on the folder {train.name}, validation on the folder {val.name}")
    if others := [folder.name for folder in folders if folder not in (train, val)]:
        notes.append(f"left out, because {train.name} and {val.name} are used: {few_names(others)}")
    return train, val, tuple(notes)


def from_split_folders(
    root: Path,
    train: Path,
    val: Path,
    notes: tuple[str, ...] = (),
    *,
    name: str,
    outputs: Path,
) -> Listing:
    """The listing of the class folders in ``train`` and ``val``, which lie in ``root``."""
    folders = {part: _data_folders(part, outputs) for part in (train, val)}
    ignored = [path for part, used in folders.items() for path in _others(part, used)]
    trained, validated = ([(folder.name, folder) for folder in used] for used in folders.values())
    return _listed(name, root, (trained, validated), f"{train}, {val}", ignored, notes)


def _splits_of_classes(root: Path, folders: Sequence[Path], outputs: Path) -> Listing | None:
    """The listing of CLASS/train and CLASS/val; None if no class has such folders."""
    found: dict[str, dict[str, list[Path]]] = {}
    for folder in folders:
        parts: dict[str, list[Path]] = {}
        for inner in _data_folders(folder, outputs):
            if part := part_of(inner.name):
                parts.setdefault(part, []).append(inner)
        if "train" in parts:
            found[folder.name] = parts
    if not any(len(parts) > 1 for parts in found.values()):
        return None
    held = "val" if any("val" in parts for parts in found.values()) else "test"
    for folder in folders:
        inside = [entry for entry in folder.iterdir() if not is_junk(entry.name)]
        used = [path for same in found.get(folder.name, {}).values() for path in same]
        if {*inside} != {*used} or any(len(same) > 1 for same in found[folder.name].values()):
            shown = few_names(sorted(entry.name for entry in inside), 4)
            raise DataError(
                f"some classes have folders for splits, as {next(iter(found))}, but {folder.name} "
                f"has {shown or 'nothing'}",
                where=str(root),
                fix="CLASS/train and CLASS/val for every class, or neither for any class",
            )
    trained = [(name, path) for name, parts in found.items() for path in parts["train"]]
    validated = [(name, path) for name, parts in found.items() for path in parts.get(held, [])]
    notes = [
        f"training on the folders CLASS/{trained[0][1].name}, "
        f"validation on CLASS/{validated[0][1].name}"
    ]
    if held == "val" and any("test" in parts for parts in found.values()):
        notes.append("left out, because CLASS/val is used: the folders CLASS/test")
    return _listed(
        "folder", root, (trained, validated), str(root), _others(root, folders), tuple(notes)
    )


def _refuse_equal_subfolders(folders: Sequence[Path], outputs: Path, where: str) -> None:
    """Refuse folders that hold folders of the same names: either of the two may be the classes."""
    inner = {}
    for folder in folders:
        if _holds_classes(folder):
            inner[folder.name] = {path.name for path in _data_folders(folder, outputs)}
    for first, second in combinations(inner, 2):
        if len(inner[first]) > 1 and inner[first] == inner[second]:
            raise DataError(
                f"the folders {first} and {second} have folders of the same names "
                f"({few_names(sorted(inner[first]), 4)}): are these the classes?",
                where=where,
                fix=f"if so: rename {first} to train and {second} to val. If not: data=table "
                "data.root=FILE.csv, with a path and a label in each line",
            )


def _listed(
    name: str,
    root: Path,
    parts: tuple[ClassFolders, ClassFolders],
    where: str,
    ignored: Sequence[str],
    notes: tuple[str, ...],
) -> Listing:
    """The listing of a set with a split of its own: training classes, validation classes."""
    trained, validated = parts
    paths, names, others = _scan(trained, root, may_be_empty=False)
    val_paths, val_names, val_others = _scan(validated, root, may_be_empty=True)
    for kind, found in (("training", paths), ("validation", val_paths)):
        if not found:
            raise DataError(
                f"no images found for {kind}: expected CLASS/IMAGE files",
                where=where,
                fix="data.root=PATH of a folder that holds train/CLASS and val/CLASS",
            )
    every = tuple(sorted({*names, *val_names}))
    labels = np.array(_labels(names + val_names, every), np.int64)
    is_val = np.arange(len(labels)) >= len(paths)
    notes += check_same_classes(every, labels, is_val, where) + note_similar_classes(every)
    left_out = [*ignored, *others, *val_others]
    notes += ignored_note(left_out, root)
    images = FileImages(root, tuple(paths + val_paths))
    return Listing(name, every, images, labels, is_val, len(left_out), notes)


def _scan(
    classes: ClassFolders, root: Path, *, may_be_empty: bool
) -> tuple[list[str], list[str], list[str]]:
    """Image paths relative to ``root``, the class of each, and the paths of what is left out.

    The images of a class may lie deeper. Sorted by name, so the order does not depend on the file
    system.
    """
    paths: list[str] = []
    names: list[str] = []
    ignored: list[str] = []
    for name, folder in classes:
        found = scan_files(folder)
        if not found.images and not may_be_empty:
            raise DataError(
                "a class folder without images",
                where=str(folder),
                fix="move the folder out of the data, or add images (jpg, png, tif, webp, avif …)",
            )
        paths += [os.path.relpath(path, root) for path in found.images]
        names += [name] * len(found.images)
        ignored += found.ignored
    return paths, names, ignored


def _others(folder: Path, used: Sequence[Path]) -> list[str]:
    """What else lies in ``folder``, apart from what is ours; folders with a slash at the end."""
    return [
        f"{entry}{os.sep if entry.is_dir() else ''}"
        for entry in sorted(folder.iterdir())
        if entry not in used and not (entry.is_dir() and is_ours(entry))
    ]


def descend(root: Path, outputs: Path) -> Path:
    """The single folder that archives usually hold; ``root`` if that has the content itself."""
    while True:
        folders = _data_folders(root, outputs)
        files = [entry for entry in root.iterdir() if not entry.is_dir()]
        if len(folders) != 1 or any(not is_junk(entry.name) for entry in files):
            return root
        (inner,) = folders
        if part_of(inner.name) == "train" or not _data_folders(inner, outputs):
            return root  # a split, or a single class folder with images, not a wrapper
        root = inner


def _data_folders(folder: Path, outputs: Path) -> list[Path]:
    """The folders directly below ``folder`` that may hold data, by name.

    Args:
        folder: the folder.
        outputs: where this command writes; it is no data, though nothing may be in it yet.

    Raises:
        OSError: ``folder`` cannot be read.
    """
    ours = (outputs, outputs / "cache", outputs / "sweeps")
    return [
        entry
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.is_dir()
        and not is_junk(entry.name)
        and not leads_back(entry)
        and not _is_all_ours(entry, ours)
    ]


def _is_all_ours(folder: Path, ours: tuple[Path, ...]) -> bool:
    """Whether ``folder`` is ours, or has nothing else in it, as ``results`` of results/outputs."""
    if is_ours(folder) or any(_is_same(folder, place) for place in ours):
        return True
    entries = [*folder.iterdir()]
    return bool(entries) and all(
        entry.is_dir() and (is_ours(entry) or any(_is_same(entry, place) for place in ours))
        for entry in entries
    )


def _is_same(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return False


def _holds_classes(folder: Path) -> bool:
    """Whether ``folder`` has folders, and no images next to them."""
    entries = [entry for entry in folder.iterdir() if not is_junk(entry.name)]
    has_images = any(entry.suffix.lower() in SUFFIXES for entry in entries if entry.is_file())
    return not has_images and any(entry.is_dir() for entry in entries)
