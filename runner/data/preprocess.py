"""How an image file becomes the input of a network: one description for all commands.

Evaluation during training, ``evaluate``, ``predict`` and ``export`` all use this description. It is
stored with the weights, because a network needs the statistics that it was trained with.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Interpolation = Literal["bilinear", "bicubic"]

POLICY = {
    "frame": "first",
    "orientation": "EXIF applied",
    "transparency": "over white",
    "depth": "16 bits scaled to 8",
    "color": "RGB",
}
"""What ``runner.data.images`` does with every file, for every network."""


@dataclass(frozen=True)
class Preprocess:
    """From pixels to input, in this order; all resizing is antialiased.

    Attributes:
        presize: length to which the short side is resized, px.
        max_aspect: largest long side as a multiple of the short side; the excess is cut off evenly
            at both ends.
        crop: side of the center square that the network sees / short side, in (0, 1].
        size: side to which that square is resized, px.
        interpolation: the interpolation of both.
        mean: of red, green and blue, subtracted from pixels in 0..1.
        std: of red, green and blue, by which pixels are then divided; above 0.
    """

    presize: int
    max_aspect: float
    crop: float
    size: int
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """The values with the policy, ready for JSON."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std), **POLICY}


def from_dict(values: Mapping[str, Any]) -> Preprocess:
    """Read the values that :meth:`Preprocess.to_dict` returned.

    Raises:
        KeyError: a value is missing.
        ValueError: one is out of range, or the policy is not ours.
        TypeError: one is of another type.
    """
    for name, value in POLICY.items():
        if values[name] != value:
            raise ValueError(f"{name} is {values[name]!r}, this program knows {value!r}")
    if values["interpolation"] not in get_args(Interpolation):
        raise ValueError(f"interpolation is {values['interpolation']!r}")
    found = Preprocess(
        presize=_number(values, "presize", whole=True),
        max_aspect=_number(values, "max_aspect"),
        crop=_number(values, "crop"),
        size=_number(values, "size", whole=True),
        interpolation=values["interpolation"],
        mean=_statistics(values, "mean"),
        std=_statistics(values, "std"),
    )
    if not (1 <= found.presize <= _LARGEST and 1 <= found.size <= _LARGEST):
        raise ValueError(f"presize and size must be in 1..{_LARGEST} px")
    if not (0 < found.crop <= 1 <= found.max_aspect <= _LARGEST):
        raise ValueError("crop must be in 0..1, and max_aspect 1 or more")
    if min(found.std) <= 0:
        raise ValueError(f"std must be above 0, not {list(found.std)}")
    return found


_LARGEST = 16_384
_ABSURD = 1e9


def _number(values: Mapping[str, Any], name: str, *, whole: bool = False) -> Any:
    value = values[name]
    kind = int if whole else int | float
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    # Beyond that bound an int may have no float, and nothing here has a use for it.
    if not is_number or not abs(value) <= _ABSURD:
        shown = repr(value)[:80]
        raise ValueError(f"{name} must be a {'whole' if whole else 'finite'} number, not {shown}")
    return value


def _statistics(values: Mapping[str, Any], name: str) -> tuple[float, ...]:
    found = values[name]
    if not isinstance(found, list) or len(found) != 3:
        raise ValueError(f"{name} must be three finite numbers, not {found!r}")
    return tuple(float(_number({name: value}, name)) for value in found)
