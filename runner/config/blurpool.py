"""BlurPool: which layers blur their maps before they make them smaller."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from runner.config.group import Group, option

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


@dataclass(frozen=True)
class Blurpool(Group):
    """Blurring the maps inside the network before they are made smaller."""

    TRICKS: ClassVar = ("blurpool",)

    layers: Literal["none", "pooling", "all"] = option(
        "none",
        "layers that blur; pooling: max pooling with a stride; all: also convolutions with "
        "a stride and 16 or more input channels",
    )

    def turns_on(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if self.layers != "none":
            yield "blurpool"
