import json
import math
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from runner.training.metrics import (
    METRICS,
    accuracy,
    auroc,
    balanced_accuracy,
    brier_score,
    classification_metrics,
    expected_calibration_error,
    log_loss,
    macro_f1,
    mean_class_scores,
    top_k_accuracy,
    wilson_interval,
)

SCALARS = list(METRICS)


def sample(seed, n, k):
    """Distinct random probabilities, and labels that they predict better than chance."""
    random = np.random.default_rng(seed)
    logits = 2 * random.standard_normal((n, k))
    labels = (logits + random.gumbel(size=(n, k))).argmax(axis=1)
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels


def coarse_sample(seed, n, k):
    """Probabilities with many ties, within rows and between images: counts of eight draws."""
    random = np.random.default_rng(seed)
    return random.multinomial(8, np.full(k, 1 / k), size=n) / 8, random.integers(k, size=n)


def names(k):
    return [f"class{index}" for index in range(k)]


def loop_ece(probabilities, labels, num_bins):
    """The definition, image by image, in pure Python."""
    images = []
    for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        images.append((max(row), row.index(max(row)) == label))
    images.sort(key=lambda image: image[0])
    shared = []
    for confidence, _ in images:
        tied = [hit for other, hit in images if other == confidence]
        shared.append((confidence, sum(tied) / len(tied)))
    size, extra = divmod(len(images), num_bins)
    total, start = 0.0, 0
    for index in range(num_bins):
        members = shared[start : start + size + (index < extra)]
        start += len(members)
        if members:
            mean_confidence = sum(confidence for confidence, _ in members) / len(members)
            mean_correct = sum(hit for _, hit in members) / len(members)
            total += len(members) / len(images) * abs(mean_correct - mean_confidence)
    return total


datasets = st.builds(
    lambda make, *args: make(*args),
    st.sampled_from([sample, coarse_sample]),
    st.integers(0, 2**32 - 1),
    st.integers(1, 60),
    st.integers(1, 12),
)


# Hand-worked values


def test_a_small_case_by_hand():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.0, 0.2, 0.8], [0.1, 0.3, 0.6]])
    metrics = classification_metrics(probabilities, np.array([0, 1, 2, 0]), ["a", "b", "c"])
    assert metrics["accuracy"] == 0.5
    assert metrics["log_loss"] == pytest.approx(-math.log(0.7 * 0.4 * 0.8 * 0.1) / 4)
    assert metrics["brier"] == pytest.approx((0.14 + 0.62 + 0.08 + 1.26) / 4)
    assert metrics["ece"] == pytest.approx((0.3 + 0.5 + 0.2 + 0.6) / 4)  # one image per bin
    assert metrics["per_class"] == {
        "a": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2},
        "b": {"precision": None, "recall": 0.0, "f1": 0.0, "support": 1},
        "c": {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1},
    }
    assert metrics["balanced_accuracy"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert metrics["macro_f1"] == pytest.approx((0.5 + 0 + 2 / 3) / 3)
    # a: .7, .1 against .5, 0; b: .4 against .2, .2, .3; c: .8 against .1, .1, .6
    assert metrics["auroc"] == pytest.approx((3 / 4 + 1 + 1) / 3)
    assert [name for name in metrics if name in METRICS] == list(METRICS)
    assert set(metrics) == {*METRICS, "accuracy_ci", "per_class"}


def test_ece_of_two_bins_by_hand():
    confidence = np.array([0.9, 0.6, 0.8, 0.7])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    labels = np.array([0, 1, 1, 0])
    # {.6 wrong, .7 right}: |.5 - .65|; {.8 wrong, .9 right}: |.5 - .85|
    assert expected_calibration_error(probabilities, labels, 2) == pytest.approx(0.25)
    assert expected_calibration_error(probabilities, labels, 1) == pytest.approx(0.25)
    labels = np.array([0, 0, 0, 1])  # now the first bin is under-, the second over-rated
    assert expected_calibration_error(probabilities, labels, 2) == pytest.approx(0.15)
    assert expected_calibration_error(probabilities, labels, 1) == pytest.approx(0.0)


def test_ties_rank_the_lower_index_first():
    probabilities = np.full((4, 4), 0.25)
    labels = np.arange(4)
    assert [top_k_accuracy(probabilities, labels, k) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1]
    assert accuracy(probabilities, labels) == 0.25


def test_top5_is_there_from_six_outputs_on():
    assert "top5" not in classification_metrics(*sample(0, 20, 5), names(5))
    probabilities, labels = sample(0, 20, 6)
    metrics = classification_metrics(probabilities, labels, names(6))
    assert metrics["top5"] == top_k_accuracy(probabilities, labels, 5)


# Independent references


@settings(deadline=None)
@given(datasets)
def test_log_loss_is_torchs_cross_entropy(dataset):
    probabilities, labels = dataset
    log_probabilities = torch.from_numpy(probabilities).clamp(min=2.0**-126).log()
    target = torch.from_numpy(labels)
    ours = log_loss(probabilities, labels)
    assert ours == pytest.approx(F.nll_loss(log_probabilities, target).item(), abs=1e-12)
    assert ours == pytest.approx(F.cross_entropy(log_probabilities, target).item(), abs=1e-12)


@settings(deadline=None)
@given(datasets, st.integers(1, 20))
def test_the_rest_is_what_loops_say(dataset, num_bins):
    probabilities, labels = dataset
    rows, k = probabilities.tolist(), probabilities.shape[1]
    brier = sum(
        (p - (index == label)) ** 2
        for row, label in zip(rows, labels, strict=True)
        for index, p in enumerate(row)
    ) / len(rows)
    assert brier_score(probabilities, labels) == pytest.approx(brier)
    ranked = [sorted(range(k), key=lambda index: -row[index]) for row in rows]
    for top in range(1, k + 1):
        hits = sum(label in order[:top] for order, label in zip(ranked, labels, strict=True))
        assert top_k_accuracy(probabilities, labels, top) == pytest.approx(hits / len(rows))
    ece = expected_calibration_error(probabilities, labels, num_bins)
    assert ece == pytest.approx(loop_ece(probabilities, labels, num_bins), abs=1e-12)


# The metrics of classes have scikit-learn as their reference, also where it defines an edge: ties,
# classes without images, classes that are never predicted, outputs that no class has.
with_absent_classes = st.builds(
    lambda dataset, modulus: (dataset[0], dataset[1] % modulus), datasets, st.integers(1, 12)
)


@settings(deadline=None)
@given(with_absent_classes)
def test_metrics_of_classes_are_scikit_learns(dataset):
    probabilities, labels = dataset
    k = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    metrics = classification_metrics(probabilities, labels, names(k))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes without images, which the values are about
        assert metrics["balanced_accuracy"] == pytest.approx(
            sklearn.metrics.balanced_accuracy_score(labels, predicted)
        )
        assert metrics["macro_f1"] == pytest.approx(
            sklearn.metrics.f1_score(labels, predicted, average="macro", zero_division=0)
        )
        theirs = sklearn.metrics.precision_recall_fscore_support(
            labels, predicted, labels=range(k), zero_division=np.nan
        )
        areas = [
            sklearn.metrics.roc_auc_score(labels == place, probabilities[:, place])
            for place in sorted(set(labels.tolist()))
            if len(set(labels.tolist())) > 1
        ]
    for name, *scores, support in zip(names(k), *theirs, strict=True):
        ours = metrics["per_class"][name]
        assert ours["support"] == support
        expected = [None if np.isnan(score) else pytest.approx(score) for score in scores]
        assert [ours["precision"], ours["recall"], ours["f1"]] == expected
    assert metrics["auroc"] == (pytest.approx(np.mean(areas), abs=1e-12) if areas else None)
    for name, function in (
        ("balanced_accuracy", balanced_accuracy), ("macro_f1", macro_f1), ("auroc", auroc),
    ):  # fmt: skip
        assert metrics[name] == function(probabilities, labels)


def test_auroc_is_scikit_learns_over_all_classes():
    probabilities, labels = sample(3, 500, 7)
    theirs = sklearn.metrics.roc_auc_score(labels, probabilities, multi_class="ovr")
    assert auroc(probabilities, labels) == pytest.approx(theirs, abs=1e-12)
    shuffled = np.random.default_rng(0).permutation(labels)
    assert auroc(probabilities, shuffled) == pytest.approx(0.5, abs=0.05), "a control"


def test_auroc_of_ties_by_hand():
    probabilities = np.array([[0.5, 0.5], [0.5, 0.5], [0.8, 0.2]])
    # Class 0: .5 against .5 is a half and .8 against .5 a whole; class 1 is its mirror.
    assert auroc(probabilities, np.array([0, 1, 0])) == 0.75


def test_a_hundred_classes_take_no_second():
    probabilities, labels = sample(0, 10_000, 100)
    started = time.process_time()
    classification_metrics(probabilities, labels, names(100))
    assert time.process_time() - started < 2  # .2 s on a machine at rest


def test_means_of_classes_leave_out_what_is_undefined():
    scores = [
        {"a": {"precision": None, "recall": 0.0, "f1": 0.0, "support": 3}},
        {"a": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 3}},
    ]
    expected = {"precision": 0.5, "recall": 0.25, "f1": 0.25, "support": 3}
    assert mean_class_scores(scores) == {"a": expected}
    assert mean_class_scores(scores[:1]) == {"a": scores[0]["a"]}


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(1, 5000), st.floats(0.01, 0.999))
def test_wilson_is_scipys_and_holds_the_estimate(successes, n, confidence):
    successes = min(successes, n)
    low, high = wilson_interval(successes, n, confidence)
    assert 0 <= low <= successes / n <= high <= 1
    theirs = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_ends_are_exact():
    for n in range(1, 400):  # unguarded, rounding misses 0 or 1 for many of these
        assert wilson_interval(0, n)[0] == 0.0
        assert wilson_interval(n, n)[1] == 1.0
    assert wilson_interval(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-7)


# Properties


@settings(deadline=None)
@given(datasets, st.integers(0, 2**32 - 1))
def test_the_order_of_images_does_not_matter(dataset, seed):
    probabilities, labels = dataset
    k = probabilities.shape[1]
    order = np.random.default_rng(seed).permutation(len(labels))
    before = classification_metrics(probabilities, labels, names(k))
    after = classification_metrics(probabilities[order], labels[order], names(k))
    for key in SCALARS:
        assert after[key] == pytest.approx(before[key], abs=1e-12)
    assert after["ece"] == before["ece"]  # to the last bit, ties or not
    assert after["per_class"] == before["per_class"]


def test_ece_by_plain_sorting_would_depend_on_the_order():
    # The negative control of the test above: all confidences tied, a cut in the middle.
    probabilities = np.tile([0.5, 0.3, 0.2], (4, 1))
    together, mixed = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])

    def naive(labels):
        return sum(abs((part == 0).mean() - 0.5) / 2 for part in np.array_split(labels, 2))

    assert naive(together) != naive(mixed)
    assert expected_calibration_error(probabilities, together, 2) == 0
    assert expected_calibration_error(probabilities, mixed, 2) == 0


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 12))
def test_the_order_of_classes_does_not_matter(seed, n, k):
    probabilities, labels = sample(seed, n, k)  # no ties: those go by index
    order = np.random.default_rng(seed).permutation(k)
    before = classification_metrics(probabilities, labels, names(k))
    after = classification_metrics(
        probabilities[:, order], np.argsort(order)[labels], [names(k)[index] for index in order]
    )
    for key in [*SCALARS, *(["top5"] if k > 5 else [])]:
        assert after[key] == pytest.approx(before[key], abs=1e-12)
    assert after["per_class"] == before["per_class"]


@settings(deadline=None)
@given(datasets)
def test_ranges_and_types(dataset):
    probabilities, labels = dataset
    k = probabilities.shape[1]
    metrics = classification_metrics(probabilities, labels, names(k))
    assert 0 <= metrics["accuracy"] <= metrics.get("top5", 1) <= 1
    assert top_k_accuracy(probabilities, labels, 1) == metrics["accuracy"]
    assert 0 <= metrics["log_loss"] < 88
    assert 0 <= metrics["brier"] <= 2 + 1e-12
    assert 0 <= metrics["ece"] <= 1
    low, high = metrics["accuracy_ci"]
    assert low <= metrics["accuracy"] <= high
    for name in ("balanced_accuracy", "macro_f1"):
        assert 0 <= metrics[name] <= 1
    assert (metrics["auroc"] is None) == (len(set(labels.tolist())) == 1)
    assert metrics["auroc"] is None or 0 <= metrics["auroc"] <= 1
    assert sum(row["support"] for row in metrics["per_class"].values()) == len(labels)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


@pytest.mark.parametrize("n", [1, 14, 15, 16, 100])
@pytest.mark.parametrize("k", [1, 2, 10])
def test_perfect_and_uniform_predictions(n, k):
    labels = np.arange(n) % k
    perfect = classification_metrics(np.eye(k, dtype=np.float32)[labels], labels, names(k))
    assert {key: perfect[key] for key in SCALARS} == {
        "accuracy": 1, "balanced_accuracy": 1, "log_loss": 0, "brier": 0, "macro_f1": 1,
        "auroc": 1 if min(n, k) > 1 else None, "ece": 0,
    }  # fmt: skip
    assert math.copysign(1, perfect["log_loss"]) == 1  # not -0.0
    uniform = classification_metrics(np.full((n, k), 1 / k), labels, names(k))
    assert uniform["log_loss"] == pytest.approx(math.log(k))
    assert uniform["brier"] == pytest.approx(1 - 1 / k)
    assert uniform["auroc"] == (0.5 if min(n, k) > 1 else None)
    assert uniform["ece"] == pytest.approx(abs(uniform["accuracy"] - 1 / k))


def test_overconfidence_raises_ece_and_calibration_does_not():
    probabilities, labels = sample(0, 20_000, 10)  # labels are drawn from these probabilities
    sharpened = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)
    assert accuracy(sharpened, labels) == accuracy(probabilities, labels)
    assert expected_calibration_error(probabilities, labels) < 0.015
    assert expected_calibration_error(sharpened, labels) > 0.15
    assert log_loss(sharpened, labels) > log_loss(probabilities, labels)


# Edges


def test_a_certain_miss_is_finite():
    probabilities, labels = np.array([[1.0, 0.0]]), np.array([1])
    expected = 126 * math.log(2)
    assert log_loss(probabilities, labels) == pytest.approx(expected)
    assert brier_score(probabilities, labels) == 2
    assert expected_calibration_error(probabilities, labels) == 1


def test_more_outputs_than_classes_and_a_class_without_images():
    probabilities, _ = sample(0, 8, 7)
    metrics = classification_metrics(probabilities, np.array([0, 2] * 4), ["a", "b", "c"])
    assert list(metrics["per_class"]) == ["a", "b", "c"]
    assert metrics["per_class"]["b"]["recall"] is None
    assert metrics["per_class"]["b"]["support"] == 0
    assert "top5" in metrics


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_low_precision_is_accepted_and_not_changed(dtype):
    probabilities, labels = sample(0, 50, 10)
    low = probabilities.astype(dtype)
    before = low.copy()
    metrics = classification_metrics(low, labels.astype(np.uint8), names(10))
    exact = classification_metrics(probabilities, labels, names(10))
    for key in SCALARS:
        assert metrics[key] == pytest.approx(exact[key], abs=2e-3)
    assert np.array_equal(low, before)


def test_inputs_are_not_written_to():
    probabilities, labels = sample(0, 50, 10)
    probabilities.flags.writeable = labels.flags.writeable = False
    classification_metrics(probabilities, labels, names(10))


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([[np.nan, 1.0]], [0], "finite"),
        ([[np.inf, -np.inf]], [0], "finite"),
        ([[1.5, -0.5]], [0], "not negative"),
        ([[0.5, 0.5], [0.5, 0.498]], [0, 1], "row 1 sum to 0.998"),
        ([0.5, 0.5], [0, 1], r"\(N, K\)"),
        (np.zeros((0, 2)), np.zeros(0, int), "not empty"),
        ([[0.5, 0.5]], [0, 1], "1 integers"),
        ([[0.5, 0.5]], [0.0], "float64"),
        ([[0.5, 0.5]], [2], r"0\.\.1, got 2"),
        ([[0.5, 0.5]], [-1], "got -1"),
    ],
)
@pytest.mark.parametrize(
    "metric",
    [
        accuracy,
        auroc,
        balanced_accuracy,
        brier_score,
        expected_calibration_error,
        log_loss,
        macro_f1,
        lambda p, y: top_k_accuracy(p, y, 1),
        lambda p, y: classification_metrics(p, y, ["a", "b"]),
    ],
)
def test_bad_arrays_are_refused(metric, probabilities, labels, message):
    with pytest.raises(ValueError, match=message):
        metric(np.asarray(probabilities), np.asarray(labels))


def test_rows_that_sum_to_one_within_the_tolerance_pass():
    assert log_loss(np.array([[1.0009, 0.0]]), np.array([0])) == 0
    assert accuracy(np.array([[0.4, 0.5991]]), np.array([1])) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, y: classification_metrics(p, y, ["a", "a", "b"]), "unique"),
        (lambda p, y: classification_metrics(p, y, ["a"]), "1 class names"),
        (lambda p, y: classification_metrics(p, y, names(4)), "4 class names"),
        (lambda p, y: top_k_accuracy(p, y, 0), r"1\.\.3, got 0"),
        (lambda p, y: top_k_accuracy(p, y, 4), r"1\.\.3, got 4"),
        (lambda p, y: expected_calibration_error(p, y, 0), "num_bins"),
        (lambda p, y: wilson_interval(0, 0), "0 of 0"),
        (lambda p, y: wilson_interval(3, 2), "3 of 2"),
        (lambda p, y: wilson_interval(-1, 2), "-1 of 2"),
        (lambda p, y: wilson_interval(1, 2, 95), "confidence"),
    ],
)
def test_bad_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.full((3, 3), 1 / 3), np.arange(3))


def test_torch_is_not_imported():
    code = "import sys, runner.training.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
