"""Test time augmentation: the predictions of several views of an image are combined.

Deterministic views are squares cut from the original rectangle, possibly mirrored, at several
sizes. Random passes repeat the training augmentation, as fastai's ``learn.tta()`` does.
"""

from collections.abc import Iterable
from itertools import product

import torch
from torch import Tensor

from runner.config.schema import Tta
from runner.data.views import View, plain_view

Look = View | int
"""The input of one forward pass: a view, or the random pass of that number."""


def views(tta: Tta, crop: float = 1.0) -> list[View]:
    """Return the deterministic views of ``tta``; only the plain view if ``tta`` requests no others.

    Args:
        tta: the requested views; its corners have a side of their own.
        crop: side of all other squares / short side of the image.
    """
    places = [step / (tta.crops - 1) for step in range(tta.crops)] if tta.crops > 1 else [0.5]
    # A square as high as a wide image cannot move vertically, so one number sets both.
    squares = [(place, place, crop) for place in places]
    if tta.corners:
        squares += [(x, y, tta.corner_scale) for x, y in product((0.0, 1.0), repeat=2)]
    flips = (False, True) if tta.flip else (False,)
    return [
        View(x, y, side, flip, scale)
        for scale, (x, y, side), flip in product(tta.scales, squares, flips)
    ]


def looks(tta: Tta, crop: float = 1.0) -> list[Look]:
    """Return the inputs that ``tta`` combines, in order: its random passes or :func:`views`."""
    return [*range(tta.passes)] or [*views(tta, crop)]


def looks_used(variants: Iterable[Tta], crop: float = 1.0) -> set[Look]:
    """Return all inputs that the predictions of ``variants`` need, one forward pass each."""
    used: set[Look] = set()
    for tta in variants:
        used.update(looks(tta, crop))
        if tta.beta is not None or _includes_plain(tta):
            used.add(plain_view(crop))
    return used


def cost(used: Iterable[Look]) -> float:
    """Pixels per image that the network processes, relative to the plain view alone."""
    return sum(look.scale**2 if isinstance(look, View) else 1.0 for look in used)


def share_of_cost(tta: Tta, variants: Iterable[Tta], crop: float = 1.0) -> float:
    """Return the cost of ``tta`` alone, as a part of the cost of ``variants`` in one pass, 0..1.

    The plain view, which is known, costs nothing.
    """
    plain = plain_view(crop)
    own, whole = (cost(looks_used(some, crop) - {plain}) for some in ([tta], variants))
    return own / whole if whole else 1.0


def combine(plain: Tensor, others: Tensor, tta: Tta) -> Tensor:
    """Combine the predictions of the views of each image into one prediction.

    Args:
        plain: (N, K) probabilities of the plain view.
        others: (V, N, K) probabilities of the V :func:`looks`.
        tta: how to combine. ``mean`` averages ``others`` and, if ``tta.beta`` is set, blends the
            average with ``tta.beta`` of ``plain``; the other reductions of random passes include
            the plain view.

    Returns:
        (N, K) probabilities; each row sums to 1.
    """
    if _includes_plain(tta):
        others = torch.cat([plain.unsqueeze(0), others])
    reduced = _reduce(others, tta.reduce)
    return reduced if tta.beta is None else torch.lerp(reduced, plain, tta.beta)


def _includes_plain(tta: Tta) -> bool:
    """Return whether the reduction includes the plain view along with the random passes."""
    return tta.passes > 0 and tta.reduce != "mean"


def _reduce(probabilities: Tensor, how: str) -> Tensor:
    if how == "mean":
        return probabilities.mean(dim=0)
    if how == "max":
        combined = probabilities.amax(dim=0)
        return combined / combined.sum(dim=1, keepdim=True)
    # The mean of logits and the geometric mean of probabilities differ by a factor per row, which
    # the normalization removes: both names mean the same reduction.
    tiny = torch.finfo(probabilities.dtype).tiny
    return torch.softmax(probabilities.clamp_min(tiny).log().mean(dim=0), dim=1)
