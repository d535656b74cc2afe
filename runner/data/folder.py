"""A folder with one folder of images per class, with or without folders for the splits.

Three layouts are known: CLASS/IMAGE, whose split is drawn; train/CLASS/IMAGE next to
val/CLASS/IMAGE; and CLASS/train/IMAGE next to CLASS/val/IMAGE. In the latter two, a part ``test``
stays apart; if there is no ``val`` next to it, validation images are drawn from ``train``. Parts
may have the other names that :func:`runner.data.layout.part_of` knows. Whatever else looks like
splits is refused, because a network that learns to tell splits apart looks like one that works.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from runner.config.schema import Data
from runner.data.grouping import groups_by_pattern
from runner.data.images import SUFFIXES, FileImages
from runner.data.layout import PARTS, Part, is_junk, is_ours, part_of
from runner.data.listing import (
    Listing,
    few_names,
    is_test_part,
    note_similar_classes,
    note_test_part,
)
from runner.data.places import unpacked
from runner.data.scanning import ignored_note, leads_back, scan_files
from runner.data.splitting import with_split
from runner.data.store import Progress
from runner.errors import DataError
from runner.terminal.pasted import override

ClassFolders = Sequence[tuple[str, Path]]
"""Names of classes, each with a folder of its images; a class may have none or several."""


@dataclass(frozen=True)
class _Parts:
    """The class folders of each part.

    Attributes:
        train: of the training images.
        val: of the validation images; None if they are drawn from those of ``train``.
        test: of the test images.
        val_place: where the validation images are, for messages.
        test_place: where the test images are, for notes.
    """

    train: ClassFolders
    val: ClassFolders | None = None
    test: ClassFolders = ()
    val_place: str = ""
    test_place: str = ""


def list_folder(data: Data, cache: Path, split_seed: int, progress: Progress) -> Listing:
    """See :func:`runner.data.sources.list_images`."""
    outputs = cache.parent
    root = descend(unpacked(data, cache, None, progress), outputs)
    folders = _data_folders(root, outputs)
    if (chosen := _split_folders(root, folders)) is not None:
        return _listed(root, *_parts_of_splits(root, chosen, outputs), data, split_seed)
    where = f"data.root={data.root}"
    if folders and all(part_of(folder.name) for folder in folders):
        raise DataError(
            f"the folders {few_names([folder.name for folder in folders])} look like splits, "
            "not classes, and have no class folders",
            where=where,
            fix="one folder per class in each of them, as train/CLASS and val/CLASS",
        )
    if (inner := _splits_of_classes(root, folders, outputs)) is not None:
        return _listed(root, *inner, data, split_seed)
    _refuse_equal_subfolders(folders, outputs, where)
    parts = _Parts([(folder.name, folder) for folder in folders])
    return _listed(root, parts, where, _others(root, folders), (), data, split_seed)


def _split_folders(
    root: Path, folders: Sequence[Path]
) -> tuple[dict[Part, Path], tuple[str, ...]] | None:
    """Return the folders of the parts, ``train`` among them, with notes; None without splits."""
    named: dict[Part, list[Path]] = {
        part: [folder for folder in folders if part_of(folder.name) == part] for part in PARTS
    }
    exact = {folder.name for folder in folders}
    if not named["train"] or not (
        {"train", "val"} <= exact or any(_holds_classes(folder) for folder in named["train"])
    ):
        return None  # or a class that is called train
    for same in named.values():
        if len(same) > 1:
            raise DataError(
                f"several folders for one split: {few_names([folder.name for folder in same])}",
                where=str(root),
                fix="keep one of them here, and move the others elsewhere",
            )
    chosen = {part: same[0] for part, same in named.items() if same}
    train = chosen["train"]
    if len(chosen) == 1:
        to_draw = override("data.root", train)
        raise DataError(
            f"there is a folder {train.name} with classes in it but no folder val next to it",
            where=f"data.root={root}",
            fix=f"rename the validation folder to val, or {to_draw} to draw it",
        )
    notes = []
    if "val" in chosen and (train.name, chosen["val"].name) != ("train", "val"):
        notes.append(
            f"training on the folder {train.name}, validation on the folder {chosen['val'].name}"
        )
    if others := [folder.name for folder in folders if folder not in chosen.values()]:
        used = " and ".join(folder.name for folder in chosen.values())
        notes.append(f"left out, because {used} are used: {few_names(others)}")
    return chosen, tuple(notes)


def _parts_of_splits(
    root: Path, chosen: tuple[dict[Part, Path], tuple[str, ...]], outputs: Path
) -> tuple[_Parts, str, list[str], tuple[str, ...]]:
    """Return the class folders of the parts, where they are, what else lies there, and notes."""
    folders, notes = chosen
    classes: dict[Part, ClassFolders] = {}
    ignored: list[str] = []
    for part, folder in folders.items():
        used = _data_folders(folder, outputs)
        classes[part] = [(path.name, path) for path in used]
        if used or part != "test":  # all of the other test parts is left out, with a note
            ignored += _others(folder, used)
    val_place, test_place = (
        f"the folder {folders[part].name}" if part in folders else "" for part in PARTS[1:]
    )
    parts = _Parts(
        classes["train"], classes.get("val"), classes.get("test", ()), val_place, test_place
    )
    if test_place and not parts.test:
        notes += (f"{test_place} is left out: it has no class folders",)
    places = ", ".join(str(root / folders[part].name) for part in PARTS if part in folders)
    return parts, places, ignored, notes


def from_split_folders(root: Path, data: Data, *, outputs: Path) -> Listing:
    """Return the listing of the class folders in ``train`` and ``val``, which lie in ``root``."""
    folders: dict[Part, Path] = {"train": root / "train", "val": root / "val"}
    return _listed(root, *_parts_of_splits(root, (folders, ()), outputs), data, 0)


def _splits_of_classes(
    root: Path, folders: Sequence[Path], outputs: Path
) -> tuple[_Parts, str, list[str], tuple[str, ...]] | None:
    """As :func:`_parts_of_splits` of CLASS/train and CLASS/val; None if there are none."""
    found: dict[str, dict[Part, list[Path]]] = {}
    for folder in folders:
        parts: dict[Part, list[Path]] = {}
        for inner in _data_folders(folder, outputs):
            if part := part_of(inner.name):
                parts.setdefault(part, []).append(inner)
        if "train" in parts:
            found[folder.name] = parts
    if not any(len(parts) > 1 for parts in found.values()):
        return None
    for folder in folders:
        inside = [entry for entry in folder.iterdir() if not is_junk(entry.name)]
        own = found.get(folder.name, {})
        used = [path for same in own.values() for path in same]
        if {*inside} != {*used} or any(len(same) > 1 for same in own.values()) or not own:
            shown = few_names(sorted(entry.name for entry in inside), 4)
            raise DataError(
                f"some classes have folders for splits, as {next(iter(found))}, but {folder.name} "
                f"has {shown or 'nothing'}",
                where=str(root),
                fix="CLASS/train and CLASS/val for every class, or neither for any class",
            )
    classes: dict[Part, list[tuple[str, Path]]] = {
        part: [(name, path) for name, parts in found.items() for path in parts.get(part, [])]
        for part in PARTS
    }
    notes = [f"training on the folders CLASS/{classes['train'][0][1].name}"]
    if classes["val"]:
        notes[0] += f", validation on CLASS/{classes['val'][0][1].name}"
    val_place, test_place = (
        f"folders CLASS/{classes[part][0][1].name}" if classes[part] else "" for part in PARTS[1:]
    )
    chosen = _Parts(
        classes["train"], classes["val"] or None, classes["test"], val_place, test_place
    )
    return chosen, str(root), _others(root, folders), tuple(notes)


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
    root: Path,
    parts: _Parts,
    where: str,
    ignored: Sequence[str],
    notes: tuple[str, ...],
    data: Data,
    split_seed: int,
) -> Listing:
    """Return the listing of the images in the class folders of each part."""
    paths, names, others = _scan(parts.train, root, may_be_empty=False)
    val_paths, val_names, val_others = _scan(parts.val or (), root, may_be_empty=True)
    test_paths, test_names, test_others = _scan(parts.test, root, may_be_empty=True)
    is_split = parts.val is not None
    _check_found(paths, val_paths if is_split else None, where)
    every = tuple(sorted({*names, *val_names}))
    if parts.test and not is_test_part(test_names, every, where):
        notes += (f"{parts.test_place} is left out: it has no images of the classes of training",)
        test_paths, test_names = [], []
    if test_paths:
        notes += (note_test_part(len(test_paths), parts.test_place),)
    label_of = {name: label for label, name in enumerate(every)}
    labels = np.array([label_of[name] for name in names + val_names + test_names], np.int64)
    places = np.arange(len(labels))
    is_train, is_test = places < len(paths), places >= len(paths) + len(val_paths)
    left_out = [*ignored, *others, *val_others, *test_others]
    paths += val_paths + test_paths
    listing = Listing(
        name=data.name,
        classes=every,
        images=FileImages(root, tuple(paths)),
        labels=labels,
        is_val=~is_train & ~is_test,
        num_ignored=len(left_out),
        notes=notes,
        is_test=is_test if test_paths else None,
    )
    pattern = data.group_pattern
    listing = with_split(
        listing,
        data,
        split_seed,
        own=parts.val_place if is_split else None,
        group_names=None if pattern is None else groups_by_pattern(pattern, paths),
        where=where,
    )
    more = note_similar_classes(every) + ignored_note(left_out, root)
    return replace(listing, notes=listing.notes + more)


def _check_found(paths: Sequence[str], val_paths: Sequence[str] | None, where: str) -> None:
    """Raise if a part has no images; ``val_paths`` is None if there is no validation part."""
    if val_paths is None and not paths:
        raise DataError(
            "no images found: expected CLASS/IMAGE files, or train/ and val/ with such folders",
            where=where,
            fix="data.root=PATH of a folder that holds one folder of images per class",
        )
    for kind, found in (("training", paths), ("validation", val_paths)):
        if found is not None and not found:
            raise DataError(
                f"no images found for {kind}: expected CLASS/IMAGE files",
                where=where,
                fix="data.root=PATH of a folder that holds train/CLASS and val/CLASS",
            )


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
    """Return other names in ``folder``, without ours; folders with a slash at the end."""
    return [
        f"{entry}{os.sep if entry.is_dir() else ''}"
        for entry in sorted(folder.iterdir())
        if entry not in used and not (entry.is_dir() and is_ours(entry))
    ]


def descend(root: Path, outputs: Path) -> Path:
    """Return the single folder of an unpacked archive; ``root`` if that has the content itself."""
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
    """Return the folders directly below ``folder`` that may hold data, by name.

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
    """Return whether ``folder`` is ours, or holds only our folders, as ``results/outputs``."""
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
    """Return whether ``folder`` has folders, and no images next to them."""
    entries = [entry for entry in folder.iterdir() if not is_junk(entry.name)]
    has_images = any(entry.suffix.lower() in SUFFIXES for entry in entries if entry.is_file())
    return not has_images and any(entry.is_dir() for entry in entries)
