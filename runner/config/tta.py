"""Test time augmentation: which views of an image are averaged."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from runner.config.group import Group, Problem, option

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


@dataclass(frozen=True)
class Tta(Group):
    """Test time augmentation: which views of an image are averaged."""

    TRICKS: ClassVar = ("tta",)
    TRAINS: ClassVar = False
    MAIN_KEY: ClassVar = "tta=book tta.passes"

    flip: bool = option(False, "average the mirror image of each view as well")
    crops: int = option(
        1, "number of squares along the long side of the image", at_least=1, at_most=64
    )
    corners: bool = option(False, "add the four corners, at tta.corner_scale (5-crop)")
    corner_scale: float = option(
        0.875, "side of a corner crop, as a part of the short side", above=0, at_most=1
    )
    scales: tuple[float, ...] = option(
        (1.0,), "sizes of the views, as multiples of eval.size", above=0, at_most=4
    )
    passes: int = option(
        0, "number of views with the training augmentation", at_least=0, at_most=1000
    )
    beta: float | None = option(
        None,
        "weight of the plain view; the mean of the augmented views has the rest; null: no "
        "such blend",
        at_least=0,
        at_most=1,
    )
    reduce: Literal["mean", "max", "logit_mean", "geometric"] = option(
        "mean", "how the predictions of the views are combined"
    )

    @property
    def has_fixed_views(self) -> bool:
        """Whether the deterministic views are others than the plain one alone."""
        return self.crops > 1 or self.corners or self.flip or self.scales != (1.0,)

    @property
    def has_views(self) -> bool:
        """Whether anything but the plain view of an image is looked at."""
        return self.passes > 0 or self.has_fixed_views

    def turns_on(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if self.has_views:
            yield "tta"

    def ignores(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if not self.corners:
            yield "corner_scale"
        if not self.has_views:
            yield from ("beta", "reduce")

    def contradictions(self, run: "RunConfig") -> Iterator[Problem]:
        """See :class:`Group`."""
        if self.passes and self.has_fixed_views:
            yield Problem(
                f"tta.passes={self.passes} does not combine with flip, crops, corners or scales",
                "tta=book, or tta.passes=0",
            )
        if self.beta is not None and self.reduce != "mean":
            yield Problem(
                f"tta.beta={self.beta} weighs a mean, but tta.reduce={self.reduce}",
                "tta.beta=null",
            )
        if self.crops % 2 == 0 and self.corners:
            yield Problem("tta.corners=true needs the centre crop", "tta.crops=1")
