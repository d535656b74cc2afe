"""Verdicts on any metric: values, resampled values, direction, words, and what is remembered."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated import write_comparison, write_run
from numpy.typing import NDArray

from runner.compare import tuning
from runner.errors import ConfigError
from runner.records import comparison_folder
from runner.records.comparison_folder import PairedRun
from runner.report import measured as module
from runner.report import text
from runner.report.answer import Answer, answer
from runner.report.comparison_json import from_json, to_json
from runner.report.comparison_text import comparison_parts, forest_of
from runner.report.comparison_words import verdict_line
from runner.report.comparisons import ComparisonAnswer, standings
from runner.report.family import judged, verdict
from runner.report.forest import Forest
from runner.report.measured import Images, Measured, compared, measured, missing_class
from runner.report.metric import METRICS, Metric, margin_of, metric_of
from runner.report.page import page
from runner.report.runs import FinishedRun, StoredPredictions, find_runs
from runner.report.scores import ScoreBook
from runner.report.sequential import walk
from runner.report.statistics import difference, rare_error, resampled_difference
from runner.training import metrics as reference

SLOW: dict[str, Any] = {
    "accuracy": reference.accuracy,
    "balanced_accuracy": reference.balanced_accuracy,
    "log_loss": reference.log_loss,
    "brier": reference.brier_score,
    "macro_f1": reference.macro_f1,
    "auroc": reference.auroc,
    "ece": reference.expected_calibration_error,
}
RESAMPLED = [name for name, one in METRICS.items() if one.kind == "resampled"]
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


def drawn(
    num_images: int = 90, num_classes: int = 4, *, seed: int = 0, levels: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Probabilities (N, K + 1) and labels of classes of unequal sizes; with ties by ``levels``."""
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.choice(num_classes, num_images, p=[0.55, 0.25, 0.15, 0.05]))
    logits = rng.standard_normal((num_images, num_classes + 1))
    logits[np.arange(num_images), labels] += 1.0
    if levels:
        logits = np.round(logits * levels) / levels
        logits[::3] = logits[0]
    powers = np.exp(logits)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32), labels


def test_the_names_are_the_same_everywhere() -> None:
    assert tuple(METRICS) == comparison_folder.METRICS == reference.METRICS
    rates = {name for name, one in METRICS.items() if one.unit == "points"}
    assert set(METRICS) - rates == set(comparison_folder._NO_RATES)


# ── Values ─────────────────────────────────────────────────────────────────────────────────────


@every_metric
@pytest.mark.parametrize("levels", [0, 1])
def test_values_are_those_of_the_evaluation(metric: Metric, levels: int) -> None:
    for seed in range(5):
        probabilities, labels = drawn(seed=seed, levels=levels)
        found = measured(metric, probabilities, labels).value
        assert found == pytest.approx(SLOW[metric.name](probabilities, labels), abs=1e-6)


@pytest.mark.parametrize("name", RESAMPLED)
@pytest.mark.parametrize("levels", [0, 1])
def test_resampled_values_are_those_of_the_repeated_images(name: str, levels: int) -> None:
    probabilities, labels = drawn(levels=levels)
    groups = np.arange(len(labels)) // 2  # of two images, whatever their class
    found = measured(METRICS[name], probabilities, labels, groups)
    factors, counts = module._resampled(labels, groups)
    assert np.all(factors == 1)
    assert np.all(counts[::2] == counts[1::2]), "groups are drawn whole"
    assert np.all(counts[::2].sum(axis=0, dtype=int) == len(labels) // 2 - 1), "all but one"
    for place in range(0, 1000, 97):
        rows = np.repeat(np.arange(len(labels)), counts[:, place])
        expected = SLOW[name](probabilities[rows], labels[rows])
        tolerance = 0.15 if name == "ece" else 1e-6  # whose bins stay those of all images
        assert found.parts[place] == pytest.approx(expected, abs=tolerance)
    assert len({*found.parts.tolist()}) > 100, "or nothing was resampled"


@pytest.mark.parametrize("name", RESAMPLED)
def test_blocks_of_resamples_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, labels = drawn()
    whole = measured(METRICS[name], probabilities, labels)
    monkeypatch.setattr(module, "_BLOCK", 7 * len(labels))
    np.testing.assert_allclose(
        measured(METRICS[name], probabilities, labels).parts, whole.parts, rtol=1e-6
    )


def test_classes_are_resampled_apart_and_weighted_for_their_size() -> None:
    _, labels = drawn()
    labels[-1] = 4  # a class of one image
    factors, counts = module._resampled(labels, None)
    for number in np.unique(labels):
        own = labels == number
        assert np.allclose(factors[own] @ counts[own], own.sum())
    size = int((labels == 0).sum())
    values = np.where(labels == 0, np.arange(len(labels)), 0.0)
    means = (values * factors) @ counts / size
    unbiased = values[labels == 0].var(ddof=1) / size
    assert means.var() == pytest.approx(unbiased, rel=0.15)


def test_a_metric_that_needs_every_class_names_the_missing_one() -> None:
    labels = np.array([0, 0, 2])
    assert missing_class(METRICS["auroc"], labels, 3) == 1
    assert missing_class(METRICS["auroc"], labels[:2], 1) is None
    assert missing_class(METRICS["macro_f1"], labels, 3) is None


# ── Differences ────────────────────────────────────────────────────────────────────────────────


def sides(metric: Metric, n: int = 4, num_images: int = 90) -> tuple[list[Measured], ...]:
    """Runs of two arms, on images of equal labels."""
    _, labels = drawn(num_images)
    found: list[list[Measured]] = []
    for arm in range(2):
        views = [drawn(num_images, seed=10 * arm + seed + 1)[0] for seed in range(n)]
        found.append([measured(metric, view, labels) for view in views])
    return tuple(found)


@every_metric
def test_a_difference_is_that_of_the_values_and_reverses(metric: Metric) -> None:
    ours, theirs = sides(metric)
    images = Images(drawn()[1])
    there = compared(metric, ours, theirs, images, 0.02)
    back = compared(metric, theirs, ours, images, 0.02)
    values = [new.value - old.value for new, old in zip(ours, theirs, strict=True)]
    assert there.mean == pytest.approx(np.mean(values), abs=1e-6)
    assert there.variance == pytest.approx(np.var(values, ddof=1), rel=1e-4)
    assert there.image_error == pytest.approx(back.image_error)
    assert there.over_both == pytest.approx((-back.over_both[1], -back.over_both[0]), abs=1e-6)
    assert there.p_zero == pytest.approx(back.p_zero, abs=1e-6)
    assert there.floor > 0
    alone = compared(metric, ours[:1], theirs[:1], images, 0.02)
    assert (alone.n, alone.p_zero, alone.variance) == (1, None, 0.0)
    assert alone.over_both[0] < alone.mean < alone.over_both[1]


@every_metric
def test_equal_predictions_are_no_proof_about_images_that_were_not_drawn(metric: Metric) -> None:
    ours, _ = sides(metric, num_images=20)
    same = compared(metric, ours, ours, Images(drawn(20)[1]), metric.default_margin)
    assert same.mean == 0
    assert same.image_error > 0
    assert verdict(0.0, same.p_zero, same.p_margin) == "cannot tell"


def test_resampling_a_mean_finds_the_parts_of_the_mixed_model() -> None:
    """On a metric that is a mean, both ways agree if both arms have the same resamples."""
    rng, n, num_images = np.random.default_rng(4), 5, 400
    hardness, suits = rng.standard_normal((2, num_images))
    old, new = (
        (hardness + part * suits + 0.5 * rng.standard_normal((n, num_images))).astype(np.float32)
        for part in (0.0, 0.4)
    )
    exact = difference(new, old, 0.1)
    counts = rng.multinomial(num_images, np.full(num_images, 1 / num_images), 4000).T / num_images
    found, wrong = (
        resampled_difference(new.mean(axis=1), old.mean(axis=1), new @ counts, old @ again, 0.1)
        for again in (counts, counts[:, ::-1])
    )
    assert found.floor == pytest.approx(exact.floor, rel=0.05)
    assert found.image_error == pytest.approx(exact.image_error, rel=0.05)
    assert found.over_both == pytest.approx(exact.over_both, rel=0.1, abs=0.003)
    assert wrong.image_error > 2 * exact.image_error, "the control: other resamples of one arm"


def test_classes_that_count_alike_have_the_error_within_classes() -> None:
    rng, n = np.random.default_rng(0), 6
    classes = np.repeat([0, 1, 2], [600, 200, 40])
    # The trick moves whole classes: nothing about that is luck of the images within them.
    means = np.array([0.2, -0.1, 0.3])[classes]
    new = (rng.standard_normal((n, 840)) + 3 * rng.standard_normal(840) + means).astype(np.float32)
    old = np.zeros_like(new)
    found = difference(new, old, 0.1, classes=classes)
    of_class = [new[:, classes == number].mean() for number in range(3)]
    assert found.mean == pytest.approx(np.mean(of_class), abs=1e-5)
    expected = np.sqrt(sum(9 / size for size in (600, 200, 40))) / 3
    assert found.image_error == pytest.approx(expected, rel=0.15)
    whole = np.arange(840)
    grouped = difference(new, old, 0.1, whole, classes)
    assert grouped.image_error == pytest.approx(found.image_error)
    alike = difference(new, old, 0.1, classes=np.zeros(840, int))
    plain = difference(new, old, 0.1)
    assert alike.mean == pytest.approx(plain.mean, abs=1e-5)
    assert alike.floor == pytest.approx(plain.floor, rel=0.01)


def test_rare_differences_of_equal_classes_count_as_those_of_accuracy() -> None:
    none = np.zeros(300)
    assert rare_error(none, np.arange(300) % 3) == pytest.approx(1.959964 / 300)
    assert rare_error(none, np.repeat([0, 1], [290, 10])) > 1.959964 / 300
    assert rare_error(none + 1, np.arange(300) % 3) == 0


def test_rare_differences_of_groups_count_as_those_of_accuracy() -> None:
    groups, equal = np.arange(400) // 20, np.ones((1, 400), np.float32)
    expected = 1.959964 * 20 / 400
    assert difference(equal, equal, 0.02, groups).image_error == pytest.approx(expected)
    for classes in (np.arange(400) // 100, np.arange(400) % 4):  # groups of one class, and of all
        found = difference(equal, equal, 0.02, groups, classes)
        assert found.image_error == pytest.approx(expected)
        metric, probabilities = METRICS["macro_f1"], np.eye(4, dtype=np.float32)[classes]
        one = measured(metric, probabilities, classes, groups)
        resampled = compared(metric, [one], [one], Images(classes, groups), 0.02)
        assert resampled.image_error == pytest.approx(expected)
    single = rare_error(np.zeros(400), classes, np.arange(400))
    assert single == pytest.approx(rare_error(np.zeros(400), classes))
    # Twenty images of one patient are one thing that differs, and no more than they are.
    patient = (groups == 3).astype(np.float64)
    assert rare_error(patient, np.zeros(400, int), groups) == pytest.approx(expected)
    three = patient * (np.arange(400) % 20 < 3)
    assert rare_error(three, np.zeros(400, int), groups) == pytest.approx(expected * 3 / 20)
    many = np.arange(400) // 10
    assert rare_error(np.ones(400), np.zeros(400, int), many) == 0


def test_one_large_loss_counts_as_few_differing_images() -> None:
    rng = np.random.default_rng(0)
    new = (0.001 * rng.standard_normal((4, 500))).astype(np.float32)
    calm = difference(new, np.zeros_like(new), 0.01)
    new[:, 7] += 5.0
    found = difference(new, np.zeros_like(new), 0.01)
    assert found.image_error > 2 * 5 / 500, "as if two more such images could have been drawn"
    assert calm.image_error < 0.001


@pytest.mark.parametrize(
    "shapes", [((3,), (2,), (3, 9)), ((3,), (3,), (2, 9)), ((3,), (3,), (3, 0))]
)
def test_unequal_shapes_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    values, others, resampled = map(np.zeros, shapes)
    with pytest.raises(ValueError, match=r"need (equal )?shapes"):
        resampled_difference(values, others, resampled, resampled, 0.1)


# ── Direction ──────────────────────────────────────────────────────────────────────────────────


def test_less_is_better_turns_verdicts_round_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    new = (rng.random((6, 800)) < 0.85).astype(np.float32)
    old = (rng.random((6, 800)) < 0.70).astype(np.float32)
    one = difference(new, old, 0.01)
    for less_is_better, expected in ((False, "helps"), (True, "hurts")):
        (said,) = judged([one], 0.01, 800, less_is_better=less_is_better)
        assert said.verdict == expected
        assert said.p_zero == one.p_zero
        found = [difference(new[:3], old[:3], 0.01)]
        (state,) = walk([found], 3, 0.01, less_is_better=less_is_better)
        assert state.verdict == expected
    assert METRICS["log_loss"].is_better(-0.1)
    assert not METRICS["log_loss"].is_better(0.1)
    assert METRICS["auroc"].is_better(0.1)


def test_the_margin_is_in_the_unit_of_the_metric() -> None:
    assert margin_of("2", METRICS["ece"]) == pytest.approx(0.02)
    assert margin_of("0.5", METRICS["log_loss"]) == 0.5
    assert margin_of(None, METRICS["log_loss"]) == 0.02
    assert margin_of(None, METRICS["accuracy"]) == 0.005
    for text_, metric, fix in (("100", "auroc", "--margin 1"), ("1", "brier", "--margin 0.01")):
        with pytest.raises(ConfigError) as error:
            margin_of(text_, METRICS[metric])
        assert error.value.fix == fix
    with pytest.raises(ConfigError) as error:
        metric_of("nll")
    assert all(name in (error.value.fix or "") for name in METRICS)


# ── The report ─────────────────────────────────────────────────────────────────────────────────


def report(outputs: Path, metric: Metric) -> Answer:
    """A report whose cache is kept."""
    book = ScoreBook(outputs.parent / "report.npz")
    found = answer(find_runs([outputs]), book, metric.default_margin, metric=metric)
    book.save()
    return found


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of the baseline and of a trick that is right more often."""
    path = tmp_path_factory.mktemp("metric") / "outputs"
    for seed in range(3):
        write_run(path, seed=seed, accuracy=0.6 + 0.01 * seed, num_images=400)
        write_run(path, "mixup", seed=seed, accuracy=0.9 + 0.005 * seed, num_images=400)
    return path


@every_metric
def test_a_report_is_on_the_metric(
    metric: Metric, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = report(outputs, metric)
    (one,) = found.groups[0].comparisons
    values = [arm.metrics[metric.name].mean for arm in found.groups[0].rows]
    assert one.found.mean == pytest.approx(values[1] - values[0], abs=1e-6)
    assert [pair.difference for pair in one.pairs] == pytest.approx(
        [*(new - old for new, old in zip(*of_seeds(found, metric), strict=True))], abs=1e-6
    )
    if metric.name != "ece":  # of which nothing is known here
        assert one.verdict == "helps"
        assert (one.found.mean < 0) == metric.less_is_better
    table = text.answer_table(found.groups[0], found.margin, metric)
    assert metric.heading in table.columns
    content = json.loads(text.to_json(found))
    assert content["metric"] == metric.name
    lines = text.csv(found).splitlines()
    columns = lines[0].split(",")
    row = dict(zip(columns, lines[2].split(","), strict=True))
    assert row["metric"] == metric.name
    assert float(row["value"]) == pytest.approx(values[1])
    assert metric.label in text.markdown(found)
    # A second report reads no predictions.
    monkeypatch.setattr(FinishedRun, "predictions", never)
    again = report(outputs, metric)
    assert again.groups[0].comparisons == found.groups[0].comparisons


def of_seeds(found: Answer, metric: Metric) -> list[list[float]]:
    """The metric of the trick and of the baseline, by seed."""
    arms = {arm.label: arm for arm in found.groups[0].group.arms}
    return [
        [values for _, values in sorted(arms[label].metric(metric.name).items())]
        for label in ("mixup", "baseline")
    ]


def never(self: FinishedRun) -> StoredPredictions:
    raise AssertionError(f"read {self.name}")


def test_the_page_has_the_direction(outputs: Path) -> None:
    found = page(report(outputs, METRICS["log_loss"]))
    assert "Difference in log loss" in found
    assert "less is better" in found
    assert "margin of 0.02." in found


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, num_images=2)  # of the first two of three classes
    book = ScoreBook(tmp_path / "x.npz")
    with pytest.raises(ConfigError, match="class dress has no validation images") as error:
        answer(find_runs([tmp_path]), book, 0.01, metric=METRICS["auroc"])
    assert (error.value.where or "").startswith("--metric auroc, run ")
    answer(find_runs([tmp_path]), book, 0.01, metric=METRICS["macro_f1"])


def test_data_that_lacks_a_class_is_left_out_and_named(outputs: Path, tmp_path: Path) -> None:
    short = write_run(tmp_path, num_images=2, fingerprint="e" * 64).path.name
    book, metric = ScoreBook(tmp_path / "x.npz"), METRICS["auroc"]
    found = answer(find_runs([outputs, tmp_path]), book, 0.01, metric=metric)
    assert len(found.groups) == 1
    (left,) = found.unranked
    assert (left.name, left.status) == (short, "undefined")
    assert "AUROC is not defined: class dress has no validation images" in left.reason


# ── Comparisons ────────────────────────────────────────────────────────────────────────────────


def compared_on(tmp_path: Path, metric: str, margin: float) -> ComparisonAnswer:
    folder = write_comparison(
        tmp_path / "outputs", {"mixup": [0.9, 0.91, 0.92, 0.9, 0.9]},
        base=[0.6, 0.61, 0.6, 0.62, 0.6], metric=metric, margin=margin, max_seeds=5,
    )  # fmt: skip
    outputs = folder.path.parent.parent
    return standings(folder.plan(), folder.runs(), outputs, ScoreBook(outputs / "x.npz"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("balanced_accuracy", "points"),
        ("log_loss", "in log loss after 3 seeds"),
        ("macro_f1", "in macro F1 after 3 seeds"),
    ],
)
def test_a_comparison_is_on_the_metric_of_its_plan(name: str, says: str, tmp_path: Path) -> None:
    metric = METRICS[name]
    found = compared_on(tmp_path, name, 0.02)
    (one,) = found.standings
    assert (one.verdict, one.reason) == ("helps", "decided")
    assert one.mean is not None
    assert metric.is_better(one.mean)
    line = verdict_line(one, 0.02, metric)
    assert says in line
    assert "helps by about" in line
    assert "-" not in line.split("[")[1].split("]")[0], "an improvement is not negative in words"
    assert found.base_value != found.base
    content = json.loads(json.dumps(to_json(found)))
    assert from_json(content) == found
    assert content["plan"]["metric"] == name
    assert content["arms"][0]["value"]["mean"] == pytest.approx(one.value and one.value.mean)
    parts = [part for part in comparison_parts(found) if not isinstance(part, str)]
    forest = forest_of(found)
    assert forest.scale == metric.scale
    assert (metric.direction in forest.title) if metric.direction else True
    assert any(isinstance(part, Forest) and part.lines() for part in parts)
    assert text.csv(Answer((), (), (), 0.02, comparisons=(found,))).count(name) >= 2


def test_a_comparison_on_accuracy_has_the_record_of_before(tmp_path: Path) -> None:
    content = to_json(compared_on(tmp_path, "accuracy", 0.02))
    assert "value" not in content["base"]
    assert "value" not in content["arms"][0]
    assert from_json(content).base_value == from_json(content).base


@pytest.mark.parametrize("name", ["accuracy", "log_loss", "macro_f1"])
@pytest.mark.parametrize("is_older", [False, True])
def test_a_search_chooses_by_the_metric(name: str, is_older: bool, tmp_path: Path) -> None:
    """Also among runs that did not record it."""
    runs = {}
    for seed, accuracy in enumerate((0.6, 0.9, 0.7)):
        run = write_run(tmp_path, seed=seed, accuracy=accuracy).path
        if is_older:
            result = json.loads((run / "result.json").read_text())
            del result["metrics"]["plain"]["macro_f1"]
            (run / "result.json").write_text(json.dumps(result))
        runs[(f"optim.lr={seed}",)] = {seed: PairedRun(run.name, None)}
    assert tuning._best(tmp_path, runs, METRICS[name]) == ("optim.lr=1",)


def test_a_margin_of_one_is_one_point() -> None:
    assert [METRICS["accuracy"].size(value) for value in (0.01, 0.005)] == ["1 point", "0.5 points"]
    assert METRICS["brier"].size(0.01) == "0.01"
