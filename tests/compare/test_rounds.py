"""The rounds of a comparison, with jobs that write runs without training."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from fabricated import FINGERPRINT, write_run

from runner.compare import batches, rounds, tuning
from runner.compare.batches import How
from runner.compare.live import Live
from runner.compare.question import Job
from runner.compare.rounds import RoundsResult
from runner.config.schema import Optim
from runner.errors import BusyError, ConfigError, StorageError, SweepError, TrainingError
from runner.jobs.launch import JobsResult, Outcome
from runner.machine.files import remove
from runner.machine.signals import Interrupted
from runner.records import evaluations
from runner.records.comparison_folder import ArmPlan, ComparisonFolder, ComparisonPlan
from runner.records.run_folder import RunFolder
from runner.records.sweep_folder import SweepFolder
from runner.report.comparison_words import verdict_line
from runner.report.comparisons import standings
from runner.report.scores import ScoreBook
from runner.report.sequential import looks
from runner.terminal.start import Work

NUM_IMAGES = 400
NUM_FOLDS = 4
MIXUP = ArmPlan("mixup", ("+trick=mixup",))
SMOOTHING = ArmPlan("smoothing", ("+trick=label_smoothing",))
TTA = ArmPlan("tta", ("+trick=tta",))
AGAIN = ArmPlan("baseline again", (), seed_offset=1000)
BASE = 0.70
"""Accuracy of the base, which differs a little from seed to seed, as does that of each arm."""
EFFECTS = {"mixup": 0.15, "label_smoothing": 0.03, "tta": 0.03}
"""Of each trick; with these, mixup is decided by the first looks, and the others are not."""


@pytest.fixture(scope="module", autouse=True)
def quick_disk() -> Iterator[None]:
    """Fabricated runs need not survive a power cut; waiting for the disk is most of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@dataclass
class Clock:
    """A clock that only jobs advance."""

    now: float = 100.0

    def monotonic(self) -> float:
        return self.now


class KilledError(BaseException):
    """In place of a kill: nothing runs after it."""


@dataclass
class FakeJobs:
    """Jobs that write the run that their words name, without training.

    Attributes:
        fails: what a job of these words ends with instead of a run, if anything.
        dies_after: number of jobs after which the process is killed; None for never.
        stops_after: number of jobs after which a signal comes; None for never.
        clock: what each job advances by ``seconds``.
        seconds: how long each job takes.
        batches: the words of each batch that was requested.
        trained: words of the jobs that wrote a run.
    """

    fails: Callable[[str], Outcome | None] = lambda words: None
    dies_after: int | None = None
    stops_after: int | None = None
    clock: Clock = field(default_factory=Clock)
    seconds: float = 1.0
    batches: list[list[str]] = field(default_factory=list)
    trained: list[str] = field(default_factory=list)

    def __call__(
        self,
        jobs: Sequence[Sequence[str]],
        work: Any,
        launcher: Sequence[str],
        outputs: Path,
        *,
        on_begin: Callable[[int], None],
        on_end: Callable[[int, Outcome], None],
        deadline: float | None,
        **more: Any,
    ) -> JobsResult:
        self.batches.append([" ".join(words) for words in jobs])
        assert len({*self.batches[-1]}) == len(jobs)
        outcomes, stopped = [Outcome("pending")] * len(jobs), None
        for number, words in enumerate(jobs):
            if deadline is not None and self.clock.now >= deadline:
                break
            if self.stops_after is not None and len(self.trained) >= self.stops_after:
                stopped = 2
                break
            on_begin(number)
            if self.dies_after is not None and len(self.trained) >= self.dies_after:
                raise KilledError
            self.clock.now += self.seconds
            outcomes[number] = self.outcome(" ".join(words), outputs)
            on_end(number, outcomes[number])
        is_late = deadline is not None and self.clock.now >= deadline
        return JobsResult(outcomes, SweepFolder.create(outputs, jobs), stopped, is_late)

    def outcome(self, words: str, outputs: Path) -> Outcome:
        if (failure := self.fails(words)) is not None:
            return failure
        tricks = [trick for trick in EFFECTS if trick in words]
        plain = [trick for trick in tricks if trick != "tta"]
        seed = int(words.partition("seed=")[2].split()[0])
        lr = float(words.partition("optim.lr=")[2].split()[0]) if "optim.lr=" in words else 1e-3
        fold = int(words.partition("data.fold=")[2].split()[0]) if "data.fold=" in words else None
        luck = 0.005 * ((seed * 7 + len("".join(tricks)) * 5) % 4)
        accuracy = BASE + luck + sum(EFFECTS[trick] for trick in plain) - 10 * abs(lr - 2e-3)
        of_fold = "" if fold is None else f"-fold{fold}"
        folder = RunFolder(outputs / f"run-{'+'.join(plain)}-{lr:g}-seed{seed}{of_fold}")
        status = "finished" if folder.result() is None else "skipped"
        if status == "finished":
            write_run(
                outputs,
                *plain,
                "tta",  # every run has the evaluation, which only an arm with tta is told of
                seed=seed,
                accuracy=accuracy,
                tta_accuracy=accuracy + EFFECTS["tta"],
                num_images=NUM_IMAGES if fold is None else NUM_IMAGES // NUM_FOLDS,
                fold=None if fold is None else (fold, NUM_FOLDS),
                epochs=1,
                optim=Optim(lr=lr),
                name=folder.path.name,
            )
        self.trained.append(words)
        names = evaluations.names(folder) if "tta" in tricks else []
        return Outcome(
            status, str(folder.path), names[0] if names else None, accuracy, seconds=self.seconds
        )


class Seen(Live):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def round(self, jobs: Sequence[Job]) -> None:
        self.told.append(("round", len(jobs)))

    def begun(self, job: Job) -> None:
        self.told.append(("begun", job))

    def ended(self, job: Job, outcome: Outcome) -> None:
        self.told.append(("ended", job))

    def looked(self, answer: Any) -> None:
        self.told.append(("looked", answer))


def question(*arms: ArmPlan, max_seeds: int = 6, **more: Any) -> ComparisonPlan:
    plan = ComparisonPlan(
        name="question",
        base_words=("data=folder",),
        values={},
        fingerprint=FINGERPRINT,
        num_val=NUM_IMAGES,
        arms=arms or (MIXUP, SMOOTHING),
        margin=0.01,
        metric="accuracy",
        is_fixed=False,
        max_seeds=max_seeds,
        looks=more["looks"] if "looks" in more else looks(max_seeds),
    )
    return replace(plan, **more)


Compare = Callable[..., RoundsResult]


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """Run a comparison in ``tmp_path`` with fake jobs."""

    def run(
        jobs: FakeJobs,
        plan: ComparisonPlan | None = None,
        *,
        outputs: Path = tmp_path,
        budget: float | None = None,
        live: Live | None = None,
        folders: Mapping[str, Mapping[int, RunFolder]] | None = None,
    ) -> RoundsResult:
        monkeypatch.setattr(batches, "run_jobs", jobs)
        monkeypatch.setattr(batches, "time", jobs.clock)
        plan = plan or question()
        folder = ComparisonFolder(outputs / "comparisons" / plan.name)
        how = How(Work(lambda config, words: {}), outputs, budget=budget)
        return rounds.run(folder, plan, how, live or Seen(), folders)

    return run


def folder_in(outputs: Path) -> ComparisonFolder:
    return ComparisonFolder(outputs / "comparisons" / "question")


def files_of(outputs: Path) -> dict[str, bytes]:
    """The content of the folder of a comparison, without its lock."""
    folder = folder_in(outputs).path
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


def diverged(*parts: str) -> Callable[[str], Outcome | None]:
    """Jobs whose words have all ``parts`` diverge."""

    def fails(words: str) -> Outcome | None:
        is_meant = all(part in words.split() for part in parts)
        return (
            Outcome("failed", error="the loss is not finite", error_kind="DivergedError")
            if is_meant
            else None
        )

    return fails


def broken(*parts: str) -> Callable[[str], Outcome | None]:
    """Jobs whose words have all ``parts`` fail for a reason that may pass."""

    def fails(words: str) -> Outcome | None:
        is_meant = all(part in words.split() for part in parts)
        return (
            Outcome("failed", error="out of memory", error_kind="TrainingError")
            if is_meant
            else None
        )

    return fails


def test_decided_arms_train_no_more_and_the_base_goes_on(compare: Compare, tmp_path: Path) -> None:
    jobs, live = FakeJobs(), Seen()
    result = compare(jobs, live=live)
    mixup, smoothing = result.answer.standings
    assert result.answer.is_ended
    assert mixup.verdict == "helps"
    assert len(mixup.seeds) < len(smoothing.seeds) <= 6
    by_batch = [
        [words.split()[-1] for words in batch if "mixup" in words] for batch in jobs.batches
    ]
    assert by_batch[:2] == [[], ["seed=0", "seed=1", "seed=2"]], "the base comes first"
    assert by_batch[-1] == [], "mixup is decided"
    assert len(jobs.trained) == len({*jobs.trained}) == result.answer.num_trainings
    assert jobs.batches[0][:3] == [f"data=folder seed={seed}" for seed in range(3)]
    runs = folder_in(tmp_path).runs()
    assert len(runs["base"]) == len(runs["smoothing"]) == len(smoothing.seeds)
    assert len(runs["mixup"]) == len(mixup.seeds)
    ended = [job for what, job in live.told if what == "ended"]
    assert sorted(job.label for job in ended) == sorted(
        label for label, by_seed in runs.items() for _ in by_seed
    )
    assert [what for what, _ in live.told].count("looked") == len(jobs.batches)
    assert not result.failed
    result.raise_problem()


def test_a_comparison_that_has_ended_answers_from_its_file(
    compare: Compare, tmp_path: Path
) -> None:
    first = compare(FakeJobs())
    before = files_of(tmp_path)
    for path in tmp_path.glob("run-*"):
        remove(path)
    jobs = FakeJobs()
    again = compare(jobs)
    assert jobs.batches == []
    assert [one.verdict for one in again.answer.standings] == [
        one.verdict for one in first.answer.standings
    ]
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("is_fixed", [False, True])
def test_killed_after_any_job_it_ends_with_the_same_files(
    compare: Compare, tmp_path: Path, is_fixed: bool
) -> None:
    plan = question(
        MIXUP,
        SMOOTHING,
        TTA,
        max_seeds=4,
        **({"is_fixed": True, "looks": (4,)} if is_fixed else {}),
    )
    compare(FakeJobs(), plan, outputs=tmp_path / "whole")
    jobs, num_kills = FakeJobs(), 0
    for number in range(100):
        jobs.dies_after = number + 1
        try:
            compare(jobs, plan, outputs=tmp_path / "killed")
        except KilledError:
            num_kills += 1
        else:
            break
    assert num_kills >= 7
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_a_fixed_design_is_one_round(compare: Compare) -> None:
    jobs = FakeJobs()
    result = compare(jobs, question(is_fixed=True, max_seeds=4, looks=(4,)))
    assert [len(batch) for batch in jobs.batches] == [4, 8]
    assert result.answer.is_ended
    assert [len(one.seeds) for one in result.answer.standings] == [4, 4]


def test_a_diverged_fold_of_the_base_costs_the_arms_no_training_of_its_seed(
    compare: Compare, tmp_path: Path
) -> None:
    plan = question(MIXUP, is_fixed=True, max_seeds=2, looks=(2,), num_folds=NUM_FOLDS)

    def fails(words: str) -> Outcome | None:
        return None if "trick" in words else diverged("seed=1", "data.fold=2")(words)

    jobs = FakeJobs(fails=fails)
    result = compare(jobs, plan, outputs=tmp_path / "whole")
    assert [len(batch) for batch in jobs.batches] == [8, 4]
    assert all("seed=0" in words for words in jobs.batches[1])
    (arm,) = result.answer.standings
    assert (arm.seeds, [*arm.failed]) == ((0,), [1])
    assert (arm.verdict, arm.reason) == ("helps", "decided"), "four folds of a seed are enough"
    assert "failed" not in verdict_line(arm, plan.margin).partition(";")[0]

    killed = tmp_path / "killed"
    for number in (4, 2, 1, 1, 1):
        with pytest.raises(KilledError):
            compare(FakeJobs(fails=fails, dies_after=number), plan, outputs=killed)
    compare(FakeJobs(fails=fails), plan, outputs=killed)
    assert files_of(killed) == files_of(tmp_path / "whole")


@pytest.mark.parametrize("metric", ["balanced_accuracy", "log_loss", "macro_f1"])
def test_folds_are_judged_by_another_metric(compare: Compare, metric: str) -> None:
    plan = question(
        MIXUP, is_fixed=True, max_seeds=1, looks=(1,), num_folds=NUM_FOLDS, metric=metric
    )
    (arm,) = compare(FakeJobs(), plan).answer.standings
    assert arm.verdict == "helps"
    assert arm.mean is not None
    assert (arm.mean < 0) == (metric == "log_loss")


def test_a_base_that_lacks_a_fold_of_every_seed_is_an_error(compare: Compare) -> None:
    plan = question(MIXUP, is_fixed=True, max_seeds=2, looks=(2,), num_folds=NUM_FOLDS)
    jobs = FakeJobs(fails=diverged("data.fold=2"))
    with pytest.raises(TrainingError, match="with each of 2 seeds, in at least one fold"):
        compare(jobs, plan)
    assert [len(batch) for batch in jobs.batches] == [8], "the base alone"


def test_the_base_again_has_seeds_of_its_own(compare: Compare, tmp_path: Path) -> None:
    jobs = FakeJobs()
    compare(jobs, question(AGAIN, max_seeds=3))
    assert [words.split()[-1] for words in jobs.trained] == [
        "seed=0", "seed=1", "seed=2", "seed=1000", "seed=1001", "seed=1002",
    ]  # fmt: skip
    assert {*folder_in(tmp_path).runs()["baseline again"]} == {0, 1, 2}


def test_a_signal_stops_and_the_same_command_continues(compare: Compare, tmp_path: Path) -> None:
    compare(FakeJobs(), outputs=tmp_path / "whole")
    jobs = FakeJobs(stops_after=5)
    result = compare(jobs)
    assert result.stopped_by == 2
    assert not result.answer.is_ended
    with pytest.raises(Interrupted):
        result.raise_problem()
    assert folder_in(tmp_path).answer() is None
    jobs.stops_after = None
    compare(jobs)
    assert len(jobs.trained) == len({*jobs.trained})
    assert files_of(tmp_path) == files_of(tmp_path / "whole")


def test_jobs_have_the_words_of_this_call_and_the_record_its_own(
    compare: Compare, tmp_path: Path
) -> None:
    """The data has moved, say: the question is the same, but the words that find it are others."""
    arms = replace(MIXUP, identity="m"), replace(SMOOTHING, identity="s")
    before = question(*arms, base_words=("data=folder", "data.root=a"))
    compare(FakeJobs(), before, outputs=tmp_path / "whole")
    with pytest.raises(KilledError):
        compare(FakeJobs(dies_after=4), before)
    now = question(
        replace(arms[0], words=("mixup=beta",)), arms[1],
        base_words=("data=folder", "data.root=b", "threads=1"),
    )  # fmt: skip
    jobs = FakeJobs()
    result = compare(jobs, now)
    assert jobs.trained
    assert all("data.root=b threads=1" in words for words in jobs.trained)
    assert jobs.trained[0] == "data=folder data.root=b threads=1 mixup=beta seed=1"
    assert result.answer.plan.base_words == before.base_words
    assert files_of(tmp_path) == files_of(tmp_path / "whole")


def test_two_processes_at_once(compare: Compare, tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    with folder.locked(), pytest.raises(BusyError):
        compare(FakeJobs())


# ── Arms and seeds that fail ───────────────────────────────────────────────────────────────────


def test_a_seed_that_diverged_is_an_outcome_and_is_not_tried_again(
    compare: Compare, tmp_path: Path
) -> None:
    jobs = FakeJobs(fails=diverged("+trick=label_smoothing", "seed=1"))
    result = compare(jobs)
    smoothing = result.answer.standings[1]
    assert result.answer.is_ended
    assert not result.failed
    assert smoothing.failed == {1: "the loss is not finite"}
    assert 1 not in smoothing.seeds
    assert folder_in(tmp_path).runs()["smoothing"][1].is_diverged
    assert sum("label_smoothing seed=1" in words for batch in jobs.batches for words in batch) == 1
    assert folder_in(tmp_path).answer() is not None


def test_an_arm_that_always_diverges_ends_and_stops_no_other(compare: Compare) -> None:
    jobs = FakeJobs(fails=diverged("+trick=label_smoothing"))
    result = compare(jobs)
    mixup, smoothing = result.answer.standings
    assert mixup.verdict == "helps"
    assert (smoothing.verdict, smoothing.reason) == ("cannot tell", "failed")
    assert sum("label_smoothing" in words for batch in jobs.batches for words in batch) == 3
    assert result.answer.is_ended
    assert not result.failed


def test_a_base_that_always_diverges_is_an_error(compare: Compare, tmp_path: Path) -> None:
    def fails(words: str) -> Outcome | None:
        return None if "trick" in words else diverged()(words)

    for number in (3, 0):
        jobs = FakeJobs(fails=fails)
        with pytest.raises(TrainingError, match="the baseline diverged with each of 3 seeds"):
            compare(jobs)
        assert [words for batch in jobs.batches for words in batch] == [
            f"data=folder seed={seed}" for seed in range(number)
        ], "no arm trains"
    assert folder_in(tmp_path).answer() is None


def test_no_arm_trains_before_the_base_has_a_run(compare: Compare, tmp_path: Path) -> None:
    def fails(words: str) -> Outcome | None:
        return None if "trick" in words else broken()(words)

    compare(FakeJobs(), outputs=tmp_path / "whole")
    jobs = FakeJobs(fails=fails)
    result = compare(jobs)
    assert result.failed == {"base": {f"seed {seed}": "out of memory" for seed in range(3)}}
    assert jobs.trained == []
    with pytest.raises(SweepError, match="3 jobs failed"):
        result.raise_problem()
    compare(FakeJobs())
    assert files_of(tmp_path) == files_of(tmp_path / "whole")


@dataclass
class SharingJobs(FakeJobs):
    """Jobs of which the first of each training evaluates for the others, as real ones do.

    Attributes:
        begun: words of the jobs that began.
    """

    begun: list[str] = field(default_factory=list)

    def __call__(
        self,
        jobs: Sequence[Sequence[str]],
        *arguments: Any,
        num_begun: int,
        on_end: Callable[[int, Outcome], None],
        **more: Any,
    ) -> JobsResult:
        self.num_begun = num_begun
        trained = {" ".join(words).replace(" +trick=tta", "") for words in jobs[:num_begun]}

        def ended(number: int, outcome: Outcome) -> None:
            words = " ".join(jobs[number])
            own = words.replace(" +trick=tta", "")
            if number < num_begun or (own in trained and self.fails(own) is None):
                self.begun += [] if number >= num_begun else [words]
                on_end(number, outcome)

        return super().__call__(jobs, *arguments, on_end=ended, **more)


def test_the_first_jobs_of_the_base_evaluate_for_arms_that_share_its_training(
    compare: Compare, tmp_path: Path
) -> None:
    arms = (ArmPlan("tta", ("+trick=tta",)), SMOOTHING)
    compare(FakeJobs(), question(*arms), outputs=tmp_path / "whole")

    def places(outputs: Path) -> dict[str, dict[int, RunFolder]]:
        return {
            label: {
                seed: RunFolder(outputs / f"run-{tricks}-0.001-seed{seed}") for seed in range(6)
            }
            for label, tricks in (("base", ""), ("tta", ""), ("smoothing", "label_smoothing"))
        }

    jobs = SharingJobs()
    compare(jobs, question(*arms), folders=places(tmp_path))
    assert jobs.batches[0] == [
        *(f"data=folder seed={seed}" for seed in range(3)),
        *(f"data=folder +trick=tta seed={seed}" for seed in range(3)),
    ]
    assert jobs.begun[:3] == jobs.batches[0][:3], "those of the arm do not begin"
    assert jobs.batches[1] == [
        f"data=folder +trick=label_smoothing seed={seed}" for seed in range(3)
    ], "nothing is left of the arm"
    assert files_of(tmp_path) == files_of(tmp_path / "whole")

    lost = SharingJobs(fails=diverged("seed=1"))
    found = compare(
        lost, question(*arms), outputs=tmp_path / "lost", folders=places(tmp_path / "lost")
    )
    assert not [words for words in lost.begun if "tta" in words and "seed=1" in words]
    assert 1 not in folder_in(tmp_path / "lost").runs()["tta"]
    assert "not finite" in found.answer.standings[0].failed[1]


@pytest.mark.parametrize("seed", [1, 3])
def test_a_seed_without_the_base_has_no_pair(compare: Compare, tmp_path: Path, seed: int) -> None:
    """Seed 3 is of a later round, in which the base and the arms train at the same time."""

    def fails(words: str) -> Outcome | None:
        return diverged()(words) if words == f"data=folder seed={seed}" else None

    jobs = FakeJobs(fails=fails)
    result = compare(jobs, question(SMOOTHING), outputs=tmp_path / "whole")
    (one,) = result.answer.standings
    assert seed not in one.seeds
    assert "not finite" in one.failed[seed]
    assert result.answer.is_ended
    assert seed not in folder_in(tmp_path / "whole").runs()["smoothing"]
    if seed == 1:
        assert not any("trick" in words and "seed=1" in words for words in jobs.trained)

    def kills(words: str) -> Outcome | None:
        if "trick" in words and words.endswith("seed=3"):  # after the base's outcome is recorded
            raise KilledError
        return fails(words)

    with pytest.raises(KilledError):
        compare(FakeJobs(fails=kills), question(SMOOTHING))
    compare(FakeJobs(fails=fails), question(SMOOTHING))
    assert files_of(tmp_path) == files_of(tmp_path / "whole")


def test_a_failure_that_may_pass_is_tried_again(compare: Compare, tmp_path: Path) -> None:
    compare(FakeJobs(), outputs=tmp_path / "whole")
    result = compare(FakeJobs(fails=broken("+trick=label_smoothing", "seed=1")))
    assert result.failed == {"smoothing": {"seed 1": "out of memory"}}
    assert not result.answer.has_open_arms
    assert not result.answer.is_ended, "the failed job is tried again"
    assert result.answer.standings[0].verdict == "helps", "the other arm is judged"
    assert folder_in(tmp_path).answer() is None, "it is not whole"
    told = r"^1 job failed(.|\n)*smoothing, seed 1: out of memory"
    with pytest.raises(SweepError, match=told) as error:
        result.raise_problem()
    assert error.value.exit_code == 6
    jobs = FakeJobs()
    again = compare(jobs)
    assert jobs.batches[0] == ["data=folder +trick=label_smoothing seed=1"]
    assert not again.failed
    assert files_of(tmp_path) == files_of(tmp_path / "whole")


def test_jobs_that_do_not_end_are_an_error_and_no_loop(compare: Compare) -> None:
    jobs = FakeJobs(fails=lambda words: Outcome("interrupted"))
    with pytest.raises(SweepError, match="3 of 3 jobs did not end"):
        compare(jobs)
    assert len(jobs.batches) == 1


def test_a_run_that_was_deleted_is_trained_again(compare: Compare, tmp_path: Path) -> None:
    compare(FakeJobs(), outputs=tmp_path / "whole")
    with pytest.raises(KilledError):
        compare(FakeJobs(dies_after=9))
    lost = folder_in(tmp_path).runs()["mixup"][1]
    remove(tmp_path / str(lost.run))
    jobs = FakeJobs()
    compare(jobs)
    assert jobs.batches[0] == ["data=folder +trick=mixup seed=1"]
    assert files_of(tmp_path) == files_of(tmp_path / "whole")


def test_an_arm_that_is_changed_meanwhile_is_refused(compare: Compare, tmp_path: Path) -> None:
    """A code file that is edited makes another training of the same words."""
    compare(FakeJobs(), outputs=tmp_path / "whole")

    class Edited(FakeJobs):
        """From the fourth seed on, the words mean another learning rate."""

        def outcome(self, words: str, outputs: Path) -> Outcome:
            is_changed = "label_smoothing seed=3" in words
            return super().outcome(f"optim.lr=2e-3 {words}" if is_changed else words, outputs)

    with pytest.raises(ConfigError, match="runs of smoothing differ in more than their seed"):
        compare(Edited())
    assert 3 not in folder_in(tmp_path).runs()["smoothing"]
    compare(FakeJobs())
    assert files_of(tmp_path) == files_of(tmp_path / "whole")


def folders_of(outputs: Path) -> dict[str, dict[int, RunFolder]]:
    """The folders in which fake jobs of the base and of arms write."""
    tricks = {"base": "", "mixup": "mixup", "smoothing": "label_smoothing"}
    return {
        label: {seed: RunFolder(outputs / f"run-{trick}-0.001-seed{seed}") for seed in range(6)}
        for label, trick in tricks.items()
    }


def test_an_arm_that_is_changed_before_its_first_job_is_refused(
    compare: Compare, tmp_path: Path
) -> None:
    """Its runs agree with one another, but not with the plan that the user saw."""

    class Edited(FakeJobs):
        """From the start, the words of the arm mean another learning rate."""

        def outcome(self, words: str, outputs: Path) -> Outcome:
            is_arm = "label_smoothing" in words
            return super().outcome(f"optim.lr=3e-3 {words}" if is_arm else words, outputs)

    folders = folders_of(tmp_path)
    with pytest.raises(ConfigError, match="smoothing with seed 0 is not the planned one"):
        compare(Edited(), folders=folders)
    assert folder_in(tmp_path).runs()["smoothing"] == {}
    result = compare(FakeJobs(), folders=folders)
    assert result.answer.is_ended


def test_a_full_disk_loses_nothing(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(FakeJobs(), outputs=tmp_path / "whole")
    written: list[int] = []

    def write_runs(folder: ComparisonFolder, runs: Any) -> None:
        written.append(1)
        if len(written) == 7:
            raise StorageError("disk full")
        real(folder, runs)

    real = ComparisonFolder.write_runs
    monkeypatch.setattr(ComparisonFolder, "write_runs", write_runs)
    with pytest.raises(StorageError):
        compare(FakeJobs())
    compare(FakeJobs())
    assert files_of(tmp_path) == files_of(tmp_path / "whole")


# ── The budget ─────────────────────────────────────────────────────────────────────────────────


def test_no_job_begins_after_the_budget(compare: Compare, tmp_path: Path) -> None:
    compare(FakeJobs(), outputs=tmp_path / "whole")
    jobs = FakeJobs(seconds=10)
    result = compare(jobs, budget=25)
    assert len(jobs.trained) == 3
    assert result.answer.num_trainings == 3
    assert result.is_out_of_time
    assert all(one.is_open and one.reason == "budget" for one in result.answer.standings)
    result.raise_problem()
    assert folder_in(tmp_path).answer() is None
    compare(FakeJobs(), budget=1000)
    assert files_of(tmp_path) == files_of(tmp_path / "whole")


@pytest.mark.parametrize("budget", [60, 79, 80])
def test_no_round_begins_that_would_exceed_the_budget(compare: Compare, budget: float) -> None:
    """Six jobs of ten seconds, then two more, after which more seeds are futile."""
    jobs = FakeJobs(seconds=10)
    result = compare(jobs, question(SMOOTHING), budget=budget)
    is_enough = budget == 80
    assert len(jobs.batches) == (3 if is_enough else 2)
    assert result.is_out_of_time is not is_enough
    assert result.answer.is_ended is is_enough
    assert [one.reason for one in result.answer.standings] == ["futile" if is_enough else "budget"]


@pytest.mark.parametrize("is_known", [True, False])
def test_runs_that_exist_take_none_of_the_budget(
    compare: Compare, tmp_path: Path, is_known: bool
) -> None:
    """The trainings of the second round exist, and the budget would not do for them."""
    compare(FakeJobs(), question(SMOOTHING))
    remove(folder_in(tmp_path).path)
    remove(tmp_path / "run--0.001-seed0")  # is trained again, which tells the time of a training
    folders = folders_of(tmp_path) if is_known else None
    jobs = FakeJobs(seconds=10)
    result = compare(jobs, question(SMOOTHING), budget=61, folders=folders)
    assert len(jobs.batches) == (3 if is_known else 2)
    assert result.is_out_of_time


def test_the_clock_that_stopped_the_jobs_says_that_time_is_up(compare: Compare) -> None:
    class Early(FakeJobs):
        """Their clock runs ahead of that of the rounds."""

        def __call__(self, jobs: Any, *args: Any, **more: Any) -> JobsResult:
            result = super().__call__(jobs, *args, **{**more, "deadline": self.clock.now})
            return replace(result, is_out_of_time=True)

    result = compare(Early(), budget=1000)
    assert result.is_out_of_time
    assert all(one.reason == "budget" for one in result.answer.standings)


# ── The search for settings ────────────────────────────────────────────────────────────────────

TUNED = question(MIXUP, TTA, max_seeds=3, tune=(("optim.lr", ("1e-3", "2e-3", "4e-3")),))
"""The fake jobs are best with a learning rate of 2e-3."""


def test_every_arm_gets_the_same_search_on_seeds_of_its_own(
    compare: Compare, tmp_path: Path
) -> None:
    jobs = FakeJobs()
    result = compare(jobs, TUNED)
    search, first = jobs.batches[0], jobs.batches[1] + jobs.batches[2]
    assert len(search) == 3 * 3 * 2
    assert {words.split("seed=")[1] for words in search} == {"1000000", "1000001"}
    assert {words.split("seed=")[1] for words in first} == {"0", "1", "2"}
    assert all("optim.lr=2e-3" in words for words in first)
    assert folder_in(tmp_path).chosen() == dict.fromkeys(
        ("base", "mixup", "tta"), ("optim.lr=2e-3",)
    )
    assert [one.chosen for one in result.answer.standings] == [("optim.lr=2e-3",)] * 2
    assert result.answer.is_ended
    shared = {words for words in search + first if "tta" not in words}
    assert result.answer.num_trainings == len(shared), "tta shares the trainings of the base"


def test_the_base_again_has_the_settings_of_the_base(compare: Compare, tmp_path: Path) -> None:
    jobs = FakeJobs()
    result = compare(jobs, question(MIXUP, AGAIN, max_seeds=3, tune=TUNED.tune))
    search, first = jobs.batches[0], [job for batch in jobs.batches[1:3] for job in batch]
    assert len(search) == 2 * 3 * 2, "the baseline and mixup"
    assert "data=folder optim.lr=2e-3 seed=1000" in first
    assert folder_in(tmp_path).chosen()[AGAIN.label] == ("optim.lr=2e-3",)
    assert result.answer.is_ended
    assert any("no search of its own" in note for note in result.answer.notes)
    answer = result.answer
    outputs, folder = tmp_path, folder_in(tmp_path)
    replayed = standings(
        answer.plan, folder.runs(), outputs, ScoreBook(outputs / "x.npz"), folder.tuning()
    )
    assert replayed == answer, "a report counts the trainings of the search too"


def test_of_equal_values_the_first_is_chosen_and_one_that_diverged_loses(
    compare: Compare, tmp_path: Path
) -> None:
    plan = replace(TUNED, tune=(("optim.lr", ("2e-3", "1e-3", "3e-3")), ("ema", ("0", "0.5"))))
    compare(FakeJobs(), plan, outputs=tmp_path / "equal")
    assert folder_in(tmp_path / "equal").chosen()["mixup"] == ("optim.lr=2e-3", "ema=0")
    fails = diverged("optim.lr=2e-3", "seed=1000001", "+trick=mixup")
    compare(FakeJobs(fails=fails), plan)
    chosen = folder_in(tmp_path).chosen()
    assert chosen["mixup"] == ("optim.lr=1e-3", "ema=0")
    assert chosen["base"] == ("optim.lr=2e-3", "ema=0")


def test_an_arm_whose_search_always_diverges_ends_as_failed(compare: Compare) -> None:
    jobs = FakeJobs(fails=diverged("+trick=mixup"))
    result = compare(jobs, TUNED)
    mixup, tta = result.answer.standings
    assert mixup.reason == "failed"
    assert tta.seeds == (0, 1, 2)
    assert result.answer.is_ended
    assert not any("mixup" in words for batch in jobs.batches[1:] for words in batch)
    with pytest.raises(TrainingError, match="with every value of the search"):
        compare(FakeJobs(fails=diverged("data=folder")), replace(TUNED, name="other"))


def test_a_search_that_failed_is_tried_again(compare: Compare, tmp_path: Path) -> None:
    compare(FakeJobs(), TUNED, outputs=tmp_path / "whole")
    result = compare(FakeJobs(fails=broken("+trick=mixup", "seed=1000000")), TUNED)
    assert {*result.failed} == {"mixup"}
    assert folder_in(tmp_path).tuning() is None
    assert folder_in(tmp_path).runs()["tta"], "another arm is compared"
    compare(FakeJobs(), TUNED)
    assert files_of(tmp_path) == files_of(tmp_path / "whole")


def test_every_failed_job_of_the_search_is_named(compare: Compare) -> None:
    result = compare(FakeJobs(fails=broken("+trick=mixup", "seed=1000001")), TUNED)
    assert result.failed == {
        "mixup": {
            f"search optim.lr={lr}, seed 1000001": "out of memory"
            for lr in ("1e-3", "2e-3", "4e-3")
        }
    }
    with pytest.raises(SweepError, match="3 jobs failed"):
        result.raise_problem()


def test_a_base_whose_search_failed_is_compared_with_nothing(compare: Compare) -> None:
    def fails(words: str) -> Outcome | None:
        return None if "trick" in words else broken("seed=1000000")(words)

    jobs = FakeJobs(fails=fails)
    result = compare(jobs, TUNED)
    assert {*result.failed} == {"base"}
    assert len(jobs.batches) == 1


def test_killed_during_the_search_it_ends_with_the_same_files(
    compare: Compare, tmp_path: Path
) -> None:
    compare(FakeJobs(), TUNED, outputs=tmp_path / "whole")
    for number in (1, 7, 17, 18, 3):
        with pytest.raises(KilledError):
            compare(FakeJobs(dies_after=number), TUNED)
    compare(FakeJobs(), TUNED)
    assert files_of(tmp_path) == files_of(tmp_path / "whole")


def test_the_budget_ends_the_search(compare: Compare) -> None:
    result = compare(FakeJobs(), TUNED, budget=2)
    assert result.is_out_of_time
    assert result.answer.num_trainings == 0
    assert tuning.combinations(TUNED) == [
        ("optim.lr=1e-3",),
        ("optim.lr=2e-3",),
        ("optim.lr=4e-3",),
    ]
