"""Every data set by its name: its images, their labels, and its split.

A source only lists images; opening, checking and caching them is the same for all.
"""

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runner.config.schema import Data
from runner.data.download import fetch, unpack
from runner.data.embedded import FASHION_CLASSES, load_fashion
from runner.data.idx import read_idx
from runner.data.images import SUFFIXES, ArrayImages, FileImages
from runner.data.listing import Listing, stratified_split
from runner.data.store import Progress
from runner.errors import DataError

# Addresses and MD5 as in torchvision.datasets.Imagenette.
_IMAGENETTE = {
    "full": ("imagenette2", "fe2fc210e6bb7c5664d602c3cd71e612"),
    "320": ("imagenette2-320", "3df6f0d01a2c9592104656642f5e78a3"),
    "160": ("imagenette2-160", "e793b78cc4c9e9a4ccc0c1155377a412"),
}
_IMAGENETTE_URL = "https://s3.amazonaws.com/fast-ai-imageclas/{}.tgz"
_IMAGENETTE_CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
# As in torchvision.datasets.FashionMNIST.
_FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{}.gz"
_FASHION_FILES = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
# The binary version, from https://www.cs.toronto.edu/~kriz/cifar.html; the Python one is pickled.
_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"
_CIFAR_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
_CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_CIFAR_ROW = 1 + 3 * 32 * 32

_ARCHIVES = (".tgz", ".tar", ".gz", ".tbz2", ".bz2", ".txz", ".xz", ".zip")
_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}
_NOT_CLASSES = ("__MACOSX",)


def list_images(data: Data, cache: Path, split_seed: int, progress: Progress) -> Listing:
    """List the data set that ``data`` names, downloading or unpacking it first where needed.

    Args:
        data: the ``data`` group of the configuration.
        cache: folder for downloads and unpacked archives.
        split_seed: seed of the split, if the data has none of its own.
        progress: called with the progress of a download.

    Raises:
        DataError: the data at ``data.root`` is not what the data set needs.
        StorageError: the data cannot be downloaded or written.
        ArtefactError: an archive was refused.
    """
    source = _SOURCES[data.name]
    try:
        return source(data, cache, split_seed, progress)
    except OSError as error:
        raise DataError(
            f"cannot read the data: {error.strerror or error}",
            where=str(error.filename or f"data.root={data.root}"),
            fix="make the files readable for yourself, as with chmod -R u+rX",
        ) from error


def _fashion(data: Data, cache: Path, split_seed: int, progress: Progress) -> Listing:
    subset = load_fashion()
    return _from_arrays(
        "fashion",
        subset.classes,
        (subset.train_images, subset.train_labels),
        (subset.val_images, subset.val_labels),
    )


def _fashion_mnist(data: Data, cache: Path, split_seed: int, progress: Progress) -> Listing:
    folder = _root(data) if data.root is not None else cache / "downloads" / "fashion-mnist"
    arrays = []
    for name, md5 in _FASHION_FILES.items():
        at_hand = [folder / name, folder / f"{name}.gz"]
        if data.root is None:
            path = fetch(
                _FASHION_URL.format(name),
                at_hand[1],
                checksum=f"md5:{md5}",
                progress=_download_progress(name, progress),
            )
        else:
            found = [path for path in at_hand if path.exists()]
            if not found:
                raise DataError(
                    f"{name}.gz is missing",
                    where=f"data.root={data.root}",
                    fix="data.root=FOLDER with the four *-ubyte.gz files of Fashion-MNIST",
                )
            path = found[0]
        arrays.append(read_idx(path))
    train_images, train_labels, val_images, val_labels = arrays
    return _from_arrays(
        "fashion_mnist", FASHION_CLASSES, (train_images, train_labels), (val_images, val_labels)
    )


def _cifar10(data: Data, cache: Path, split_seed: int, progress: Progress) -> Listing:
    root = _unpacked(data, cache, (_CIFAR_URL, _CIFAR_ARCHIVE, f"md5:{_CIFAR_MD5}"), progress)
    if (root / "cifar-10-batches-bin").is_dir():
        root = root / "cifar-10-batches-bin"

    def read(names: Iterable[str]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        rows = []
        for name in names:
            try:
                content = np.fromfile(root / name, dtype=np.uint8)
            except OSError as error:
                raise DataError(
                    f"cannot read {name}: {error.strerror}",
                    where=str(root),
                    fix="data.root= the folder or archive of CIFAR-10's binary version",
                ) from error
            if len(content) == 0 or len(content) % _CIFAR_ROW:
                raise DataError(f"{name} is truncated", where=str(root / name), fix="get it again")
            rows.append(content.reshape(-1, _CIFAR_ROW))
        table = np.concatenate(rows)
        images = table[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), table[:, 0]

    train = read(f"data_batch_{number}.bin" for number in range(1, 6))
    return _from_arrays("cifar10", _CIFAR_CLASSES, train, read(["test_batch.bin"]))


def _imagenette(data: Data, cache: Path, split_seed: int, progress: Progress) -> Listing:
    stem, md5 = _IMAGENETTE[data.variant]
    archive = (_IMAGENETTE_URL.format(stem), f"{stem}.tgz", f"md5:{md5}")
    root = _unpacked(data, cache, archive, progress)
    root = _descend(root)
    if not (root / "train").is_dir() or not (root / "val").is_dir():
        raise DataError(
            "this is not Imagenette, which has the folders train and val",
            where=f"data.root={data.root or root}",
            fix="data.root= the unpacked folder or the .tgz, or leave it out to download",
        )
    listing = _from_split_folders(root, "imagenette")
    if unknown := [name for name in listing.classes if name not in _IMAGENETTE_CLASSES]:
        raise DataError(
            f"not Imagenette: unexpected class folders {', '.join(unknown[:5])}",
            where=str(root),
            fix=f"data=folder data.root={root}",
        )
    labels = _noisy_labels(root, listing, data.label_noise) if data.label_noise else listing.labels
    classes = tuple(_IMAGENETTE_CLASSES[name] for name in listing.classes)
    return replace(listing, classes=classes, labels=labels)


def _noisy_labels(root: Path, listing: Listing, percent: int) -> NDArray[np.int64]:
    """The training labels with ``percent`` of them wrong, from Imagenette's own file."""
    path = root / "noisy_imagenette.csv"
    column = f"noisy_labels_{percent}"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            noisy = {row["path"]: row[column] for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"no noisy labels: cannot read {column} of {path.name}",
            where=f"data.label_noise={percent} ({path})",
            fix="data.label_noise=0, or a complete copy of Imagenette v2",
        ) from error
    label_of = {name: label for label, name in enumerate(listing.classes)}
    labels = listing.labels.copy()
    for index in np.flatnonzero(~listing.is_val):
        name = listing.images.name(int(index))
        if noisy.get(name) not in label_of:
            raise DataError(
                f"{path.name} has no valid {column} for {name}",
                where=str(path),
                fix="data.label_noise=0, or a complete copy of Imagenette v2",
            )
        labels[index] = label_of[noisy[name]]
    return labels


def _folder(data: Data, cache: Path, split_seed: int, progress: Progress) -> Listing:
    root = _unpacked(data, cache, None, progress)
    root = _descend(root)
    if (root / "train").is_dir() and (root / "val").is_dir():
        return _from_split_folders(root, "folder")
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
    notes = _single_images(classes, label_array)
    is_val = stratified_split(label_array, data.val_fraction, split_seed)
    images = FileImages(root, tuple(paths))
    return Listing("folder", classes, images, label_array, is_val, ignored, notes)


def _table(data: Data, cache: Path, split_seed: int, progress: Progress) -> Listing:
    path = _root(data)
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
        notes = _single_images(classes, labels)
    else:
        allowed = {"train": False, "val": True, "valid": True, "validation": True, "test": True}
        if wrong := sorted(set(splits) - set(allowed)):
            raise DataError(
                f"split must say train or val, not {_few_names(wrong)}",
                where=f"data.split_column={data.split_column} ({path})",
            )
        is_val = np.array([allowed[split] for split in splits])
        notes = _check_same_classes(classes, labels, is_val, f"{path}")
    images = FileImages(path.parent, tuple(paths))
    return Listing("table", classes, images, labels, is_val, notes=notes)


def _rows(reader: "csv.DictReader[str]", path: Path) -> Iterator[dict[str, str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(
            f"cannot read the table: {error}", where=f"{path}, line {reader.line_num}"
        ) from error


def _single_images(classes: tuple[str, ...], labels: NDArray[np.int64]) -> tuple[str, ...]:
    """A note on the classes that have no image in the validation split that was drawn."""
    counts = np.bincount(labels, minlength=len(classes))
    single = [name for name, count in zip(classes, counts, strict=True) if count == 1]
    return (
        (f"{_few_names(single)}: one image only, which stays in the training split",)
        if single
        else ()
    )


_SOURCES: dict[str, Callable[[Data, Path, int, Progress], Listing]] = {
    "fashion": _fashion,
    "fashion_mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "imagenette": _imagenette,
    "folder": _folder,
    "table": _table,
}


def _root(data: Data) -> Path:
    """``data.root`` as a path that exists."""
    assert data.root is not None, "checked in schema"
    path = Path(data.root)
    reason = "no such file or folder"
    try:
        path = path.expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError) as error:  # no permission, name too long, no such user
        reason = f"cannot read it: {getattr(error, 'strerror', None) or error}"
    raise DataError(
        reason,
        where=f"data.root={data.root} ({path.absolute()})",
        fix="data.root=PATH, in quotes of its own if it has special characters",
    )


def _unpacked(
    data: Data, cache: Path, download: tuple[str, str, str] | None, progress: Progress
) -> Path:
    """The folder of ``data.root``, unpacked if that is an archive, downloaded if it is null."""
    if data.root is None and download is not None:
        url, file_name, checksum = download
        archive = fetch(
            url,
            cache / "downloads" / file_name,
            checksum=checksum,
            progress=_download_progress(file_name, progress),
        )
    else:
        archive = _root(data)
    if archive.is_dir():
        return archive
    if archive.suffix.lower() not in _ARCHIVES:  # `unpack` checks the content safely
        raise DataError(
            "neither a folder nor a .tgz, .tar or .zip archive",
            where=f"data.root={data.root}",
            fix="data.root=FOLDER_OR_ARCHIVE",
        )
    return unpack(archive, _place_of(archive, cache))


def _place_of(archive: Path, cache: Path) -> Path:
    """The folder into which an archive is unpacked; other content has another folder."""
    status = archive.stat()
    name = archive.name.partition(".")[0] or "archive"
    return cache / "unpacked" / f"{name}-{status.st_size:x}-{status.st_mtime_ns:x}"


def is_at_hand(data: Data, cache: Path) -> bool:
    """Whether :func:`list_images` needs neither download nor unpacking."""
    downloads = cache / "downloads"
    if data.name == "fashion":
        return True
    if data.name == "fashion_mnist" and data.root is None:
        folder = downloads / "fashion-mnist"
        return all((folder / f"{name}.gz").is_file() for name in _FASHION_FILES)
    if data.root is not None:
        place = Path(data.root).expanduser()
    elif data.name == "imagenette":
        place = downloads / f"{_IMAGENETTE[data.variant][0]}.tgz"
    else:
        place = downloads / _CIFAR_ARCHIVE
    if place.is_dir() or data.name in ("table", "fashion_mnist"):
        return place.exists()
    return place.is_file() and _place_of(place, cache).is_dir()


def _descend(root: Path) -> Path:
    """The single folder that archives usually hold; ``root`` if that has the content itself."""
    while not (root / "train").is_dir():
        entries = [entry for entry in root.iterdir() if not _is_junk(entry.name)]
        if len(entries) != 1 or not entries[0].is_dir():
            break
        inner = [entry for entry in entries[0].iterdir() if not _is_junk(entry.name)]
        if not any(entry.is_dir() for entry in inner):
            break  # a single class folder with images, not a wrapper
        root = entries[0]
    return root


def _from_arrays(
    name: str,
    classes: tuple[str, ...],
    train: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    val: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> Listing:
    images = np.concatenate([train[0], val[0]])
    labels = np.concatenate([train[1], val[1]]).astype(np.int64)
    if len(images) != len(labels):
        raise DataError(f"{name} has {len(images)} images but {len(labels)} labels")
    if labels.max(initial=0) >= len(classes):
        raise DataError(f"{name} has the label {labels.max()} but only {len(classes)} classes")
    is_val = np.arange(len(images)) >= len(train[0])
    return Listing(name, classes, ArrayImages(name, images), labels, is_val)


def _from_split_folders(root: Path, name: str) -> Listing:
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
    notes = _check_same_classes(every, label_array, is_val, f"{root / 'train'}, {root / 'val'}")
    images = FileImages(root, tuple(paths + val_paths))
    return Listing(
        name=name,
        classes=every,
        images=images,
        labels=label_array,
        is_val=is_val,
        num_ignored=ignored + val_ignored,
        notes=notes,
    )


def _check_same_classes(
    classes: tuple[str, ...], labels: NDArray[np.int64], is_val: NDArray[np.bool_], where: str
) -> tuple[str, ...]:
    """Refuse classes without training images; return a note on those without validation images."""
    trained, validated = set(labels[~is_val].tolist()), set(labels[is_val].tolist())
    if unlearnt := [name for label, name in enumerate(classes) if label not in trained]:
        raise DataError(
            f"in validation but not in training: {_few_names(unlearnt)}",
            where=where,
            fix="add training images of these classes or remove them from validation",
        )
    missing = [name for label, name in enumerate(classes) if label not in validated]
    return (f"no validation images of {_few_names(missing)}",) if missing else ()


def _scan_classes(folder: Path, root: Path) -> tuple[tuple[str, ...], list[str], list[int], int]:
    """Classes, image paths relative to ``root``, labels, and the number of other files.

    A class is a folder directly below ``folder``; its images may lie deeper. Sorted by name, so
    the order does not depend on the file system.
    """
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    names = [entry.name for entry in entries if entry.is_dir() and not _is_junk(entry.name)]
    paths: list[str] = []
    labels: list[int] = []
    ignored = sum(1 for entry in entries if not entry.is_dir())
    for label, name in enumerate(names):
        found, others = scan_files(folder / name)
        if not found:
            raise DataError(
                "a class folder without images",
                where=str(folder / name),
                fix="remove the folder or add images "
                f"({', '.join(sorted(suffix.lstrip('.') for suffix in SUFFIXES))})",
            )
        paths += [os.path.relpath(path, root) for path in found]
        labels += [label] * len(found)
        ignored += others
    return tuple(names), paths, labels, ignored


def scan_files(folder: Path) -> tuple[list[str], int]:
    """Image paths below ``folder``, sorted, and the number of other files.

    Links to folders are not followed, so that a loop cannot trap the walk; each counts as a file.
    """

    def stop(error: OSError) -> None:
        raise error  # os.walk would leave out a folder that it cannot read

    found, ignored = [], 0
    for parent, folders, files in os.walk(folder, onerror=stop, followlinks=False):
        folders[:] = sorted(name for name in folders if not _is_junk(name))
        ignored += sum(1 for name in folders if Path(parent, name).is_symlink())
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES and not _is_junk(name):
                found.append(os.path.join(parent, name))  # noqa: PTH118  a string for millions
            else:
                ignored += 1
    return found, ignored


def _holds_classes(folder: Path) -> bool:
    """Whether ``folder`` has folders, and no images next to them."""
    if not folder.is_dir():
        return False
    entries = [entry for entry in folder.iterdir() if not _is_junk(entry.name)]
    has_images = any(entry.suffix.lower() in SUFFIXES for entry in entries if entry.is_file())
    return not has_images and any(entry.is_dir() for entry in entries)


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name in _NOT_CLASSES


def _few_names(names: list[str], limit: int = 10) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _download_progress(name: str, progress: Progress) -> Callable[[int, int | None], None]:
    return lambda done, total: progress(f"downloading {name}", done, total or 0)
