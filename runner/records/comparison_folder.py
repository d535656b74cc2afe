"""The folder of a comparison of arms with a base, below ``outputs/comparisons/``.

    comparison.json  the question: base, arms, margin, design; written before the first training,
                     never changes
    tuning.json      the runs of the search for settings, and the words it chose for each arm
    runs.json        the run, or the failure, of each arm and seed; rewritten whole as jobs end
    answer.json      the answer of a comparison that has ended; written last
    confirmation.json  the results on the test images, if they were requested
    comparison.lock  held by the process that runs the comparison

Each file has ``format``, and ``identity``, a hash over the rest of the file and the question.
So a file that was edited or belongs to another comparison is noticed. No file holds a time of day:
a comparison that was killed and resumed has the same files as one that was not.

After results were seen, a changed question would not keep its error rate: :func:`place` finds
the comparison that a question belongs to, and refuses a question that changes an earlier one.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from runner.errors import ArtefactError, ConfigError
from runner.machine import fields
from runner.machine.files import (
    own_folder,
    read_whole,
    remove_leftovers,
    replace_whole,
)
from runner.machine.locks import Lock, is_held, locked
from runner.records.run_folder import LARGEST_JSON

FORMAT = 1
BASE = "base"
"""The key of the base among the labels of the arms; no arm may have this label."""
BASELINE = "baseline"
"""The displayed name of the base."""
FOLDER = "comparisons"
"""The folder below ``outputs`` that holds the comparisons."""
MOST_SEEDS = 1000
"""Largest number of seeds of a fixed design."""
MOST_FOLDS = 100
"""Largest number of folds of a design."""
SEQUENTIAL_SEEDS = range(3, 21)
"""The allowed largest numbers of seeds of a sequential design."""
METRICS = ("accuracy", "balanced_accuracy", "log_loss", "brier", "macro_f1", "auroc", "ece")
"""The metrics that can be compared."""

_NO_RATES = ("log_loss", "brier")
"""Metrics whose margin is not a part of 1, and so not in percentage points."""

_PLAN, _RUNS, _TUNING, _ANSWER = "comparison.json", "runs.json", "tuning.json", "answer.json"
_CONFIRMATION = "confirmation.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_LARGEST_SEED = 2**63 - 1
_T = TypeVar("_T")


@dataclass(frozen=True)
class ArmPlan:
    """One arm: what it changes in the base.

    Attributes:
        label: the name of the arm in tables; unique, and not ``base``.
        words: words that follow those of the base; empty for the base again under other seeds.
        seed_offset: added to the seed of each run of the arm; not 0 only for the base again.
        identity: hash over all that decides the results of the arm, such as values and code, but
            not the seed. Arms of equal identity are one arm, however their words are written. If
            empty, the words are compared.
    """

    label: str
    words: tuple[str, ...]
    seed_offset: int = 0
    identity: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """Words and seed offset, by which another comparison recognizes this arm."""
        # Words of equal keys keep their order, because the last one counts.
        words = sorted(self.words, key=lambda word: word.partition("=")[0])
        return self.identity or json.dumps(words), self.seed_offset


@dataclass(frozen=True)
class ComparisonPlan:
    """The question of a comparison, fixed before its first training.

    Attributes:
        name: the name of the folder; empty until :func:`place` has chosen it.
        base_words: words of the base, without a seed.
        values: values that decide the results of the base, by group and key, with the SHA-256 of
            its code; a ``seed`` among them is ignored.
        fingerprint: fingerprint of the data.
        num_val: number of validation images.
        arms: the arms, at least one.
        margin: a difference below this, in (0, 1], counts as no difference.
        metric: the metric that is compared, one of ``METRICS``; the margin is in its units.
        is_fixed: whether all seeds run before the only look.
        max_seeds: largest number of seeds of an arm.
        looks: numbers of seeds after which the arms are judged, rising to ``max_seeds``.
        first_seed: the seed of the first pair.
        tune: keys whose values every arm and the base search, each with its values as words.
        shares_runs_with: names of earlier comparisons whose results this one uses too.
        num_folds: number of cross-validation folds of each seed, of a fixed design; 1 without
            folds. With folds, ``fingerprint`` and ``num_val`` are of the images of all folds.
    """

    name: str
    base_words: tuple[str, ...]
    values: Mapping[str, Any]
    fingerprint: str
    num_val: int
    arms: tuple[ArmPlan, ...]
    margin: float
    metric: str
    is_fixed: bool
    max_seeds: int
    looks: tuple[int, ...]
    first_seed: int = 0
    tune: tuple[tuple[str, tuple[str, ...]], ...] = ()
    shares_runs_with: tuple[str, ...] = ()
    num_folds: int = 1

    @property
    def seeds(self) -> range:
        """The seeds of all pairs, in order."""
        return range(self.first_seed, self.first_seed + self.max_seeds)

    @property
    def pairs(self) -> range:
        """The numbers of all pairs of trainings: the seeds, or with folds one for each fold."""
        return self.pairs_of(self.max_seeds)

    def pairs_of(self, num_seeds: int) -> range:
        """Return the numbers of the pairs of the first seeds."""
        return range(self.first_seed, self.first_seed + num_seeds * self.num_folds)

    def pair(self, seed: int, fold: int) -> int:
        """Return the number of a pair."""
        return self.first_seed + (seed - self.first_seed) * self.num_folds + fold

    def seed_and_fold(self, pair: int) -> tuple[int, int]:
        """Return the seed and the fold of a pair; fold 0 without folds."""
        seed, fold = divmod(pair - self.first_seed, self.num_folds)
        return self.first_seed + seed, fold

    def pair_name(self, pair: int) -> str:
        """Return the displayed name of a pair, such as ``seed 3``."""
        if self.num_folds == 1:
            return f"seed {pair}"
        return "seed {}, fold {}".format(*self.seed_and_fold(pair))

    @property
    def labels(self) -> tuple[str, ...]:
        """The label of each arm."""
        return tuple(arm.label for arm in self.arms)

    @property
    def question(self) -> str:
        """Sixteen hex digits: equal for equal questions, whatever their words and names."""
        return hash_of(
            [
                self.base_question,
                sorted(arm.key for arm in self.arms),
                float(self.margin),
                self.metric,
                self.is_fixed,
                self.max_seeds,
                self.first_seed,
                self.tune,
                *([self.num_folds] if self.num_folds > 1 else []),
            ]
        )

    @property
    def base_question(self) -> str:
        """Sixteen hex digits: equal for equal bases on equal data, whatever their seed."""
        values = {key: value for key, value in self.values.items() if key != "seed"}
        return hash_of([values, self.fingerprint, self.num_val])

    def shares_runs(self, other: "ComparisonPlan") -> bool:
        """Return whether runs of an arm can belong to this comparison and to ``other``."""
        return (
            self.base_question == other.base_question
            and bool({arm.key for arm in self.arms} & {arm.key for arm in other.arms})
            and bool({*self.seeds} & {*other.seeds})
        )


@dataclass(frozen=True)
class PairedRun:
    """The result of one job of a comparison: its run, or why it has no run.

    Attributes:
        run: name of the run's folder below ``outputs``; None if the job failed.
        evaluation: name of the evaluation of the run; None for the plain view.
        failed: why the job failed; empty if it did not.
        is_diverged: whether the training diverged, so that it would diverge again.
        folder: name of the folder of a training that failed; empty if it is not known.
    """

    run: str | None
    evaluation: str | None = None
    failed: str = ""
    is_diverged: bool = False
    folder: str = ""

    @property
    def is_tried_again(self) -> bool:
        """Whether the same command tries the job again: it failed, and did not diverge."""
        return self.run is None and not self.is_diverged


@dataclass(frozen=True)
class Tuned:
    """The search of one arm, or of the base.

    Attributes:
        chosen: the words that it chose, one per tuned key; empty if all values failed.
        runs: the runs of each combination of values, by its words and by seed; none for the base
            again under other seeds, which takes the words that the base chose.
    """

    chosen: tuple[str, ...]
    runs: Mapping[tuple[str, ...], Mapping[int, PairedRun]] = field(default_factory=dict)


class ComparisonFolder:
    """One comparison on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = path / "comparison.lock"
        self._held: Lock | None = None

    @staticmethod
    def all_in(outputs: Path) -> "list[ComparisonFolder]":
        """Return the comparisons below ``outputs``, sorted by name; other folders are skipped."""
        with suppress(OSError):
            paths = sorted((outputs / FOLDER).iterdir())
            return [ComparisonFolder(path) for path in paths if (path / _PLAN).is_file()]
        return []

    @property
    def name(self) -> str:
        """The name of the comparison."""
        return self.path.name

    @property
    def outputs(self) -> Path:
        """The folder of the runs."""
        return self.path.parent.parent

    @property
    def exists(self) -> bool:
        """Whether the folder has a question."""
        return (self.path / _PLAN).is_file()

    @property
    def is_begun(self) -> bool:
        """Whether any result of the comparison may have been seen."""
        return any((self.path / name).exists() for name in (_RUNS, _TUNING, _ANSWER))

    @property
    def is_running(self) -> bool:
        """Whether a process runs the comparison now."""
        return is_held(self.lock)

    @contextmanager
    def locked(self) -> Iterator[Lock]:
        """Hold the lock of the comparison; from now on, each write requires it to be in place.

        Raises:
            BusyError: another process holds the lock.
            StorageError: the lock cannot be taken.
        """
        own_folder(self.path.parent)
        own_folder(self.path)
        with locked(self.lock, wait=False) as held:
            self._held = held
            try:
                remove_leftovers(self.path)
                yield held
            finally:
                self._held = None

    def begin(self, plan: ComparisonPlan) -> None:
        """Write the question, unless the folder already has it.

        Raises:
            ConfigError: the folder has another question.
            ArtefactError: the folder has a question that cannot be read.
            StorageError: the folder cannot be written.
        """
        if self.exists:
            if (found := self.plan()).question != plan.question:
                raise _other_question(self, found, plan)
            return
        self._write(_PLAN, plan_content(plan), "")

    def plan(self) -> ComparisonPlan:
        """Read the question.

        Raises:
            ArtefactError: the file is missing, damaged or was edited.
        """
        fix = f"mv {shlex.quote(str(self.path))} ELSEWHERE; a new comparison finds the same runs"
        return self._read(_PLAN, "", plan_of, fix)

    def runs(self) -> dict[str, dict[int, PairedRun]]:
        """Read the runs of the base and of each arm, by label and by seed; empty at the start.

        Raises:
            ArtefactError: a file is damaged or was edited, or the question is missing.
        """
        plan = self.plan()
        if not (self.path / _RUNS).exists():
            return {label: {} for label in (BASE, *plan.labels)}

        def parse(content: Mapping[str, Any]) -> dict[str, dict[int, PairedRun]]:
            found = fields.section(content, "runs")
            if {*found} != {BASE, *plan.labels}:
                raise ValueError(f"its arms are not those of {_PLAN}")
            runs = {label: _runs_of(fields.section(found, label)) for label in (BASE, *plan.labels)}
            for label, by_seed in runs.items():
                if foreign := {*by_seed} - {*plan.pairs}:
                    raise ValueError(f"{label} has seed {min(foreign)}, which is not compared")
            return runs

        return self._read(_RUNS, identity_of(plan), parse, self._removing(_RUNS))

    def write_runs(self, runs: Mapping[str, Mapping[int, PairedRun]]) -> None:
        """Write the runs of the base and of each arm, by label and by seed.

        Raises:
            StorageError: the folder cannot be written, or the lock is gone.
        """
        plan = self.plan()
        content = {label: _runs_content(runs.get(label, {})) for label in (BASE, *plan.labels)}
        self._write(_RUNS, {"runs": content}, identity_of(plan))

    def tuning(self) -> dict[str, Tuned] | None:
        """Read the search of the base and of each arm, by label; None before it has ended.

        Raises:
            ArtefactError: a file is damaged or was edited, or the question is missing.
        """
        plan = self.plan()
        if not (self.path / _TUNING).exists():
            return None

        def parse(content: Mapping[str, Any]) -> dict[str, Tuned]:
            found = fields.section(content, "tuning")
            if {*found} != {BASE, *plan.labels}:
                raise ValueError(f"its arms are not those of {_PLAN}")
            return {label: _tuned_of(fields.section(found, label)) for label in found}

        return self._read(_TUNING, identity_of(plan), parse, self._removing(_TUNING))

    def write_tuning(self, tuning: Mapping[str, Tuned]) -> None:
        """Write the search of the base and of each arm, once and whole.

        Raises:
            StorageError: the folder cannot be written, or the lock is gone.
        """
        content = {
            label: {
                "chosen": [*one.chosen],
                "runs": [
                    {"words": [*words], "seeds": _runs_content(runs)}
                    for words, runs in one.runs.items()
                ],
            }
            for label, one in tuning.items()
        }
        self._write(_TUNING, {"tuning": content}, identity_of(self.plan()))

    def chosen(self) -> dict[str, tuple[str, ...]]:
        """Return the words that the search chose for the base and each arm; empty without a search.

        Raises:
            ArtefactError: a file is damaged or was edited, or the question is missing.
        """
        return {label: one.chosen for label, one in (self.tuning() or {}).items()}

    def answer(self) -> dict[str, Any] | None:
        """Read the answer; None while the comparison has not ended.

        Raises:
            ArtefactError: a file is damaged or was edited, or the question is missing.
        """
        if not (self.path / _ANSWER).exists():
            return None
        return self._read(
            _ANSWER,
            identity_of(self.plan()),
            lambda content: fields.section(content, "answer"),
            self._removing(_ANSWER),
        )

    def write_answer(self, answer: Mapping[str, Any]) -> None:
        """Write the answer, which ends the comparison.

        Raises:
            StorageError: the folder cannot be written, or the lock is gone.
        """
        self._write(_ANSWER, {"answer": dict(answer)}, identity_of(self.plan()))

    def confirmation(self) -> dict[str, Any] | None:
        """Read the results on the test images; None if they were not requested.

        Raises:
            ArtefactError: a file is damaged or was edited, or the question is missing.
        """
        if not (self.path / _CONFIRMATION).exists():
            return None
        return self._read(
            _CONFIRMATION,
            identity_of(self.plan()),
            lambda content: fields.section(content, "confirmation"),
            self._removing(_CONFIRMATION),
        )

    def write_confirmation(self, confirmation: Mapping[str, Any]) -> None:
        """Write the results of an ended comparison on the test images.

        Raises:
            StorageError: the folder cannot be written, or the lock is gone.
        """
        content = {"confirmation": dict(confirmation)}
        self._write(_CONFIRMATION, content, identity_of(self.plan()))

    def _removing(self, name: str) -> str:
        path = shlex.quote(str(self.path / name))
        return f"rm {path} and the same command again, which finds its runs"

    def _write(self, name: str, content: Mapping[str, Any], question: str) -> None:
        if self._held is not None:
            self._held.require()
        whole = {"format": FORMAT, **content}
        whole["identity"] = hash_of([whole, question])
        replace_whole(self.path / name, (json.dumps(whole, indent=2) + "\n").encode())

    def _read(
        self, name: str, question: str, parse: Callable[[Mapping[str, Any]], _T], fix: str
    ) -> _T:
        """Return the content of a file, after its format and identity were checked."""
        path = self.path / name
        try:
            found = fields.parsed(read_whole(path, at_most=LARGEST_JSON))
            if (version := fields.value(found, "format")) != FORMAT:
                raise ValueError(f"its format is {version!r}; this program reads {FORMAT}")
            identity = fields.text(found, "identity")
            rest = {key: value for key, value in found.items() if key != "identity"}
            if hash_of([rest, question]) != identity:
                raise ValueError("it was edited, or belongs to another comparison")
            return parse(found)
        except (OSError, ValueError) as error:
            raise ArtefactError(
                f"cannot read a file of a comparison: {error}",
                where=str(path.absolute()),
                fix=fix,
            ) from error


@dataclass(frozen=True)
class Place:
    """Where a question belongs: the folder, and the question as it is recorded.

    Attributes:
        folder: the folder of the comparison; :meth:`ComparisonFolder.begin` creates a new one.
        plan: the question with its name; if the comparison exists, as it was recorded.
        notes: comparisons that could not be read and were left out, a sentence each.
    """

    folder: ComparisonFolder
    plan: ComparisonPlan
    notes: tuple[str, ...] = ()


def place(outputs: Path, plan: ComparisonPlan, name: str | None = None) -> Place:
    """Find the comparison of a question, or the place of a new one. Write nothing.

    Args:
        outputs: folder of the runs.
        plan: the question; its ``name`` and ``shares_runs_with`` are ignored.
        name: the name that the user gave, if any.

    Raises:
        ConfigError: the name is not possible, or belongs to another comparison; or, without a name,
            the question changes an earlier comparison after its results could be seen.
        ArtefactError: the question of the comparison with that name, or with this question's
            automatic name, cannot be read.
    """
    if name is not None:
        check_name(name)
    chosen = name or _automatic_name(plan)
    there: list[tuple[ComparisonFolder, ComparisonPlan]] = []
    notes: tuple[str, ...] = ()
    for folder in ComparisonFolder.all_in(outputs):
        try:
            there.append((folder, folder.plan()))
        except ArtefactError as error:
            if folder.name == chosen:
                raise
            notes += (
                f"comparison {folder.name} is ignored, even if it used the same runs: {error.what}",
            )
    same = [(folder, found) for folder, found in there if found.question == plan.question]
    for folder, found in sorted(same, key=lambda pair: pair[0].name != chosen):
        if name is None or folder.name == name:
            return Place(folder, found, notes)
    earlier = [
        (folder, found)
        for folder, found in there
        if folder.is_begun and found.shares_runs(plan) and folder.name != name
    ]
    folder = ComparisonFolder(outputs / FOLDER / chosen)
    for other, found in there:
        if other.name == chosen:
            raise _other_question(other, found, plan)
    if name is None and earlier:
        raise _changed_question(*earlier[0], plan)
    shared = tuple(sorted(other.name for other, _ in earlier))
    return Place(folder, replace(plan, name=chosen, shares_runs_with=shared), notes)


def _automatic_name(plan: ComparisonPlan) -> str:
    parts = [
        str(values.get("name", key)) if isinstance(values := plan.values.get(key), Mapping) else key
        for key in ("data", "model")
    ]
    stem = re.sub(r"[^A-Za-z0-9_.-]", "_", "-".join(parts)).lstrip("_.-")[:80]
    return f"{stem}-{plan.question[:8]}"


def check_name(name: str) -> None:
    """Refuse a name that the folder of a comparison could not have.

    Raises:
        ConfigError: naming the rule.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            "the name of a comparison has up to 100 letters, digits, hyphens, underscores and "
            "dots, and begins with a letter or digit",
            where=f"--name {name[:120]!r}",
            fix="--name another-name",
        )


_MEANINGS = {
    "changed": "its code or values have changed, so it is another arm, which is judged at an "
    "error rate that does not hold",
    "added": "an arm added after the results were seen is judged at an error rate that does not "
    "hold",
    "left out": "arms left out after the results were seen make the correction for their number "
    "too small",
    "max_seeds": "another number of seeds after a look at the results gives an arm without effect "
    "further chances to be called helpful",
    "margin": "a margin chosen after the results were seen can be chosen to suit them",
    "metric": "a metric chosen after the results were seen can be chosen to suit them",
    "design": "another design after the results were seen tests them a second time",
    "tune": "settings tuned after the results were seen give an arm a second chance",
    "first_seed": "seeds chosen after others were seen can be chosen to suit",
}  # fmt: skip


def _changes(old: ComparisonPlan, new: ComparisonPlan) -> dict[str, str]:
    """Return the differences between two questions, by key of ``_MEANINGS``."""
    before, after = ({arm.key: arm.label for arm in plan.arms} for plan in (old, new))
    added = [label for key, label in after.items() if key not in before]
    left_out = [label for key, label in before.items() if key not in after]
    arms = {
        "changed": [label for label in added if label in left_out],
        "added": [label for label in added if label not in left_out],
        "left out": [label for label in left_out if label not in added],
    }
    found = {what: f"arms {what}: {', '.join(labels)}" for what, labels in arms.items() if labels}
    for key, was, now in (
        ("max_seeds", old.max_seeds, new.max_seeds),
        ("margin", *_margins(old, new)),
        ("metric", old.metric, new.metric),
        ("design", _design_words(old), _design_words(new)),
        ("tune", _tune_words(old), _tune_words(new)),
        ("first_seed", old.first_seed, new.first_seed),
    ):
        if was != now:
            found[key] = f"{key}: {was} → {now}"
    return found


def _margins(old: ComparisonPlan, new: ComparisonPlan) -> tuple[str, str]:
    """Return the margins in words; margins of different metrics always differ."""
    if old.metric != new.metric:
        return "", ""
    scale, unit = (1, "") if old.metric in _NO_RATES else (100, " points")
    return f"{scale * old.margin:g}{unit}", f"{scale * new.margin:g}{unit}"


def _changed_question(
    folder: ComparisonFolder, old: ComparisonPlan, new: ComparisonPlan
) -> ConfigError:
    changes = _changes(old, new)
    lines = [f"  {change} ({_MEANINGS[what]})" for what, change in changes.items()]
    return ConfigError(
        f"comparison {folder.name} has begun, and its question about the same arms is another;  "
        "this one differs in\n" + "\n".join(lines),
        where=str(folder.path.absolute()),
        fix="the words of that comparison to continue it, or --name NAME to start a new one from "
        "the same runs, whose answer says so",
    )


def _other_question(
    folder: ComparisonFolder, old: ComparisonPlan, new: ComparisonPlan
) -> ConfigError:
    changes = _changes(old, new)
    if old.base_question != new.base_question:
        changes = {"base": "another baseline or other data", **changes}
    return ConfigError(
        "the name belongs to another comparison, which differs in\n"
        + "\n".join(f"  {change}" for change in changes.values()),
        where=str(folder.path.absolute()),
        fix="--name ANOTHER_NAME",
    )


def _design(plan: ComparisonPlan) -> str:
    return "fixed" if plan.is_fixed else "sequential"


def _design_words(plan: ComparisonPlan) -> str:
    folds = f" with {plan.num_folds} folds" if plan.num_folds > 1 else ""
    return _design(plan) + folds


def _tune_words(plan: ComparisonPlan) -> str:
    return " ".join(f"{key}={','.join(values)}" for key, values in plan.tune) or "nothing"


def plan_content(plan: ComparisonPlan) -> dict[str, Any]:
    """Return the question as values for JSON."""
    return {
        "name": plan.name,
        "base": {
            "words": [*plan.base_words],
            "values": dict(plan.values),
            "fingerprint": plan.fingerprint,
            "num_val": plan.num_val,
        },
        "arms": [
            {
                "label": arm.label,
                "words": [*arm.words],
                "seed_offset": arm.seed_offset,
                "identity": arm.identity,
            }
            for arm in plan.arms
        ],
        "margin": float(plan.margin),
        "metric": plan.metric,
        "design": _design(plan),
        "max_seeds": plan.max_seeds,
        "looks": [*plan.looks],
        "first_seed": plan.first_seed,
        "tune": [{"key": key, "values": [*values]} for key, values in plan.tune],
        "shares_runs_with": [*plan.shares_runs_with],
        **({"num_folds": plan.num_folds} if plan.num_folds > 1 else {}),
    }


def plan_of(content: Mapping[str, Any]) -> ComparisonPlan:
    """Return the question from the values of :func:`plan_content`; other keys are ignored.

    Raises:
        ValueError: a value is missing or impossible.
    """
    base = fields.section(content, "base")
    if (design := fields.text(content, "design")) not in ("sequential", "fixed"):
        raise ValueError(f"design must be sequential or fixed, not {design!r}")
    if (metric := fields.text(content, "metric")) not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}")
    max_seeds = fields.whole(content, "max_seeds", at_least=1, at_most=MOST_SEEDS)
    if design == "sequential" and max_seeds not in SEQUENTIAL_SEEDS:
        low, high = SEQUENTIAL_SEEDS[0], SEQUENTIAL_SEEDS[-1]
        raise ValueError(f"max_seeds of a sequential design must be {low} to {high}")
    looks = fields.value(content, "looks")
    if not isinstance(looks, list) or len(looks) > MOST_SEEDS:
        raise ValueError("looks must be a list of numbers of seeds")
    looks = [fields.whole({"looks": look}, "looks", at_least=1) for look in looks]
    if not looks or looks[-1] != max_seeds or looks != sorted({*looks}):
        raise ValueError(f"looks must rise to max_seeds, {max_seeds}, not {looks}")
    arms = tuple(
        ArmPlan(
            fields.text(arm, "label"),
            fields.texts(arm, "words"),
            fields.whole(arm, "seed_offset", at_most=_LARGEST_SEED),
            fields.text(arm, "identity"),
        )
        for arm in fields.sections(content, "arms")
    )
    labels = [arm.label for arm in arms]
    if not arms or len({*labels, BASE}) != len(labels) + 1:
        raise ValueError("arms must be a list of arms with labels of their own")
    if not all(label and label.isprintable() for label in labels):
        raise ValueError("a label must be printable text")
    if not (margin := float(fields.number(content, "margin", at_least=0, at_most=1))) > 0:
        raise ValueError("margin must be above 0")
    name = fields.text(content, "name")
    if not _NAME.fullmatch(name):
        raise ValueError("name must be a possible name of a folder")
    return ComparisonPlan(
        name=name,
        base_words=fields.texts(base, "words"),
        values=fields.section(base, "values"),
        fingerprint=fields.text(base, "fingerprint"),
        num_val=fields.whole(base, "num_val", at_least=1),
        arms=arms,
        margin=margin,
        metric=metric,
        is_fixed=design == "fixed",
        max_seeds=max_seeds,
        looks=tuple(looks),
        first_seed=fields.whole(content, "first_seed", at_most=_LARGEST_SEED),
        tune=tuple(
            (fields.text(one, "key"), fields.texts(one, "values"))
            for one in fields.sections(content, "tune")
        ),
        shares_runs_with=fields.texts(content, "shares_runs_with"),
        num_folds=_num_folds(content),
    )


def _num_folds(content: Mapping[str, Any]) -> int:
    """Return the number of folds of a question; 1 without folds.

    Raises:
        ValueError: the number is impossible.
    """
    if "num_folds" not in content:
        return 1
    if content["design"] != "fixed":
        raise ValueError("folds need a fixed design")
    return fields.whole(content, "num_folds", at_least=2, at_most=MOST_FOLDS)


def _runs_content(runs: Mapping[int, PairedRun]) -> dict[str, Any]:
    return {
        str(seed): {"failed": run.failed, "is_diverged": run.is_diverged, "folder": run.folder}
        if run.run is None
        else {"run": run.run, "evaluation": run.evaluation}
        for seed, run in sorted(runs.items())
    }


def _runs_of(content: Mapping[str, Any]) -> dict[int, PairedRun]:
    found = {}
    for seed in content:
        if not re.fullmatch(r"0|[1-9][0-9]{0,18}", seed):
            raise ValueError(f"a seed must be a whole number, not {seed!r:.80}")
        found[int(seed)] = _run_of(fields.section(content, seed))
    return found


def _run_of(content: Mapping[str, Any]) -> PairedRun:
    if "failed" in content:
        is_diverged = fields.value(content, "is_diverged")
        if not isinstance(is_diverged, bool):
            raise ValueError("is_diverged must be true or false")
        folder = fields.text(content, "folder") if "folder" in content else ""
        if folder:
            _require_name(folder)
        return PairedRun(None, None, fields.text(content, "failed"), is_diverged, folder)
    run, evaluation = fields.text(content, "run"), fields.value(content, "evaluation")
    _require_name(run)
    if evaluation is not None:
        evaluation = fields.text(content, "evaluation")
        _require_name(evaluation)
    return PairedRun(run, evaluation)


def _require_name(name: str) -> None:
    """Raise ValueError if the name of a run or evaluation cannot be part of a path."""
    if not re.fullmatch(r"(?!\.\.?$)[^/\0]{1,255}", name):
        raise ValueError(f"not the name of a run or evaluation: {name!r:.80}")


def _tuned_of(content: Mapping[str, Any]) -> Tuned:
    return Tuned(
        fields.texts(content, "chosen"),
        {
            fields.texts(one, "words"): _runs_of(fields.section(one, "seeds"))
            for one in fields.sections(content, "runs")
        },
    )


def identity_of(plan: ComparisonPlan) -> str:
    """Return sixteen hex digits over the whole question, which every file of a comparison holds."""
    return hash_of(plan_content(plan))


def displayed_label(label: str) -> str:
    """Return the displayed label of an arm or of the base."""
    return BASELINE if label == BASE else label


def hash_of(content: Any) -> str:
    """Hash values of JSON to sixteen hex digits."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
