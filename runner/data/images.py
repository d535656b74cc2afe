"""Open any image as the uint8 RGB rectangle that training, evaluation and prediction work on.

The policy, one for all of them: the first frame; EXIF orientation applied; transparency laid over
white; grayscale repeated in three channels; more than 8 bits scaled to 8 by the data set's rule
(see :mod:`runner.data.depth`); CMYK and palettes converted; then shrunk or enlarged so that the
short side is the presize, and cut evenly at both ends where the long side exceeds a stated multiple
of it.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runner.data.decoding import (
    LARGEST_FILE,
    BrokenImageError,
    Picture,
    border,
    decode,
    header_size,
    is_deep,
    orientation_of,
)
from runner.data.depth import BITS, EIGHT_BITS, Deep, Depth, Values, measured
from runner.data.preprocess import Interpolation
from runner.machine.files import open_regular, read_whole, stamp_of

SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".avifs", ".bmp",
    ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".j2c",
    ".jpc", ".jpf", ".jpx", ".tga", ".icb", ".vda", ".vst", ".qoi", ".pcx", ".dcx", ".sgi", ".rgb",
    ".rgba", ".bw", ".ras", ".xbm", ".xpm", ".psd", ".dds", ".ftc", ".ftu", ".blp", ".fli", ".flc",
    ".gbr", ".im", ".msp", ".pcd", ".pxr", ".ico", ".icns",
    ".heic", ".heics", ".heif", ".heifs", ".hif", ".jxl",
})  # fmt: skip
"""Suffixes of image files; the other files of a folder are counted and ignored.

All that Pillow reads, except what is no picture or needs a program (cursors, PostScript, metafiles,
video, containers of scientific data), and HEIC and JPEG XL, which it reads with a package.
"""

_BACKGROUND = (255, 255, 255)
_FILTERS: dict[Interpolation, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ChangedImageError(Exception):
    """An image whose content is no longer what it was."""


class Images(Protocol):
    """Images in a fixed order, not opened yet."""

    def __len__(self) -> int: ...

    def subset(self, indices: NDArray[np.int64]) -> "Images":
        """Return the images at ``indices``, in that order."""
        ...

    def name(self, index: int) -> str:
        """Return the name of the image in messages and manifests: a path or a position."""
        ...

    def stamp(self) -> str:
        """Return a key that is cheap to compute and changes when the content of the images does."""
        ...

    def content(self, index: int) -> bytes:
        """Return the bytes that identify the image. Raises BrokenImageError if unreadable."""
        ...

    def open(self, index: int, digest: str | None = None) -> Picture:
        """Open and decode the image. Raises BrokenImageError if it is unreadable.

        Raises ChangedImageError if ``digest`` is given and is not the SHA-256 of the content.
        """
        ...

    def values(self, index: int) -> Values | None:
        """Return the extremes of an image of more than 8 bits per channel; None for another one.

        Only headers are read of other images. Raises BrokenImageError if unreadable.
        """
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Shorter and longer side, px, from the header. Raises BrokenImageError if unreadable."""
        ...


@dataclass(frozen=True)
class FileImages:
    """Image files below ``root``, by paths relative to it."""

    root: Path
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: NDArray[np.int64]) -> "FileImages":
        """Return the files at ``indices``, in that order."""
        return FileImages(self.root, tuple(self.paths[index] for index in indices.tolist()))

    def name(self, index: int) -> str:
        """Return the path relative to ``root``."""
        return self.paths[index]

    def stamp(self) -> str:
        """Hash of every path with its device, inode, size, and times of change."""
        # The root too: two data sets may agree in all names, sizes and times.
        digest = hashlib.sha256(os.fsencode(self.root.resolve()) + b"\0")
        for path in self.paths:
            try:
                found = "\0".join(map(str, stamp_of((self.root / path).stat())))
            except OSError as error:
                found = str(error.errno)
            digest.update(os.fsencode(path) + f"\0{found}\n".encode())
        return digest.hexdigest()

    def content(self, index: int) -> bytes:
        """Read the file."""
        try:
            return read_whole(self.root / self.paths[index], at_most=LARGEST_FILE)
        except OSError as error:
            raise BrokenImageError(error.strerror or str(error)) from error

    def open(self, index: int, digest: str | None = None) -> Picture:
        """Read and decode the file. The digest takes a fiftieth of the time of decoding."""
        content = self.content(index)
        if digest is not None and hashlib.sha256(content).hexdigest() != digest:
            raise ChangedImageError
        return decode(content)

    def values(self, index: int) -> Values | None:
        """Read the header of the file, and all of a deep one."""
        with border(), open_regular(self.root / self.paths[index]) as file:
            if not is_deep(file):
                return None
        picture = self.open(index)
        return measured(picture) if isinstance(picture, Deep) else None

    def size(self, index: int) -> tuple[int, int]:
        """Read the shorter and the longer side, px, from the header of the file."""
        with border(), open_regular(self.root / self.paths[index]) as file:
            return header_size(file)


@dataclass(frozen=True)
class ArrayImages:
    """Images (n, H, W) or (n, H, W, 3) of uint8 in memory."""

    origin: str
    array: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.array)

    def subset(self, indices: NDArray[np.int64]) -> "ArrayImages":
        """Return the images at ``indices``, in that order."""
        return ArrayImages(self.origin, self.array[indices])

    def name(self, index: int) -> str:
        """Return the origin of the array and the position of the image in it."""
        return f"{self.origin}/{index:05d}"

    def stamp(self) -> str:
        """Hash of the shape and the pixels of the array."""
        shape = str(self.array.shape).encode()
        return hashlib.sha256(shape + np.ascontiguousarray(self.array).tobytes()).hexdigest()

    def content(self, index: int) -> bytes:
        """Return the pixels of the image as bytes, row by row."""
        pixels: bytes = self.array[index].tobytes()
        return pixels

    def open(self, index: int, digest: str | None = None) -> Image.Image:
        """Return the image as an object of Pillow. Nobody else can change the array."""
        return Image.fromarray(self.array[index])

    def values(self, index: int) -> Values | None:
        """None, because the array has 8 bits."""
        return None

    def size(self, index: int) -> tuple[int, int]:
        """Shorter and longer side of the image, px."""
        sides = [int(side) for side in self.array.shape[1:3]]
        return min(sides), max(sides)


def to_rgb(picture: Picture, depth: Depth = BITS) -> tuple[Image.Image, str | None]:
    """Turn an image upright and convert it to RGB; the mode is its own one, None if it was RGB.

    Args:
        picture: the decoded image.
        depth: the rule for images of more than 8 bits per channel.

    Raises:
        BrokenImageError: the rule cannot tell what the values of the image mean.
    """
    with border():  # conversions of damaged palettes and profiles raise what decoders do
        if isinstance(picture, Deep):
            return _from_deep(picture, depth), picture.mode
        if reason := depth.refusal(EIGHT_BITS, None):
            raise BrokenImageError(reason)
        upright = _turned(picture, orientation_of(picture))
        mode = upright.mode
        if mode == "RGB" and "transparency" not in upright.info:
            return upright, None
        has_alpha = mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info
        if has_alpha:
            return _over_white(upright.convert("RGBA")), mode
        return upright.convert("RGB"), mode


def _from_deep(deep: Deep, depth: Depth) -> Image.Image:
    levels = Image.fromarray(depth.levels(deep)).convert("RGB")
    if deep.opacity is not None:
        levels.putalpha(Image.fromarray(deep.opacity))
        levels = _over_white(levels)
    return _turned(levels, deep.orientation)


def _over_white(layer: Image.Image) -> Image.Image:
    background = Image.new("RGBA", layer.size, (*_BACKGROUND, 255))
    return Image.alpha_composite(background, layer).convert("RGB")


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def rectangle(
    image: Image.Image, presize: int, max_aspect: float, interpolation: Interpolation = "bilinear"
) -> NDArray[np.uint8]:
    """Resize an RGB image to (height, width, 3) uint8 whose short side is ``presize`` px.

    The long side keeps its proportion up to ``max_aspect`` times the short one; the excess is cut
    off evenly at both ends. The interpolation is antialiased.
    """
    width, height = image.size
    longest = max_aspect * min(width, height)
    kept_width, kept_height = min(width, longest), min(height, longest)
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    scale = presize / min(width, height)
    target = (max(1, round(kept_width * scale)), max(1, round(kept_height * scale)))
    box = (left, top, left + kept_width, top + kept_height)
    if target != image.size or box != (0, 0, width, height):
        image = image.resize(target, _FILTERS[interpolation], box=box)
    return np.asarray(image, dtype=np.uint8)


def typical_size(images: Images, max_aspect: float, at_most: int = 200) -> tuple[int, float]:
    """Median short side, px, and mean long side / short side of some evenly spaced images.

    Args:
        images: the images, of which only headers are read.
        max_aspect: the largest ratio; a longer side counts as cut off there.
        at_most: the number of images to look at.

    Returns:
        The two numbers; (0, 1.0) if none of these images is readable.
    """
    places = np.unique(np.linspace(0, len(images) - 1, min(at_most, len(images))).astype(int))
    sizes = []
    for place in places:
        try:
            sizes.append(images.size(int(place)))
        except BrokenImageError:
            continue
    if not sizes:
        return 0, 1.0
    short, long = np.array(sizes).T
    return int(np.median(short)), float(np.minimum(long / short, max_aspect).mean())
