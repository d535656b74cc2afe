"""Augmentation: crop, flip, rotate, zoom and warp composed into one interpolation, then light.

Every geometric part is a homography of the plane, so their product is a homography too, and the
image is sampled once. ``augment=standard`` has the constants of fastai's ``aug_transforms``.

Coordinates are (x, y) with -1 and 1 at the outer edges of the sampled region. A homography maps
each point of the output to a point of the input.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from runner.config.schema import Augment
from runner.machine.hardware import on_device
from runner.randomness import generator, uniforms

_CROP_ATTEMPTS = 10  # as in torchvision and fastai, before falling back to the whole image

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Draws:
    """The random parameters of n images; row i belongs to image i of the split.

    Attributes:
        place: (n, 2) in 0..1, position x, y of the square in the rectangle.
        crop_scale: (n, 10) area of the crop / area of the region, ten attempts.
        crop_ratio: (n, 10) width / height of the crop, ten attempts.
        crop_place: (n, 2) in 0..1, position x, y of the crop in the region.
        flip: (n,) bool, whether the image is mirrored.
        angle: (n,) rotation, degrees.
        zoom: (n,) factor of magnification, ≥ 1.
        zoom_centre: (n, 2) in 0..1, position x, y of the zoomed part.
        warp: (n, 2) shift of the corners in x and y.
        brightness: (n,) in 0..1, added in logit space; 0.5 is neutral.
        contrast: (n,) > 0, multiplied in logit space; 1 is neutral.
    """

    place: Floats
    crop_scale: Floats
    crop_ratio: Floats
    crop_place: Floats
    flip: NDArray[np.bool_]
    angle: Floats
    zoom: Floats
    zoom_centre: Floats
    warp: Floats
    brightness: Floats
    contrast: Floats

    def rows(self, indices: NDArray[np.int64]) -> "Draws":
        """Return the parameters of the images at ``indices``, (N,)."""
        return Draws(*(getattr(self, item.name)[indices] for item in fields(self)))

    def with_one_crop(self) -> "Draws":
        """Give all images the crop of the first image, as fastai does in each batch."""
        first = np.zeros(len(self.flip), np.int64)
        return replace(
            self,
            crop_scale=self.crop_scale[first],
            crop_ratio=self.crop_ratio[first],
            crop_place=self.crop_place[first],
        )


def draw(augment: Augment, count: int, seed: int, purpose: str, *position: int) -> Draws:
    """Draw the parameters of ``count`` images at one position, such as an epoch or a TTA pass."""

    def uniform(name: str, low: float, high: float) -> Floats:
        return low + (high - low) * uniforms(count, seed, f"{purpose}.{name}", *position)

    def pair(name: str, low: float, high: float) -> Floats:
        return np.stack([uniform(f"{name}.{axis}", low, high) for axis in "xy"], axis=1)

    def sometimes(name: str, probability: float, values: Floats, neutral: float) -> Floats:
        happens = uniforms(count, seed, f"{purpose}.{name}?", *position) < probability
        return np.where(happens, values, neutral)

    def attempts(name: str, low: float, high: float) -> Floats:
        rng = generator(seed, f"{purpose}.{name}", *position)
        return low + (high - low) * rng.random((count, _CROP_ATTEMPTS))

    affine, light = augment.affine_probability, augment.lighting_probability
    log_ratio, log_contrast = np.log(augment.max_ratio), np.log(1 - augment.max_lighting)
    warp = pair("warp", -augment.max_warp, augment.max_warp)
    return Draws(
        place=pair("place", 0, 1),
        crop_scale=attempts("crop_scale", augment.min_scale, 1),
        crop_ratio=np.exp(attempts("crop_ratio", -log_ratio, log_ratio)),
        crop_place=pair("crop_place", 0, 1),
        flip=uniforms(count, seed, f"{purpose}.flip", *position) < augment.flip,
        angle=sometimes("angle", affine, uniform("angle", -1, 1) * augment.max_rotate, 0),
        zoom=sometimes("zoom", affine, uniform("zoom", 1, augment.max_zoom), 1),
        zoom_centre=pair("zoom_centre", 0, 1),
        warp=np.stack(
            [
                sometimes("warp.x", affine, warp[:, 0], 0),
                sometimes("warp.y", affine, warp[:, 1], 0),
            ],
            axis=1,
        ),
        brightness=sometimes(
            "brightness",
            light,
            0.5 + 0.5 * uniform("brightness", -1, 1) * augment.max_lighting,
            0.5,
        ),
        contrast=sometimes(
            "contrast", light, np.exp(uniform("contrast", log_contrast, -log_contrast)), 1
        ),
    )


def homographies(draws: Draws, extents: NDArray[np.int64]) -> Floats:
    """Return the maps (N, 3, 3) from output to input points: warp · flip · rotate · zoom · crop.

    Args:
        draws: the parameters of N images.
        extents: (N, 2), height and width of the region that each image is sampled from.
    """
    height, width = extents[:, 0].astype(np.float64), extents[:, 1].astype(np.float64)
    crop = _crop(draws.crop_scale, draws.crop_ratio, draws.crop_place, height, width)
    zoom = _zoom(draws.zoom, draws.zoom_centre)
    rotate = _rotate(np.deg2rad(draws.angle), height, width)
    flip = _identity(len(extents))
    flip[:, 0, 0] = np.where(draws.flip, -1.0, 1.0)
    composed: Floats = _warp(draws.warp) @ flip @ rotate @ zoom @ crop
    return composed


def resample(images: Tensor, maps: Tensor, extents: NDArray[np.int64], size: int) -> Tensor:
    """Sample each image once through its homography; beyond its region, the image is mirrored.

    Args:
        images: (N, C, H, W) float, any range; the region of image n is its top left ``extents[n]``.
        maps: (N, 3, 3) float, homographies from output points to input points.
        extents: (N, 2), height and width of each region, px.
        size: side of the output, px.

    Returns:
        (N, C, size, size), bilinear. A region that shrinks by more than 2× is first averaged over
        areas to avoid aliasing.
    """
    if min(images.shape[-2:]) > 2 * size:
        images, extents = _averaged(images, extents, size)
    axis = (torch.arange(size, device=images.device, dtype=maps.dtype) + 0.5) * 2 / size - 1
    # Measured from the left and top edges, in periods of the mirrored image: the region is 0..1/2.
    maps = torch.cat([(maps[:, :2] + maps[:, 2:]) / 4, maps[:, 2:]], dim=1)
    # The products maps · (x, y, 1), as sums of a row and a column: (N, 3, S, S).
    along_x = maps[:, :, 0, None, None] * axis
    along_y = (maps[:, :, 1, None] * axis + maps[:, :, 2, None]).unsqueeze(-1)
    mapped = along_x + along_y
    # A warp near its limit can put the horizon on a pixel; the clamp keeps it finite.
    source = mapped[:, :2].div_(mapped[:, 2:].clamp_min_(1e-6))
    # Mirrored, and measured from the right and bottom edges: 1/2 becomes 0; -1/4 and 3/4, 1/4.
    mirrored = source.frac_().abs_().sub_(0.5).abs_()
    part: Tensor | float = 1.0  # filled part of the canvas in x and y, (N, 2, 1, 1)
    if not np.array_equal(extents, np.broadcast_to(images.shape[-2:], extents.shape)):
        regions, canvas = (
            on_device(sides.to(maps.dtype), maps.device)[..., None, None]
            for sides in (
                torch.from_numpy(extents).flip(1),
                torch.tensor(images.shape[-2:]).flip(0),
            )
        )
        part = regions / canvas
        # Half a pixel inside the edge, so that bilinear weights never reach out of the region; the
        # padding has the same effect at the edge of the canvas.
        torch.clamp(mirrored, 0.25 / regions, 0.5 - 0.25 / regions, out=mirrored)
    grid = mirrored.mul_(-4 * part).add_(2 * part - 1)
    return F.grid_sample(
        images,
        grid.permute(0, 2, 3, 1).to(images.dtype),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )


def light(images: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Change brightness and contrast in logit space, where pixels cannot leave 0..1.

    Args:
        images: (N, C, H, W) float in 0..1.
        brightness: (N,) in 0..1; 0.5 is neutral.
        contrast: (N,) > 0; 1 is neutral.
    """
    shape = (-1, 1, 1, 1)
    logits = torch.logit(images, eps=1e-7)
    return logits.add_(torch.logit(brightness).view(shape)).mul_(contrast.view(shape)).sigmoid_()


def _averaged(
    images: Tensor, extents: NDArray[np.int64], size: int
) -> tuple[Tensor, NDArray[np.int64]]:
    """Average every region that shrinks by more than 2× over areas, until it shrinks by 2×.

    Each region is averaged alone, so that neither the padding nor the other images of the batch
    influence it. Returns a smaller canvas and the extents of the regions on it.
    """
    before = [(height, width) for height, width in extents.tolist()]
    after = {}
    for region in before:
        shrink = max(1.0, min(region) / size / 2)
        after[region] = (round(region[0] / shrink), round(region[1] / shrink))
    height, width = np.max(list(after.values()), axis=0).tolist()
    canvas = images.new_zeros(*images.shape[:2], height, width)
    for region, (height, width) in after.items():
        members = [row for row, each in enumerate(before) if each == region]
        rows = on_device(torch.tensor(members), images.device)
        inside = images[rows, :, : region[0], : region[1]]
        canvas[rows, :, :height, :width] = F.interpolate(inside, (height, width), mode="area")
    return canvas, np.array([after[region] for region in before])


def _identity(count: int) -> Floats:
    return np.tile(np.eye(3), (count, 1, 1))


def _crop(scale: Floats, ratio: Floats, place: Floats, height: Floats, width: Floats) -> Floats:
    """RandomResizedCrop: the first attempt that fits, else the largest box of an allowed ratio."""
    area = scale * (height * width)[:, None]
    tried_width, tried_height = np.sqrt(area * ratio), np.sqrt(area / ratio)
    slack = 1 + 1e-9  # a full crop of a square must count as fitting
    is_low = tried_height <= height[:, None] * slack
    is_narrow = tried_width <= width[:, None] * slack
    fits = np.logical_and(is_low, is_narrow)
    first = np.argmax(fits, axis=1)
    rows = np.arange(len(scale))
    limit = np.maximum(np.max(ratio, axis=1), 1 / np.min(ratio, axis=1))
    fallback_width = np.minimum(width, height * limit)
    fallback_height = np.minimum(height, width * limit)
    any_fits = np.any(fits, axis=1, keepdims=True)
    crop_width = np.where(any_fits[:, 0], tried_width[rows, first], fallback_width) / width
    crop_height = np.where(any_fits[:, 0], tried_height[rows, first], fallback_height) / height
    centred = np.where(any_fits, place, 0.5)
    result = _identity(len(scale))
    result[:, 0, 0], result[:, 1, 1] = crop_width, crop_height
    result[:, 0, 2] = (1 - crop_width) * (2 * centred[:, 0] - 1)
    result[:, 1, 2] = (1 - crop_height) * (2 * centred[:, 1] - 1)
    return result


def _zoom(zoom: Floats, centre: Floats) -> Floats:
    scale = 1 / zoom
    result = _identity(len(zoom))
    result[:, 0, 0] = result[:, 1, 1] = scale
    result[:, :2, 2] = (1 - scale)[:, None] * (2 * centre - 1)
    return result


def _rotate(angle: Floats, height: Floats, width: Floats) -> Floats:
    """Return a rotation in units of pixels, so that a rectangle does not shear."""
    result = _identity(len(angle))
    result[:, 0, 0] = result[:, 1, 1] = np.cos(angle)
    result[:, 0, 1] = np.sin(angle) * height / width
    result[:, 1, 0] = -np.sin(angle) * width / height
    return result


def _warp(warp: Floats) -> Floats:
    """Return the homography that moves the corners, shifted by ``warp``, back to their places."""
    x, y = warp[:, 0], warp[:, 1]
    corners = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=np.float64)
    shifted = np.stack(
        [
            np.stack([-1 - y, -1 - x], axis=1),
            np.stack([-1 + y, 1 + x], axis=1),
            np.stack([1 + y, -1 + x], axis=1),
            np.stack([1 - y, 1 - x], axis=1),
        ],
        axis=1,
    )
    system, target = np.zeros((len(warp), 8, 8)), np.tile(corners.reshape(8, 1), (len(warp), 1, 1))
    for corner in range(4):
        px, py = shifted[:, corner, 0], shifted[:, corner, 1]
        for axis in range(2):
            row = system[:, 2 * corner + axis]
            row[:, 3 * axis], row[:, 3 * axis + 1], row[:, 3 * axis + 2] = px, py, 1
            row[:, 6] = -corners[corner, axis] * px
            row[:, 7] = -corners[corner, axis] * py
    solved = np.linalg.solve(system, target)[..., 0]
    return np.concatenate([solved, np.ones((len(warp), 1))], axis=1).reshape(-1, 3, 3)
