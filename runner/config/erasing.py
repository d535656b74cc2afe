"""Random erasing: which part of a training image is covered, how often and with what."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from runner.config.group import Group, Problem, option

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


@dataclass(frozen=True)
class Erasing(Group):
    """A box of some training images is covered, after ``auto_augment``; none at evaluation."""

    TRICKS: ClassVar = ("random_erasing",)
    MAIN_KEY: ClassVar = "erasing=random erasing.probability"

    probability: float = option(0.0, "probability that an image gets a box", at_least=0, at_most=1)
    min_area: float = option(
        0.02, "smallest box, as a part of the image's area", above=0, at_most=1
    )
    max_area: float = option(0.33, "largest box, as a part of the image's area", above=0, at_most=1)
    max_ratio: float = option(
        3.3,
        "largest height / width of a box; the smallest is 1/max_ratio",
        at_least=1,
        at_most=1000,
    )
    fill: Literal["mean", "zero", "noise"] = option(
        "mean",
        "color of a box; mean: the mean of the training images; zero: black; noise: random "
        "per pixel",
    )

    @property
    def fills_with_mean(self) -> bool:
        """Whether the mean color of the training images is needed."""
        return self.probability > 0 and self.fill == "mean"

    def turns_on(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if self.probability > 0:
            yield "random_erasing"

    def ignores(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if self.probability == 0:
            yield from ("min_area", "max_area", "max_ratio", "fill")

    def contradictions(self, run: "RunConfig") -> Iterator[Problem]:
        """See :class:`Group`."""
        if self.min_area > self.max_area:
            yield Problem(
                f"erasing.min_area={self.min_area:g} is larger than "
                f"erasing.max_area={self.max_area:g}",
                f"erasing.min_area={self.max_area:g}",
            )
