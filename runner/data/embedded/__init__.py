"""The embedded data set: 7,500 real images that come with the package.

A fixed, stratified subset of Fashion-MNIST (MIT license, see ``FASHION-MNIST-LICENSE`` next to
this file), built by ``scripts/build_fashion_subset.py``.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runner.errors import ArtefactError

# The names of the labels 0 to 9, for the subset and for the full data set.
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, eq=False)
class FashionSubset:
    """Images ``[count, 28, 28]`` and labels ``[count]`` (0 to 9) of both splits, all uint8.

    6,000 training images (600 per class) from Fashion-MNIST's training set and 1,500
    validation images (150 per class) from its test set, each split in its original order.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    val_images: NDArray[np.uint8]
    val_labels: NDArray[np.uint8]
    classes: tuple[str, ...] = FASHION_CLASSES


def load_fashion() -> FashionSubset:
    """Return the embedded subset of Fashion-MNIST, after a check of its SHA-256.

    Raises:
        ArtefactError: the packaged file is missing, unreadable, or not the one that was built.
    """
    path = _FOLDER / "fashion.npz"
    try:
        expected = (_FOLDER / "fashion.sha256").read_text(encoding="utf-8")[:64]
        content = path.read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(path, f"cannot be read ({error})") from error
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise _refused(path, f"was altered: SHA-256 {found}, expected {expected}")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return FashionSubset(
            train_images=arrays["train_images"],
            train_labels=arrays["train_labels"],
            val_images=arrays["val_images"],
            val_labels=arrays["val_labels"],
        )


def _refused(path: Path, reason: str) -> ArtefactError:
    return ArtefactError(
        f"the embedded data set {reason}", where=str(path), fix="reinstall trick-runner"
    )
