"""Build the embedded data set: a fixed, stratified subset of Fashion-MNIST.

    python scripts/build_fashion_subset.py /usr/share/datasets/fashion-mnist

The argument is a folder with the four original IDX files, gzipped (``*-ubyte.gz``). Debian's
package ``dataset-fashion-mnist`` puts them into the folder above. Takes a few seconds.

The subset has 6,000 training images (600 per class, from the original training set) and 1,500
validation images (150 per class, from the original test set), gray, 28×28, uint8. For each
split and class, rows are drawn without looking at the images: every row of the class gets a
64-bit number from Philox, whose 128-bit key is the first half of the SHA-256 of
``"fashion subset 1: <split> <label>"``, and the rows with the smallest numbers are taken. The
chosen rows are stored in their original order, so the classes stay mixed.

Every run writes the same bytes (with any recent version of the zlib of zlib.net; other
implementations of deflate pack the same arrays differently).
"""

import argparse
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runner.data.idx import read_idx
from runner.errors import DataError, RunnerError

OUTPUT = Path(__file__).parents[1] / "runner" / "data" / "embedded"
NUM_CLASSES = 10
# split -> (prefix of the original files, images per class in them, images per class we take)
SPLITS = {"train": ("train", 6000, 600), "val": ("t10k", 1000, 150)}


def chosen_rows(labels: NDArray[np.uint8], split: str, per_class: int) -> NDArray[np.int32]:
    """Return the rows of the subset, ascending: the same number from each class.

    Args:
        labels: ``[count]``, the label of every original row, 0 to 9.
        split: ``train`` or ``val``; part of the random key.
        per_class: number of rows to take from each class, at most the size of the class.
    """
    chosen = []
    for label in range(NUM_CLASSES):
        rows = np.flatnonzero(labels == label)
        digest = hashlib.sha256(f"fashion subset 1: {split} {label}".encode()).digest()
        key = int.from_bytes(digest[:16], "little")
        # Raw numbers and a sort, because numpy may change `Generator.permutation` between
        # versions, but not the raw stream of a bit generator.
        order = np.argsort(np.random.Philox(key=key).random_raw(len(rows)), kind="stable")
        chosen.append(rows[order[:per_class]])
    return np.sort(np.concatenate(chosen)).astype(np.int32)


def subset(source: Path) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of the subset by name.

    Args:
        source: the folder with the original ``*-ubyte.gz`` files.

    Raises:
        DataError: a file is missing or broken, or does not have the size of Fashion-MNIST.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    for split, (prefix, available, per_class) in SPLITS.items():
        images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
        total = NUM_CLASSES * available
        counts = np.bincount(labels.ravel(), minlength=NUM_CLASSES).tolist()
        if images.shape != (total, 28, 28) or labels.shape != (total,):
            raise DataError(
                f"not Fashion-MNIST: images {images.shape}, labels {labels.shape}",
                where=str(source / f"{prefix}-*"),
                fix="give the folder with the original files",
            )
        if counts != [available] * NUM_CLASSES:
            raise DataError(
                f"not Fashion-MNIST: images per class {counts}, not {available} each",
                where=str(source / f"{prefix}-labels-idx1-ubyte.gz"),
                fix="give the folder with the original files",
            )
        rows = chosen_rows(labels, split, per_class)
        arrays[f"{split}_images"] = images[rows]
        arrays[f"{split}_labels"] = labels[rows]
        arrays[f"{split}_index"] = rows
    return arrays


def npz_bytes(arrays: dict[str, NDArray[np.generic]]) -> bytes:
    """Return an .npz file with the arrays.

    ``numpy.savez_compressed`` stamps each entry with the current time; this function does not.
    """
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            # Little-endian on any machine, and always the same header version.
            little = array.astype(array.dtype.newbyteorder("<"))
            np.lib.format.write_array(content, little, version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)
    return output.getvalue()


def main() -> None:
    """Write ``fashion.npz`` and ``fashion.sha256`` into the output folder."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="folder with the *-ubyte.gz files")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="default: the package")
    options = parser.parse_args()
    try:
        content = npz_bytes(subset(options.source))
    except RunnerError as error:
        raise SystemExit(str(error)) from None
    digest = hashlib.sha256(content).hexdigest()
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "fashion.npz").write_bytes(content)
    (options.output / "fashion.sha256").write_text(f"{digest}  fashion.npz\n", encoding="utf-8")
    print(f"{options.output / 'fashion.npz'}: {len(content):,} bytes, SHA-256 {digest}")


if __name__ == "__main__":
    main()
