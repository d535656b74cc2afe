"""The training loss: what it measures, and how much an image of each class counts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from runner.config.group import Group, option

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


@dataclass(frozen=True)
class Loss(Group):
    """The training loss; the validation loss is always plain cross entropy."""

    TRICKS: ClassVar = ("bce", "class_weights")
    MAIN_KEY: ClassVar = "loss.class_weights=effective loss.beta"

    kind: Literal["cross_entropy", "bce"] = option(
        "cross_entropy",
        "cross entropy of the softmax, or binary cross entropy (bce) of each output",
    )
    class_weights: Literal["none", "balanced", "effective"] = option(
        "none",
        "weight of an image; balanced: 1/n for n training images of its class; effective: "
        "(1-β)/(1-βⁿ)",
    )
    beta: float = option(
        0.999, "effective: β of the effective number of images", at_least=0, below=1
    )

    @property
    def is_weighted(self) -> bool:
        """Whether images of different classes may count differently."""
        return self.class_weights == "balanced" or (
            self.class_weights == "effective" and self.beta > 0
        )

    def turns_on(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if self.kind == "bce":
            yield "bce"
        if self.is_weighted:
            yield "class_weights"

    def ignores(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if not self.is_weighted:
            yield "class_weights"
        if not self.is_weighted or self.class_weights != "effective":
            yield "beta"
