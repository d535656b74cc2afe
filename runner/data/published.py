"""Published data sets: embedded, downloaded, or where ``data.root`` has them."""

import csv
import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runner.config.schema import Data
from runner.data.download import fetch
from runner.data.embedded import FASHION_CLASSES, load_fashion
from runner.data.folder import descend, from_split_folders
from runner.data.idx import read_idx
from runner.data.images import ArrayImages
from runner.data.listing import Listing
from runner.data.places import download_progress, existing_root, unpacked, unpacked_place
from runner.data.store import Progress
from runner.errors import DataError
from runner.machine.files import read_whole
from runner.terminal.pasted import override

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


def list_fashion(data: Data, cache: Path, split_seed: int, progress: Progress) -> Listing:
    """See :func:`runner.data.sources.list_images`."""
    subset = load_fashion()
    return _from_arrays(
        "fashion",
        subset.classes,
        (subset.train_images, subset.train_labels),
        (subset.val_images, subset.val_labels),
    )


def list_fashion_mnist(data: Data, cache: Path, split_seed: int, progress: Progress) -> Listing:
    """See :func:`runner.data.sources.list_images`."""
    folder = existing_root(data) if data.root is not None else cache / "downloads" / "fashion-mnist"
    arrays = []
    for name, md5 in _FASHION_FILES.items():
        at_hand = [folder / name, folder / f"{name}.gz"]
        if data.root is None:
            path = fetch(
                _FASHION_URL.format(name),
                at_hand[1],
                checksum=f"md5:{md5}",
                progress=download_progress(name, progress),
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


def list_cifar10(data: Data, cache: Path, split_seed: int, progress: Progress) -> Listing:
    """See :func:`runner.data.sources.list_images`."""
    root = unpacked(data, cache, (_CIFAR_URL, _CIFAR_ARCHIVE, f"md5:{_CIFAR_MD5}"), progress)
    if (root / "cifar-10-batches-bin").is_dir():
        root = root / "cifar-10-batches-bin"

    def read(names: Iterable[str]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        rows = []
        for name in names:
            try:
                content = np.frombuffer(read_whole(root / name), dtype=np.uint8)
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


def list_imagenette(data: Data, cache: Path, split_seed: int, progress: Progress) -> Listing:
    """See :func:`runner.data.sources.list_images`."""
    stem, md5 = _IMAGENETTE[data.variant]
    archive = (_IMAGENETTE_URL.format(stem), f"{stem}.tgz", f"md5:{md5}")
    root = unpacked(data, cache, archive, progress)
    root = descend(root, cache.parent)
    if not (root / "train").is_dir() or not (root / "val").is_dir():
        raise DataError(
            "this is not Imagenette, which has the folders train and val",
            where=f"data.root={data.root or root}",
            fix="data.root= the unpacked folder or the .tgz, or leave it out to download",
        )
    listing = from_split_folders(root, data, outputs=cache.parent)
    if unknown := [name for name in listing.classes if name not in _IMAGENETTE_CLASSES]:
        raise DataError(
            f"not Imagenette: unexpected class folders {', '.join(unknown[:5])}",
            where=str(root),
            fix=f"data=folder {override('data.root', root)}",
        )
    labels = _noisy_labels(root, listing, data.label_noise) if data.label_noise else listing.labels
    classes = tuple(_IMAGENETTE_CLASSES[name] for name in listing.classes)
    return replace(listing, classes=classes, labels=labels)


def _noisy_labels(root: Path, listing: Listing, percent: int) -> NDArray[np.int64]:
    """Return the training labels with ``percent`` of them wrong, from Imagenette's own file."""
    path = root / "noisy_imagenette.csv"
    column = f"noisy_labels_{percent}"
    try:
        text = read_whole(path).decode()
        noisy = {row["path"]: row[column] for row in csv.DictReader(io.StringIO(text, newline=""))}
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


def is_at_hand(data: Data, cache: Path) -> bool:
    """Return whether :func:`list_images` needs neither download nor unpacking."""
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
    return place.is_file() and unpacked_place(place, cache) is not None
