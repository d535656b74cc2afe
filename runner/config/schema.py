"""The configuration: every key with its type, range and meaning.

``RunConfig`` is what the rest of the package sees: plain frozen dataclasses, one per group of
``conf/`` and each in a file of its own, filled and checked by
:func:`runner.config.checks.from_dict`. The defaults are neutral: a group left alone changes
nothing. Options that turn a trick on live in ``conf/``.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from typing import Any, Literal

from runner.config.accumulate import Accumulate
from runner.config.augment import Augment
from runner.config.auto_augment import AutoAugment
from runner.config.blurpool import Blurpool
from runner.config.budget import Budget
from runner.config.checkpoint import Checkpoint
from runner.config.clip import Clip
from runner.config.data import Data
from runner.config.ema import Ema
from runner.config.erasing import Erasing
from runner.config.eval import Eval
from runner.config.group import Group, Problem, option
from runner.config.logger import Logger
from runner.config.loss import Loss
from runner.config.mixup import Mixup
from runner.config.model import Model
from runner.config.normalize import Normalize
from runner.config.optim import Optim
from runner.config.resize import Resize
from runner.config.sam import Sam
from runner.config.sampling import Sampling
from runner.config.smoothing import Smoothing
from runner.config.stochastic_depth import StochasticDepth
from runner.config.tta import Tta

__all__ = [
    "Accumulate",
    "Augment",
    "AutoAugment",
    "Blurpool",
    "Budget",
    "Checkpoint",
    "Clip",
    "Data",
    "Ema",
    "Erasing",
    "Eval",
    "Group",
    "Logger",
    "Loss",
    "Mixup",
    "Model",
    "Normalize",
    "Optim",
    "Problem",
    "Resize",
    "RunConfig",
    "Sam",
    "Sampling",
    "Smoothing",
    "StochasticDepth",
    "Tta",
    "default_dict",
    "evaluation_groups",
    "plain_keys",
    "resolved",
    "to_dict",
    "trick_groups",
]


_LONGEST_NAME, _LONGEST_PATH = 255, 3000  # bytes; Linux takes 4096, our own names included


@dataclass(frozen=True)
class RunConfig:
    """One run, complete: equal values and equal data give an equal result."""

    data: Data = field(default_factory=Data)
    normalize: Normalize = field(default_factory=Normalize)
    augment: Augment = field(default_factory=Augment)
    auto_augment: AutoAugment = field(default_factory=AutoAugment)
    erasing: Erasing = field(default_factory=Erasing)
    resize: Resize = field(default_factory=Resize)
    mixup: Mixup = field(default_factory=Mixup)
    smoothing: Smoothing = field(default_factory=Smoothing)
    loss: Loss = field(default_factory=Loss)
    sampling: Sampling = field(default_factory=Sampling)
    model: Model = field(default_factory=Model)
    stochastic_depth: StochasticDepth = field(default_factory=StochasticDepth)
    blurpool: Blurpool = field(default_factory=Blurpool)
    optim: Optim = field(default_factory=Optim)
    accumulate: Accumulate = field(default_factory=Accumulate)
    sam: Sam = field(default_factory=Sam)
    clip: Clip = field(default_factory=Clip)
    ema: Ema = field(default_factory=Ema)
    tta: Tta = field(default_factory=Tta)
    budget: Budget = field(default_factory=Budget)
    eval: Eval = field(default_factory=Eval)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    logger: Logger = field(default_factory=Logger)
    code: str | None = option(
        None, "Python file with functions of your own, as in docs/adding-a-trick.md; null: none"
    )
    seed: int = option(0, "seed of every random draw", at_least=0, below=2**63)
    device: str = option(
        "auto",
        "where the network runs: auto, cpu, cuda, cuda:1 …, or mps, the GPU of a Mac (not tested); "
        "auto: an NVIDIA GPU if there is one, else the CPU",
    )
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto",
        "number format of the network's arithmetic; auto: bf16 where the hardware has it, "
        "else fp32",
    )
    compile: Literal["none", "default", "reduce-overhead"] = option(
        "none", "mode of torch.compile for the network; reduce-overhead: CUDA graphs"
    )
    threads: int = option(0, "number of CPU threads; 0: as many as cores", at_least=0, at_most=1024)
    outputs: str = option("outputs", "folder below which everything is written")
    run_dir: str | None = option(
        None,
        "folder of this run; null: a folder below outputs, named after data, model, tricks "
        "and seed",
    )
    force: bool = option(False, "train again even if the result exists")

    @property
    def size(self) -> int:
        """Final training size, px."""
        return self.resize.size or self.data.default_size

    @property
    def eval_size(self) -> int:
        """Evaluation size, px."""
        return self.eval.size or self.size

    @property
    def eval_crop(self) -> float:
        """Side of the evaluated square, as a part of the short side."""
        return self.eval.crop or 1.0

    @property
    def interpolation(self) -> Literal["bilinear", "bicubic"]:
        """Of all resizing of stored and evaluated images."""
        return self.data.interpolation or "bilinear"

    @property
    def largest_size(self) -> int:
        """Largest size that is trained or evaluated at, px."""
        return max(self.size, self.eval_size)

    @property
    def names_weights(self) -> bool:
        """Whether something here speaks of pretrained weights."""
        return (
            self.model.weights is not None
            or self.model.pretrained
            or self.normalize.source == "pretrained"
        )

    @property
    def groups(self) -> dict[str, Group]:
        """The groups by name, in the order of the fields."""
        values = ((item.name, getattr(self, item.name)) for item in fields(self))
        return {name: value for name, value in values if isinstance(value, Group)}

    @property
    def tricks(self) -> list[str]:
        """The names of the tricks that are on, whichever words turned them on."""
        return [name for group in self.groups.values() for name in group.turns_on(self)]

    @property
    def training(self) -> "RunConfig":
        """The configuration with all that only the evaluation reads at its default."""
        neutral: dict[str, Any] = {name: type(self.groups[name])() for name in evaluation_groups()}
        return replace(self, **neutral)

    def contradictions(self) -> Iterator[Problem]:
        """Yield what each key allows but makes no sense together."""
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            yield Problem(
                f"device={self.device}: no such device (auto, cpu, cuda, cuda:1 …, mps)",
                "device=auto",
            )
        for key, path in (("outputs", self.outputs), ("run_dir", self.run_dir or "")):
            encoded = path.encode(errors="surrogateescape")
            if len(encoded) > _LONGEST_PATH or max(map(len, encoded.split(b"/"))) > _LONGEST_NAME:
                yield Problem(
                    f"{key}={path[:40]}…: no file system takes names of more than {_LONGEST_NAME} "
                    f"bytes, nor such long paths",
                    f"{key}=SHORTER",
                )
        for group in self.groups.values():
            yield from group.contradictions(self)


def trick_groups() -> dict[str, tuple[str, ...]]:
    """Groups that can turn on tricks, with the names of those tricks."""
    return {name: group.TRICKS for name, group in RunConfig().groups.items() if group.TRICKS}


@cache
def evaluation_groups() -> frozenset[str]:
    """Groups that the weights do not depend on, only the views of an image at evaluation."""
    return frozenset(name for name, group in RunConfig().groups.items() if not group.TRAINS)


def plain_keys(group: str) -> tuple[str, ...]:
    """Return the keys of a group that belong to no trick; all keys if it has no tricks."""
    kind = RunConfig().groups[group]
    return kind.NO_TRICK if kind.TRICKS else tuple(item.name for item in fields(kind))


def default_dict() -> dict[str, Any]:
    """Return all defaults in nested plain containers, onto which ``conf/`` is merged."""
    plain: dict[str, Any] = _plain(asdict(RunConfig()))
    return plain


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return the values of ``config`` as nested plain containers, ready for JSON and YAML."""
    plain: dict[str, Any] = _plain(asdict(config))
    return plain


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested values: each value by its dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        found |= leaves(value, f"{dotted}.") if isinstance(value, Mapping) else {dotted: value}
    return found


def resolved(
    config: RunConfig,
    *,
    num_classes: int,
    presize: int,
    device: str,
    precision: Literal["fp32", "bf16"],
) -> RunConfig:
    """Replace every null and ``auto`` in ``config`` that decides a result by its meaning."""
    return replace(
        config,
        data=replace(config.data, presize=presize, interpolation=config.interpolation),
        resize=replace(config.resize, size=config.size),
        eval=replace(config.eval, size=config.eval_size, crop=config.eval_crop),
        model=replace(config.model, num_outputs=config.model.num_outputs or num_classes),
        device=device,
        precision=precision,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
