"""Gradient accumulation: in how many parts a batch is computed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from runner.config.group import Group, Problem, option

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


@dataclass(frozen=True)
class Accumulate(Group):
    """Computing each batch in micro-batches, whose gradients are added up."""

    TRICKS: ClassVar = ("accumulate",)
    MAIN_KEY: ClassVar = "accumulate=four accumulate.steps"

    steps: int = option(
        1, "number of micro-batches of each batch, computed one after another", at_least=1
    )

    def turns_on(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if self.steps > 1:
            yield "accumulate"

    def contradictions(self, run: "RunConfig") -> Iterator[Problem]:
        """See :class:`Group`."""
        if self.steps > 1 and run.compile == "reduce-overhead":
            # Where torch replays a CUDA graph for each micro-batch, it reuses the memory of the
            # gradients, and silently loses those of the micro-batches before.
            yield Problem(
                f"accumulate.steps={self.steps}: CUDA graphs (compile=reduce-overhead) do not add "
                f"up the gradients of micro-batches",
                "compile=default",
            )
        batches = {"data.batch_size": run.data.batch_size}
        if run.resize.schedule == "book":
            batches["resize.first_batch_size"] = run.resize.first_batch_size
        for key, images in batches.items():
            if images < self.steps:
                yield Problem(
                    f"accumulate.steps={self.steps}: {key}={images} has fewer images than that",
                    f"accumulate.steps={images}",
                )
                return
