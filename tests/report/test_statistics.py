"""Intervals, tests and verdicts: against scipy.stats, and in experiments whose truth is known."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from simulated import Arm, draw

from runner.report import statistics
from runner.report.family import verdict
from runner.report.statistics import Mixture, difference, mcnemar, t_interval

MARGIN = 0.005


def scores(n: int, num_images: int, accuracy: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random((n, num_images)) < accuracy).astype(np.float32)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_the_interval_over_seeds_is_that_of_a_paired_t_test(n: int) -> None:
    ours, theirs = scores(n, 200, 0.8, 1), scores(n, 200, 0.7, 2)
    found = difference(ours, theirs, MARGIN)
    expected = stats.ttest_rel(
        ours.mean(axis=1, dtype=float), theirs.mean(axis=1, dtype=float)
    ).confidence_interval()
    assert found.over_seeds == pytest.approx(tuple(expected), abs=1e-6)
    assert found.mean == pytest.approx(float(ours.mean() - theirs.mean()), abs=1e-7)
    values = ours.mean(axis=1).tolist()
    by_scipy = stats.t.interval(0.95, n - 1, np.mean(values), stats.sem(values))
    assert t_interval(values) == pytest.approx(by_scipy)


def test_one_value_has_no_interval_over_seeds() -> None:
    assert t_interval([0.5]) is None
    found = difference(scores(1, 50, 0.8, 1), scores(1, 50, 0.6, 2), MARGIN)
    assert (found.over_seeds, found.p_zero, found.p_margin) == (None, None, None)
    assert verdict(found.mean, found.p_zero, found.p_margin) == "cannot tell"


def test_with_one_seed_the_interval_is_of_the_images() -> None:
    ours, theirs = scores(1, 4000, 0.8, 1), scores(1, 4000, 0.75, 2)
    found = difference(ours, theirs, MARGIN)
    per_image = (ours - theirs)[0]
    error = per_image.std() / np.sqrt(4000)
    expected = (per_image.mean() - 1.96 * error, per_image.mean() + 1.96 * error)
    assert found.over_both == pytest.approx(expected, abs=0.1 * error)
    assert found.image_error == pytest.approx(error, rel=0.1)


def test_without_any_luck_of_images_both_intervals_agree() -> None:
    # Every image is hit alike, so that only the seeds vary: 10, 20, 30, 40 of 1,000 images more,
    # each in another place.
    theirs = np.zeros((4, 100_000), np.float32)
    ours = theirs.copy()
    for seed in range(4):
        rng = np.random.default_rng(seed)
        ours[seed] = rng.permutation(100_000) < 1000 * (seed + 1)
    found = difference(ours, theirs, MARGIN)
    assert found.over_seeds is not None
    assert found.over_both == pytest.approx(found.over_seeds, abs=2e-4)
    p_value = stats.ttest_rel(ours.mean(axis=1), theirs.mean(axis=1)).pvalue
    assert found.p_zero == pytest.approx(p_value, rel=0.02)


def test_the_luck_of_images_widens_the_interval() -> None:
    # All seeds agree: what is left to chance is which images there are.
    per_image = (np.arange(2000) < 200).astype(np.float32)
    ours, theirs = np.tile(per_image, (5, 1)), np.zeros((5, 2000), np.float32)
    found = difference(ours, theirs, MARGIN)
    error = np.sqrt(0.1 * 0.9 / 2000)
    assert found.over_seeds == pytest.approx((0.1, 0.1), abs=1e-6)
    assert found.over_both == pytest.approx((0.1 - 1.96 * error, 0.1 + 1.96 * error), abs=2e-3)
    assert found.image_error == pytest.approx(error, rel=0.1)
    assert found.seed_deviation == pytest.approx(0.0, abs=1e-6)


def test_the_components_are_those_of_a_two_way_layout() -> None:
    rng = np.random.default_rng(3)
    of_seeds, of_images, of_both = 0.05, 0.3, 0.4
    n, num_images = 400, 400
    layout = (
        0.1
        + rng.normal(0, of_seeds, (n, 1))
        + rng.normal(0, of_images, (1, num_images))
        + rng.normal(0, of_both, (n, num_images))
    )
    found = difference(layout, np.zeros_like(layout), MARGIN)
    expected = np.sqrt(of_seeds**2 + of_both**2 / num_images)
    assert found.seed_deviation == pytest.approx(expected, rel=0.1)
    assert found.image_error == pytest.approx(of_images / np.sqrt(num_images), rel=0.1)


def test_seeds_that_agree_by_luck_are_not_believed() -> None:
    # Each seed gains 25 images and loses 15, others every time: their equal sums are luck.
    ours, theirs = np.zeros((3, 1000), np.float32), np.zeros((3, 1000), np.float32)
    for seed in range(3):
        ours[seed, 100 * seed : 100 * seed + 25] = 1
        theirs[seed, 100 * seed + 50 : 100 * seed + 65] = 1
    found = difference(ours, theirs, MARGIN)
    assert found.over_seeds == pytest.approx((0.01, 0.01), abs=1e-6), "t alone is fooled"
    low, high = found.over_both
    assert low < 0 < high
    assert found.p_zero is not None
    assert found.p_zero > 0.05


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 12, 23, 60, 61, 99, 6.5])
def test_a_mixture_of_one_is_a_t_distribution(degrees: float) -> None:
    mixture = Mixture(np.array([0.5]), 2.0, degrees)
    for x in (-1e9, -300.0, -7.0, -0.5, 0.5, 0.6, 3.0, 90.0):
        expected = stats.t.cdf(x, degrees, loc=0.5, scale=2.0)
        assert mixture.below(x) == pytest.approx(expected, abs=1e-14)
        assert mixture.above(x) == pytest.approx(1 - expected, abs=1e-14)


def test_an_interval_may_have_another_confidence() -> None:
    ours, theirs = scores(4, 500, 0.8, 1), scores(4, 500, 0.78, 2)
    found = difference(ours, theirs, MARGIN)
    assert found.interval(0.95) == pytest.approx(found.over_both, abs=1e-8)
    wider = found.interval(1 - found.p_zero)  # the confidence of the interval that ends at zero
    assert min(abs(end) for end in wider) == pytest.approx(0, abs=1e-8)
    assert difference(ours[:1], theirs[:1], MARGIN).interval(0.9) is None


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("num_images", [1, 2, 48, 600, 660, 5000])
def test_equal_predictions_are_no_difference_if_there_are_enough_images(
    n: int, num_images: int
) -> None:
    ours = scores(n, num_images, 0.8, 1)
    found = difference(ours, ours, MARGIN)
    assert (found.mean, found.over_seeds) == (0.0, (0.0, 0.0) if n > 1 else None)
    # Agresti & Coull's interval of a share of 0 has a half width of about z²/N.
    assert found.over_both[1] == pytest.approx(1.96**2 / num_images, rel=0.01)
    assert found.over_both[0] == pytest.approx(-found.over_both[1])
    is_enough = n > 1 and 1.645 * 1.96 / num_images < MARGIN
    said = verdict(found.mean, found.p_zero, found.p_margin)
    assert said == ("no difference" if is_enough else "cannot tell")


@pytest.mark.parametrize(
    ("num_images", "margin", "noise"),
    [(48, 0.02, 0.0), (200, 0.02, 0.0), (600, 0.005, 0.0), (600, 0.005, 0.2), (1500, 0.005, 0.2)],
)
def test_few_differing_images_are_no_proof_of_no_difference(
    monkeypatch: pytest.MonkeyPatch, num_images: int, margin: float, noise: float
) -> None:
    """The true difference is the margin, so that "no difference" may be said in 5 % of the tables.

    The change gains a few images for good, which all seeds show but for some noise.
    """

    def false_rate(few: int, tables: int) -> float:
        monkeypatch.setattr(statistics, "_FEW", few)
        rng, said = np.random.default_rng(7), 0
        for _ in range(tables):
            gained = (rng.random(num_images) < margin) & (rng.random((3, num_images)) >= noise)
            found = difference(
                gained.astype(np.float32), np.zeros_like(gained, np.float32), margin * (1 - noise)
            )
            said += verdict(found.mean, found.p_zero, found.p_margin) == "no difference"
        return said / tables

    assert false_rate(30, 600) < 0.075  # 5 % and three standard errors
    assert false_rate(0, 150) > 0.075, "so it was before, and the test can fail"


@given(st.integers(1, 4), st.integers(1, 40), st.integers(0, 2**32), st.floats(0.001, 0.5))
def test_a_difference_is_the_reverse_of_its_reverse(
    n: int, num_images: int, seed: int, margin: float
) -> None:
    rng = np.random.default_rng(seed)
    ours, theirs = (rng.integers(0, 2, (n, num_images)).astype(np.float32) for _ in range(2))
    there, back = difference(ours, theirs, margin), difference(theirs, ours, margin)
    assert there.mean == pytest.approx(-back.mean, abs=1e-7)
    assert there.over_both[0] <= there.mean + 1e-7
    assert there.mean - 1e-7 <= there.over_both[1]
    assert there.over_both == pytest.approx((-back.over_both[1], -back.over_both[0]), abs=2e-6)
    if n > 1:
        assert there.p_zero == pytest.approx(back.p_zero, abs=1e-6)
        assert there.p_margin == pytest.approx(back.p_margin, abs=1e-6)
        assert there.p_zero is not None
        assert 0 <= there.p_zero <= 1


def test_the_interval_and_the_test_agree() -> None:
    for seed in range(30):
        ours, theirs = scores(4, 300, 0.8, seed), scores(4, 300, 0.72, 1000 + seed)
        found = difference(ours, theirs, MARGIN)
        low, high = found.over_both
        assert found.p_zero is not None
        assert (low <= 0 <= high) == (found.p_zero >= 0.05)


def test_blocks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from runner.report import statistics

    ours, theirs = scores(3, 500, 0.8, 1), scores(3, 500, 0.7, 2)
    whole = difference(ours, theirs, MARGIN)
    monkeypatch.setattr(statistics, "_BLOCK", 7 * 500)
    statistics._resampled_counts.cache_clear()
    assert difference(ours, theirs, MARGIN) == whole
    statistics._resampled_counts.cache_clear()


@pytest.mark.parametrize(
    ("ours", "theirs", "margin"),
    [((2, 3), (3, 2), 0.1), ((0, 3), (0, 3), 0.1), ((2, 0), (2, 0), 0.1), ((2, 3), (2, 3), 0.0)],
)
def test_what_cannot_be_compared_is_refused(
    ours: tuple[int, int], theirs: tuple[int, int], margin: float
) -> None:
    with pytest.raises(ValueError, match=r"need equal shapes|margin must be"):
        difference(np.zeros(ours), np.zeros(theirs), margin)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int) -> None:
    total = gained + lost
    expected = stats.binomtest(gained, total, 0.5).pvalue if total else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected)


def test_mcnemar_refuses_what_is_no_count() -> None:
    with pytest.raises(ValueError, match="negative"):
        mcnemar(-1, 3)


def test_where_seeds_decide_a_bootstrap_is_too_sure_of_itself() -> None:
    rng = np.random.default_rng(0)
    ours, control = [], []
    volatile = Arm(noise=0.5, seeds=0.4, suits=0.1)
    for _ in range(150):
        drawn = draw(rng, 3, 400, [volatile])
        found = difference(drawn.tricks[0], drawn.baseline, MARGIN)
        ours.append(found.over_both[0] <= 0 <= found.over_both[1])
        low, high = bootstrap(drawn.tricks[0] - drawn.baseline, rng)
        control.append(low <= 0 <= high)
    assert np.mean(ours) > 0.9
    assert np.mean(control) < 0.85


def bootstrap(per_image: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The percentile interval of resampled seeds and images."""
    n, num_images = per_image.shape
    counts = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=300)
    of_seeds = counts @ per_image.T / num_images
    seeds = rng.integers(n, size=(300, n))
    low, high = np.quantile(
        np.take_along_axis(of_seeds, seeds, axis=1).mean(axis=1), (0.025, 0.975)
    )
    return float(low), float(high)


def test_scipy_stats_stays_outside() -> None:
    """It takes half a second to import."""
    code = "import sys, runner.report.statistics; print('scipy.stats' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_groups_of_equal_images_are_as_many_single_images() -> None:
    ours, theirs = scores(4, 300, 0.8, 1), scores(4, 300, 0.72, 2)
    rng = np.random.default_rng(0)
    order = rng.permutation(4 * 300)
    single = difference(ours, theirs, MARGIN)
    copies = [np.repeat(part, 4, axis=1)[:, order] for part in (ours, theirs)]
    groups = 7 * np.repeat(np.arange(300), 4)[order] - 1000
    grouped = difference(*copies, MARGIN, groups)
    for name in ("mean", "over_both", "p_zero", "p_margin", "image_error", "variance", "floor"):
        assert getattr(grouped, name) == pytest.approx(getattr(single, name), rel=1e-5), name
    apart = difference(*copies, MARGIN)
    assert apart.floor < 0.3 * grouped.floor, "the control: as if they were others"
    assert difference(ours, theirs, MARGIN, rng.permutation(300)) == single, "groups of one image"


def test_larger_groups_count_more() -> None:
    """The error of the images is that of a ratio of sums, by drawing groups anew."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 30, 200)
    groups = np.repeat(np.arange(200), sizes)
    suits = rng.normal(0.1, 0.3, 200)[groups]
    reference = np.zeros((3, len(groups)), np.float32)
    ours = (rng.random(len(groups)) < 0.5 + suits / 2).astype(np.float32) - 0.5
    found = difference(np.tile(ours, (3, 1)), reference, MARGIN, groups)
    sums = np.bincount(groups, weights=ours)
    drawn = rng.integers(200, size=(20_000, 200))
    ratios = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    assert found.mean == pytest.approx(float(ours.mean()))
    assert found.image_error == pytest.approx(ratios.std(), rel=0.03)
    assert found.means.std() == pytest.approx(ratios.std(), rel=0.03)
    assert (
        found.image_error > 1.5 * difference(np.tile(ours, (3, 1)), reference, MARGIN).image_error
    )


def test_few_groups_that_differ_are_not_taken_for_all() -> None:
    before = np.zeros((3, 480), np.float32)
    groups = np.arange(480) // 10
    after = before.copy()
    none = difference(after, before, MARGIN, groups)
    z = 1.959964
    assert none.image_error == pytest.approx(z / 48), "a whole group may differ"
    after[:, :4] = 1
    assert difference(after, before, MARGIN, groups).image_error > z * 0.4 / 48
    assert difference(after, before, MARGIN).image_error < none.image_error, "the control"


def test_the_floor_is_zero_where_seeds_differ_on_equal_images() -> None:
    before, after = np.zeros((7, 333), np.float32), np.zeros((7, 333), np.float32)
    after[:, :100] = 1
    assert difference(after, before, MARGIN).floor == 0.0
    after[3, 200] = 1
    found = difference(after, before, MARGIN)
    assert 0 < found.floor < found.variance * 1.1
    interaction = (1 - 1 / 7) * (1 - 1 / 333) / (6 * 332)
    assert found.floor == pytest.approx(interaction / 333, rel=1e-4)
