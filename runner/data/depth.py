"""How values of more than 8 bits per channel become the 256 levels that a network sees.

One rule holds for a data set as a whole, so that a dark image stays darker than its neighbors. It
is stored with the network, so that ``predict`` applies it to every image alike:

- ``bits``: the range that the file's header states, such as 0..65535 for 16 bits, is black..white;
- ``window``: a given range is black..white, or the extremes of the training images are;
- ``legacy``: what this program did before it had a rule; for the networks of that time.

Images of 8 bits stay as they are. A rule that cannot know what an image's values mean refuses it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from runner.machine import fields

Rule = Literal["bits", "window", "legacy"]
EIGHT_BITS = "uint8"
LEGACY_POLICY = "16 bits scaled to 8"
"""The words for the rule ``legacy`` in the bundles that were written before there were others."""

_PLAIN = tuple(f"uint{bits}" for bits in range(9, 17))
_BLOCK = 1 << 20  # values that are scaled at a time


@dataclass(frozen=True)
class Deep:
    """An image of more than 8 bits per channel, as its file stores it, before any scaling.

    Attributes:
        values: (H, W) or (H, W, 3), in the file's own type of number.
        kind: the name of that type with its bits, such as ``uint16``, ``uint12`` or ``float32``.
        full: the range that the header states, black and white; None for floats.
        mode: Pillow's name of the color mode, for reports.
        opacity: (H, W) uint8, 255 for opaque pixels; None if all are.
        is_inverted: whether the smallest value is white.
        orientation: the EXIF orientation, 1 for upright.
    """

    values: NDArray[Any]
    kind: str
    full: tuple[float, float] | None
    mode: str
    opacity: NDArray[np.uint8] | None = None
    is_inverted: bool = False
    orientation: int = 1


@dataclass(frozen=True)
class Values:
    """What the values of one deep image are.

    Attributes:
        kind: see :class:`Deep`.
        full: see :class:`Deep`.
        low: the smallest finite value.
        high: the largest finite value.
        typical_low: the value below which 0.1 % of the pixels lie.
        typical_high: the value above which 0.1 % of the pixels lie.
    """

    kind: str
    full: tuple[float, float] | None
    low: float
    high: float
    typical_low: float
    typical_high: float


@dataclass(frozen=True)
class Depth:
    """The rule of a data set.

    Attributes:
        rule: see the module.
        window: the values that become black and white; None unless the rule is ``window``.
        kinds: the kinds of image that the window was measured on, ``uint8`` among them if the data
            set has images of 8 bits, too; empty if every kind is welcome. For ``bits``, the kinds
            that are welcome apart from unsigned integers of up to 16 bits.
    """

    rule: Rule = "bits"
    window: tuple[float, float] | None = None
    kinds: tuple[str, ...] = ()

    def refusal(self, kind: str, full: tuple[float, float] | None) -> str | None:
        """Return why this rule does not define values of ``kind``; None if it does."""
        if self.rule == "window" and self.kinds and kind not in self.kinds:
            low, high = cast("tuple[float, float]", self.window)
            return (
                f"has values of type {kind}, but the range {low:g} to {high:g} of the training "
                f"images was measured on {', '.join(self.kinds)}"
            )
        if self.rule == "bits" and kind not in (EIGHT_BITS, *_PLAIN, *self.kinds):
            return (
                f"has values of type {kind}, which hardly ever fill the range of that type, and "
                "the training images do not show theirs"
            )
        return None

    def levels(self, deep: Deep) -> NDArray[np.uint8]:
        """Scale the values of an image to 0..255.

        Returns:
            uint8 of the shape of ``deep.values``. NaN is black.

        Raises:
            ValueError: the rule cannot tell what the values mean.
        """
        if reason := self.refusal(deep.kind, deep.full):
            raise ValueError(reason)
        if self.rule == "legacy":
            return _legacy(deep)
        low, high = cast("tuple[float, float]", self.window or deep.full)
        levels = _scaled(deep.values, low, high)
        return np.subtract(255, levels, out=levels) if deep.is_inverted else levels

    def to_dict(self) -> dict[str, Any]:
        """Return the rule, ready for JSON."""
        if self.rule == "legacy":
            return {"depth": LEGACY_POLICY}
        kinds = {"depth_of": list(self.kinds)} if self.kinds else {}
        if self.window is None:
            return {"depth": self.rule, **kinds}
        return {"depth": self.rule, "window": list(self.window), **kinds}


BITS = Depth()


def depth_of(values: Mapping[str, Any]) -> Depth:
    """Read the rule that :meth:`Depth.to_dict` returned, among other values.

    Raises:
        ValueError: a value is missing, or is not one that this program knows.
    """
    rule = fields.value(values, "depth")
    if rule == LEGACY_POLICY:
        return Depth("legacy")
    kinds = fields.texts(values, "depth_of") if "depth_of" in values else ()
    if rule == "bits":
        return Depth("bits", None, kinds)
    if rule != "window":
        known = ", ".join([*get_args(Rule)[:2], LEGACY_POLICY])
        raise ValueError(f"depth is {rule!r}, this program knows {known}")
    low, high = fields.numbers(values, "window", count=2)
    if not low < high or not math.isfinite(high - low):
        raise ValueError(f"window must be a range, not {low:g} to {high:g}")
    return Depth("window", (low, high), kinds)


def header_range(kind: str) -> tuple[float, float] | None:
    """Return the range of an integer type such as ``uint12``; None for floats."""
    unsigned, is_integer, bits = kind.rpartition("int")
    if not is_integer:
        return None
    if unsigned == "u":
        return 0.0, 2.0 ** int(bits) - 1
    return -(2.0 ** (int(bits) - 1)), 2.0 ** (int(bits) - 1) - 1


def measured(deep: Deep) -> Values | None:
    """Return the extremes of an image; None if it has no finite value."""
    values = deep.values
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    if values.size == 0:
        return None
    sample = values.reshape(-1)[:: max(1, values.size >> 16)].astype(np.float64)
    typical_low, typical_high = np.quantile(sample, [0.001, 0.999]).tolist()
    low, high = float(values.min()), float(values.max())
    return Values(deep.kind, deep.full, low, high, typical_low, typical_high)


def _scaled(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Map ``low`` to 0 and ``high`` to 255, rounded and clipped."""
    if values.dtype.itemsize <= 2 and values.dtype.kind in "iu":  # every value once, then a look-up
        every = np.arange(1 << 8 * values.dtype.itemsize).astype(f"u{values.dtype.itemsize}")
        table = _scaled_block(every.view(values.dtype.newbyteorder("=")), low, high)
        found: NDArray[np.uint8] = table[values.astype(every.dtype, copy=False)]
        return found
    levels = np.empty(values.size, np.uint8)
    flat = values.reshape(-1)
    for start in range(0, values.size, _BLOCK):  # bounds the memory of large images
        levels[start : start + _BLOCK] = _scaled_block(flat[start : start + _BLOCK], low, high)
    return levels.reshape(values.shape)


def _scaled_block(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    with np.errstate(all="ignore"):  # infinities are clipped
        scaled = np.rint((values.astype(np.float64) - low) / ((high - low) / 255))
    clipped = np.clip(np.nan_to_num(scaled, nan=0, posinf=255, neginf=0), 0, 255)
    return np.asarray(clipped, np.uint8)


def _legacy(deep: Deep) -> NDArray[np.uint8]:
    """16 bits scaled to 8; other integers and floats clipped to 0..255.

    Integers of another type count as 16 bits if the image has one above 255.
    """
    if deep.values.ndim == 3:
        if deep.kind != "uint16":
            raise ValueError(f"has colors of type {deep.kind}, which no network of its time read")
        return np.asarray(deep.values >> 8, np.uint8)
    values = np.nan_to_num(deep.values.astype(np.float64))
    if deep.mode == "I" and deep.kind == "uint16" and deep.full is not None:
        values = np.rint(values / deep.full[1] * 65535)
    if deep.mode.startswith("I;16") or (deep.mode == "I" and values.max(initial=0) > 255):
        values = values / 257
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Chosen:
    """The rule that was chosen for a data set.

    Attributes:
        depth: the rule.
        is_deep: whether the data set has images that the rule applies to.
        notes: what the user should know, one sentence each.
    """

    depth: Depth
    is_deep: bool
    notes: tuple[str, ...] = ()


class UnknownDepthError(Exception):
    """No rule can be known for the images.

    Attributes:
        what: what is not known, and of which images.
        fix: words to paste.
    """

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix


def choose(
    asked: str,
    window: tuple[float, float] | None,
    deep: Mapping[int, Values],
    training: Sequence[int],
    num_others: int,
) -> Chosen:
    """Choose the rule of a data set.

    Args:
        asked: ``data.depth``: auto, bits, extremes or legacy.
        window: ``data.window``, which comes before ``asked``.
        deep: the values of the images of more than 8 bits, by index.
        training: the indices of the training images: only their values decide.
        num_others: number of readable images of 8 bits.

    Raises:
        UnknownDepthError: the images do not tell, and the user must.
    """
    if window is not None:
        chosen = Depth("window", window)
        note = (f"{_count(deep)}: {_range(window)} becomes black to white (data.window)",)
        return Chosen(chosen, bool(deep), note if deep else ())
    if not deep:
        return Chosen(BITS, is_deep=False)
    if asked == "legacy":
        return Chosen(Depth("legacy"), is_deep=True)
    trained = [deep[index] for index in training if index in deep]
    kinds = sorted({values.kind for values in deep.values()})
    if num_others:
        kinds.append(EIGHT_BITS)
    by_range: dict[tuple[str, tuple[float, float] | None], list[Values]] = {
        (values.kind, values.full): [] for values in deep.values()
    }
    for values in trained:
        by_range[values.kind, values.full].append(values)
    is_filled = all(_fills(found, full) for (_, full), found in by_range.items())
    if asked == "bits" or (asked == "auto" and is_filled):
        odd = tuple(kind for kind in kinds if kind not in (EIGHT_BITS, *_PLAIN))
        return Chosen(Depth("bits", None, odd), True, _bits_notes(asked, deep, trained))
    if asked == "auto" and (len(by_range) > 1 or len(kinds) > 1):
        raise UnknownDepthError(
            f"{_count(deep)} among {len(deep) + num_others:,} images: unknown how values of "
            f"different types compare, because {_told(by_range)}",
            "data.depth=bits (the range of each header), data.depth=extremes (one range for all "
            "images of more than 8 bits), or data.window=[LOW,HIGH]",
        )
    low = min((values.low for values in trained), default=0.0)
    high = max((values.high for values in trained), default=0.0)
    if not low < high or not math.isfinite(high - low):
        raise UnknownDepthError(
            f"{_count(deep)}: the training images among them have no range, only {low:g} to "
            f"{high:g}",
            "data.window=[LOW,HIGH], the values that are black and white",
        )
    depth = Depth("window", (low, high), tuple(kinds))
    told = (
        f"{_count(deep)}: {_range((low, high))}, the extremes of the training images, becomes "
        f"black to white (data.depth={asked}; data.window=[LOW,HIGH] sets another range)"
    )
    return Chosen(depth, True, (told, *_narrow(trained, low, high)))


def _fills(found: Sequence[Values], full: tuple[float, float] | None) -> bool:
    """Return whether the training images use more than half of the range in their header."""
    if full is None or not found:
        return False
    spread = max(values.high for values in found) - min(values.low for values in found)
    return spread > (full[1] - full[0]) / 2


def _bits_notes(
    asked: str, deep: Mapping[int, Values], trained: Sequence[Values]
) -> tuple[str, ...]:
    """Notes on the rule ``bits``. Raises UnknownDepthError for a type without a range."""
    if without := sorted({values.kind for values in deep.values() if values.full is None}):
        raise UnknownDepthError(
            f"data.depth=bits: the header of {', '.join(without)} states no range",
            "data.depth=extremes, or data.window=[LOW,HIGH]",
        )
    ranges = sorted({values.full for values in deep.values() if values.full is not None})
    told = " and ".join(_range(full) for full in ranges)
    notes = [
        f"{_count(deep)}: {told}, as headers state, becomes black to white (data.depth={asked})"
    ]
    if len(ranges) == 1:
        notes += _narrow(trained, *ranges[0])
    return tuple(notes)


def _narrow(trained: Sequence[Values], low: float, high: float) -> tuple[str, ...]:
    """Return a note if almost all pixels lie in a small part of the range, and so look alike."""
    if not trained:
        return ()
    first = min(values.typical_low for values in trained)
    last = max(values.typical_high for values in trained)
    if not (0 < last - first < (high - low) / 16):
        return ()
    part = (high - low) / (last - first)
    return (
        f"nearly all values lie from {first:g} to {last:g}, 1/{part:.0f} of this range, and become "
        f"few levels of gray; data.window=[{first:g},{last:g}] would spread them",
    )


def _told(
    by_range: Mapping[tuple[str, tuple[float, float] | None], Sequence[Values]],
) -> str:
    parts = []
    for (kind, full), found in by_range.items():
        if not found:
            parts.append(f"no training image is {kind}")
            continue
        low, high = min(each.low for each in found), max(each.high for each in found)
        of = "" if full is None else f" of {full[0]:g} to {full[1]:g}"
        parts.append(f"those of {kind} only use {low:g} to {high:g}{of}")
    return ", ".join(parts)


def _count(deep: Mapping[int, Values]) -> str:
    counts: dict[str, int] = {}
    for values in deep.values():
        counts[values.kind] = counts.get(values.kind, 0) + 1
    return ", ".join(
        f"{count:,} image{'s' * (count > 1)} of {kind}" for kind, count in sorted(counts.items())
    )


def _range(window: tuple[float, float]) -> str:
    return f"{window[0]:g} to {window[1]:g}"
