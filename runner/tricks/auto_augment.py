"""TrivialAugment and RandAugment: random operations on each training image.

Müller & Hutter 2021, arXiv:2103.10158, and Cubuk et al. 2020, arXiv:1909.13719. The 14 operations,
their magnitudes and their arithmetic are those of torchvision's ``TrivialAugmentWide`` and
``RandAugment`` on images of floats, bilinear, black beyond the edges. torchvision draws one
operation for a whole batch; here each image has its own. The images of a batch that get the
same operation are computed together, and all that are sheared, translated or rotated are sampled in
one call. Only training images are changed: an evaluation, also one with random views, does not use
this module.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from runner.config.schema import AutoAugment
from runner.machine.hardware import on_device
from runner.randomness import uniforms

GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
OPERATIONS = (
    "identity", *GEOMETRIC, "brightness", "color", "contrast", "sharpness",
    "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
NUM_LEVELS = 31
_SIGNED = OPERATIONS[1:10]
_GRAY = (0.2989, 0.587, 0.114)  # red, green, blue of ITU-R 601, with torchvision's digits

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Chosen:
    """The operations of n images, k for each, in their order.

    Attributes:
        operations: (n, k) int64, places in ``OPERATIONS``.
        magnitudes: (n, k), in the units of :func:`magnitude`.
    """

    operations: NDArray[np.int64]
    magnitudes: Floats

    def rows(self, indices: NDArray[np.int64]) -> "Chosen":
        """Return the operations of the images at ``indices``, (N,)."""
        return Chosen(self.operations[indices], self.magnitudes[indices])


@dataclass(frozen=True)
class _Strongest:
    """The magnitudes of level 30; ``translate`` in px by side in px, ``posterize`` in bits."""

    shear: float
    translate: tuple[int, int]
    rotate: float
    enhance: float
    posterize: int


_STRONGEST = {
    "trivial": _Strongest(shear=0.99, translate=(32, 224), rotate=135, enhance=0.99, posterize=6),
    "rand": _Strongest(shear=0.3, translate=(150, 331), rotate=30, enhance=0.9, posterize=4),
}


def magnitude(policy: str, operation: str, level: int, size: int) -> float:
    """Return the magnitude of an operation, without its sign.

    Args:
        policy: ``trivial`` or ``rand``.
        operation: a name in ``OPERATIONS``.
        level: 0..30; 30 is the strongest.
        size: side of the image, px.

    Returns:
        For a shear the tangent of its angle; for a translation whole px; for a rotation degrees;
        for brightness, color, contrast and sharpness the distance of their factor from 1; for
        posterize the bits that are kept; for solarize the threshold in 0..1; otherwise 0.
    """
    strongest, part = _STRONGEST[policy], level / (NUM_LEVELS - 1)
    match operation:
        case "shear_x" | "shear_y":
            return strongest.shear * part
        case "translate_x" | "translate_y":
            shift, side = strongest.translate
            return float(shift * size * level // (side * (NUM_LEVELS - 1)))
        case "rotate":
            return strongest.rotate * part
        case "brightness" | "color" | "contrast" | "sharpness":
            return strongest.enhance * part
        case "posterize":
            return float(8 - round(strongest.posterize * part))
        case "solarize":
            return 1 - part
        case _:
            return 0.0


@lru_cache(maxsize=8)
def _magnitudes(policy: str, size: int) -> NDArray[np.float64]:
    """Return the magnitude of each operation at each level; equal in all steps of one size."""
    return np.array(
        [
            [magnitude(policy, name, level, size) for level in range(NUM_LEVELS)]
            for name in OPERATIONS
        ]
    )


def draw(config: AutoAugment, count: int, size: int, seed: int, *position: int) -> Chosen:
    """Draw the operations of ``count`` images of side ``size``, px, at one position of training."""
    per_image = config.operations_per_image
    operations = np.zeros((count, per_image), np.int64)
    magnitudes = np.zeros((count, per_image))
    if per_image == 0:
        return Chosen(operations, magnitudes)
    table = _magnitudes(config.policy, size)
    is_signed = np.array([name in _SIGNED for name in OPERATIONS])
    for turn in range(per_image):
        # Each purpose and each turn has its own draws, so that no setting shifts those of another.
        operation, level, sign = (
            uniforms(count, seed, f"auto_augment.{name}", *position, turn)
            for name in ("operation", "level", "sign")
        )
        chosen = (operation * len(OPERATIONS)).astype(np.int64)
        levels = (level * NUM_LEVELS).astype(np.int64)
        if config.policy == "rand":
            levels = np.full(count, config.magnitude)
        turned = np.where(is_signed[chosen] & (sign < 0.5), -1.0, 1.0)
        operations[:, turn], magnitudes[:, turn] = chosen, table[chosen, levels] * turned
    return Chosen(operations, magnitudes)


def apply(images: Tensor, chosen: Chosen) -> Tensor:
    """Apply the operations of each image, one after the other.

    Does not synchronize with a GPU.

    Args:
        images: (N, 3, S, S) float in 0..1.
        chosen: the operations of the N images.

    Returns:
        (N, 3, S, S) float in 0..1; ``images`` itself if there are no operations.
    """
    for operations, magnitudes in zip(chosen.operations.T, chosen.magnitudes.T, strict=True):
        images = _applied(images, operations, magnitudes)
    return images


def _applied(images: Tensor, operations: NDArray[np.int64], magnitudes: Floats) -> Tensor:
    """Apply one operation to each image; compute images with the same operation together."""
    # All geometric operations are one group: the place of the first of them.
    first, last = (OPERATIONS.index(GEOMETRIC[place]) for place in (0, -1))
    groups = np.where((operations > first) & (operations <= last), first, operations)
    changed = torch.empty_like(images)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        rows = on_device(torch.from_numpy(members), images.device)
        part = images[rows]
        if group == first:
            part = _resampled(part, operations[members], magnitudes[members])
        elif (change := _CHANGES.get(OPERATIONS[group])) is not None:
            values = torch.from_numpy(magnitudes[members]).to(images.dtype).view(-1, 1, 1, 1)
            part = change(part, on_device(values, images.device))
        changed.index_copy_(0, rows, part)
    return changed


def _resampled(images: Tensor, operations: NDArray[np.int64], magnitudes: Floats) -> Tensor:
    """Shear, translate or rotate each image, bilinear; pixels from beyond the edges are black."""
    maps = torch.from_numpy(_maps(operations, magnitudes, images.shape[-1])).to(images.dtype)
    maps = on_device(maps, images.device)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _maps(operations: NDArray[np.int64], magnitudes: Floats, size: int) -> Floats:
    """Return maps (N, 2, 3) from output to input points; -1 and 1 are the edges of the image."""
    maps = np.tile(np.eye(2, 3), (len(operations), 1, 1))
    names = np.array(OPERATIONS)[operations]
    # A shear keeps the first row or column in its place, as in Pillow and torchvision.
    for name, row, other in (("shear_x", 0, 1), ("shear_y", 1, 0)):
        is_sheared = names == name
        maps[is_sheared, row, other] = maps[is_sheared, row, 2] = magnitudes[is_sheared]
    for name, row in (("translate_x", 0), ("translate_y", 1)):
        is_shifted = names == name
        maps[is_shifted, row, 2] = -2 * magnitudes[is_shifted] / size
    is_turned = names == "rotate"
    angle = np.deg2rad(magnitudes[is_turned])
    maps[is_turned, 0, 0] = maps[is_turned, 1, 1] = np.cos(angle)
    maps[is_turned, 0, 1] = -np.sin(angle)
    maps[is_turned, 1, 0] = np.sin(angle)
    return maps


def _blended(images: Tensor, other: Tensor, change: Tensor) -> Tensor:
    """Move images away from ``other``, or towards it if ``change`` is negative; -1 is ``other``."""
    return torch.lerp(other, images, 1 + change).clamp_(0, 1)


def _gray(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    weighted = red * _GRAY[0] + green * _GRAY[1] + blue * _GRAY[2]
    return weighted.unsqueeze(1)


def _brightness(images: Tensor, change: Tensor) -> Tensor:
    return (images * (1 + change)).clamp_(0, 1)


def _color(images: Tensor, change: Tensor) -> Tensor:
    return _blended(images, _gray(images).expand_as(images), change)


def _contrast(images: Tensor, change: Tensor) -> Tensor:
    mean = _gray(images).mean(dim=(1, 2, 3), keepdim=True)
    return _blended(images, mean.expand_as(images), change)


def _sharpness(images: Tensor, change: Tensor) -> Tensor:
    """Blend with the smoothed image [1 1 1; 1 5 1; 1 1 1] / 13; the outermost pixels stay."""
    if min(images.shape[-2:]) <= 2:
        return images
    sharpened, inner = images.clone(), images[..., 1:-1, 1:-1]
    smooth = (F.avg_pool2d(images, 3, stride=1) * 9 + inner * 4) / 13
    sharpened[..., 1:-1, 1:-1] = _blended(inner, smooth, change)
    return sharpened


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest ``bits`` of 8; 8 bits leave the image as it is."""
    levels = torch.exp2(bits)
    lowered = (images * levels).floor_().clamp_(max=levels - 1).div_(levels)
    return torch.where(bits < 8, lowered, images)


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(images >= threshold, 1 - images, images)


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to 0..1; a channel of one value stays."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = ((images - low) / (high - low)).clamp_(0, 1)
    return torch.where(high > low, stretched, images)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    """Give the 256 levels of each channel about equal numbers of pixels, as Pillow does."""
    levels = (images * (256 - 1e-3)).long().flatten(2)  # torchvision's way from floats to 8 bits
    counts = levels.new_zeros(*levels.shape[:2], 256)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    up_to = counts.cumsum(2)
    # The number of pixels below the brightest level present, over the 255 steps of a table.
    brightest = counts.gather(2, up_to.argmax(2, keepdim=True))
    step = (levels.shape[2] - brightest) // 255
    below = up_to - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    equalized = torch.where(step > 0, table.gather(2, levels), levels)
    return (equalized.to(images.dtype) / 255).view_as(images)


_CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
