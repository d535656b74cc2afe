"""TrivialAugment and RandAugment: random operations on the training images, drawn per image."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from runner.config.group import Group, option

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


@dataclass(frozen=True)
class AutoAugment(Group):
    """Random operations on each training image, after ``augment``; none at evaluation."""

    TRICKS: ClassVar = ("trivial_augment", "rand_augment")
    MAIN_KEY: ClassVar = "auto_augment=rand auto_augment.magnitude"

    policy: Literal["none", "trivial", "rand"] = option(
        "none",
        "operations on each image; trivial: one at a random magnitude; rand: num_operations "
        "at magnitude",
    )
    num_operations: int = option(
        2, "rand: operations per image, one after the other", at_least=0, at_most=14
    )
    magnitude: int = option(
        9, "rand: strength of every operation; 30 is the strongest", at_least=0, at_most=30
    )

    @property
    def operations_per_image(self) -> int:
        """How many operations each image undergoes."""
        return {"none": 0, "trivial": 1, "rand": self.num_operations}[self.policy]

    def turns_on(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if self.operations_per_image > 0:
            yield f"{self.policy}_augment"

    def ignores(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if self.policy != "rand":
            yield "num_operations"
        if self.policy != "rand" or self.num_operations == 0:
            yield "magnitude"
        if self.policy == "rand" and self.num_operations == 0:
            yield from ("policy", "num_operations")
