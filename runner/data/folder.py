"""A folder with one folder of images per class, with or without folders for the splits."""

import os
from pathlib import Path

import numpy as np

from runner.config.schema import Data
from runner.data.images import SUFFIXES, FileImages
from runner.data.listing import (
    Listing,
    check_same_classes,
    note_single_images,
    stratified_split,
)
from runner.data.places import unpacked
from runner.data.scanning import ignored_note, is_junk, leads_back, scan_files
from runner.data.store import Progress
from runner.errors import DataError

_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}


def list_folder(data: Data, cache: Path, split_seed: int, progress: Progress) -> Listing:
    """See :func:`runner.data.sources.list_images`."""
    root = unpacked(data, cache, None, progress)
    root = descend(root)
    if (root / "train").is_dir() and (root / "val").is_dir():
        return from_split_folders(root, "folder")
    where = f"data.root={data.root}"
    if _holds_classes(root / "train"):  # and not a class that is called train
        raise DataError(
            "there is a folder train with classes in it but no folder val next to it",
            where=where,
            fix=f"rename the validation folder to val, or data.root={root / 'train'} to draw it",
        )
    classes, paths, labels, ignored = _scan_classes(root, root)
    if not paths:
        raise DataError(
            "no images found: expected CLASS/IMAGE files, or train/ and val/ with such folders",
            where=where,
            fix="data.root=PATH of a folder that holds one folder of images per class",
        )
    if {name.casefold() for name in classes} <= _SPLIT_NAMES:
        raise DataError(
            f"the folders {', '.join(classes)} look like splits, not classes",
            where=where,
            fix="call them train and val",
        )
    label_array = np.array(labels, np.int64)
    notes = (*note_single_images(classes, label_array), *ignored_note(ignored, root))
    is_val = stratified_split(label_array, data.val_fraction, split_seed)
    images = FileImages(root, tuple(paths))
    return Listing("folder", classes, images, label_array, is_val, len(ignored), notes)


def from_split_folders(root: Path, name: str) -> Listing:
    """The listing of the class folders in ``root/train`` and ``root/val``."""
    classes, paths, labels, ignored = _scan_classes(root / "train", root)
    val_classes, val_paths, val_labels, val_ignored = _scan_classes(root / "val", root)
    for folder, found in ((root / "train", paths), (root / "val", val_paths)):
        if not found:
            raise DataError(
                "no images found: expected CLASS/IMAGE files",
                where=str(folder),
                fix="data.root=PATH of a folder that holds train/CLASS and val/CLASS",
            )
    every = tuple(sorted({*classes, *val_classes}))
    label_of = {class_name: label for label, class_name in enumerate(every)}
    joined = [label_of[classes[label]] for label in labels]
    joined += [label_of[val_classes[label]] for label in val_labels]
    label_array = np.array(joined, np.int64)
    is_val = np.arange(len(label_array)) >= len(paths)
    notes = check_same_classes(every, label_array, is_val, f"{root / 'train'}, {root / 'val'}")
    images = FileImages(root, tuple(paths + val_paths))
    return Listing(
        name=name,
        classes=every,
        images=images,
        labels=label_array,
        is_val=is_val,
        num_ignored=len(ignored) + len(val_ignored),
        notes=(*notes, *ignored_note([*ignored, *val_ignored], root)),
    )


def descend(root: Path) -> Path:
    """The single folder that archives usually hold; ``root`` if that has the content itself."""
    while not (root / "train").is_dir():
        entries = [entry for entry in root.iterdir() if not is_junk(entry.name)]
        if len(entries) != 1 or not entries[0].is_dir() or leads_back(entries[0]):
            break
        inner = [entry for entry in entries[0].iterdir() if not is_junk(entry.name)]
        if not any(entry.is_dir() for entry in inner):
            break  # a single class folder with images, not a wrapper
        root = entries[0]
    return root


def _scan_classes(
    folder: Path, root: Path
) -> tuple[tuple[str, ...], list[str], list[int], list[str]]:
    """Classes, image paths relative to ``root``, labels, and the paths of what is left out.

    A class is a folder directly below ``folder``; its images may lie deeper. Sorted by name, so
    the order does not depend on the file system.
    """
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    names = [
        entry.name
        for entry in entries
        if entry.is_dir() and not is_junk(entry.name) and not leads_back(entry)
    ]
    paths: list[str] = []
    labels: list[int] = []
    ignored = [
        f"{entry}{os.sep if entry.is_dir() else ''}" for entry in entries if entry.name not in names
    ]
    for label, name in enumerate(names):
        found = scan_files(folder / name)
        if not found.images:
            raise DataError(
                "a class folder without images",
                where=str(folder / name),
                fix="remove the folder or add images (jpg, png, tif, webp, avif, jp2 …)",
            )
        paths += [os.path.relpath(path, root) for path in found.images]
        labels += [label] * len(found.images)
        ignored += found.ignored
    return tuple(names), paths, labels, ignored


def _holds_classes(folder: Path) -> bool:
    """Whether ``folder`` has folders, and no images next to them."""
    if not folder.is_dir():
        return False
    entries = [entry for entry in folder.iterdir() if not is_junk(entry.name)]
    has_images = any(entry.suffix.lower() in SUFFIXES for entry in entries if entry.is_file())
    return not has_images and any(entry.is_dir() for entry in entries)
