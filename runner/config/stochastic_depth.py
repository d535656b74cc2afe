"""Stochastic depth: how often the residual branches of the network are dropped in training."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from runner.config.group import Group, option

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


@dataclass(frozen=True)
class StochasticDepth(Group):
    """Dropping residual branches at random in training, for each image by itself."""

    TRICKS: ClassVar = ("stochastic_depth",)
    MAIN_KEY: ClassVar = "stochastic_depth.probability"

    probability: float = option(
        0.0,
        "probability of dropping the last residual branch of an image; the probability "
        "grows linearly with depth from 0; 0: as the network has it",
        at_least=0,
        below=1,
    )

    def turns_on(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if self.probability > 0:
            yield "stochastic_depth"
