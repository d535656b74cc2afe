"""Mixup (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899).

Each image gets a partner from its batch and a weight λ. Mixup blends λ·own + (1-λ)·partner; CutMix
pastes a box of the partner, whose area is 1-λ, into the image. The targets are blended by the same
λ (for a box, by the area that it covers after clipping).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv
from torch import Tensor

from runner.config.schema import Mixup
from runner.machine.hardware import on_device


@dataclass(frozen=True)
class Mix:
    """The partners of N images and the part that each image keeps of itself.

    Attributes:
        partner: (N,) int64, the row of each image's partner; in a whole batch, a permutation.
        weight: (N,) float32 in 0..1, weight of the image's own pixels.
        boxes: (N, 4) int64, top, bottom, left, right of the partner's pasted box; may be empty.
        share: (N,) float32 in 0..1, weight of the image's own label.
        has_boxes: whether any box is not empty.
    """

    partner: Tensor
    weight: Tensor
    boxes: Tensor
    share: Tensor
    has_boxes: bool = True

    def to(self, device: torch.device) -> "Mix":
        """Return the same mix with its tensors on ``device``."""
        parts = (self.partner, self.weight, self.boxes, self.share)
        partner, weight, boxes, share = (on_device(part, device) for part in parts)
        return Mix(partner, weight, boxes, share, self.has_boxes)

    def part(self, mine: NDArray[np.int64]) -> tuple["Mix", NDArray[np.int64]]:
        """Return the mix of the images ``mine``, and the rows it needs: ``mine``, then partners."""
        partners = self.partner.numpy()[mine]
        needed = np.concatenate([mine, np.setdiff1d(partners, mine)])
        place = np.empty(len(self.partner), np.int64)
        place[needed] = np.arange(len(needed))
        kept = torch.from_numpy(mine)
        return Mix(
            torch.from_numpy(place[partners]),
            self.weight[kept],
            self.boxes[kept],
            self.share[kept],
            self.has_boxes,
        ), needed


def draw(rng: np.random.Generator, mixup: Mixup, num_images: int, height: int, width: int) -> Mix:
    """Draw the partners, weights and boxes of one batch.

    A batch of one image is mixed with itself, which changes nothing.
    """
    # Every draw is made with any settings, so that no setting shifts the draws of another.
    partner = rng.permutation(num_images)
    chances = rng.random((num_images, 6))
    is_mixed = chances[:, 0] < mixup.probability
    is_cut = chances[:, 1] < mixup.cutmix
    centre = chances[:, 2:4]
    area = 1 - _beta(mixup.cutmix_alpha, chances[:, 4])
    blend = _blend_weight(mixup, chances[:, 5])

    weight = np.where(is_mixed & ~is_cut, blend, 1.0)
    boxes = _boxes(np.where(is_mixed & is_cut, area, 0.0), centre, height, width)
    covered = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / (height * width)
    share = np.where(is_cut, 1 - covered, weight)
    rows = np.zeros(num_images, np.int64) if mixup.per == "batch" else np.arange(num_images)
    return Mix(
        torch.from_numpy(partner),
        torch.from_numpy(weight[rows].astype(np.float32)),
        torch.from_numpy(boxes[rows]),
        torch.from_numpy(share[rows].astype(np.float32)),
        bool(covered[rows].any()),
    )


def mix_images(images: Tensor, mix: Mix) -> Tensor:
    """Blend or paste each image's partner into it.

    Args:
        images: (M, C, H, W) float; M > N if some images are there only as partners.
        mix: the mix of the first N images, drawn for the same H and W.

    Returns:
        The mixed images, (N, C, H, W).
    """
    partners, own = images[mix.partner], images[: len(mix.partner)]
    mixed = torch.lerp(partners, own, mix.weight.view(-1, 1, 1, 1).to(images.dtype))
    if not mix.has_boxes:
        return mixed
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device).view(1, -1, 1)
    columns = torch.arange(width, device=images.device).view(1, 1, -1)
    top, bottom, left, right = (edge.view(-1, 1, 1) for edge in mix.boxes.unbind(1))
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return torch.where(inside.unsqueeze(1), partners, mixed)


def mix_targets(targets: Tensor, mix: Mix) -> Tensor:
    """Blend the first N rows of ``targets``, (M, K) float, with those of their partners."""
    own = targets[: len(mix.partner)]
    return torch.lerp(targets[mix.partner], own, mix.share.view(-1, 1))


def _blend_weight(mixup: Mixup, chance: NDArray[np.float64]) -> NDArray[np.float64]:
    if mixup.distribution == "uniform":
        return 0.5 + chance / 2
    drawn = _beta(mixup.alpha, chance)
    return np.maximum(drawn, 1 - drawn) if mixup.fold else drawn


def _beta(alpha: float, chance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Draws from Beta(α, α) by its inverse distribution function; α = 0 gives 1, no mixing."""
    if alpha == 0:
        return np.ones_like(chance)
    drawn: NDArray[np.float64] = betaincinv(alpha, alpha, chance)
    return drawn


def _boxes(
    area: NDArray[np.float64], centre: NDArray[np.float64], height: int, width: int
) -> NDArray[np.int64]:
    """Boxes (n, 4) around ``centre`` with the part ``area`` of the image, clipped to the image."""
    extent = np.array([height, width])
    half = np.floor(np.sqrt(area)[:, None] * extent).astype(np.int64)
    middle = np.floor(centre * extent).astype(np.int64)
    start = np.clip(middle - half // 2, 0, extent)
    stop = np.clip(middle - half // 2 + half, 0, extent)
    return np.stack([start[:, 0], stop[:, 0], start[:, 1], stop[:, 1]], axis=1)
