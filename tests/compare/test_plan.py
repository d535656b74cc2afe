"""The plan counts trainings, time and what can be shown before anything is trained."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.compare import batches
from runner.compare.batches import Batches, How, job_of
from runner.compare.live import Live
from runner.compare.plan import Planned, as_recorded, lines
from runner.compare.question import AGAIN, AGAIN_OFFSET
from runner.config import compose
from runner.config.schema import RunConfig
from runner.errors import ConfigError
from runner.jobs.launch import JobsResult
from runner.records.comparison_folder import BASE
from runner.records.sweep_folder import SweepFolder
from runner.report.sequential import design
from runner.terminal.display import duration
from runner.terminal.start import Work

Plan = Callable[..., Planned]


def text(found: Planned) -> str:
    """The plan with its line breaks undone."""
    return " ".join(" ".join(lines(found)).split())


def pretend(found: Planned, label: str, seed: int, *, seconds: float, is_finished: bool) -> None:
    """A run that has trained its one epoch in ``seconds``."""
    folder = found.folders[label][seed]
    folder.path.mkdir(parents=True, exist_ok=True)
    row = {"epoch": 1, "total_seconds": seconds}
    (folder.path / "timings.jsonl").write_text(f"{json.dumps(row)}\n")
    if is_finished:
        (folder.path / "result.json").write_text("{}")


def test_arms_that_share_a_training_cost_none(plan: Plan, tiny_words: tuple[str, ...]) -> None:
    found = plan(tiny_words, "tta=book", "mixup=beta", "mixup=beta tta=flip", "")
    assert found.shares("tta=book") == "base"
    assert found.shares("mixup=beta tta=flip") == "mixup=beta"
    assert found.shares("mixup=beta") is None
    assert found.shares(AGAIN) is None
    # The baseline, mixup, and the baseline again: three trainings for each seed.
    assert len(found.trainings(3)) == 9
    assert len(found.trainings(10)) == 30
    assert found.evaluations["base"] is None
    assert len({*found.evaluations.values()}) == 3
    said = text(found)
    assert "30 at most, 9 in the first round" in said
    assert "uses the trainings of mixup=beta" in said


@pytest.mark.parametrize("folds", [None, "3"])
def test_the_configuration_of_a_job_is_that_of_its_words(
    plan: Plan, tiny_words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, folds: str | None
) -> None:
    options = {} if folds is None else {"folds": folds, "seeds": "2"}
    words = [
        f"{word}/train" if folds and word.startswith("data.root=") else word for word in tiny_words
    ]
    found = plan((*words, "seed=5"), "tta=book", "mixup=beta tta=flip", "", **options)
    question = found.question
    configs = {BASE: question.base, **{arm.label: arm.config for arm in question.arms}}
    jobs = [
        job_of(found.comparison, label, seed, ())
        for label in (BASE, *found.comparison.labels)
        for seed in found.comparison.pairs_of(2)
    ]
    given = list[RunConfig]()

    def seen(words: list[tuple[str, ...]], *arguments: Any, **more: Any) -> JobsResult:
        given.extend(more["configs"])
        return JobsResult([], SweepFolder(Path("sweep")), stopped_by=2)

    monkeypatch.setattr(batches, "run_jobs", seen)
    how = How(Work(lambda config, words: {}), question.outputs)
    Batches(how, Live(found), found.comparison, configs=configs).run(jobs, lambda *_: None)
    compose.register()
    with compose.opened():
        composed = compose.job_configs(compose.composed([], is_sweep=True))
        assert given == [composed.of(job.words) for job in jobs]


def test_a_recorded_question_keeps_its_labels_and_this_call_its_words(
    plan: Plan, tiny_words: tuple[str, ...]
) -> None:
    before = plan(tiny_words, "+trick=mixup", "tta=book")
    now = plan((*tiny_words, "data.num_workers=0"), "+trick=tta", "mixup=beta")
    assert now.comparison.question == before.comparison.question
    assert now.comparison.labels != before.comparison.labels
    found = as_recorded(now, replace(before.comparison, name="recorded"))
    assert found.comparison.name == "recorded"
    assert found.comparison.labels == ("mixup", "tta=book")
    assert [arm.words for arm in found.comparison.arms] == [("mixup=beta",), ("+trick=tta",)]
    assert "data.num_workers=0" in found.comparison.base_words
    assert [*found.folders] == ["base", "mixup", "tta=book"]
    assert found.folders["mixup"][0].path == now.folders["mixup=beta"][0].path
    assert found.folders["mixup"][0].path == before.folders["mixup"][0].path
    assert found.shares("tta=book") == "base"
    assert found.evaluations == before.evaluations
    assert "1 mixup (mixup=beta)" in text(found)


def test_the_folders_are_those_of_the_runs(plan: Plan, tiny_words: tuple[str, ...]) -> None:
    found = plan((*tiny_words, "seed=4"), "mixup=beta", "")
    assert list(found.folders["base"]) == [*range(4, 14)]
    names = {label: folders[5].path.name for label, folders in found.folders.items()}
    assert "-baseline-seed5-" in names["base"]
    assert "-mixup-seed5-" in names["mixup=beta"]
    assert f"-baseline-seed{5 + AGAIN_OFFSET}-" in names[AGAIN]
    assert not set(found.folders["base"]) & {seed + AGAIN_OFFSET for seed in found.folders[AGAIN]}


def test_the_question_is_recorded_with_all_that_decides_it(
    plan: Plan, tiny_words: tuple[str, ...]
) -> None:
    found = plan(tiny_words, "mixup=beta", "", margin="2", max_seeds="5").comparison
    assert found.num_val == 24
    assert len(found.fingerprint) == 64
    assert (found.margin, found.max_seeds, found.looks, found.is_fixed) == (
        0.02,
        5,
        (3, 4, 5),
        False,
    )
    again = plan(
        (*tiny_words, "threads=1"), "+trick=mixup", "", margin="2", max_seeds="5"
    ).comparison
    assert again.question == found.question  # other words, equal meaning
    other = plan(tiny_words, "mixup=beta mixup.alpha=0.1", "", margin="2", max_seeds="5").comparison
    assert other.question != found.question
    fixed = plan(tiny_words, "mixup=beta", seeds="7").comparison
    assert (fixed.is_fixed, fixed.max_seeds, fixed.looks) == (True, 7, (7,))


def test_changed_code_is_another_question(
    plan: Plan, tiny_words: tuple[str, ...], tmp_path: Path
) -> None:
    code = tmp_path / "idea.py"
    questions = set()
    for sign in "+-":
        code.write_text(f"def images(images, generator, progress):\n    return {sign}images\n")
        questions.add(plan(tiny_words, "code=idea.py").comparison.question)
        questions.add(plan((*tiny_words, "code=idea.py"), "mixup=beta").comparison.question)
    assert len(questions) == 4


def test_time_is_measured_by_runs_that_exist(plan: Plan, tiny_words: tuple[str, ...]) -> None:
    found = plan(tiny_words, "mixup=beta", "smoothing=standard", seeds="4")
    assert "not known before the first epoch" in text(found)
    pretend(found, "base", 2, seconds=10, is_finished=False)
    pretend(found, "mixup=beta", 0, seconds=100, is_finished=True)
    # Four of the baseline and four with smoothing at 10 s each, three with mixup at 100 s each.
    said = text(found)
    assert "12 at most; 1 of them exist already" in said
    assert f"{duration(380)} at most, one training after the other" in said
    assert "a training of the baseline takes 10 s" in said
    for label, folders in found.folders.items():
        for seed in folders:
            pretend(found, label, seed, seconds=1, is_finished=True)
    assert "all of them exist already" in text(found)
    assert "nothing is left to train" in text(found)


def test_the_control_makes_no_search(plan: Plan, tiny_words: tuple[str, ...]) -> None:
    tune = ("optim.lr=1e-3,1e-2",)
    for tries, number in ((("mixup=beta",), 8), (("mixup=beta", ""), 8), (("",), 4)):
        said = text(plan(tiny_words, *tries, tune=tune))
        assert f"before them {number} at most to tune" in " ".join(said.split())


def test_what_can_be_shown_follows_from_the_design(plan: Plan, tiny_words: tuple[str, ...]) -> None:
    found = plan(tiny_words, "mixup=beta", margin="90")
    best = design(1, 24, 10, is_fixed=False)
    assert f"a difference of {100 * best.effect:.1f} points with 80 %" in text(found)
    assert "that there is no difference larger than 90 points" in text(found)
    small = text(plan(tiny_words, "mixup=beta"))
    assert "probably no arm ends as “no difference larger than 0.5”" in small
    margin = re.findall(r"or --margin (\S+) would allow it", small)[0]
    assert best.provable_margin <= float(margin) / 100 < best.provable_margin + 0.002


@pytest.mark.parametrize(
    "tries",
    [
        ("mixup=beta",),
        ("+trick=[mixup,tta,normalize,label_smoothing,progressive_resizing] optim.lr=1e-2",),
        ("optim.weight_decay=0." + "0" * 90 + "1", ""),
    ],
)
def test_the_plan_fits_a_terminal_of_80_columns(
    plan: Plan, tiny_words: tuple[str, ...], tries: tuple[str, ...]
) -> None:
    found = lines(plan((*tiny_words, "mixup.alpha=0.2"), *tries, tune=("optim.eps=1e-8,1e-7",)))
    assert max(map(len, found)) <= 80
    whole = " ".join(found)
    for part in ("tuning", "optim.eps", "24 validation images", "mixup.alpha=0.2 has no effect"):
        assert part in " ".join(whole.split())


def test_arms_that_are_equal_on_this_data_are_refused(
    plan: Plan, tiny_words: tuple[str, ...]
) -> None:
    # The images have a short side of 24 px, which is less than twice 16: presize is 24 anyway.
    with pytest.raises(ConfigError, match="equal to the baseline"):
        plan(tiny_words, "data.presize=24")


def test_nothing_but_the_cache_is_written(
    plan: Plan, tiny_words: tuple[str, ...], tmp_path: Path
) -> None:
    lines(plan(tiny_words, "mixup=beta", ""))
    assert {path.name for path in tmp_path.iterdir()} <= {"outputs"}
    assert {path.name for path in tmp_path.glob("outputs/*")} <= {"cache"}


DURATIONS = {
    0.04: "0.0 s", 9.94: "9.9 s", 10: "10 s", 99: "99 s", 100: "2 min", 3570: "1 h 0 min",
    3540: "59 min", 5700: "1 h 35 min", 36 * 3600: "36 h 0 min", 51 * 3600: "2 d 3 h",
}  # fmt: skip


@pytest.mark.parametrize("seconds", DURATIONS)
def test_durations_are_for_people(seconds: float) -> None:
    assert duration(seconds) == DURATIONS[seconds]
