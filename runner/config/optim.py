"""The optimizer and its schedule."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from runner.config.group import Group, Problem, option

if TYPE_CHECKING:
    from runner.config.schema import RunConfig


@dataclass(frozen=True)
class Optim(Group):
    """The optimizer and its schedule."""

    MAIN_KEY: ClassVar = "optim.lr"

    name: Literal["adamw", "sgd"] = option("adamw", "optimizer")
    lr: float = option(3e-3, "peak learning rate", above=0)
    weight_decay: float = option(0.01, "weight decay: decoupled (adamw) or L2 (sgd)", at_least=0)
    beta2: float = option(
        0.99, "adamw: decay rate of the mean squared gradient", at_least=0, below=1
    )
    eps: float = option(1e-5, "adamw: added to the denominator", above=0)
    nesterov: bool = option(False, "sgd: use Nesterov momentum")
    schedule: Literal["one_cycle", "flat_cosine", "constant", "fine_tune"] = option(
        "one_cycle", "course of the learning rate over training"
    )
    warmup: float = option(
        0.25, "one_cycle: part of training in which the learning rate rises", at_least=0, below=1
    )
    decay_from: float = option(
        0.75,
        "flat_cosine: part of training after which the learning rate falls",
        at_least=0,
        below=1,
    )
    div: float = option(
        25.0, "one_cycle, fine_tune: the learning rate starts at lr / div", at_least=1
    )
    div_final: float = option(
        1e5, "the learning rate ends at lr / div_final; constant: no effect", at_least=1
    )
    momentum: float = option(
        0.95,
        "momentum of sgd, β1 of adamw; with one_cycle, at its start and end",
        at_least=0,
        below=1,
    )
    momentum_low: float = option(
        0.85, "one_cycle, fine_tune: momentum at the peak of the learning rate", at_least=0, below=1
    )
    frozen: bool = option(
        False, "with optim.layer_groups=3: train only the head and the BatchNorms, all the time"
    )
    freeze_epochs: int = option(
        1, "fine_tune: epochs at the start with all but the head frozen", at_least=0
    )
    lr_spread: float = option(
        100.0, "with optim.layer_groups=3: the first group trains at lr / lr_spread", at_least=1
    )
    layer_groups: Literal[1, 3] = option(
        1, "number of groups for freezing and learning rates; 3: early body, late body, head"
    )

    def ignores(self, run: "RunConfig") -> Iterator[str]:
        """See :class:`Group`."""
        by_book = run.resize.schedule == "book"  # which trains by one_cycle, then by fine_tune
        if self.name != "sgd":
            yield "nesterov"
        if self.name != "adamw":
            yield from ("beta2", "eps")
        if self.schedule != "one_cycle" and not by_book:
            yield "warmup"
        if self.schedule not in ("one_cycle", "fine_tune") and not by_book:
            yield from ("div", "momentum_low")
        if self.schedule != "flat_cosine":
            yield "decay_from"
        if self.schedule == "constant":
            yield "div_final"
        if self.schedule != "fine_tune" and not by_book:
            yield "freeze_epochs"
        if self.layer_groups == 1 or self.frozen:
            yield "lr_spread"

    def contradictions(self, run: "RunConfig") -> Iterator[Problem]:
        """See :class:`Group`."""
        if self.frozen and self.layer_groups != 3:
            yield Problem(
                f"optim.frozen=true freezes nothing with optim.layer_groups={self.layer_groups}",
                "optim.layer_groups=3",
            )
        if self.frozen and (self.schedule == "fine_tune" or run.resize.schedule == "book"):
            yield Problem(
                "optim.frozen=true freezes all the time, fine_tune and resize=book only at first",
                "optim.frozen=false, or optim=linear_probe with resize=fixed",
            )
