"""How an image file becomes the input of a network: one description for all commands.

Evaluation during training, ``evaluate``, ``predict`` and ``export`` all use this description. It is
stored with the weights, because a network needs the statistics that it was trained with.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

from runner.data.depth import BITS, Depth, depth_of
from runner.machine import fields

Interpolation = Literal["bilinear", "bicubic"]

POLICY = {
    "frame": "first",
    "orientation": "EXIF applied",
    "transparency": "over white",
    "color": "RGB",
}
"""What ``runner.data.images`` does with every file, for every network.

How more than 8 bits become 8 depends on the data: see :mod:`runner.data.depth`.
"""


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
        depth: how images of more than 8 bits per channel become pixels.
    """

    presize: int
    max_aspect: float
    crop: float
    size: int
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    depth: Depth = BITS

    def to_dict(self) -> dict[str, Any]:
        """Return the values with the policy, ready for JSON."""
        lists = {"mean": list(self.mean), "std": list(self.std)}
        return {**asdict(self), **lists, **POLICY, **self.depth.to_dict()}


_LARGEST = 16_384  # px


def from_dict(values: Mapping[str, Any]) -> Preprocess:
    """Read the values that :meth:`Preprocess.to_dict` returned.

    Raises:
        ValueError: a value is missing, of another type or out of range, or the policy is not ours.
    """
    for name, expected in POLICY.items():
        if (found := fields.value(values, name)) != expected:
            raise ValueError(f"{name} is {found!r}, this program knows {expected!r}")
    interpolation = fields.text(values, "interpolation")
    if interpolation not in get_args(Interpolation):
        raise ValueError(f"interpolation is {interpolation!r}")
    crop = fields.number(values, "crop", at_most=1)
    std = fields.numbers(values, "std", count=3)
    if crop <= 0:
        raise ValueError(f"crop must be above 0, not {crop}")
    if min(std) <= 0:
        raise ValueError(f"std must be above 0, not {list(std)}")
    return Preprocess(
        presize=fields.whole(values, "presize", at_least=1, at_most=_LARGEST),
        max_aspect=fields.number(values, "max_aspect", at_least=1, at_most=_LARGEST),
        crop=crop,
        size=fields.whole(values, "size", at_least=1, at_most=_LARGEST),
        interpolation=cast("Interpolation", interpolation),
        mean=fields.numbers(values, "mean", count=3),
        std=std,
        depth=depth_of(values),
    )
