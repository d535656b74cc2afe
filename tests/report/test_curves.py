"""Who is ahead when, by examples that can be drawn on paper."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fabricated import write_run

from runner.report.curves import Lead, curve, leads
from runner.report.groups import Arm
from runner.report.runs import find_runs

Point = tuple[float, float]


def run(points: list[Point], *, seconds: float = 10.0, pixels: float = 1000.0) -> Any:
    """(epoch, accuracy) by epoch; seconds and pixels are as many per epoch."""
    return SimpleNamespace(
        epochs=[
            {"epoch": x, "seconds": seconds * x, "pixels": pixels * x, "val_accuracy": accuracy}
            for x, accuracy in points
        ]
    )


def arm(*runs: Any, first_seed: int = 0) -> Arm:
    return Arm(look=None, values={}, runs=dict(enumerate(runs, first_seed)))  # type: ignore[arg-type]


def lead(ours: list[float], theirs: list[float]) -> Lead:
    """Along the epochs 1, 2, …"""
    sides = [arm(run(list(enumerate(side, 1)))) for side in (ours, theirs)]  # type: ignore[arg-type]
    return leads(*sides)["epoch"]


@pytest.mark.parametrize(
    ("ours", "theirs", "course", "at"),
    [
        ([0.5, 0.6, 0.7], [0.4, 0.5, 0.6], "ahead", None),
        ([0.4, 0.5, 0.6], [0.5, 0.6, 0.7], "behind", None),
        ([0.5, 0.5], [0.5, 0.5], "level", None),
        ([0.5, 0.7], [0.5, 0.6], "ahead", None),
        ([0.3, 0.6], [0.4, 0.5], "overtakes", 1.5),
        ([0.2, 0.7], [0.4, 0.1], "overtakes", 1.25),
        ([0.4, 0.5], [0.3, 0.6], "falls behind", 1.5),
        # 0.1 behind, 0.1 ahead, 0.3 behind: the last change counts, a quarter after epoch 2.
        ([0.4, 0.6, 0.4], [0.5, 0.5, 0.7], "falls behind", 2.25),
        # Level at the very end: the last that can be told is that it is behind.
        ([0.4, 0.5], [0.5, 0.5], "behind", None),
        # Level exactly at epoch 2, and only from there on ahead.
        ([0.4, 0.5, 0.8], [0.5, 0.5, 0.5], "overtakes", 2.0),
        ([0.8, 0.5, 0.4], [0.5, 0.5, 0.5], "falls behind", 2.0),
        # Level from epoch 2 to 4; at 3 nobody is ahead.
        ([0.4, 0.5, 0.5, 0.5, 0.9], [0.5] * 5, "overtakes", 4.0),
    ],
)
def test_who_is_ahead(
    ours: list[float], theirs: list[float], course: str, at: float | None
) -> None:
    found = lead(ours, theirs)
    assert found.course == course
    assert found.at == (None if at is None else pytest.approx(at, abs=1e-9))


def test_each_axis_has_its_own_answer() -> None:
    # Ours climbs as theirs but 0.1 higher, at twice the seconds and half the pixels.
    points = [(1.0, 0.2), (2.0, 0.4), (3.0, 0.6), (4.0, 0.8)]
    ours = arm(run([(x, y + 0.1) for x, y in points], seconds=20, pixels=500))
    theirs = arm(run(points))
    found = leads(ours, theirs)
    assert found["epoch"].course == "ahead"
    assert found["pixels"].course == "ahead"
    assert found["seconds"].course == "behind"
    back = leads(theirs, ours)
    assert [back[axis].course for axis in ("epoch", "pixels", "seconds")] == [
        "behind", "behind", "ahead",
    ]  # fmt: skip


def test_curves_on_different_grids_are_met_by_straight_lines() -> None:
    # Theirs goes 0.2 → 0.8 in a line over epochs 1..4, ours is 0.5 throughout: they meet at 2.5.
    ours = arm(run([(1.0, 0.5), (4.0, 0.5)]))
    theirs = arm(run([(1.0, 0.2), (2.0, 0.4), (3.0, 0.6), (4.0, 0.8)]))
    assert leads(ours, theirs)["epoch"] == Lead("falls behind", pytest.approx(2.5))
    assert leads(ours, theirs)["seconds"].at == pytest.approx(25)
    assert leads(theirs, ours)["epoch"] == Lead("overtakes", pytest.approx(2.5))


def test_only_what_both_have_covered_is_compared() -> None:
    ours = arm(run([(1.0, 0.5), (2.0, 0.6)]))
    theirs = arm(run([(1.0, 0.4), (2.0, 0.5), (3.0, 0.9)]))
    assert leads(ours, theirs)["epoch"].course == "ahead"


def test_without_a_common_range_nothing_is_said() -> None:
    ours = arm(run([(1.0, 0.5), (2.0, 0.6)], seconds=1))
    theirs = arm(run([(1.0, 0.5), (2.0, 0.5)], seconds=100))
    found = leads(ours, theirs)
    assert "seconds" not in found
    assert found["epoch"].course == "ahead"


def test_without_a_common_seed_or_epochs_nothing_is_said() -> None:
    points = [(1.0, 0.5), (2.0, 0.6)]
    assert leads(arm(run(points)), arm(run(points), first_seed=1)) == {}
    assert leads(arm(run(points)), arm(run([]))) == {}
    assert curve(arm(run([])), "epoch") is None


def test_a_curve_is_the_mean_of_the_seeds_with_its_range() -> None:
    both = arm(
        run([(1.0, 0.2), (2.0, 0.6)], seconds=10),
        run([(1.0, 0.4), (2.0, 0.7), (3.0, 0.9)], seconds=20),
    )
    found = curve(both, "seconds")
    assert found is not None
    assert found.x.tolist() == pytest.approx([15, 30]), "as far as all seeds are"
    assert found.mean.tolist() == pytest.approx([0.3, 0.65])
    assert found.low.tolist() == [0.2, 0.6]
    assert found.high.tolist() == [0.4, 0.7]
    alone = curve(both, "epoch", [1])
    assert alone is not None
    assert alone.mean.tolist() == [0.4, 0.7, 0.9]


def test_only_common_seeds_are_compared() -> None:
    low, high = [(1.0, 0.1), (2.0, 0.1)], [(1.0, 0.9), (2.0, 0.9)]
    middle = [(1.0, 0.5), (2.0, 0.5)]
    ours = arm(run(low), run(high), first_seed=0)
    theirs = arm(run(middle), first_seed=1)
    assert leads(ours, theirs)["epoch"].course == "ahead"
    assert leads(ours, arm(run(middle)))["epoch"].course == "behind"


def test_an_epoch_that_one_seed_lacks_is_not_mixed_with_another() -> None:
    # The second seed's row of epoch 2 could not be read.
    gap = arm(run([(1.0, 0.2), (2.0, 0.4), (3.0, 0.6)]), run([(1.0, 0.2), (3.0, 0.6)]))
    found = curve(gap, "epoch")
    assert found is not None
    assert set(found.x.tolist()) <= {1.0, 2.0, 3.0}


def test_an_epoch_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    rows = (folder.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder.path / "metrics.jsonl").write_text("".join([*rows, rows[-1]]))
    (run,) = find_runs([tmp_path]).runs
    assert [row["epoch"] for row in run.epochs] == [1, 2, 3]
