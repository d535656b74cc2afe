"""Gradient clipping: how long a gradient may be."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from runner.config.group import Group, option

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


@dataclass(frozen=True)
class Clip(Group):
    """Scaling down the gradients that are too long."""

    TRICKS: ClassVar = ("clip",)
    MAIN_KEY: ClassVar = "clip=norm clip.norm"

    norm: float | None = option(
        None, "largest Euclidean norm of the gradient of all weights; null: no limit", above=0
    )

    def turns_on(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if self.norm is not None:
            yield "clip"
