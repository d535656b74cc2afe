"""EMA: whether the average of the weights over time is evaluated and shipped."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from runner.config.group import Group, option

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


@dataclass(frozen=True)
class Ema(Group):
    """An exponential moving average of the weights; training itself does not use it."""

    TRICKS: ClassVar = ("ema",)
    MAIN_KEY: ClassVar = "ema=standard ema.span"

    span: float = option(
        0.0,
        "time that the average reaches back, as a part of training; 0: no average",
        at_least=0,
        at_most=1,
    )
    decay: float | None = option(
        None,
        "weight of the earlier average at each step, from the first step on; null: from ema.span",
        at_least=0,
        below=1,
    )

    @property
    def is_on(self) -> bool:
        """Whether the evaluated weights are others than the last ones."""
        return self.span > 0 if self.decay is None else self.decay > 0

    def turns_on(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if self.is_on:
            yield "ema"

    def ignores(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if self.decay is not None:
            yield "span"
        if not self.is_on:
            yield "decay"
