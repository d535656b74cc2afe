"""Test time augmentation: several views of an image, their predictions combined.

Deterministic views are squares cut from the original rectangle, mirrored, at several sizes; random
ones repeat the training augmentation, as fastai's ``learn.tta()`` does.
"""

from collections.abc import Iterable
from itertools import product

import torch
from torch import Tensor

from runner.config.schema import Tta
from runner.data.views import View, plain_view

Look = View | int
"""What one forward pass sees: a view, or the random pass of that number."""


def views(tta: Tta, crop: float = 1.0) -> list[View]:
    """The deterministic views of ``tta``; just the plain one where nothing is asked for.

    Args:
        tta: corners have a side of their own.
        crop: side of all other squares / short side.
    """
    places = [step / (tta.crops - 1) for step in range(tta.crops)] if tta.crops > 1 else [0.5]
    # A square as high as a wide image has no room to move vertically, so one number sets both.
    squares = [(place, place, crop) for place in places]
    if tta.corners:
        squares += [(x, y, tta.corner_scale) for x, y in product((0.0, 1.0), repeat=2)]
    flips = (False, True) if tta.flip else (False,)
    return [
        View(x, y, side, flip, scale)
        for scale, (x, y, side), flip in product(tta.scales, squares, flips)
    ]


def looks(tta: Tta, crop: float = 1.0) -> list[Look]:
    """What ``tta`` combines, in order: its random passes, or else the views of :func:`views`."""
    return [*range(tta.passes)] or [*views(tta, crop)]


def looks_used(variants: Iterable[Tta], crop: float = 1.0) -> set[Look]:
    """All that the combined predictions of ``variants`` rest on; each is one forward pass."""
    used: set[Look] = set()
    for tta in variants:
        used.update(looks(tta, crop))
        if tta.beta is not None or _includes_plain(tta):
            used.add(plain_view(crop))
    return used


def cost(used: Iterable[Look]) -> float:
    """Pixels per image that go through the network, relative to the plain view alone."""
    return sum(look.scale**2 if isinstance(look, View) else 1.0 for look in used)


def combine(plain: Tensor, others: Tensor, tta: Tta) -> Tensor:
    """One prediction per image from those of its views.

    Args:
        plain: (N, K) probabilities of the plain view.
        others: (V, N, K) probabilities of the V :func:`looks`.
        tta: for ``mean``, the average of ``others``, blended with ``tta.beta`` of ``plain`` where
            that is set; the other reductions of random passes include the plain view.

    Returns:
        (N, K) probabilities, rows summing to 1.
    """
    if _includes_plain(tta):
        others = torch.cat([plain.unsqueeze(0), others])
    reduced = _reduce(others, tta.reduce)
    return reduced if tta.beta is None else torch.lerp(reduced, plain, tta.beta)


def _includes_plain(tta: Tta) -> bool:
    """Whether the plain view is reduced along with the random passes."""
    return tta.passes > 0 and tta.reduce != "mean"


def _reduce(probabilities: Tensor, how: str) -> Tensor:
    if how == "mean":
        return probabilities.mean(dim=0)
    if how == "max":
        combined = probabilities.amax(dim=0)
        return combined / combined.sum(dim=1, keepdim=True)
    # The mean of logits and the geometric mean of probabilities differ by a factor per row, which
    # the normalization removes: they are one reduction under the two names in use.
    tiny = torch.finfo(probabilities.dtype).tiny
    return torch.softmax(probabilities.clamp_min(tiny).log().mean(dim=0), dim=1)
