"""Normalization: which statistics are taken off the pixels."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from runner.config.group import Group, Problem, option

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


@dataclass(frozen=True)
class Normalize(Group):
    """Per-channel statistics taken off the pixels: (x/255 - mean) / std."""

    TRICKS: ClassVar = ("normalize",)

    source: Literal["fixed", "dataset", "pretrained"] = option(
        "fixed",
        "where mean and std come from; fixed: as given; dataset: measured on the training "
        "split; pretrained: those that the weights were trained with",
    )
    mean: tuple[float, ...] = option((0.0, 0.0, 0.0), "mean per channel, of pixels in 0..1")
    std: tuple[float, ...] = option(
        (1.0, 1.0, 1.0), "standard deviation per channel, of pixels in 0..1", above=0
    )
    allow_mismatch: bool = option(
        False, "allow statistics other than those that the pretrained weights were trained with"
    )

    def turns_on(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`. Weights have statistics of their own; only other ones are a trick."""
        if self.source == "pretrained":
            return
        neutral = Normalize()
        is_neutral = (self.source, self.mean, self.std) == ("fixed", neutral.mean, neutral.std)
        if run.model.weights is not None or not is_neutral:
            yield "normalize"

    def ignores(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if self.source == "dataset":
            yield from ("mean", "std")
        if run.model.weights is None and not run.model.pretrained:
            yield "allow_mismatch"

    def contradictions(self, run: "RunConfig") -> Iterator[Problem]:
        """See :class:`Group`."""
        for name in ("mean", "std"):
            if len(getattr(self, name)) != 3:
                yield Problem(
                    f"normalize.{name} has {len(getattr(self, name))} values: images are RGB",
                    f"normalize.{name}=[0.5,0.5,0.5]",
                )
