"""Sampling: which training images an epoch has."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from runner.config.group import Group, option

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


@dataclass(frozen=True)
class Sampling(Group):
    """How often the images of each class are trained on; the size of an epoch stays."""

    TRICKS: ClassVar = ("balanced_sampling",)
    MAIN_KEY: ClassVar = "sampling.power"

    power: float = option(
        0.0,
        "images are drawn with replacement, in proportion to (training images of their "
        "class)^-power; 0: each image once per epoch",
        at_least=0,
        at_most=10,
    )

    @property
    def is_on(self) -> bool:
        """Whether images are drawn with replacement."""
        return self.power > 0

    def turns_on(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if self.is_on:
            yield "balanced_sampling"
