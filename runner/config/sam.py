"""SAM: where the gradient of a step is taken."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from runner.config.group import Group, option

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


@dataclass(frozen=True)
class Sam(Group):
    """Sharpness-aware minimization: the gradient at the worst weights nearby."""

    TRICKS: ClassVar = ("sam",)
    MAIN_KEY: ClassVar = "sam=standard sam.rho"

    rho: float = option(
        0.0,
        "distance from the weights at which the gradient is taken; 0: plain gradients",
        at_least=0,
    )
    every: int = option(
        1, "steps from one step with SAM to the next; the others are plain", at_least=1
    )

    @property
    def is_on(self) -> bool:
        """Whether some gradients are taken elsewhere than at the weights."""
        return self.rho > 0

    def acts_at(self, before: int) -> bool:
        """Return whether the step that comes after ``before`` steps is one with SAM."""
        return self.is_on and (before + 1) % self.every == 0

    def turns_on(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if self.is_on:
            yield "sam"

    def ignores(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if not self.is_on:
            yield "every"
