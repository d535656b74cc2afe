"""The words of a comparison as a baseline and arms, checked before anything is written.

What decides on which images, with which seeds and in which place all runs are made belongs to the
baseline, wherever it stands among the words. Several words of one arm are one quoted argument,
because unquoted ones could also be meant for the baseline.
"""

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from runner.compare.asked import Asked, separate_words
from runner.config import checks, compose
from runner.config.complaints import translated
from runner.config.idea import idea_of, read_idea
from runner.config.options import OVERLAYS, option_names
from runner.config.overlays import all_tricks, words_without_effect
from runner.config.overrides import is_sweep
from runner.config.schema import RunConfig, trick_groups
from runner.config.words import spelled
from runner.errors import ConfigError, RunnerError
from runner.machine.hardware import require_device
from runner.records.comparison_folder import BASE, BASELINE, MOST_FOLDS, check_name
from runner.records.identity import evaluation_identity, identity
from runner.report.family import FEWEST_SEEDS
from runner.report.metric import margin_of, metric_of
from runner.terminal.console import legible

AGAIN = "baseline again (A/A)"
"""The label of the arm that is the baseline under other seeds."""
AGAIN_OFFSET = 1000
"""What that arm adds to a seed: more than the most seeds of a comparison."""
_LARGEST_SEED = 2**31 - 2**24
"""Of the first pair: there is room above it for the seeds of rounds, tuning and controls."""
FEWEST_FOLDS = 3
"""Folds from which there is a verdict."""
MOST_SEEDS: dict[str, int] = {"max-seeds": 20, "seeds": 100}
"""Seeds per arm at most, by the option that sets their number."""

_IMAGE_KEYS = (
    "name", "root", "variant", "label_noise", "val_fraction", "path_column", "label_column",
    "split_column", "group_column", "group_pattern", "num_folds", "fold", "on_corrupt", "on_leak",
)  # fmt: skip
"""Keys of ``data`` that decide which images there are, and how they are split and labeled."""
_PLACE_KEYS = ("seed", "outputs", "run_dir", "device", "threads", "force")
_SHARED = {
    "data", *(f"data.{key}" for key in _IMAGE_KEYS), *_PLACE_KEYS,
    "data.cache_gb", "data.num_workers", "eval.batch_size", "eval.every", "checkpoint.minutes",
    "logger", "logger.name", "logger.folder", "logger.project", "logger.online",
}  # fmt: skip
"""Keys whose words belong to the baseline wherever they stand."""


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
        margin: smallest difference that matters, in units of the metric.
        metric: what is compared.
        tune: keys with the values of their grid.
        name: of the comparison, if the user gave one.
        num_folds: number of folds of each seed; 1 without cross-validation.
        budget: seconds after which no further training begins; None for no limit.
        notes: what the user should know, a sentence each.
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
    num_folds: int = 1
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A run that a round needs.

    Attributes:
        label: the arm's, or ``base``.
        seed: number of the pair, which without folds is its seed, that of the baseline.
        words: of the run.
        is_tuning: whether the run belongs to the search for values, which no verdict uses.
    """

    label: str
    seed: int
    words: tuple[str, ...]
    is_tuning: bool = False


def joined_words(base: Sequence[str], words: Sequence[str]) -> tuple[str, ...]:
    """Return the words of a run: those of the baseline, changed by ``words``.

    A word replaces that of the baseline with the same key, and overlays are joined:
    ``+trick=mixup`` and ``+trick=tta`` are ``+trick=[mixup,tta]``.

    Args:
        base: words of the baseline.
        words: of an arm, of tuning, or ``seed=3``.
    """
    kept, changed = list(base), list[str]()
    for word in words:
        key = _key(word)
        same = [other for other in kept if _key(other) == key]
        kept = [other for other in kept if _key(other) != key]
        if key in OVERLAYS and word.startswith("+") and not word.startswith("++"):
            joined = [name for other in [*same, word] for name in _overlay_names(other)]
            names = list(dict.fromkeys(joined))
            word = f"+{key}={names[0]}" if len(names) == 1 else f"+{key}=[{','.join(names)}]"
        changed.append(word)
    return (*kept, *changed)


def _key(word: str) -> str:
    return word.lstrip("+~ ").partition("=")[0].strip()


def _overlay_names(word: str) -> list[str]:
    """Return the names in ``+trick=mixup`` or ``+trick=[mixup,tta]``."""
    text = word.partition("=")[2].strip().removeprefix("[").removesuffix("]")
    return [name.strip() for name in text.split(",") if name.strip()]


def question(asked: Asked) -> Question:
    """Check what a user asks. Nothing is written, and no data is read.

    Raises:
        ConfigError: naming the word or the option, and the arm.
        CodeError: see :func:`runner.config.idea.read_idea`.
    """
    metric = metric_of(asked.metric)
    margin, (max_seeds, is_fixed) = margin_of(asked.margin, metric), _seeds(asked)
    budget = None if asked.budget is None else _seconds(asked.budget)
    if asked.name is not None:
        check_name(asked.name)
    words, tries = _sorted_words(asked)
    for word in words:
        _check_base_word(word)
    num_folds = _folds(asked, words)
    if num_folds > 1:
        words = [*words, f"data.num_folds={num_folds}"]
    compose.register()
    launcher = tuple(word for word in words if re.split(r"[./]", _key(word))[0] == "hydra")
    own = tuple(word for word in words if word not in launcher)
    try:
        base = _config([*own, *launcher], asked.config_dir)
    except ConfigError as error:
        where = error.where or shlex.join(own)
        raise ConfigError(error.what, where=where, fix=error.fix) from error
    _check_base(base, words)
    base_words = tuple(word for word in own if _key(word) != "seed")
    arms, notes = _arms(base_words, base, tries, asked.config_dir)
    tune = _grid(asked.tune, own, base, arms, asked.config_dir)
    changes = [arm.words for arm in arms]
    changes += [(f"{key}={value}",) for key, values in tune for value in values]
    for one in dict.fromkeys(((), *changes)):
        _check_references(base_words, one, num_folds, asked.config_dir)
    return Question(
        base_words=base_words,
        base=base,
        arms=arms,
        launcher=launcher,
        config_dir=asked.config_dir,
        outputs=Path(base.outputs).expanduser(),
        first_seed=base.seed,
        max_seeds=max_seeds,
        is_fixed=is_fixed,
        margin=margin,
        metric=metric.name,
        tune=tune,
        name=asked.name,
        budget=budget,
        num_folds=num_folds,
        notes=(*words_without_effect(base, base_words), *notes),
    )


def _seeds(asked: Asked) -> tuple[int, bool]:
    """Return the number of seeds, and whether the design is fixed."""
    if asked.folds is not None:
        return _seeds_per_fold(asked), True
    if asked.seeds is not None and asked.max_seeds is not None:
        raise ConfigError(
            "--max-seeds adds seeds until each arm is decided, --seeds gives every arm all of "
            "them: one of the two",
            where=f"--max-seeds {asked.max_seeds} --seeds {asked.seeds}",
            fix=f"--max-seeds {asked.max_seeds}",
        )
    option, text = ("seeds", asked.seeds) if asked.seeds is not None else ("max-seeds", "10")
    if asked.max_seeds is not None:
        text = asked.max_seeds
    most = MOST_SEEDS[option]
    number = int(text) if re.fullmatch(r"\d{1,6}", str(text), re.ASCII) else 0
    if not FEWEST_SEEDS <= number <= most:
        reason = (
            ": with fewer than three no arm can be decided" if 0 < number < FEWEST_SEEDS else ""
        )
        raise ConfigError(
            f"--{option} takes a whole number from {FEWEST_SEEDS} to {most}{reason}",
            where=f"--{option} {text}",
            fix=f"--{option} {FEWEST_SEEDS if 0 < number < FEWEST_SEEDS else 10}",
        )
    return number, option == "seeds"


def _seeds_per_fold(asked: Asked) -> int:
    if asked.max_seeds is not None:
        raise ConfigError(
            "cross-validation is a fixed design, so no seeds are added until each arm is decided",
            where=f"--folds {asked.folds} --max-seeds {asked.max_seeds}",
            fix=f"--folds {asked.folds} --seeds 2 for two seeds per fold",
        )
    most, text = MOST_SEEDS["seeds"], "1" if asked.seeds is None else asked.seeds
    number = int(text) if re.fullmatch(r"\d{1,6}", text, re.ASCII) else 0
    if not 1 <= number <= most:
        raise ConfigError(
            f"--seeds takes a whole number from 1 to {most} with --folds",
            where=f"--seeds {text}",
            fix="--seeds 1",
        )
    return number


def _folds(asked: Asked, words: Sequence[str]) -> int:
    """Return the number of folds; 1 without cross-validation."""
    if asked.folds is None:
        return 1
    number = int(asked.folds) if re.fullmatch(r"\d{1,6}", asked.folds, re.ASCII) else 0
    if not FEWEST_FOLDS <= number <= MOST_FOLDS:
        raise ConfigError(
            f"--folds takes a whole number from {FEWEST_FOLDS} to {MOST_FOLDS}"
            + (": with two folds no arm can be decided" if number == 2 else ""),
            where=f"--folds {asked.folds}",
            fix="--folds 5",
        )
    for word in words:
        if _key(word) in ("data.num_folds", "data.fold"):
            raise ConfigError(
                "--folds sets the folds of all trainings itself",
                where=word,
                fix=f"leave it out: --folds {number}",
            )
    if asked.tune:
        raise ConfigError(
            "settings that are tuned on the images of one fold would be compared on them, too",
            where=f"--folds {number} --tune {asked.tune[0]}",
            fix="--tune without --folds",
        )
    return number


_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def _seconds(text: str) -> float:
    """Return the seconds of a time such as ``2h``, ``90m``, ``45s`` or ``1h30m``."""
    number = r"(\d{1,6}(?:\.\d{1,6})?)"
    pattern = r"\s*".join(f"(?:{number}\\s*{unit})?" for unit in _UNITS)
    found = re.fullmatch(pattern, text.strip(), re.ASCII | re.IGNORECASE)
    parts = found.groups() if found else (None,)
    seconds = sum(
        float(part) * unit
        for part, unit in zip(parts, _UNITS.values(), strict=False)
        if part is not None
    )
    if seconds <= 0:
        bare = re.fullmatch(r"\d{1,6}", text.strip(), re.ASCII)
        raise ConfigError(
            "a budget is a time above 0, with its unit: d, h, m or s",
            where=f"--budget {text}",
            fix=f"--budget {int(bare[0])}m" if bare and int(bare[0]) else "--budget 1h30m",
        )
    return seconds


def _sorted_words(asked: Asked) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the words of the baseline, and those of each arm.

    Raises:
        ConfigError: an arm has no word of its own, or a word for all has two values.
    """
    base = list(asked.words)
    tries = list[tuple[str, ...]]()
    for arguments in asked.tries:
        words = [word for argument in arguments for word in separate_words(argument)]
        if not words:
            raise ConfigError(
                "--try needs one or more words",
                where="--try",
                fix="--try +trick=mixup, or --try '' for the baseline again (an A/A control)",
            )
        if words == [""]:
            tries.append(())
            continue
        words = [word for word in words if word.strip()]
        shared = [word for word in words if _is_shared(word)]
        arm = tuple(word for word in words if word not in shared)
        if not arm:
            raise _not_an_arm(shared or [""])
        own = [one for one in arguments if not all(map(_is_shared, separate_words(one)))]
        if len(own) > 1:
            raise _arm_or_baseline(own)
        tries.append(arm)
        base += shared
    for word in base:
        others = [other for other in base if _key(other) == _key(word) and other != word]
        if _is_shared(word) and others:
            raise ConfigError(
                f"{_key(word)} has two values, and must be equal for the baseline and all arms",
                where=shlex.join([word, others[0]]),
                fix="one of them, or a comparison for each",
            )
    if any(_is_shared(word) for word in base):
        base = [
            word for number, word in enumerate(base)
            if not (_is_shared(word) and word in base[:number])
        ]  # fmt: skip
    return base, tries


def _is_shared(word: str) -> bool:
    key = _key(word)
    return key in _SHARED or re.split(r"[./]", key)[0] == "hydra"


def _arm_or_baseline(arguments: Sequence[str]) -> ConfigError:
    """Return the error for words after a ``--try`` that could be the arm's or the baseline's.

    A wrong guess would be noticed after hours of training, or never.
    """
    first, *others = arguments
    whole = " ".join(arguments)
    return ConfigError(
        f"is {others[0]} a part of this arm, or of the baseline?",
        where=f"--try {shlex.join(arguments)}",
        fix=f"--try {shlex.quote(whole)} for the arm; or for the baseline, and so for all arms, "
        f"{shlex.join(others)} --try {shlex.quote(first)}",
    )


def _not_an_arm(words: Sequence[str]) -> ConfigError:
    """Return the error for an arm whose words all belong to the baseline."""
    first, where = words[0], f"--try {shlex.join(words)}"
    if _key(first) == "seed":
        return ConfigError(
            "an arm has the seeds of the baseline, so a seed is no change",
            where=where,
            fix="--try '' for the baseline again under other seeds (an A/A control)",
        )
    if _key(first).startswith("data"):
        return ConfigError(
            f"{_key(first)} decides the images, and all arms are compared on the same images",
            where=where,
            fix=f"{shlex.quote(first)} before --try, or a comparison for each",
        )
    return ConfigError(
        f"{_key(first) or 'an empty word'} changes no result, so there is nothing to compare",
        where=where,
        fix=f"{shlex.quote(first)} before --try, where it is for the baseline and all arms",
    )


def _check_base_word(word: str) -> None:
    """Refuse what makes no baseline: no word, and several values."""
    _check_form(word)
    if is_sweep(word):
        key = _key(word)
        raise ConfigError(
            "a comparison has one baseline, so its words are no sweep",
            where=word,
            fix=f"{key}=FIRST, the first seed; the number of seeds is --max-seeds or --seeds"
            if key == "seed"
            else f"--try {key}=VALUE for each value",
        )


def _check_form(word: str) -> None:
    """Refuse a word without a value, and say what was probably meant."""
    if "=" in word or word.startswith("~"):
        return
    fix = "KEY=VALUE, or see --help"
    if word in option_names("trick"):
        fix = f"+trick={word}"
    elif word.endswith(".py"):
        fix = f"code={shlex.quote(word)}"
    raise ConfigError(f"not an option: {word}", where=word, fix=fix)


def _config(words: Sequence[str], folder: Path | None) -> RunConfig:
    try:
        return compose.config_of(words, folder)
    except RunnerError:
        raise
    except Exception as error:  # Hydra's own; any other error is raised unchanged
        problem = translated(error)
        if problem is None:
            raise
        raise problem from error


def _check_base(base: RunConfig, words: Sequence[str]) -> None:
    typed = {_key(word): word for word in words}
    if base.run_dir is not None:
        raise ConfigError(
            "a comparison has many runs, and run_dir is the folder of one",
            where=typed.get("run_dir", f"run_dir={base.run_dir}"),
            fix="outputs=FOLDER",
        )
    if base.force:
        raise ConfigError(
            "a comparison uses every run that exists; force=true would train them all again",
            where=typed.get("force", "force=true"),
            fix="outputs=ANOTHER_FOLDER, or python -m runner.train force=true … for single runs",
        )
    if base.seed > _LARGEST_SEED:
        raise ConfigError(
            f"the first seed of a comparison is at most {_LARGEST_SEED:,}, because more follow",
            where=typed.get("seed", f"seed={base.seed}"),
            fix="seed=0",
        )
    require_device(base.device)
    idea_of(base)


def _arms(
    base_words: Sequence[str],
    base: RunConfig,
    tries: Sequence[tuple[str, ...]],
    folder: Path | None,
) -> tuple[tuple[Arm, ...], list[str]]:
    """Return the arms, and notes on them.

    Raises:
        ConfigError: naming every arm that cannot be.
    """
    is_default = not tries
    if is_default:
        tries = [(f"+trick={name}",) for name in _tricks()]
    labels = _labels(tries)
    seed = () if base.seed == 0 else (f"seed={base.seed}",)
    found, notes = list[Arm](), list[str]()
    problems: dict[str, ConfigError] = {}
    of_all = {note.split(" ")[0] for note in words_without_effect(base, base_words)}
    known = {_meaning(base): BASE}
    for words, label in zip(tries, labels, strict=True):
        try:
            config = _arm_config(base_words, words, base, seed, folder)
            meaning = AGAIN if not words else _meaning(config)
            own_notes = [
                note
                for note in words_without_effect(config, words)
                if note.split(" ")[0] not in of_all
            ]
            if meaning in known:
                if is_default and known[meaning] == BASE:
                    continue  # the baseline has this trick
                raise equal_arms(known[meaning], words, own_notes)
        except RunnerError as error:
            problem = ConfigError(error.what, where=error.where, fix=error.fix)
            problems.setdefault(f"{error.what}  [--try {shlex.join(words or [''])}]", problem)
            continue
        known[meaning] = label
        notes += [f"{label}: {text}" for text in own_notes]
        found.append(Arm(label, words, 0 if words else AGAIN_OFFSET, config))
    if problems:
        first = next(iter(problems.values()))
        where = first.where or f"--try {next(iter(problems)).partition('--try ')[2][:-1]}"
        raise ConfigError("\n".join(problems), where=where, fix=first.fix)
    if not found:
        raise ConfigError(
            "the baseline has all tricks already, so there is nothing to try",
            where=" ".join(base_words),
            fix="--try WORDS, such as --try mixup=none",
        )
    return tuple(found), notes


def _check_references(
    base_words: Sequence[str], words: Sequence[str], num_folds: int, folder: Path | None
) -> None:
    """Refuse a value that is another one for each seed or fold, such as ``data.fold=${seed}``.

    Runs of an arm that differ in more than seed and fold are no repetitions of one training.

    Args:
        base_words: of the baseline.
        words: of an arm, or of one value of the search; none for the baseline.
        num_folds: number of folds of each seed; 1 without cross-validation.
        folder: folder with the user's option files; None if there is none.
    """
    joined = joined_words(base_words, words)
    varied = ("seed", "data.fold") if num_folds > 1 else ("seed",)
    for key in compose.followers(joined, folder, varied):
        fix = f"{key}=VALUE, without a reference"
        if key in ("data.fold", "data.num_folds"):
            fix = "leave it out: --folds N compares by cross-validation"
        raise ConfigError(
            f"{key} refers to {' or '.join(varied)}, and would make each run another training: "
            f"the runs of an arm differ in {' and '.join(varied)} alone",
            where=next((one for one in joined if _key(one) == key), " ".join(joined) or key),
            fix=fix,
        )


def _tricks() -> list[str]:
    """Return the tricks that are tried if none is named, in the order in which they act."""
    order = [name for names in trick_groups().values() for name in names]
    return sorted(all_tricks(), key=order.index)


def _labels(tries: Sequence[tuple[str, ...]]) -> list[str]:
    """Return what the arms are called: short, each another, none like the baseline."""
    short = [legible(" ".join(map(_short, words))) or AGAIN for words in tries]
    counts = Counter(short)
    taken = {BASE, BASELINE}
    labels = list[str]()
    for words, label in zip(tries, short, strict=True):
        if counts[label] > 1 or label in taken:
            label = legible(" ".join(words)) or AGAIN
        unique, number = label, 2
        while unique in taken:
            unique, number = f"{label} ({number})", number + 1
        taken.add(unique)
        labels.append(unique)
    return labels


def _short(word: str) -> str:
    """A word as a name: ``+trick=[mixup,tta]`` as ``mixup+tta``, a file without its folder."""
    key, value = _key(word), word.partition("=")[2]
    if key == "trick" and (names := _overlay_names(word)):
        return "+".join(names)
    if key == "code" and value != "null" and (name := Path(value.strip("'\"")).name):
        return name
    return word


def _arm_config(
    base_words: Sequence[str],
    words: Sequence[str],
    base: RunConfig,
    seed: Sequence[str],
    folder: Path | None,
) -> RunConfig:
    for word in words:
        _check_form(word)
        if is_sweep(word):
            raise ConfigError(
                "an arm is one change, and this word has several values",
                where=word,
                fix=f"--try {_key(word)}=VALUE for each value",
            )
    if not words:
        return base
    config = _config([*joined_words(base_words, words), *seed], folder)
    for key in _IMAGE_KEYS:
        if getattr(config.data, key) != getattr(base.data, key):
            raise ConfigError(
                f"the arm trains on other images: data.{key}={spelled(getattr(config.data, key))}",
                where=" ".join(words),
                fix="the same word before the first --try, for the baseline and all arms",
            )
    for key in _PLACE_KEYS:
        if getattr(config, key) != getattr(base, key):
            raise ConfigError(
                f"an arm cannot change {key}: {key}={spelled(getattr(config, key))}",
                where=" ".join(words),
                fix=f"{key}={spelled(getattr(config, key))} before the first --try",
            )
    idea_of(config)
    return config


def _meaning(config: RunConfig) -> str:
    """Equal for configurations that lead to equal results, as far as the data need not be read."""
    weights = (config.model.weights, config.model.pretrained) if config.names_weights else None
    code = None if config.code is None else read_idea(config.code).sha256
    presize = config.data.presize or 2 * config.largest_size
    training = identity(config, 0, presize, "", None if weights is None else repr(weights), code)[
        "identity"
    ]
    return f"{training} {evaluation_identity(config)}"


def equal_arms(other: str, words: Sequence[str], notes: Iterable[str]) -> ConfigError:
    """Return the error for an arm that is equal to the baseline or another arm.

    Args:
        other: label of the other arm, or ``base``.
        words: of the arm.
        notes: why it could be equal, such as a key that has no effect.
    """
    reasons = "".join(f"; {note}" for note in notes)
    if not words:
        return ConfigError(
            "the baseline again is tried twice", where="--try ''", fix="one --try ''"
        )
    if other == BASE:
        return ConfigError(
            f"the arm is equal to the baseline{reasons}",
            where=f"--try {shlex.join(words)}",
            fix="another change, or --try '' for the baseline again under other seeds",
        )
    return ConfigError(
        f"the arm is equal to the arm {other}{reasons}",
        where=f"--try {shlex.join(words)}",
        fix="leave one of them out",
    )


def _grid(
    options: Sequence[str],
    base_words: Sequence[str],
    base: RunConfig,
    arms: Sequence[Arm],
    folder: Path | None,
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the keys that are tuned, with their values.

    Raises:
        ConfigError: a key cannot be tuned, or a value is wrong for the baseline or an arm.
    """
    found: dict[str, tuple[str, ...]] = {}
    for option in options:
        try:
            key, values = _tuned(option, base_words, base, arms, folder)
        except RunnerError as error:
            where = f"--tune {shlex.quote(option)}"
            raise ConfigError(error.what, where=where, fix=error.fix) from error
        if key in found:
            raise ConfigError(
                f"{key} is tuned twice",
                where=f"--tune {shlex.quote(option)}",
                fix=f"--tune {key}={','.join([*found[key], *values])}",
            )
        found[key] = values
    return tuple(found.items())


def _tuned(
    option: str,
    base_words: Sequence[str],
    base: RunConfig,
    arms: Sequence[Arm],
    folder: Path | None,
) -> tuple[str, tuple[str, ...]]:
    """Return the key that one ``--tune`` names, and its values."""
    key = _key(option)
    kind = _tunable(key, option, arms)
    try:
        values = tuple(job[0].partition("=")[2] for job in compose.jobs([option]))
    except RunnerError:
        raise
    except Exception as error:  # Hydra's own
        problem = translated(error)
        if problem is None:
            raise
        raise problem from error
    if len(values) < 2:
        example = values[0] if values else "A"
        raise ConfigError(
            "a search needs two or more different values", fix=f"--tune {key}={example},ANOTHER"
        )
    composed = [_config(joined_words(base_words, [f"{key}={value}"]), folder) for value in values]
    settings = [_setting(config, key, kind) for config in composed]
    if any(setting in settings[:number] for number, setting in enumerate(settings)):
        raise ConfigError("two values are equal", fix="each value once")
    group, _, name = key.rpartition(".")
    is_read = False
    for label, config in ((BASE, base), *((arm.label, arm.config) for arm in arms)):
        for setting in settings:
            try:
                changed = checks.changed(config, setting)
            except ConfigError as error:
                raise ConfigError(f"{label}: {error.what}", fix=error.fix) from error
        is_read = is_read or (group, name) not in checks.ignored(changed)
    if not is_read:
        raise ConfigError(
            f"{key} has no effect in the baseline and in all arms",
            fix="a key that at least one of them uses, such as optim.lr",
        )
    return key, values


def _tunable(key: str, option: str, arms: Sequence[Arm]) -> Literal["key", "group"]:
    """Return what ``key`` names."""
    if "=" not in option:
        raise ConfigError("--tune takes a key and its values", fix="--tune optim.lr=1e-3,3e-3,1e-2")
    if key in _SHARED or key in (*OVERLAYS, "code") or re.split(r"[./]", key)[0] == "hydra":
        raise ConfigError(
            f"{key} cannot be tuned" + (": tuning has seeds of its own" if key == "seed" else ""),
            fix="--tune optim.lr=1e-3,3e-3,1e-2",
        )
    for arm in arms:
        if key in map(_key, arm.words):
            raise ConfigError(
                f"the arm {arm.label} sets {key}, which the search would replace",
                fix="another key, or the arm without it",
            )
    if key in RunConfig().groups:
        return "group"
    if key not in checks.known_keys():
        message, fix = checks.unknown_key(key, option.partition("=")[2])
        raise ConfigError(message, fix=f"--tune {fix}" if "=" in fix else fix)
    return "key"


def _setting(config: RunConfig, key: str, kind: Literal["key", "group"]) -> dict[str, Any]:
    """Return the value of ``key`` in ``config``, for :func:`runner.config.checks.changed`."""
    group, _, name = key.rpartition(".")
    if kind == "group":
        value = getattr(config, key)
        return {key: {item.name: getattr(value, item.name) for item in fields(value)}}
    if not group:
        return {key: getattr(config, key)}
    return {group: {name: getattr(getattr(config, group), name)}}
