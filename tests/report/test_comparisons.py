"""Standings of comparisons: looks, pairs, failures, the words, the record, what a report shows."""

import copy
import csv
import io
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated import write_comparison, write_run
from scipy import stats

from runner import show
from runner.api.objects import Comparison
from runner.errors import ArtefactError
from runner.records import evaluations
from runner.records.comparison_folder import BASE, ComparisonFolder, PairedRun, Tuned
from runner.report import __main__ as report_main
from runner.report import comparisons, text
from runner.report.answer import Answer, answer
from runner.report.comparison_json import from_json, to_json
from runner.report.comparison_text import comparison_parts
from runner.report.comparison_words import verdict_line
from runner.report.comparisons import (
    ComparisonAnswer,
    Standing,
    compared_runs,
    counted_runs,
    out_of_budget,
    standings,
    timed,
)
from runner.report.family import judged
from runner.report.forest import Forest
from runner.report.found_comparisons import find_comparisons
from runner.report.measures import PLUS_MINUS, Mean, mean_of, mean_text
from runner.report.page import page
from runner.report.runs import find_runs, read_run
from runner.report.scores import ScoreBook
from runner.report.sequential import walk
from runner.report.statistics import difference
from runner.terminal.tables import Table

BASE_ACCURACIES = (0.8, 0.81, 0.79, 0.8, 0.8, 0.81)
REASON = "the loss was not finite"


def asked(folder: ComparisonFolder) -> ComparisonAnswer:
    outputs = folder.path.parent.parent
    book = ScoreBook(outputs / "cache" / "report.npz")
    return standings(folder.plan(), folder.runs(), outputs, book)


def by_label(found: ComparisonAnswer) -> dict[str, Standing]:
    return {one.label: one for one in found.standings}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ComparisonFolder:
    """An arm that hurts, three that are open, one that diverges, and the baseline again."""
    return write_comparison(
        tmp_path_factory.mktemp("comparison") / "outputs",
        {
            "mixup": (0.62, 0.61, 0.60, 0.63),
            "normalize": (0.801, 0.81, 0.80, 0.79, 0.80),
            "label_smoothing": (0.80, 0.80, 0.80, 0.81, 0.80, 0.81),
            "tta": (0.90, 0.91, 0.905),
            "progressive_resizing": (REASON,) * 3,
            "again": (0.80, 0.82, 0.79),
        },
        base=BASE_ACCURACIES,
        offsets={"again": 100},
        margin=0.03,
    )


@pytest.fixture(scope="module")
def found(folder: ComparisonFolder) -> ComparisonAnswer:
    return asked(folder)


# ── Standings ──────────────────────────────────────────────────────────────────────────────────


def correct(folder: ComparisonFolder, label: str, n: int) -> np.ndarray:
    """(n, N): which images the runs have right, read by hand."""
    rows = []
    for seed in range(n):
        one = folder.runs()[label][seed]
        run = read_run(folder.path.parent.parent / str(one.run), one.evaluation)
        view = "tta" if one.evaluation else "plain"
        rows.append(run.predictions().correct(view))
    return np.stack(rows).astype(np.float32)


def test_the_first_look_is_the_walk_over_the_differences_of_three_seeds(
    folder: ComparisonFolder, found: ComparisonAnswer
) -> None:
    plan = folder.plan()
    base = correct(folder, BASE, 3)
    row = [
        None
        if label == "progressive_resizing"
        else difference(correct(folder, label, 3), base, plan.margin)
        for label in plan.labels
    ]
    expected = walk([row], plan.max_seeds, plan.margin)
    for one, state, own in zip(found.standings, expected, row, strict=True):
        if own is None:
            assert (one.reason, one.is_open, one.mean, one.interval) == (
                "failed",
                False,
                None,
                None,
            )
            assert one.failed == dict.fromkeys(range(3), REASON)
            continue
        assert one.verdict == state.verdict
        assert one.is_open == state.is_open
        assert one.reason == state.reason
        assert one.interval == state.interval
        assert (one.p_zero, one.p_margin) == (state.p_zero, state.p_margin)
        assert one.mean == pytest.approx(own.mean)
        assert one.seeds == (0, 1, 2)
    hurts = by_label(found)["mixup"]
    assert (hurts.verdict, hurts.is_early) == ("hurts", True)
    assert not found.is_ended
    assert {row.n for row in found.looks} == {3}
    assert found.base_seeds == tuple(range(6))


def test_a_look_counts_once_all_open_arms_have_its_seeds(tmp_path: Path) -> None:
    """Runs beyond the last complete look change nothing, and neither do those of closed arms."""
    arms = {"mixup": [0.3] * 3, "normalize": [0.80, 0.87, 0.83, 0.84, 0.80],
            "label_smoothing": [0.87, 0.80, 0.84, 0.8, 0.88]}  # fmt: skip
    part = {**arms, "label_smoothing": arms["label_smoothing"][:3]}
    early = asked(write_comparison(tmp_path, part, base=[0.8] * 5))
    full = asked(write_comparison(tmp_path, arms, base=[0.8] * 5, name="full"))
    first, then = by_label(early), by_label(full)
    assert first["mixup"].verdict == "hurts"
    assert first["normalize"].is_open
    assert first["normalize"].seeds == (0, 1, 2), "label smoothing lacks seed 3"
    assert then["normalize"].seeds == (0, 1, 2, 3, 4), "the negative control"
    assert then["mixup"] == first["mixup"]


def test_before_the_first_look_there_is_a_mean_without_an_interval(tmp_path: Path) -> None:
    some = asked(write_comparison(tmp_path, {"mixup": [0.7, 0.72]}, base=[0.8, 0.8, 0.8]))
    (one,) = some.standings
    assert one.mean == pytest.approx(-0.09)
    assert (one.interval, one.p_zero, one.is_open, one.seeds) == (None, None, True, (0, 1))
    assert verdict_line(one, 0.01) == "mixup: -9.0 points so far, after 2 seeds"
    assert some.looks == ()
    none = asked(write_comparison(tmp_path, {"mixup": []}, base=[], name="none"))
    assert verdict_line(none.standings[0], 0.01) == "mixup: no seed yet"
    assert none.base is None
    assert list(comparison_parts(none))


def test_a_failed_run_of_the_baseline_takes_the_pair_from_all_arms(tmp_path: Path) -> None:
    arms = {"mixup": [0.6] * 4, "normalize": [0.8, 0.8, REASON, 0.81]}
    found = asked(write_comparison(tmp_path, arms, base=[0.8, "killed", 0.8, 0.81]))
    both = by_label(found)
    assert both["mixup"].seeds == (0, 2, 3)
    assert both["mixup"].failed == {1: "the baseline failed: killed"}
    assert both["normalize"].failed == {1: "the baseline failed: killed", 2: REASON}
    assert both["normalize"].interval is None, "two pairs are no test"
    assert both["normalize"].is_open
    assert found.base_failed == {1: "killed"}
    assert any("the baseline failed with seed 1" in note for note in found.notes)


@pytest.mark.parametrize(
    ("accuracies", "max_seeds", "is_open"),
    [([REASON] * 3, 10, False), ([0.8, REASON, REASON], 10, True), ([0.8, REASON], 3, False),
     ([0.8, REASON, 0.8], 3, False)],
)  # fmt: skip
def test_an_arm_that_cannot_have_three_pairs_has_failed(
    tmp_path: Path, accuracies: list[float | str], max_seeds: int, is_open: bool
) -> None:
    if len(accuracies) < 3:
        accuracies = [*accuracies, REASON]
    (one,) = asked(
        write_comparison(tmp_path, {"mixup": accuracies}, base=[0.8] * 3, max_seeds=max_seeds)
    ).standings
    assert one.is_open is is_open
    assert one.reason == ("" if is_open else "failed")
    assert one.verdict == "cannot tell"


def test_tta_is_compared_where_a_run_has_an_evaluation(folder: ComparisonFolder) -> None:
    one = by_label(asked(folder))["tta"]
    assert one.mean == pytest.approx(np.mean([0.9, 0.91, 0.905]) - np.mean([0.8, 0.81, 0.79]))
    assert one.price["forward_passes"] == 2
    plain = folder.runs()
    plain["tta"] = {seed: replace(run, evaluation=None) for seed, run in plain["tta"].items()}
    outputs = folder.path.parent.parent
    again = standings(folder.plan(), plain, outputs, ScoreBook(outputs / "x.npz"))
    assert by_label(again)["tta"].mean == 0, "the plain view is that of the baseline"


def test_counts_and_prices(folder: ComparisonFolder, found: ComparisonAnswer) -> None:
    # Base 6, mixup 4, normalize 5, smoothing 6, failed 3, again 3; tta shares those of the base.
    assert found.num_trainings == 27
    assert found.num_evaluations == 3
    assert found.base_price == {"images": 1000, "pixels": 1_000_000}
    assert "seconds" not in by_label(found)["tta"].price, "a record does not depend on time"
    with_time = timed(found, counted_runs(found, folder.runs(), folder.outputs))
    assert with_time.base_price["seconds"] == 10
    assert by_label(with_time)["tta"].price["seconds"] == 1
    assert replace(with_time, base_price=found.base_price, standings=found.standings) == found


def test_the_baseline_again_is_called_so(found: ComparisonAnswer) -> None:
    (note,) = (note for note in found.notes if "A/A" in note)
    assert note.startswith("again is the baseline again")


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_a_fixed_design_is_judged_once_all_runs_are_there(tmp_path: Path, num_seeds: int) -> None:
    rng = np.random.default_rng(0)
    base = list(0.8 + 0.01 * rng.random(num_seeds))
    arms: dict[str, Any] = {"mixup": [0.6] * num_seeds, "normalize": base[::-1]}
    fixed = {"is_fixed": True, "max_seeds": num_seeds}
    part = {**arms, "normalize": arms["normalize"][:-1]}
    early = asked(write_comparison(tmp_path, part, base=base, name="part", **fixed))
    assert all(one.is_open and one.p_zero is None for one in early.standings)
    folder = write_comparison(tmp_path, arms, base=base, **fixed)
    found = asked(folder)
    assert found.is_ended
    reference = correct(folder, BASE, num_seeds)
    differences = [difference(correct(folder, one, num_seeds), reference, 0.01) for one in arms]
    for one, own, said in zip(
        found.standings, differences, judged(differences, 0.01, 400), strict=True
    ):
        assert (one.p_zero, one.p_margin, one.verdict) == (said.p_zero, said.p_margin, said.verdict)
        assert one.interval == (own.over_both if num_seeds > 2 else None)
        assert not one.is_early
    if num_seeds == 2:
        assert "a verdict takes at least 3 seeds" in verdict_line(found.standings[0], 0.01)


def damage_nothing(folder: ComparisonFolder, runs: dict[str, dict[int, PairedRun]]) -> None:
    pass


def remove(folder: ComparisonFolder, runs: dict[str, dict[int, PairedRun]]) -> None:
    runs["mixup"][1] = PairedRun("no-such-run")


def swap_seeds(folder: ComparisonFolder, runs: dict[str, dict[int, PairedRun]]) -> None:
    runs["mixup"][1], runs["mixup"][2] = runs["mixup"][2], runs["mixup"][1]


def no_offset(folder: ComparisonFolder, runs: dict[str, dict[int, PairedRun]]) -> None:
    runs["again"][1] = runs[BASE][1]


def other_data(folder: ComparisonFolder, runs: dict[str, dict[int, PairedRun]]) -> None:
    outputs = folder.path.parent.parent
    run = write_run(outputs, "mixup", seed=1, fingerprint="e" * 64, num_images=400, name="other")
    runs["mixup"][1] = PairedRun(run.path.name)


def fewer_images(folder: ComparisonFolder, runs: dict[str, dict[int, PairedRun]]) -> None:
    outputs = folder.path.parent.parent
    run = write_run(outputs, "mixup", seed=1, num_images=399, name="fewer")
    runs["mixup"][1] = PairedRun(run.path.name)


def other_evaluation(folder: ComparisonFolder, runs: dict[str, dict[int, PairedRun]]) -> None:
    runs["tta"][1] = replace(runs["tta"][1], evaluation="0" * 16)


def damaged(folder: ComparisonFolder, runs: dict[str, dict[int, PairedRun]]) -> None:
    outputs = folder.path.parent.parent
    run = write_run(outputs, "mixup", seed=1, num_images=400, name="damaged")
    (run.path / "predictions.npz").write_bytes(b"PK")
    runs["mixup"][1] = PairedRun(run.path.name)


@pytest.mark.parametrize(
    ("change", "says"),
    [(damage_nothing, None), (remove, "no finished run"), (swap_seeds, "its seed is 2, not 1"),
     (no_offset, "its seed is 1, not 101"), (other_data, "fingerprint"),
     (fewer_images, "validation images"), (other_evaluation, "no evaluation"), (damaged, "")],
)  # fmt: skip
def test_a_run_that_is_not_of_its_place_is_named(
    folder: ComparisonFolder, change: Any, says: str | None
) -> None:
    runs = copy.deepcopy(folder.runs())
    change(folder, runs)
    outputs = folder.path.parent.parent
    book = ScoreBook(outputs / "cache" / f"{change.__name__}.npz")
    if says is None:
        standings(folder.plan(), runs, outputs, book)
        return
    with pytest.raises(ArtefactError) as error:
        standings(folder.plan(), runs, outputs, book)
    assert says in error.value.what
    assert str(outputs) in error.value.where


def test_looks_of_another_version_are_refused(folder: ComparisonFolder) -> None:
    plan = replace(folder.plan(), looks=(3, 10))
    outputs = folder.path.parent.parent
    with pytest.raises(ArtefactError, match="other looks"):
        standings(plan, folder.runs(), outputs, ScoreBook(outputs / "x.npz"))


def test_each_difference_is_computed_once(
    folder: ComparisonFolder, found: ComparisonAnswer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison asks after every round; only the new look is new work."""

    def never(*arguments: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(comparisons, "compared", never)
    monkeypatch.setattr(comparisons, "walk", never)
    assert asked(folder) == found
    other = replace(folder.plan(), margin=0.029)
    outputs = folder.path.parent.parent
    with pytest.raises(AssertionError, match="computed again"):
        standings(other, folder.runs(), outputs, ScoreBook(outputs / "x.npz"))


# ── Words ──────────────────────────────────────────────────────────────────────────────────────

DECIDED = Standing(
    label="mixup",
    words=("+trick=mixup",),
    chosen=(),
    seeds=(0, 1, 2, 3),
    failed={},
    mean=0.018,
    interval=(0.007, 0.029),
    p_zero=0.01,
    p_margin=0.9,
    verdict="helps",
    is_open=False,
    reason="decided",
    is_early=False,
    max_seeds=10,
)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "mixup helps by about 1.8 points [0.7, 2.9] after 4 seeds"),
        ({"mean": -0.018, "interval": (-0.029, -0.007), "verdict": "hurts"},
         "mixup hurts by about 1.8 points [0.7, 2.9] after 4 seeds"),
        ({"is_early": True},
         "mixup helps by about 1.8 points [0.7, 2.9] after 4 seeds; stopped early: the size is "
         "probably overstated"),
        ({"mean": 0.003, "interval": (0.0004, 0.0049), "p_margin": 0.01},
         "mixup helps by about 0.30 points [0.04, 0.49] after 4 seeds, by less than the margin of "
         "0.5 points"),
        ({"verdict": "no difference", "mean": 0.0, "interval": (-0.003, 0.004)},
         "mixup: no difference larger than 0.5 points [-0.3, 0.4] after 4 seeds"),
        ({"verdict": "cannot tell", "reason": "all seeds", "seeds": tuple(range(10)),
          "mean": 0.004, "interval": (-0.004, 0.012)},
         "mixup: cannot tell after 10 seeds [-0.4, 1.2]: 10 seeds do not decide it"),
        ({"verdict": "cannot tell", "reason": "futile", "mean": 0.0, "interval": (-0.02, 0.02)},
         "mixup: cannot tell after 4 seeds [-2.0, 2.0]; stopped early, because another 6 seeds "
         "would probably not decide it"),
        ({"verdict": "cannot tell", "reason": "futile", "max_seeds": 5},
         "mixup: cannot tell after 4 seeds [0.7, 2.9]; stopped early, because another seed would "
         "probably not decide it"),
        ({"verdict": "cannot tell", "reason": "", "is_open": True},
         "mixup: +1.8 points [0.7, 2.9] so far, after 4 seeds"),
        ({"verdict": "cannot tell", "reason": "budget", "is_open": True},
         "mixup: +1.8 points [0.7, 2.9] so far, after 4 seeds; the budget is used up"),
        ({"failed": {4: f"{REASON}\nmore", }},
         "mixup helps by about 1.8 points [0.7, 2.9] after 4 seeds; 1 of 5 seeds failed: "
         "the loss was not finite"),
        ({"seeds": (), "mean": None, "interval": None, "verdict": "cannot tell",
          "reason": "failed", "failed": dict.fromkeys(range(3), REASON)},
         "mixup failed: the loss was not finite in 3 of 3 seeds"),
        ({"seeds": (), "mean": None, "interval": None, "verdict": "cannot tell",
          "reason": "failed", "failed": {0: "killed", 1: REASON, 2: REASON}},
         "mixup failed: in 3 of 3 seeds, most often: the loss was not finite"),
        ({"seeds": (0,), "reason": "failed", "verdict": "cannot tell", "failed": {1: "a", 2: "b"}},
         "mixup failed: 2 of 3 seeds failed, most often: a"),
        ({"mean": 0.5, "interval": (0.4, 1.2), "seeds": (0,)},
         "mixup helps by about 50.0 points [40.0, 120.0] after 1 seed"),
    ],
)  # fmt: skip
def test_verdicts_in_one_line(changes: Mapping[str, Any], line: str) -> None:
    assert verdict_line(replace(DECIDED, **changes), 0.005) == line


@pytest.mark.parametrize("low", [1e-2, 4e-4, 1e-4, 3e-5, 4e-6])
def test_an_interval_without_zero_never_looks_as_if_it_had_zero(low: float) -> None:
    line = verdict_line(replace(DECIDED, interval=(low, 0.029)), 0.005)
    shown = line.partition("[")[2].partition(",")[0]
    assert float(shown) > 0
    assert verdict_line(replace(DECIDED, interval=(0.0, 0.029)), 0.005).count("[0.0,") == 1


def test_out_of_budget_closes_nothing(found: ComparisonAnswer) -> None:
    stopped = out_of_budget(found)
    assert not stopped.is_ended
    for before, after in zip(found.standings, stopped.standings, strict=True):
        assert after == (replace(before, reason="budget") if before.is_open else before)


def test_the_parts_have_every_arm(found: ComparisonAnswer) -> None:
    parts = list(comparison_parts(found))
    tables = [part for part in parts if isinstance(part, Table)]
    (forest,) = (part for part in parts if isinstance(part, Forest))
    labels = list(found.plan.labels)
    assert [row[0] for row in tables[0].rows] == ["baseline", *labels]
    assert [row[0] for row in tables[1].rows] == labels
    assert [row.label for row in forest.rows] == labels
    assert "27 trainings and 3 evaluations" in tables[1].title
    lines = [part for part in parts if isinstance(part, str)]
    for one in found.standings:
        assert f"- {verdict_line(one, found.plan.margin)}" in lines


# ── The record ─────────────────────────────────────────────────────────────────────────────────


def test_an_answer_comes_back_from_its_record(
    folder: ComparisonFolder, found: ComparisonAnswer
) -> None:
    for one in (found, timed(found, counted_runs(found, folder.runs(), folder.outputs))):
        content = json.loads(json.dumps(to_json(one), allow_nan=False))
        assert from_json(content) == one
    assert json.dumps(to_json(found)) == json.dumps(to_json(asked(folder)))
    assert {*to_json(found)} == {
        "format", "plan", "base", "arms", "looks", "is_ended", "num_trainings",
        "num_evaluations", "notes",
    }  # fmt: skip


def test_a_failed_arm_is_called_so_by_every_form(
    folder: ComparisonFolder, found: ComparisonAnswer
) -> None:
    one = by_label(found)["progressive_resizing"]
    assert (one.reason, one.verdict, one.outcome) == ("failed", "cannot tell", "failed")
    answers = reported(folder.path.parent.parent)
    lines = {
        line["arm"]: line for line in csv.DictReader(io.StringIO(text.csv(answers), newline=""))
    }
    line = lines["progressive_resizing"]
    assert (line["verdict"], line["reason"]) == ("failed", "failed")
    assert (line["paired_seeds"], line["failed_seeds"]) == ("0", "3")
    assert (lines["mixup"]["failed_seeds"], lines["baseline"]["failed_seeds"]) == ("0", "0")
    arms = {arm["label"]: arm for arm in to_json(found)["arms"]}
    arm = arms["progressive_resizing"]
    assert arm["verdict"] == "failed"
    assert arm["failed"] == dict.fromkeys("012", REASON)
    assert Comparison(found, folder.path).verdicts["progressive_resizing"] == "failed"
    assert {row["arm"]: row["verdict"] for row in Comparison(found, folder.path).table()}[
        "progressive_resizing"
    ] == "failed"
    assert '<li class="failed"><span class="symbol" aria-hidden="true">×' in page(answers)


def test_a_record_in_which_a_failed_arm_cannot_tell_is_read(found: ComparisonAnswer) -> None:
    content = json.loads(json.dumps(to_json(found)))
    for arm in content["arms"]:
        if arm["verdict"] == "failed":
            arm["verdict"] = "cannot tell"
    assert content != json.loads(json.dumps(to_json(found)))
    assert from_json(content) == found
    content["arms"][0]["verdict"] = "failed"
    with pytest.raises(ArtefactError, match="verdict must be one of"):
        from_json(content)


def test_plus_minus_is_explained_once(
    folder: ComparisonFolder, found: ComparisonAnswer, tmp_path: Path
) -> None:
    assert [*comparison_parts(found)].count(PLUS_MINUS) == 1
    values = Mean(0.5, None)
    single = replace(
        found,
        base_value=values,
        standings=tuple(replace(one, value=values) for one in found.standings),
    )
    assert PLUS_MINUS not in [*comparison_parts(single)], "the table has none"
    outputs = folder.path.parent.parent
    with_groups = tmp_path / "outputs"
    write_comparison(with_groups, {"mixup": [0.6] * 3}, base=[0.8] * 3)
    write_comparison(with_groups, {"tta": [0.9] * 3}, base=[0.8] * 3, name="other")
    for place in (outputs, with_groups):
        assert text.markdown(reported(place)).count(PLUS_MINUS) == 1
        assert PLUS_MINUS in page(reported(place))
    write_run(with_groups, "normalize", seed=0, num_images=400)
    assert reported(with_groups).groups
    assert text.markdown(reported(with_groups)).count(PLUS_MINUS) == 1
    assert PLUS_MINUS in page(reported(with_groups))


def test_plus_minus_is_half_of_the_interval_over_the_seeds() -> None:
    values = (0.6673, 0.6907, 0.6953)
    half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3)
    assert mean_text(mean_of(values)) == f"68.44 ± {100 * half:.2f}" == "68.44 ± 3.73"
    assert 100 * np.std(values, ddof=1) < 1.6, "the standard deviation, as a control"


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value of nested JSON that has none inside."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))
        yield (*path, key)


def test_a_record_is_read_strictly(found: ComparisonAnswer) -> None:
    """Each value is replaced by one of another type; what is free text, or unused, stays."""
    content = json.loads(json.dumps(to_json(found)))
    ignored = {"line"}
    for path in places(content):
        if path[-1] in ignored or "values" in path:
            continue
        changed = copy.deepcopy(content)
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = {"no": ["such"]} if not isinstance(inner[path[-1]], dict) else 3
        with pytest.raises(ArtefactError):
            from_json(changed)


@pytest.mark.parametrize(
    ("path", "value"),
    [(("format",), 2), (("arms", 0, "verdict"), "wins"), (("arms", 0, "reason"), "x"),
     (("arms", 0, "p_zero"), 1.5), (("arms", 0, "difference"), math.inf),
     (("arms", 0, "label"), "other"), (("looks", 0, "label"), "other"),
     (("arms", 0, "failed"), {"-1": "x"}), (("base", "seeds"), [-1])],
)  # fmt: skip
def test_impossible_values_of_a_record_are_refused(
    found: ComparisonAnswer, path: tuple[Any, ...], value: Any
) -> None:
    content = json.loads(json.dumps(to_json(found)))
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ArtefactError, match="not the answer of a comparison"):
        from_json(content)


def test_a_record_that_is_read_can_be_shown(found: ComparisonAnswer) -> None:
    """Whoever can compute a hash can write a record; each is refused, or shown without an error."""
    content = json.loads(json.dumps(to_json(found)))
    rng = np.random.default_rng(0)
    values: list[Any] = [0, 1, 0.5, -1, "", "cannot tell", "failed", "futile", [], {}, None, True]
    num_read = 0
    for path in places(content):
        for choice in rng.choice(len(values), 3, replace=False):
            changed = copy.deepcopy(content)
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = values[choice]
            try:
                read = from_json(changed)
            except ArtefactError:
                continue
            num_read += 1
            shown = Answer((), (), (), 0.01, comparisons=(read,))
            text.markdown(shown)
            text.csv(shown)
            text.to_json(shown)
    assert num_read > 100


# ── In a report ────────────────────────────────────────────────────────────────────────────────


def reported(outputs: Path, *, margin: float = 0.01, **more: Any) -> Answer:
    book = ScoreBook(outputs / "report.npz")
    compared = find_comparisons([outputs], book)
    return answer(find_runs([outputs]), book, margin, comparisons=compared, **more)


def test_arms_of_a_comparison_are_not_judged_again(folder: ComparisonFolder) -> None:
    outputs = folder.path.parent.parent
    both = reported(outputs)
    assert [one.plan.name for one in both.comparisons] == ["question"]
    fixed = [row.label for group in both.groups for row in group.rows]
    assert "normalize" not in fixed
    assert "tta" not in fixed
    alone = answer(find_runs([outputs]), ScoreBook(outputs / "report.npz"), 0.01)
    assert "normalize" in [row.label for group in alone.groups for row in group.rows]


def test_single_runs_beside_a_comparison_are_compared_with_its_baseline(tmp_path: Path) -> None:
    write_comparison(tmp_path, {"mixup": [0.6] * 3}, base=[0.8] * 3)
    assert reported(tmp_path).groups == ()
    for seed in range(3):
        write_run(tmp_path, "normalize", seed=seed, accuracy=0.9, num_images=400)
    (group,) = reported(tmp_path).groups
    assert [row.label for row in group.rows] == ["baseline", "normalize"]
    assert [one.label for one in group.comparisons] == ["normalize"]
    (legend,) = (part for part in text.content(reported(tmp_path)) if part == text.LEGEND)
    assert "a number of seeds fixed beforehand" in str(legend)


def test_an_arm_of_which_some_runs_were_looked_at_gets_no_second_verdict(tmp_path: Path) -> None:
    write_comparison(tmp_path, {"mixup": [0.6] * 3}, base=[0.8] * 3)
    for seed in (*range(3), 7):
        write_run(tmp_path, "normalize", seed=seed, accuracy=0.9, num_images=400)
    write_run(tmp_path, "mixup", seed=7, accuracy=0.6, num_images=400)
    found = reported(tmp_path)
    (group,) = found.groups
    assert [row.label for row in group.rows] == ["baseline", "normalize"]
    (note,) = (note for note in found.notes if note.startswith("mixup"))
    assert "3 of its 4 seeds belong to comparison question, whose verdict stands above" in note
    assert note in list(text.content(found))
    alone = answer(find_runs([tmp_path]), ScoreBook(tmp_path / "x"), 0.01)
    assert "mixup" in [row.label for row in alone.groups[0].rows], "the negative control"
    assert not alone.notes


def test_trainings_of_a_comparison_that_failed_count_there_only(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path, {"mixup": [0.6] * 3}, base=[0.8] * 3)
    for seed in range(3):
        write_run(tmp_path, "normalize", seed=seed, accuracy=0.9, num_images=400)
    lost = write_run(tmp_path, seed=3, finish=False)
    lost.write_status("failed", REASON, "DivergedError")
    assert reported(tmp_path).groups[0].rows[0].failed, "the negative control"
    runs = folder.runs()
    runs[BASE][3] = PairedRun(None, None, REASON, is_diverged=True, folder=lost.path.name)
    folder.write_runs(runs)
    assert folder.runs() == runs
    assert not reported(tmp_path).groups[0].rows[0].failed


def test_a_failure_that_is_tried_again_is_no_end(tmp_path: Path) -> None:
    folder = write_comparison(
        tmp_path, {"mixup": [0.3] * 3, "normalize": [0.3, 0.3, 0.3]}, base=[0.8] * 3, max_seeds=4
    )
    runs = folder.runs()
    assert asked(folder).is_ended
    for is_diverged in (True, False):
        runs["mixup"] = dict.fromkeys(
            range(3), PairedRun(None, None, "out of memory", is_diverged=is_diverged)
        )
        folder.write_runs(runs)
        (found,) = reported(tmp_path).comparisons
        assert not found.has_open_arms
        assert found.is_ended == is_diverged
        (title, *_) = comparison_parts(found)
        assert ("(not ended)" in str(title)) == (not is_diverged)
        told = [note for note in found.notes if "tries again" in note]
        assert len(told) == (not is_diverged)


def test_by_a_key_when_all_runs_belong_to_comparisons(tmp_path: Path) -> None:
    write_comparison(tmp_path, {"mixup": [0.6] * 3}, base=[0.8] * 3)
    found = reported(tmp_path, by=["mixup"])
    assert found.groups == ()
    assert "comparison question" in page(found)
    (group,) = answer(find_runs([tmp_path]), ScoreBook(tmp_path / "x"), 0.01, by=["mixup"]).groups
    assert len(group.rows) == 2, "the negative control"


def test_plain_views_of_a_comparison_with_tta_belong_to_it(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path, {"mixup+tta": [0.6] * 3}, base=[0.8] * 3)
    runs = folder.runs()
    for seed in range(3):
        base = write_run(tmp_path, "tta", seed=seed, accuracy=0.8, num_images=400)
        (name,) = evaluations.names(base)
        runs[BASE][seed] = PairedRun(base.path.name, name)
    folder.write_runs(runs)
    assert asked(folder).standings[0].price["forward_passes"] == 1, "both sides are with TTA"
    assert reported(tmp_path).groups == ()


def test_an_arm_whose_search_chose_nothing_has_failed(folder: ComparisonFolder) -> None:
    plan = replace(folder.plan(), tune=(("optim.lr", ("1", "2")),))
    outputs = folder.path.parent.parent
    tried = {("optim.lr=1",): {10**6: PairedRun("a"), 10**6 + 1: PairedRun(None, failed="x")}}
    searched = dict.fromkeys((BASE, *plan.labels), Tuned(("optim.lr=1",))) | {
        "mixup": Tuned((), tried)
    }
    found = standings(plan, folder.runs(), outputs, ScoreBook(outputs / "x.npz"), searched)
    assert found.num_trainings == asked(folder).num_trainings + 2
    again = standings(
        plan, folder.runs(), outputs, ScoreBook(outputs / "x.npz"), searched, ["normalize"]
    )
    assert "its search for settings failed" in verdict_line(by_label(again)["normalize"], 0.03)
    one = by_label(found)["mixup"]
    assert (one.reason, one.is_open) == ("failed", False)
    assert (
        verdict_line(one, 0.03)
        == "mixup failed: every value of the search diverged in 3 of 3 seeds"
    )
    assert by_label(found)["normalize"].chosen == ("optim.lr=1",)
    assert found.base_chosen == ("optim.lr=1",)
    assert any("same search for optim.lr" in note for note in found.notes)
    (told,) = (note for note in found.notes if note.startswith("chosen by the search: "))
    assert "baseline: optim.lr=1; mixup: none; normalize: optim.lr=1" in told


def test_the_record_of_an_ended_comparison_is_shown(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path, {"mixup": [0.6] * 3}, base=[0.8] * 3, max_seeds=3)
    found = asked(folder)
    assert found.is_ended
    marked = replace(found, notes=("from the record",))
    folder.write_answer(to_json(marked))
    (shown,) = reported(tmp_path).comparisons
    assert shown.notes == ("from the record",)
    assert shown.base_price["seconds"] == 10


@pytest.mark.parametrize("name", ["comparison.json", "runs.json", "answer.json"])
def test_an_edited_comparison_is_not_compared(tmp_path: Path, name: str) -> None:
    folder = write_comparison(tmp_path, {"mixup": [0.6] * 3}, base=[0.8] * 3)
    folder.write_answer(to_json(asked(folder)))
    path = folder.path / name
    path.write_text(path.read_text().replace("mixup", "cutmix").replace("0.6", "0.9"))
    if name == "runs.json":
        path.write_text(path.read_text().replace("seed1", "seed2"))
    found = reported(tmp_path)
    assert found.comparisons == ()
    (one,) = (one for one in found.unranked if one.name.startswith("comparison"))
    assert (one.name, one.status) == ("comparison question", "unreadable")
    assert "edited" in one.reason


def test_a_comparison_with_a_missing_run_names_it_and_hides_no_single_run(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path, {"mixup": [0.6] * 3}, base=[0.8] * 3)
    run = tmp_path / str(folder.runs()["mixup"][1].run)
    run.rename(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    found = reported(tmp_path)
    (one,) = found.unranked
    assert (one.name, one.reason) == ("comparison question", "no finished run")
    assert found.groups == (), "its other runs are not judged by a fixed design"


def test_show_names_comparisons(tmp_path: Path) -> None:
    folders = {
        name: write_comparison(tmp_path, {"mixup": [0.6] * 3}, base=[0.8] * 3, name=name)
        for name in ("a", "b", "c", "d")
    }
    folders["b"].write_answer(to_json(asked(folders["b"])))
    folders["c"].write_answer({})
    path = folders["c"].path / "answer.json"
    path.write_text(path.read_text().replace("{}", '{"x": 1}'))
    with folders["d"].locked():
        said = list(show.comparisons(tmp_path))
    assert said[:2] == ["comparison a: not ended", "comparison b: ended"]
    assert said[2].startswith("comparison c: damaged: ")
    assert said[3:] == ["comparison d: running"]
    assert all(row["status"] == "finished" for row in show.rows(tmp_path))


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command in this process; returns what it prints."""
    monkeypatch.setattr("runner.terminal.command.raise_on_signals", lambda: None)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["report", *map(str, words)])
        report_main.main()
        return capsys.readouterr().out

    return run


def test_every_form_of_the_report_has_the_comparison(
    say: Any, folder: ComparisonFolder, found: ComparisonAnswer, tmp_path: Path
) -> None:
    outputs = folder.path.parent.parent
    targets = [word for kind in ("csv", "json", "markdown", "html")
               for word in (f"--{kind}", tmp_path / kind)]  # fmt: skip
    say(outputs, *targets)
    line = verdict_line(found.standings[0], found.plan.margin)
    shown = say(outputs)
    assert shown.startswith("comparison question (not ended):")
    assert line in shown
    assert "●" in shown
    rows = list(csv.DictReader(io.StringIO((tmp_path / "csv").read_text())))
    ours = [row for row in rows if row["table"] == "comparison"]
    assert [row["arm"] for row in ours] == ["baseline", *found.plan.labels]
    assert {row["design"] for row in ours} == {"sequential"}
    assert float(ours[1]["difference"]) == found.standings[0].mean
    assert ours[1]["reason"] == "decided"
    (said,) = json.loads((tmp_path / "json").read_text())["comparisons"]
    assert replace(from_json(said), base_price=found.base_price).looks == found.looks
    assert said["arms"][0]["line"] == line
    markdown = (tmp_path / "markdown").read_text()
    assert "    mixup" in markdown, "the plot is a block of code"
    shown_page = (tmp_path / "html").read_text()
    assert line.replace("'", "&#39;") in shown_page
    assert "<svg" in shown_page


def test_a_page_escapes_the_names_of_a_comparison(say: Any, tmp_path: Path) -> None:
    hostile = "<script>hacked=1</script>"
    folder = write_comparison(
        tmp_path / "outputs", {hostile: [0.6] * 3}, base=[0.8] * 3, offsets={hostile: 50}
    )
    say(tmp_path / "outputs", "--html", tmp_path / "page.html")
    written = (tmp_path / "page.html").read_text()
    assert hostile not in written
    assert "&lt;script&gt;hacked=1" in written
    found = asked(folder)
    counted = counted_runs(found, folder.runs(), tmp_path / "outputs")
    assert compared_runs(found, counted) is not None
