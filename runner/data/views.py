"""Views: the squares that are cut out of an image, for training and evaluation alike."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class View:
    """One way to look at an image.

    Attributes:
        x: place of the square along the width, 0 left .. 1 right.
        y: place of the square along the height, 0 top .. 1 bottom.
        side: side of the square / short side of the image, in 0..1.
        flip: whether the square is mirrored.
        scale: size / evaluation size.
    """

    x: float = 0.5
    y: float = 0.5
    side: float = 1.0
    flip: bool = False
    scale: float = 1.0


def plain_view(crop: float = 1.0) -> View:
    """Return the center square that evaluation uses, of side ``crop`` × short side."""
    return View(side=crop)


def cut(rectangle: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    """Cut the square of ``view`` from an image (H, W, C), without scaling or mirroring."""
    height, width = rectangle.shape[:2]
    side = max(1, round(min(height, width) * view.side))
    top, left = round(view.y * (height - side)), round(view.x * (width - side))
    return rectangle[top : top + side, left : left + side]
