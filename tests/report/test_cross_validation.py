"""The difference under cross-validation: its parts, and how often its interval holds the truth."""

from dataclasses import replace

import numpy as np
import pytest
import simulated_folds
from scipy import stats
from simulated_folds import SETTINGS, Setting, rates

from runner.report.family import judged
from runner.report.folds import fold_difference, overlap_factor, resampled_fold_difference
from runner.report.statistics import difference

COVERAGE = 0.94
QUICK = (
    Setting("least squares", 60, 50, 3, apart=1.5, ridge=0.001),
    Setting("centroid", 100, 50),
    Setting("network", 200, 10, num_seeds=3, hidden=20),
)


def drawn(n: int, num_images: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random((n, num_images)) < 0.7).astype(np.float32)


def chance(rate: float, num: int) -> float:
    """Three standard errors of a rate that was counted in ``num`` tables."""
    return 3 * float(np.sqrt(rate * (1 - rate) / num))


@pytest.mark.parametrize("setting", QUICK, ids=lambda setting: setting.name)
def test_the_interval_holds_the_truth_and_a_plain_t_test_does_not(setting: Setting) -> None:
    num = 400

    found = rates(1, setting, num)

    assert found.ours >= COVERAGE - chance(COVERAGE, num)
    assert found.naive < 0.94  # the control: the pairs are not independent


def test_the_control_fails_clearly_where_seeds_share_their_images() -> None:
    found = rates(2, Setting("network", 100, 5, num_seeds=5, hidden=10), 300)

    assert found.naive < 0.85
    assert found.ours > COVERAGE - chance(COVERAGE, 300)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_interval_holds_the_truth_in_all_settings(setting: Setting) -> None:
    num = 3000
    found = rates(SETTINGS.index(setting), setting, num)
    print(f"\n{setting}: {found}")
    assert found.ours >= COVERAGE - chance(COVERAGE, num)


def test_the_folds_of_the_simulation_are_stratified_and_each_image_is_tested_once() -> None:
    setting = QUICK[0]
    found = simulated_folds.draw(np.random.default_rng(0), setting, 3)
    assert found.shape == (3, 1, 60)
    assert set(np.unique(found)) <= {-1, 0, 1}
    assert np.bincount(setting.folds).tolist() == [20, 20, 20]


def test_the_parts_are_those_of_images_and_folds() -> None:
    scores, reference = drawn(2, 500), drawn(2, 500, seed=1)
    folds = np.random.default_rng(2).permutation(np.arange(500) % 5)

    found = fold_difference(scores, reference, folds, 0.01)

    of_image = (scores - reference).mean(axis=0)
    within = np.mean([of_image[folds == fold].var(ddof=1) for fold in range(5)])
    assert found.mean == pytest.approx(of_image.mean())
    assert found.image_error == pytest.approx(np.sqrt(2.25 * within / 500), rel=1e-5)
    means = [of_image[folds == fold].mean() for fold in range(5)]
    table = np.array(
        [[one[folds == fold].mean() for fold in range(5)] for one in scores - reference]
    )
    noise = table - table.mean(axis=0) - table.mean(axis=1)[:, None] + table.mean()
    common = max(0.0, table.mean(axis=1).var(ddof=1) - np.square(noise).sum() / 4 / 5)
    beyond = max(0.0, np.var(means, ddof=1) - within / 100) + 5 / 2 * common
    assert found.variance == pytest.approx(beyond, abs=1e-9)
    assert (found.n, found.over_seeds, found.floor, found.is_of_folds) == (5, None, 0, True)
    low, high = found.over_both
    assert (low + high) / 2 == pytest.approx(found.mean)


def test_folds_that_differ_much_have_a_t_distribution_of_few_degrees() -> None:
    """Where the luck of images is nothing, the interval is that of a t-test of the folds."""
    folds = np.repeat(np.arange(4), 5000)
    scores = np.zeros((1, 20000), np.float32)
    for fold, share in enumerate((0.1, 0.5, 0.2, 0.6)):
        scores[0, folds == fold] = share

    found = fold_difference(scores, np.zeros_like(scores), folds, 0.01)

    expected = stats.t.interval(0.95, 3, 0.35, stats.sem([0.1, 0.5, 0.2, 0.6]))
    assert found.over_both == pytest.approx(expected, rel=1e-3)
    interval = found.interval(0.95)
    assert interval is not None
    assert interval == pytest.approx(expected, rel=1e-3)


def test_groups_of_equal_images_are_as_many_single_images() -> None:
    scores, reference = drawn(3, 400), drawn(3, 400, seed=1)
    folds = np.arange(400) % 5

    single = fold_difference(scores, reference, folds, 0.01)
    four = [np.repeat(values, 4, axis=-1) for values in (scores, reference, folds, np.arange(400))]
    grouped = fold_difference(*four[:3], 0.01, four[3])

    assert grouped.over_both == pytest.approx(single.over_both)
    ungrouped = fold_difference(*four[:3], 0.01)
    assert ungrouped.image_error == pytest.approx(single.image_error / 2, rel=0.01)


def test_the_reverse_and_few_differing_images() -> None:
    scores, reference = drawn(1, 300), drawn(1, 300)
    folds = np.arange(300) % 5
    scores[0, :4] = 1 - scores[0, :4]
    ours = fold_difference(scores, reference, folds, 0.05)
    theirs = fold_difference(reference, scores, folds, 0.05)
    assert ours.mean == -theirs.mean
    assert ours.p_zero == pytest.approx(theirs.p_zero)
    equal = fold_difference(reference, reference, folds, 0.05)
    assert equal.image_error > 0  # 300 images that agree are no proof that all do
    assert equal.p_margin is not None
    assert equal.p_margin < 0.05
    assert fold_difference(reference, reference, folds, 0.005).p_margin > 0.05  # type: ignore[operator]


def test_few_differing_images_count_as_without_folds() -> None:
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1], [500, 10])
    reference = (rng.random((1, 510)) < 0.7).astype(np.float32)
    scores = np.where(rng.random(510) < 0.2, 1 - reference, reference)
    scores[:, 500:] = reference[:, 500:]  # the ten images of the rare class agree
    losses = np.ones((1, 500), np.float32)
    outlier = losses + 0.001 * rng.standard_normal((1, 500)).astype(np.float32)
    outlier[0, 7] += 5.0
    groups = np.arange(510) // 10
    for new, old, place, of_class in (
        (scores, reference, None, classes),
        (reference, reference, groups, classes),
        (reference, reference, groups, None),
        (outlier, losses, None, None),
        (losses, losses, None, None),
    ):
        folds = np.arange(new.shape[1]) // 10 % 5
        without = difference(new, old, 0.02, place, of_class).image_error
        found = fold_difference(new, old, folds, 0.02, place, of_class).image_error
        assert found == pytest.approx(without * np.sqrt(overlap_factor(5)), rel=0.05)


def test_a_metric_that_is_undefined_on_a_fold_is_no_agreement_of_folds() -> None:
    table = np.array([[0.1, np.nan, 0.2, 0.1, 0.1]])
    with pytest.raises(ValueError, match="not all are defined"):
        resampled_fold_difference(np.ones(1), np.zeros(1), np.ones((1, 9)), table, 0.01)


def test_a_mean_that_is_resampled_has_the_interval_of_its_scores() -> None:
    rng = np.random.default_rng(0)
    scores, reference = drawn(3, 600), drawn(3, 600, seed=1)
    folds = np.arange(600) % 4
    differences = (scores - reference).astype(np.float64)
    picked = rng.integers(0, 600, (4000, 600))
    table = np.stack([differences[:, folds == fold].mean(axis=1) for fold in range(4)], axis=1)

    found = resampled_fold_difference(
        scores.mean(axis=1),
        reference.mean(axis=1),
        differences[:, picked].mean(axis=2),
        table,
        0.01,
    )

    expected = fold_difference(scores, reference, folds, 0.01)
    assert found.mean == pytest.approx(expected.mean, abs=1e-6)
    assert found.over_both == pytest.approx(expected.over_both, rel=0.05)
    assert overlap_factor(5) == 2.25


def test_classes_that_count_alike() -> None:
    scores, reference = drawn(2, 500), drawn(2, 500, seed=1)
    folds, classes = np.arange(500) % 5, (np.arange(500) // 5 % 10 == 0).astype(np.int64)
    scores[:, classes == 1] = 1

    found = fold_difference(scores, reference, folds, 0.01, classes=classes)

    of_class = [(scores - reference)[:, classes == one].mean() for one in (0, 1)]
    assert found.mean == pytest.approx(np.mean(of_class))
    plain = fold_difference(scores, reference, folds, 0.01)
    assert found.image_error > 1.3 * plain.image_error  # 50 images are half of the value
    even = np.arange(500) // 5 % 2
    balanced = fold_difference(scores, reference, folds, 0.01, classes=even)
    assert balanced.over_both == pytest.approx(plain.over_both, abs=0.003)


def test_what_a_seed_does_to_all_folds_is_added() -> None:
    folds = np.arange(400) % 4
    reference = np.zeros((3, 400), np.float32)
    scores = drawn(3, 400)
    shifted = scores + np.array([[-0.2], [0.0], [0.2]], np.float32)
    alike = fold_difference(scores, reference, folds, 0.01)
    assert fold_difference(shifted, reference, folds, 0.01).variance > alike.variance + 0.03


def test_a_verdict_takes_three_folds() -> None:
    better, worse = np.ones((4, 300), np.float32), np.zeros((4, 300), np.float32)
    for num_folds, verdict in ((2, "cannot tell"), (3, "helps"), (5, "helps")):
        found = fold_difference(better, worse, np.arange(300) % num_folds, 0.01)
        (said,) = judged([found], 0.01, 300)
        assert said.verdict == verdict
    (unsure,) = judged([fold_difference(drawn(1, 90), drawn(1, 90), np.arange(90) % 3, 0.01)],
                       0.01, 90)  # fmt: skip
    assert (unsure.verdict, unsure.outlook) == ("cannot tell", None)  # no number of folds to advise


def test_what_cannot_be_compared_is_refused() -> None:
    good, folds = drawn(1, 10), np.arange(10) % 2
    for scores, reference, of_image, margin in (
        (good, good[:, :9], folds, 0.01),
        (good[0], good[0], folds, 0.01),
        (good, good, folds[:9], 0.01),
        (good, good, np.zeros(10, np.int64), 0.01),
        (good, good, 2 * folds, 0.01),
        (good, good, folds, 0.0),
    ):
        with pytest.raises(ValueError, match=r"need|margin"):
            fold_difference(scores, reference, of_image, margin)
    with pytest.raises(ValueError, match="need shapes"):
        resampled_fold_difference(good[0], good[0], good.T, good.T, 0.01)
    assert replace(SETTINGS[0], num_folds=2).folds.max() == 1
