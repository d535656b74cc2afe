"""The answer against independent calculations: loops over the files, and scipy.stats."""

import hashlib
import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated import TRICKS, saved, write_run
from hydra.core.override_parser.overrides_parser import OverridesParser
from scipy.stats import binomtest, t, ttest_rel

from runner.config.schema import Mixup, Tta
from runner.errors import ConfigError
from runner.records.run_folder import RunFolder, run_folders
from runner.report import text
from runner.report.answer import Answer, GroupAnswer, answer
from runner.report.family import MOST_SEEDS, Outlook, moderated
from runner.report.paired import FIRST_SEEDS, Comparison
from runner.report.runs import find_runs
from runner.report.scores import ScoreBook
from runner.report.statistics import difference
from runner.training.metrics import METRICS

ALL = tuple(TRICKS)
MARGIN = 0.05
NUM_IMAGES = 40
LEFT_OUT = {trick: tuple(name for name in ALL if name != trick) for trick in ALL}


def ask(outputs: Path, baseline: str | None = None, by: Sequence[str] = ()) -> Answer:
    asked = [] if baseline is None else [baseline]
    return answer(find_runs([outputs]), ScoreBook(Path("/nowhere/x.npz")), MARGIN, asked, by)


def only(found: Answer) -> GroupAnswer:
    (group,) = found.groups
    return group


def compared(group: GroupAnswer, label: str) -> Comparison:
    (one,) = [one for one in group.comparisons if one.label == label]
    return one


def right(folder: RunFolder, view: str = "plain") -> list[bool]:
    """Image by image, from the file."""
    found = saved(folder, view)
    rows, labels = found["probabilities"].tolist(), found["labels"].tolist()
    return [row.index(max(row)) == label for row, label in zip(rows, labels, strict=True)]


def mean(values: list[bool]) -> float:
    return sum(values) / len(values)


@dataclass
class Grid:
    """Some runs and their answer: baseline seeds 0..3, mixup 1..4, label smoothing 7 alone."""

    folders: dict[tuple[str, int], RunFolder]
    found: Answer

    def right(self, name: str, seeds: tuple[int, ...], view: str = "plain") -> list[list[bool]]:
        return [right(self.folders[name, seed], view) for seed in seeds]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    outputs = tmp_path_factory.mktemp("grid")
    folders = {}

    def write(name: str, *tricks: str, seed: int, accuracy: float, tta: float = 0.9) -> None:
        folders[name, seed] = write_run(
            outputs, *tricks, seed=seed, accuracy=accuracy, tta_accuracy=tta,
            num_images=NUM_IMAGES, is_old=name == "all",
        )  # fmt: skip

    for seed in range(4):
        write("baseline", seed=seed, accuracy=0.5 + 0.05 * (seed % 3))
        write("mixup", "mixup", seed=seed + 1, accuracy=0.7 - 0.05 * (seed % 2))
    write("label_smoothing", "label_smoothing", seed=7, accuracy=0.6)
    for seed in range(3):
        write("all", *ALL, seed=seed, accuracy=0.75 + 0.025 * seed, tta=0.85 + 0.05 * (seed % 2))
        for number, (trick, others) in enumerate(LEFT_OUT.items()):
            write(
                f"all but {trick}", *others, seed=seed,
                accuracy=0.55 + 0.025 * number + 0.05 * (seed % 2), tta=0.65 + 0.025 * seed,
            )  # fmt: skip
    return Grid(folders, ask(outputs))


# ── Numbers ────────────────────────────────────────────────────────────────────────────────────


def check(
    one: Comparison, ours: list[list[bool]], theirs: list[list[bool]], seeds: tuple[int, ...]
) -> None:
    """All numbers of one comparison but the corrected p-values."""
    assert one.seeds == seeds
    differences = [mean(a) - mean(b) for a, b in zip(ours, theirs, strict=True)]
    assert one.found.mean == pytest.approx(sum(differences) / len(seeds), abs=1e-7)
    test = ttest_rel([mean(a) for a in ours], [mean(b) for b in theirs])
    interval = test.confidence_interval(0.95)
    assert one.found.over_seeds is not None
    assert one.found.over_seeds == pytest.approx((interval.low, interval.high), abs=1e-6)
    for pair, new, old, expected in zip(one.pairs, ours, theirs, differences, strict=True):
        gained = sum(a and not b for a, b in zip(new, old, strict=True))
        lost = sum(b and not a for a, b in zip(new, old, strict=True))
        assert (pair.gained, pair.lost) == (gained, lost)
        assert pair.difference == pytest.approx(expected)
        assert pair.p == pytest.approx(
            binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        )
    assert [pair.seed for pair in one.pairs] == list(seeds)
    whole = difference(np.array(ours, np.float32), np.array(theirs, np.float32), MARGIN)
    assert replace(one.found) == whole


def test_differences_are_paired_by_the_common_seeds(grid: Grid) -> None:
    seeds = (1, 2, 3)
    one = compared(only(grid.found), "mixup")
    assert one.reference == "baseline"
    check(one, grid.right("mixup", seeds), grid.right("baseline", seeds), seeds)
    # Paired by position instead of by seed, another interval would come out.
    wrong = ttest_rel(
        [mean(row) for row in grid.right("mixup", (1, 2, 3))],
        [mean(row) for row in grid.right("baseline", (0, 1, 2))],
    ).confidence_interval(0.95)
    assert one.found.over_seeds != pytest.approx((wrong.low, wrong.high), abs=1e-3)


def test_rows_are_over_all_seeds_of_a_arm(grid: Grid) -> None:
    rows = {row.label: row for row in only(grid.found).rows}
    assert next(iter(rows)) == "baseline"
    values = [mean(row) for row in grid.right("mixup", (1, 2, 3, 4))]
    found = rows["mixup"].metrics["accuracy"]
    assert rows["mixup"].seeds == (1, 2, 3, 4)
    assert found.mean == pytest.approx(np.mean(values))
    half = t.ppf(0.975, 3) * np.std(values, ddof=1) / 2
    assert found.interval == pytest.approx((np.mean(values) - half, np.mean(values) + half))
    assert rows["label_smoothing"].metrics["accuracy"].interval is None


@pytest.mark.parametrize("key", METRICS[1:])
def test_other_metrics_are_paired_too(key: str, grid: Grid) -> None:
    def value(name: str, seed: int) -> float:
        path = grid.folders[name, seed].path / "result.json"
        number: float = json.loads(path.read_text())["metrics"]["plain"][key]
        return number

    ours, theirs = ([value(name, seed) for seed in (1, 2, 3)] for name in ("mixup", "baseline"))
    interval = ttest_rel(ours, theirs).confidence_interval(0.95)
    found = compared(only(grid.found), "mixup").others[key]
    assert found.mean == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert found.interval == pytest.approx((interval.low, interval.high))


def test_what_has_no_common_seed_is_named_and_not_compared(grid: Grid) -> None:
    group = only(grid.found)
    assert "label_smoothing" not in {one.label for one in group.comparisons}
    (note,) = [note for note in group.notes if note.startswith("label_smoothing")]
    assert "no seed in common with baseline" in note


def test_seeds_without_a_partner_are_named(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, seed=seed, num_images=30, accuracy=0.4)
        write_run(tmp_path, "mixup", seed=seed, num_images=30, accuracy=0.6)
    assert not any("41" in note for note in only(ask(tmp_path)).notes)
    write_run(tmp_path, "mixup", seed=41, num_images=30, accuracy=0.6)
    group = only(ask(tmp_path))
    assert compared(group, "mixup").seeds == (0, 1)
    assert any("mixup" in note and "41" in note for note in group.notes)


@pytest.mark.parametrize("trick", ALL)
def test_each_trick_inside_all(trick: str, grid: Grid) -> None:
    group = only(grid.found)
    (one,) = [one for one in group.contributions if one.label == f"{trick} in all"]
    assert one.reference == f"all but {trick}"
    seeds = (0, 1, 2)
    ours = grid.right("all", seeds, "tta")
    name = f"all but {trick}"
    # TTA is compared with the plain view of the very runs, although there are runs without it.
    theirs = grid.right("all", seeds, "plain") if trick == "tta" else grid.right(name, seeds, "tta")
    check(one, ours, theirs, seeds)
    if trick == "tta":
        assert theirs != grid.right(name, seeds, "plain"), "or the check could not fail"


def holm_by_hand(p_values: list[float]) -> list[float]:
    ordered = sorted(p_values)
    count = len(ordered)
    return [
        max(min(1.0, (count - rank) * p) for rank, p in enumerate(ordered) if p <= value)
        for value in p_values
    ]


def test_p_values_are_corrected_over_both_tables_of_a_group(grid: Grid) -> None:
    group = only(grid.found)
    assert len(group.comparisons) > 4
    assert len(group.contributions) > 4
    family = [one for one in (*group.comparisons, *group.contributions) if one.found.n > 2]
    shared = moderated([one.found for one in family], MARGIN)
    for key in ("p_zero", "p_margin"):
        own = [getattr(one.found, key) for one in family]
        corrected = holm_by_hand([getattr(one, key) for one in shared])
        assert [getattr(one, key) for one in family] == pytest.approx(
            [max(pair) for pair in zip(own, corrected, strict=True)]
        )
        apart = holm_by_hand([getattr(one, key) for one in shared[: len(group.comparisons)]])
        is_other = corrected[: len(apart)] != pytest.approx(apart)
        assert is_other or key == "p_margin", "the control: one table"


def test_a_comparison_in_both_tables_counts_once(tmp_path: Path) -> None:
    tricks = ("mixup", "label_smoothing")
    for seed in range(3):
        for number, some in enumerate(((), ("mixup",), ("label_smoothing",), tricks)):
            write_run(
                tmp_path, *some, seed=seed, num_images=600,
                accuracy=0.6 + 0.02 * number + 0.01 * (seed % (2 + number % 2)),
            )  # fmt: skip
    group = only(ask(tmp_path, " + ".join(tricks)))
    ones = {frozenset({one.arm, one.reference}): one for one in group.comparisons}
    twice = [ones[frozenset({one.arm, one.reference})] for one in group.contributions]
    assert len(twice) == 2, "the baseline without one of its changes"
    for once, within in zip(twice, group.contributions, strict=True):
        assert within.found.mean == -once.found.mean
        assert within.p_zero == once.p_zero
        opposite = {"helps": "hurts", "hurts": "helps"}
        assert within.verdict == opposite.get(once.verdict, once.verdict)
    own = [one.found.p_zero for one in group.comparisons]
    shared = [one.p_zero for one in moderated([one.found for one in group.comparisons], MARGIN)]
    assert [one.p_zero for one in group.comparisons] == pytest.approx(
        [max(pair) for pair in zip(own, holm_by_hand(shared), strict=True)]
    )


@pytest.mark.parametrize("few", [1, 2])
def test_fewer_than_three_seeds_are_not_among_the_tests_that_are_corrected(
    few: int, tmp_path: Path
) -> None:
    for seed in range(3):
        write_run(tmp_path, seed=seed, num_images=30, accuracy=0.5)
        write_run(tmp_path, "mixup", seed=seed, num_images=30, accuracy=0.6 + 0.1 * (seed % 2))
    for seed in range(few):
        write_run(tmp_path, "normalize", seed=seed, num_images=30, accuracy=0.9)
    group = only(ask(tmp_path))
    one = compared(group, "mixup")
    assert (one.p_zero, one.p_margin) == (one.found.p_zero, one.found.p_margin)
    other = compared(group, "normalize")
    assert (other.p_zero, other.p_margin, other.verdict) == (None, None, "cannot tell")
    assert (
        text.verdict_text(other, MARGIN)
        == ("one seed" if few == 1 else "two seeds") + ": no verdict"
    )
    for command in commands(other):
        assert seeds_of(command) <= set(range(few, FIRST_SEEDS))
    assert other.more


def test_the_verdict_follows_the_corrected_p_values(tmp_path: Path) -> None:
    for seed in range(4):
        write_run(tmp_path, seed=seed, num_images=900, accuracy=0.1)
        write_run(tmp_path, "mixup", seed=seed, num_images=900, accuracy=0.9)
        write_run(tmp_path, "label_smoothing", seed=seed, num_images=900, accuracy=0.0)
        write_run(tmp_path, "tta", seed=seed, num_images=900, accuracy=0.1)
    group = only(ask(tmp_path))
    said = {one.label: one.verdict for one in group.comparisons}
    assert said["mixup"] == "helps"
    assert said["tta"] == "no difference", "the two views are equal"
    flipped = only(ask(tmp_path, "mixup"))
    assert {one.label: one.verdict for one in flipped.comparisons}["baseline"] == "hurts"
    for one in group.comparisons:
        if one.verdict != "cannot tell":
            assert (one.outlook, one.more) == (None, ())
            assert text.advice(one, MARGIN) == ""


# ── TTA ────────────────────────────────────────────────────────────────────────────────────────


def test_tta_is_compared_within_the_very_runs(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, seed=seed, accuracy=0.5, num_images=40)
        write_run(tmp_path, "tta", seed=seed, accuracy=0.7, tta_accuracy=0.8, num_images=40,
                  is_old=True, name=f"old{seed}")  # fmt: skip
    group = only(ask(tmp_path))
    baseline = group.rows[0]
    assert (baseline.label, baseline.metrics["accuracy"].mean) == ("baseline", 0.5)
    one = compared(group, "tta")
    assert one.found.mean == pytest.approx(0.8 - 0.7, abs=1e-7), "and not 0.8 - 0.5"
    assert [(pair.gained, pair.lost) for pair in one.pairs] == [(4, 0), (4, 0)]
    assert one.price == {"images": 1, "pixels": 1, "seconds": 1, "forward_passes": 2}
    assert one.is_equal_budget


def test_the_plain_view_is_compared_with_tta_within_the_very_runs_too(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, seed=seed, accuracy=0.5, num_images=40)
        write_run(tmp_path, "tta", seed=seed, accuracy=0.7, tta_accuracy=0.8, num_images=40,
                  is_old=True, name=f"old{seed}")  # fmt: skip
    one = compared(only(ask(tmp_path, "tta")), "baseline")
    assert one.found.mean == pytest.approx(0.7 - 0.8, abs=1e-7), "and not 0.5 - 0.8"


def test_tta_of_seeds_that_have_no_other_run(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, "tta", seed=seed, accuracy=0.7, tta_accuracy=0.8, num_images=40)
    group = only(ask(tmp_path))
    assert group.baseline == "baseline"
    one = compared(group, "tta")
    assert one.seeds == (0, 1, 2)
    assert one.found.mean == pytest.approx(0.1, abs=1e-7)


def test_two_kinds_of_tta_are_each_compared_with_their_own_runs(tmp_path: Path) -> None:
    for number, (tta, accuracy) in enumerate(((Tta(flip=True), 0.5), (Tta(crops=3), 0.7))):
        write_run(tmp_path, tta=tta, accuracy=accuracy, tta_accuracy=accuracy + 0.1 * (number + 1),
                  num_images=40, is_old=True, name=f"old{number}")  # fmt: skip
    found = {one.label: one.found.mean for one in only(ask(tmp_path)).comparisons}
    (flip,) = [value for label, value in found.items() if "crops=1" in label]
    (crops,) = [value for label, value in found.items() if "crops=3" in label]
    assert (flip, crops) == (pytest.approx(0.1, abs=1e-7), pytest.approx(0.2, abs=1e-7))


# ── The baseline ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("choices")
    for seed in range(2):
        write_run(outputs, seed=seed, num_images=30, accuracy=0.5)
        write_run(outputs, "mixup", "tta", seed=seed, num_images=30, accuracy=0.6)
        write_run(outputs, *ALL, seed=seed, num_images=30, accuracy=0.8)
    return outputs


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        (None, "baseline"), ("baseline", "baseline"), ("mixup", "mixup"), ("all", "all"),
        ("mixup + tta", "mixup + tta"), ("mixup+tta", "mixup + tta"), ("tta+mixup", "mixup + tta"),
        ("all but tta", "all but tta"),
    ],
)  # fmt: skip
def test_the_baseline_can_be_chosen(asked: str | None, chosen: str, choices: Path) -> None:
    group = only(ask(choices, asked))
    assert group.baseline == chosen
    assert group.rows[0].label == chosen
    assert len(group.comparisons) == len(group.rows) - 1
    assert chosen not in {one.label for one in group.comparisons}
    if chosen == "mixup":
        assert compared(group, "baseline").found.mean == pytest.approx(-0.1, abs=1e-7)


@pytest.mark.parametrize("asked", ["cutmix", "mixup+cutmix", "", "nonsense"])
def test_an_unknown_baseline_is_an_error_that_says_what_there_is(asked: str, choices: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        ask(choices, asked)
    assert caught.value.exit_code == 2
    for label in ("baseline", "mixup", "mixup + tta", "all but tta", "all"):
        assert label in caught.value.fix
    assert f"--baseline {asked}" in caught.value.where


def test_without_a_baseline_nothing_is_compared_and_it_is_said_how_to(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, "mixup", seed=seed, num_images=30)
        write_run(tmp_path, "label_smoothing", seed=seed, num_images=30)
    group = only(ask(tmp_path))
    assert (group.baseline, group.comparisons) == (None, ())
    assert [row.label for row in group.rows] == ["label_smoothing", "mixup"]
    (note,) = group.notes
    assert "--baseline" in note
    assert "label_smoothing, mixup" in note
    assert compared(only(ask(tmp_path, "mixup")), "label_smoothing").seeds == (0, 1)


def test_a_trick_that_all_runs_have_is_part_of_the_baseline(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, "normalize", seed=seed, num_images=30)
        write_run(tmp_path, "normalize", "mixup", seed=seed, num_images=30)
    group = only(ask(tmp_path))
    assert group.baseline == "normalize"
    assert [one.label for one in group.comparisons] == ["normalize + mixup"]


def test_two_kinds_of_the_fewest_tricks_are_no_baseline(tmp_path: Path) -> None:
    for alpha in (0.2, 0.4):
        write_run(tmp_path, mixup=Mixup(probability=1.0, alpha=alpha), num_images=30)
    group = only(ask(tmp_path))
    assert group.baseline is None
    label = "mixup (mixup.alpha=0.2)"
    assert label in group.notes[0]
    assert only(ask(tmp_path, label)).baseline == label


def test_a_baseline_of_one_group_does_not_blame_the_others(tmp_path: Path) -> None:
    write_run(tmp_path, "mixup", num_images=30)
    write_run(tmp_path, num_images=30)
    write_run(tmp_path, num_images=30, precision="bf16")
    write_run(tmp_path, "label_smoothing", num_images=30, precision="bf16")
    found = {group.group.values["precision"]: group for group in ask(tmp_path, "mixup").groups}
    assert found["fp32"].baseline == "mixup"
    assert found["bf16"].baseline is None
    assert "no run without tricks" not in found["bf16"].notes[0], "there is one"


# ── Budgets, environments, one seed ────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("pixels", "is_equal"), [(1_000_000, True), (1_003_000, True), (1_010_000, False), (1, False)]
)
def test_an_unequal_budget_is_marked(pixels: int, is_equal: bool, tmp_path: Path) -> None:
    write_run(tmp_path, num_images=30)
    write_run(tmp_path, "mixup", num_images=30, pixels=pixels, seconds=25.0)
    group = only(ask(tmp_path))
    (one,) = group.comparisons
    assert one.is_equal_budget == is_equal
    assert one.price["pixels"] == pytest.approx(pixels / 1e6)
    assert one.price["seconds"] == pytest.approx(2.5), "time alone is no other budget"
    shown = text.answer_table(group, MARGIN).markdown()
    assert (text.UNEQUAL in shown) == (not is_equal)
    assert any(text.UNEQUAL in line for line in text.remarks(group, MARGIN)) == (not is_equal)


def set_environment(folder: RunFolder, **values: object) -> None:
    path = folder.path / "result.json"
    content: dict[str, Any] = json.loads(path.read_text())
    content["environment"].update(values)
    path.write_text(json.dumps(content))


def test_runs_of_different_environments_are_marked(tmp_path: Path) -> None:
    write_run(tmp_path, num_images=30)
    other = write_run(tmp_path, "mixup", num_images=30)
    assert not any("differ in" in note for note in only(ask(tmp_path)).notes)
    set_environment(other, torch="3", hostname="elsewhere")
    notes = [note for note in only(ask(tmp_path)).notes if "differ in" in note]
    assert notes == ["the runs differ in torch: 2, 3"]


def test_one_seed_says_so_and_speaks_of_the_images_alone(tmp_path: Path) -> None:
    write_run(tmp_path, num_images=40, accuracy=0.2)
    write_run(tmp_path, "mixup", num_images=40, accuracy=0.9)
    group = only(ask(tmp_path))
    (one,) = group.comparisons
    assert (one.seeds, one.found.n) == ((0,), 1)
    assert one.found.over_seeds is None
    assert one.found.over_both[0] < one.found.mean < one.found.over_both[1]
    assert (one.p_zero, one.p_margin, one.outlook) == (None, None, None)
    assert one.verdict == "cannot tell", "however large the difference"
    assert one.pairs[0].p < 0.001
    assert text.verdict_text(one, MARGIN) == "one seed: no verdict"
    assert any(note.startswith("one seed only of mixup") for note in group.notes)
    assert "images only" in text.answer_table(group, MARGIN).rows[1][5]
    assert text.advice(one, MARGIN) == "a verdict takes three seeds or more"
    for command in commands(one):
        assert seeds_of(command) == set(range(1, FIRST_SEEDS))


def test_no_price_is_no_error(tmp_path: Path) -> None:
    for tricks in ((), ("mixup",)):
        write_run(tmp_path, *tricks, num_images=30, pixels=0, seconds=0.0)
    group = only(ask(tmp_path))
    (one,) = group.comparisons
    assert one.is_equal_budget, "both used nothing"
    json.loads(text.to_json(ask(tmp_path)), parse_constant=pytest.fail)
    text.price_table(group).markdown()


# ── What would settle it ───────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def open_question(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    outputs = tmp_path_factory.mktemp("open")
    for seed in range(3):
        write_run(outputs, seed=seed, num_images=30, accuracy=0.5)
        write_run(outputs, "mixup", seed=seed, num_images=30, accuracy=0.5 + 0.1 * (seed - 0.5))
    one = compared(only(ask(outputs)), "mixup")
    assert one.verdict == "cannot tell"
    return one


@pytest.mark.parametrize(
    ("outlook", "said"),
    [
        (Outlook("a difference", 4, None), "about 1 more seed would probably show a difference"),
        (Outlook("a difference", 9, None), "about 6 more seeds would probably show a difference"),
        (
            Outlook("no difference", 9, None),
            "about 6 more seeds would probably show no difference larger than 5 points",
        ),
        (
            Outlook("a difference", None, None),
            "more than 100 seeds would be needed to show a difference",
        ),
        (
            Outlook("no difference", None, 12_345),
            "more seeds alone would not settle it: to show no difference larger than 5 points, "
            "more than 12,345 validation images would be needed",
        ),
    ],
)
def test_advice(outlook: Outlook, said: str, open_question: Comparison) -> None:
    assert text.advice(replace(open_question, outlook=outlook), MARGIN) == said


def commands(one: Comparison) -> list[str]:
    return [more.command for more in one.more]


def words_of(command: str) -> list[str]:
    return shlex.split(command)


def seeds_of(command: str) -> set[int]:
    """What Hydra would make of the seed in a command."""
    words = words_of(command)
    assert words[:3] == ["python", "-m", "runner.train"]
    (word,) = [word for word in words if word.lstrip("+").startswith("seed=")]
    override = OverridesParser.create().parse_override(word)
    if not override.is_sweep_override():
        assert "-m" not in words[3:]
        return {int(override.value())}
    assert words[3] == "-m"
    seeds = [int(seed) for seed in override.sweep_string_iterator()]
    assert len(seeds) == len(set(seeds))
    return set(seeds)


SEEDS = [
    ({0, 1, 2}, {0, 1, 2}),
    ({0, 1, 2, 3}, {2, 3, 4, 5}),
    ({0, 1, 5}, {1, 5, 6}),
    ({10, 11}, {11, 10}),
    ({0, 1, 2, 3, 4, 5, 6}, {0, 1}),
    ({0}, {0, 1, 2}),
]


@pytest.mark.parametrize(("baseline", "mixup"), SEEDS)
@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_the_commands_bring_exactly_the_seeds_that_are_missing(
    baseline: set[int], mixup: set[int], shift: float, tmp_path: Path
) -> None:
    for seed in baseline:
        write_run(tmp_path, seed=seed, num_images=60, accuracy=0.5)
    for seed in mixup:
        accuracy = 0.5 + shift + 0.05 * (seed % 2)
        write_run(tmp_path, "mixup", seed=seed, num_images=60, accuracy=accuracy)
    one = compared(only(ask(tmp_path)), "mixup")
    assert one.verdict == "cannot tell"
    if one.outlook is not None and one.outlook.seeds in (None, MOST_SEEDS):
        assert one.more == ()
        return
    wanted = FIRST_SEEDS if one.outlook is None or one.outlook.seeds is None else one.outlook.seeds
    trained = {"+trick=[]": set(baseline), "+trick=[mixup]": set(mixup)}
    for command in commands(one):
        seeds = seeds_of(command)
        (side,) = [word for word in words_of(command) if word in trained]
        assert not seeds & trained[side], "nothing is trained twice"
        trained[side] |= seeds
    common = trained["+trick=[]"] & trained["+trick=[mixup]"]
    assert len(common) == wanted
    extra = (trained["+trick=[]"] - baseline) | (trained["+trick=[mixup]"] - mixup)
    assert extra <= common, "nothing is trained in vain"


def test_a_seed_that_one_side_has_is_made_a_pair_before_another_is_begun(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path, seed=seed, num_images=60, accuracy=0.5)
    for seed in (1, 2):
        write_run(tmp_path, "mixup", seed=seed, num_images=60, accuracy=0.6 + 0.05 * (seed % 2))
    one = compared(only(ask(tmp_path)), "mixup")
    (ours,) = [command for command in commands(one) if "+trick=[mixup]" in words_of(command)]
    (theirs,) = [command for command in commands(one) if "+trick=[]" in words_of(command)]
    assert seeds_of(ours) - seeds_of(theirs) == {0}
    assert seeds_of(theirs) < seeds_of(ours)


def test_one_command_trains_both_sides_of_tta(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, "tta", seed=seed, num_images=400, accuracy=0.5, tta_accuracy=0.6)
    one = compared(only(ask(tmp_path)), "tta")
    assert (one.verdict, one.outlook) == ("cannot tell", None)
    (command,) = commands(one)
    assert "+trick=[tta]" in words_of(command)
    assert seeds_of(command) == {2, 3, 4}


@pytest.mark.parametrize("seed", ["seed=0", "+seed=0", "++seed=0"])
def test_the_commands_keep_the_other_words(seed: str, tmp_path: Path) -> None:
    hostile = "data.root=/my images/it's $(here);*"
    write_run(tmp_path, num_images=30, words=(hostile, "optim.lr=0.1", seed))
    write_run(tmp_path, "mixup", num_images=30, words=(seed, hostile, "mixup=beta"))
    (one,) = only(ask(tmp_path)).comparisons
    assert len(one.more) == 2
    for command, own in zip(commands(one), ("mixup=beta", "optim.lr=0.1"), strict=True):
        assert hostile in words_of(command)
        assert own in words_of(command)
        assert seeds_of(command) == {1, 2, 3, 4}


@pytest.mark.parametrize("word", ["run_dir=here", "force=true", "++run_dir=here"])
def test_the_commands_leave_out_what_belongs_to_one_run(word: str, tmp_path: Path) -> None:
    # A folder belongs to one run, and whoever forces every run anew loses those that are there.
    write_run(tmp_path, num_images=30, words=("seed=0", word))
    write_run(tmp_path, "mixup", num_images=30, words=("seed=0", word))
    (one,) = only(ask(tmp_path)).comparisons
    for command in commands(one):
        assert word not in words_of(command)


@pytest.mark.parametrize("folder", ["ideas", "my ideas, 'new' (2)"])
def test_the_commands_name_a_file_that_still_has_the_code(folder: str, tmp_path: Path) -> None:
    content = b"def loss(logits, targets): ...\n"
    place = tmp_path / folder
    place.mkdir()
    file = place / "idea.py"
    file.write_bytes(content)
    outputs = place / "outputs"
    write_run(outputs, num_images=30)
    run = write_run(outputs, num_images=30, name="coded", words=("seed=0", "code=WORD"))
    edited = {"run.json": "values", "result.json": "config"}
    for name, section in edited.items():
        held = json.loads((run.path / name).read_text())
        held["identity"] += "c"
        sha256 = hashlib.sha256(content).hexdigest()
        held[section]["code"] = sha256 if section == "values" else str(file)
        (run.path / name).write_text(json.dumps(held))
    (run.path / "code.py").write_bytes(content)

    def codes() -> list[str]:
        (one,) = only(ask(outputs)).comparisons
        assert len(one.more) in (1, 2)
        parser = OverridesParser.create()
        words = [word for command in commands(one) for word in words_of(command)]
        return [str(parser.parse_override(word).value())
                for word in words if word.startswith("code=")]  # fmt: skip

    assert codes() == ["WORD"], "as it was typed"
    file.write_bytes(content + b"# edited\n")
    assert codes() == [str(run.path / "code.py")]
    file.unlink()
    assert codes() == [str(run.path / "code.py")]
    (run.path / "code.py").write_bytes(b"# edited too\n")
    assert codes() == [], "no command would train the same"


# ── Runs that cannot be compared after all ─────────────────────────────────────────────────────


def test_other_labels_under_one_fingerprint_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, name="a", num_images=30)
    other = write_run(tmp_path, "mixup", name="b", num_images=30)
    assert len(only(ask(tmp_path)).comparisons) == 1
    with np.load(other.path / "predictions.npz") as file:
        labels, plain = np.roll(file["labels"], 1), file["plain"]
    other.write_predictions(labels, plain)
    found = ask(tmp_path)
    assert [row.label for row in only(found).rows] == ["baseline"]
    (bad,) = found.unranked
    assert bad.name == "b"
    assert "labels" in bad.reason


def test_runs_that_name_other_groups_are_refused(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        folder = write_run(tmp_path, name=name, seed=number, num_images=30)
        found = folder.predictions()
        groups = None if name == "a" else np.arange(30) // 3
        folder.write_predictions(found["labels"], found["plain"], groups)
    answered = ask(tmp_path)
    assert only(answered).rows[0].seeds == (1, 2)
    (bad,) = answered.unranked
    assert (bad.name, bad.status) == ("a", "unreadable")
    assert bad.reason == "its groups of images are not those of most runs on this data"


def test_images_of_one_group_are_resampled_together(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, name=f"a{seed}", seed=seed, num_images=90)
        write_run(tmp_path, "mixup", name=f"b{seed}", seed=seed, num_images=90, accuracy=0.9)
    alone = only(ask(tmp_path)).comparisons[0].found
    groups = np.arange(90) // 5
    for folder in run_folders(tmp_path):
        found = folder.predictions()
        folder.write_predictions(found["labels"], found["plain"], groups)
    (together,) = only(ask(tmp_path)).comparisons
    right = [run.predictions().correct("plain") for run in find_runs([tmp_path]).runs]  # by name
    theirs, ours = (np.array(part, np.float32) for part in (right[:3], right[3:]))
    assert together.found == difference(ours, theirs, MARGIN, groups)
    assert together.found.over_both != alone.over_both


def test_other_data_may_have_other_labels(tmp_path: Path) -> None:
    write_run(tmp_path, num_images=30)
    write_run(tmp_path, num_images=33, fingerprint="a" * 64)
    found = ask(tmp_path)
    assert len(found.groups) == 2
    assert found.unranked == ()


def test_a_broken_copy_does_not_stand_in_for_its_run(tmp_path: Path) -> None:
    write_run(tmp_path, name="run", num_images=30)
    shutil.copytree(tmp_path / "run", tmp_path / "a copy")
    (tmp_path / "a copy" / "predictions.npz").unlink()
    found = ask(tmp_path)
    assert [run.name for run in found.unranked] == ["a copy"]
    assert only(found).rows[0].seeds == (0,)


def test_no_runs_are_no_groups(tmp_path: Path) -> None:
    found = ask(tmp_path)
    assert (found.groups, found.unranked, found.margin) == ((), (), MARGIN)
    with pytest.raises(ConfigError, match="no runs with these tricks"):
        ask(tmp_path, "mixup")


def test_the_labels_of_most_runs_are_right(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        write_run(tmp_path, name=name, seed=number, num_images=30)
    folder = RunFolder(tmp_path / "a")
    found = folder.predictions()
    folder.write_predictions(found["labels"][::-1], found["plain"])
    answered = ask(tmp_path)
    assert [run.name for run in answered.unranked] == ["a"]
    assert only(answered).rows[0].seeds == (1, 2)
