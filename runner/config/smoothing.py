"""Label smoothing of the training targets."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from runner.config.group import Group, option

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


@dataclass(frozen=True)
class Smoothing(Group):
    """Label smoothing of the training targets."""

    TRICKS: ClassVar = ("label_smoothing",)
    MAIN_KEY: ClassVar = "smoothing.epsilon"

    epsilon: float = option(
        0.0, "part of each target that is spread evenly over all classes", at_least=0, at_most=1
    )

    def turns_on(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if self.epsilon > 0:
            yield "label_smoothing"
