"""Write the images and the table of the example on imbalance: ``docs/imbalance.md``.

    python -m scripts.imbalanced_table imbalanced

The folder gets ``table.csv``, which is ``examples/imbalanced.csv``, and the images that the table
lists, 3,180 of the embedded ones. Takes a second.

The rule: class k of K = 10, in the order of the labels, has 600 · 50^(-k/(K-1)) training images,
rounded, so that the classes shrink by one factor and the first is fifty times the last (the
long-tailed sets of Cui et al. 2019, arXiv:1901.05555, are made so). They are the first ones of each
class in the order of the embedded data. All 150 validation images of each class are kept.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runner.data.embedded import FASHION_CLASSES, load_fashion

COMMITTED = Path(__file__).parents[1] / "examples" / "imbalanced.csv"
LARGEST, RATIO = 600, 50


def class_sizes() -> list[int]:
    """Return the number of training images of each class, in the order of the labels."""
    last = len(FASHION_CLASSES) - 1
    return [round(LARGEST * RATIO ** (-label / last)) for label in range(last + 1)]


def rows() -> Iterator[tuple[str, str, str, NDArray[np.uint8]]]:
    """Path, label, split and pixels of each image, training first, in the embedded order."""
    data, left = load_fashion(), class_sizes()
    for number, (image, label) in enumerate(zip(data.train_images, data.train_labels, strict=True)):
        if left[label] > 0:
            left[label] -= 1
            yield f"train/{number:04d}.png", data.classes[label], "train", image
    for number, (image, label) in enumerate(zip(data.val_images, data.val_labels, strict=True)):
        yield f"val/{number:04d}.png", data.classes[label], "val", image


def table() -> str:
    """Return the content of ``table.csv``."""
    lines = [f"{path},{label},{split}" for path, label, split, _ in rows()]
    return "\n".join(["path,label,split", *lines, ""])


def main() -> None:
    """Write the table and its images."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description="Write the images and the table of an example."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="for table.csv and images")
    folder = parser.parse_args().folder
    for name in ("train", "val"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for path, _, _, image in rows():
        Image.fromarray(image).save(folder / path)
    (folder / "table.csv").write_text(table())
    print(f"{folder / 'table.csv'}: {', '.join(map(str, class_sizes()))} training images by class")


if __name__ == "__main__":
    main()
