"""The words of a comparison as a baseline and arms, checked before anything is written."""

from dataclasses import dataclass
from pathlib import Path

from runner.config.schema import RunConfig

BASE = "base"
"""The label of the baseline: no arm has it."""


@dataclass(frozen=True)
class Arm:
    """A change of the baseline.

    Attributes:
        label: what the comparison calls the arm; no two arms have the same.
        words: what the arm adds to the words of the baseline; empty for the baseline again.
        seed_offset: what is added to the seed of the baseline; not 0 for the baseline again only.
        config: of the arm's run with the first seed.
    """

    label: str
    words: tuple[str, ...]
    seed_offset: int
    config: RunConfig


@dataclass(frozen=True)
class Question:
    """What a user asks, checked.

    Attributes:
        base_words: words of the baseline as typed, without its seed and the launcher.
        base: configuration of the baseline's run with the first seed.
        arms: the changes, one or more.
        launcher: words that choose Hydra's launcher and set its keys; empty for this process.
        config_dir: folder with option files of the user's own; None if there is none.
        outputs: folder of everything that is written.
        first_seed: the smallest seed.
        max_seeds: seeds per arm at most; of the fixed design, the seeds of every arm.
        is_fixed: whether every arm has all seeds and is judged once.
        margin: smallest difference that matters, 0..1.
        metric: what is compared.
        tune: keys with the values of their grid.
        name: of the comparison, if the user gave one.
        budget: seconds after which no further training begins; None for no limit.
    """

    base_words: tuple[str, ...]
    base: RunConfig
    arms: tuple[Arm, ...]
    launcher: tuple[str, ...]
    config_dir: Path | None
    outputs: Path
    first_seed: int
    max_seeds: int
    is_fixed: bool
    margin: float
    metric: str
    tune: tuple[tuple[str, tuple[str, ...]], ...]
    name: str | None
    budget: float | None


def joined_words(base: tuple[str, ...], words: tuple[str, ...]) -> tuple[str, ...]:
    """The words of a run: those of the baseline, changed by ``words``.

    A word replaces that of the baseline with the same key, and overlays are joined:
    ``+trick=mixup`` and ``+trick=tta`` are ``+trick=[mixup,tta]``.

    Args:
        base: words of the baseline.
        words: of an arm, of tuning, or ``seed=3``.
    """
    keys = {word.lstrip("+~").partition("=")[0] for word in words}
    kept = [word for word in base if word.lstrip("+~").partition("=")[0] not in keys]
    return (*kept, *words)


@dataclass(frozen=True)
class Job:
    """A run that a round needs.

    Attributes:
        label: the arm's, or ``base``.
        seed: seed of the pair, that is, of the baseline.
        words: of the run.
        is_tuning: whether the run belongs to the search for values, which no verdict uses.
    """

    label: str
    seed: int
    words: tuple[str, ...]
    is_tuning: bool = False
