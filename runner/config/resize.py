"""Progressive resizing: the image size over the course of training."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from runner.config.group import Group, Problem, option

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


@dataclass(frozen=True)
class Resize(Group):
    """The image size over the course of training."""

    TRICKS: ClassVar = ("progressive_resizing",)
    NO_TRICK: ClassVar = ("size",)
    MAIN_KEY: ClassVar = "resize.size"

    schedule: Literal["fixed", "progressive", "book"] = option(
        "fixed",
        "sizes over training; fixed: one; progressive: small to full in one run; book: "
        "first_epochs at first_size, then fine_tune at full size",
    )
    size: int | None = option(
        None, "final size, px; null: the usual size of the data", at_least=8, at_most=4096
    )
    initial_scale: float = option(0.5, "progressive: first size / final size", above=0, at_most=1)
    delay: float = option(
        0.5,
        "progressive: part of training at the first size, before the size grows",
        at_least=0,
        at_most=1,
    )
    finish: float = option(
        0.2, "progressive: last part of training at the full size", at_least=0, at_most=1
    )
    multiple: int = option(4, "progressive: every size is a multiple of this, px", at_least=1)
    match: Literal["epochs", "compute"] = option(
        "epochs",
        "progressive: as many epochs as fixed, or as many as cost the same (images × pixels)",
    )
    first_size: int | None = option(
        None,
        "book: size of the first phase, px; null: 128/224 of the final one",
        at_least=8,
        at_most=4096,
    )
    first_epochs: int = option(4, "book: epochs of the first phase", at_least=1)
    first_batch_size: int = option(128, "book: images per step of the first phase", at_least=1)
    first_lr: float = option(3e-3, "book: learning rate of the first phase", above=0)

    def turns_on(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if self.schedule != "fixed":
            yield "progressive_resizing"

    def ignores(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        if self.schedule != "progressive":
            yield from ("initial_scale", "delay", "finish", "multiple", "match")
        if self.schedule != "book":
            yield from ("first_size", "first_epochs", "first_batch_size", "first_lr")

    def contradictions(self, run: "RunConfig") -> Iterator[Problem]:
        """See :class:`Group`."""
        if self.delay + self.finish > 1:
            yield Problem(
                f"resize.delay={self.delay} + resize.finish={self.finish} exceed 1, "
                "the whole of training",
                "resize.delay=0.5 resize.finish=0.2",
            )
        if self.schedule == "progressive" and run.size % self.multiple:
            yield Problem(
                f"resize.size={run.size} is not a multiple of resize.multiple={self.multiple}",
                f"resize.size={-(-run.size // self.multiple) * self.multiple}",
            )
        if self.schedule == "book" and (self.first_size or 0) > run.size:
            yield Problem(
                f"resize.first_size={self.first_size} is larger than the final size {run.size}",
                f"resize.first_size={run.size // 2}",
            )
        if self.schedule == "book" and run.optim.schedule != "one_cycle":
            yield Problem(
                f"optim.schedule={run.optim.schedule}: resize=book has schedules of its own, "
                "one_cycle and then fine_tune",
                "optim.schedule=one_cycle",
            )
        if self.schedule == "progressive" and run.optim.schedule == "fine_tune":
            yield Problem(
                "resize.schedule=progressive has one stage, optim.schedule=fine_tune has two",
                "resize=fixed, or resize=book with optim=adamw",
            )
