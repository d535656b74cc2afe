"""Pixels and image files for the tests of this folder."""

import io

import numpy as np
from PIL import Image


def random_pixels(number, height=12, width=16):
    """Pixels (height, width, 3) that no other number gives."""
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(pixels, kind="PNG", **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()
