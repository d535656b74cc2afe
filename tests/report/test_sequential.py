"""The sequential rule: against a second implementation, and in comparisons whose truth is known."""

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from time import perf_counter

import numpy as np
import pytest
import simulated
import simulated_walks as walks
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import stdtrit
from simulated import NUM_IMAGES, PROFILES, judged, judged_alone
from simulated_walks import CANNOT_TELL, HELPS, HURTS, NO_DIFFERENCE, Arms, Walks, shifted

from runner.report import sequential
from runner.report.sequential import State, design, looks, walk, weight
from runner.report.statistics import Difference, Mixture, difference
from scripts import simulate_verdicts

MARGIN = 0.005
ERRORS, LAST_STEP = 0.055, 0.07
NODES = walks.even(31)
SAID = {
    "helps": HELPS,
    "hurts": HURTS,
    "no difference": NO_DIFFERENCE,
    "cannot tell": CANNOT_TELL,
}

Look = list[Difference | None]


def of_seeds(
    n: int, mean: float, variance: float, floor: float = 0.0, image_error: float = 0.0
) -> Difference:
    """The difference of n seeds with these statistics."""
    deviation = sqrt(max(variance, floor))
    drawn = mean + image_error * NODES.places
    mixture = Mixture(drawn, deviation / sqrt(n), n - 1)
    return Difference(
        n=n,
        mean=mean,
        over_seeds=None,
        over_both=(-1.0, 1.0),  # of no meaning here
        p_zero=mixture.p_zero(),
        p_margin=mixture.p_margin(MARGIN),
        seed_deviation=deviation,
        image_error=image_error,
        variance=variance,
        floor=floor,
        means=drawn,
    )


def with_p(n: int, p_value: float) -> Difference:
    """A difference above zero that has this p-value, whatever other arms there are."""
    return of_seeds(n, float(stdtrit(n - 1, 1 - p_value / 2)) / sqrt(n), 1.0)


def history(of: Walks, table: int) -> list[Look]:
    """The differences of one table at each look."""
    return [
        [
            of_seeds(n, *(float(part[table, arm]) for part in parts))
            for arm in range(one.means.shape[1])
        ]
        for n, one in of.items()
        for parts in [(one.means, one.variances, one.floors, one.image_errors)]
    ]


def mixed(num_tables: int, max_seeds: int, num_images: int = 3925, k: int = 7) -> dict:
    arms = walks.arms(PROFILES["mixed"][:k], num_images)
    return walks.draw_seeds(np.random.default_rng(k), num_tables, arms, max_seeds)


# ── The plan of the looks ──────────────────────────────────────────────────────────────────────


def test_the_looks_end_at_the_maximum() -> None:
    assert looks(3) == (3,)
    assert looks(7) == (3, 4, 5, 6, 7)
    assert looks(10) == (3, 4, 5, 6, 8, 10)
    assert looks(20) == sequential.LOOKS
    for max_seeds in (2, 21):
        with pytest.raises(ValueError, match="3 to 20"):
            looks(max_seeds)
    with pytest.raises(ValueError, match="no look at 7"):
        weight(7, 10)


def test_weights_grow_with_the_degrees_of_freedom() -> None:
    assert [weight(n, 10) for n in looks(10)] == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.35, 0.45])
    assert weight(3, 3) == 1
    for max_seeds in walks.LAST_WEIGHT:
        of_looks = {n: weight(n, max_seeds) for n in looks(max_seeds)}
        assert of_looks == pytest.approx(walks.linear(max_seeds))


@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_one_arm_over_all_looks_errs_in_five_percent(factor: float) -> None:
    """Its own t, without a floor: nothing but the weights keeps the error down."""
    values = np.random.default_rng(0).normal(size=(40_000, 20))
    sums, squares = values.cumsum(1), (values**2).cumsum(1)
    t = {}
    for n in range(3, 21):
        mean = sums[:, n - 1] / n
        t[n] = np.abs(mean) / np.sqrt((squares[:, n - 1] - n * mean**2) / (n - 1) / n)
    for max_seeds in range(3, 21):
        errs = np.zeros(len(values), bool)
        for n in looks(max_seeds):
            errs |= t[n] > stdtrit(n - 1, 1 - 0.025 * min(1, factor * weight(n, max_seeds)))
        if factor == 1:
            assert 0.043 < errs.mean() < 0.0525, max_seeds
        elif max_seeds > 3:
            assert errs.mean() > 0.0525, "the test cannot fail"


# ── Against the second implementation ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("num_tables", [10, pytest.param(60, marks=pytest.mark.whole)])
@pytest.mark.parametrize(
    ("k", "max_seeds", "num_images"),
    [
        (7, 10, 1500),
        (7, 10, 3925),
        (7, 16, 3925),
        (3, 5, 3925),
        (2, 4, 1500),
        (1, 10, 3925),
        (7, 3, 1500),
    ],
)
def test_verdicts_are_those_of_the_second_implementation(
    k: int, max_seeds: int, num_images: int, num_tables: int
) -> None:
    rng = np.random.default_rng(max_seeds)
    effects = 0.01 * rng.integers(0, 4, (num_tables, k)) * rng.integers(0, 2, (num_tables, k))
    drawn = shifted(mixed(num_tables, max_seeds, num_images, k), effects)
    expected = walks.sequential(drawn, MARGIN, nodes=NODES)
    for table in range(num_tables):
        states = walk(history(drawn, table), max_seeds, MARGIN)
        assert [SAID[state.verdict] for state in states] == expected.said[table].tolist()
        assert [state.n for state in states] == expected.seeds[table].tolist()
        assert not any(state.is_open for state in states)


# ── What holds for every history ───────────────────────────────────────────────────────────────


def random_history(seed: int, max_seeds: int, k: int) -> list[Look]:
    """One table; some pairs of seeds failed."""
    rng = np.random.default_rng(seed)
    drawn = mixed(1, max_seeds, k=k)
    found = history(shifted(drawn, 0.01 * rng.choice([-2, 0, 0, 1, 3], k)), 0)
    for row in found:
        for arm in range(k):
            if rng.random() < 0.15:
                row[arm] = None
            elif rng.random() < 0.15 and row[arm].n > 3:
                row[arm] = of_seeds(row[arm].n - 1, row[arm].mean, row[arm].variance, 1e-5)
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([3, 4, 6, 10]), st.integers(1, 5))
def test_a_longer_history_changes_nothing_that_was_decided(
    seed: int, max_seeds: int, k: int
) -> None:
    found = random_history(seed, max_seeds, k)
    rng = np.random.default_rng(seed)
    before: list[State] = []
    for place, n in enumerate(looks(max_seeds), start=1):
        states = walk(found[:place], max_seeds, MARGIN)
        for arm, (old, new) in enumerate(zip(before, states, strict=bool(before))):
            if not old.is_open:
                assert new == old
                for row in found[place - 1 :]:  # whatever comes after is ignored
                    row[arm] = with_p(n, 1e-6) if rng.random() < 0.5 else None
        for state in states:
            assert state.is_open == (state.reason == "")
            assert (state.verdict != "cannot tell") == (state.reason == "decided")
            assert (state.verdict != "cannot tell") == (min(state.p_zero, state.p_margin) < 0.05)
            assert state.n == n or not state.is_open
            assert state.is_early == (state.verdict in ("helps", "hurts") and state.n < max_seeds)
            if state.verdict in ("helps", "hurts"):
                low, high = state.interval
                assert low > 0 if state.verdict == "helps" else high < 0
        before = states
    assert not any(state.is_open for state in before)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(4)))
def test_the_order_of_the_arms_does_not_matter(seed: int, order: list[int]) -> None:
    found = random_history(seed, 6, 4)
    states = walk(found, 6, MARGIN)
    others = walk([[row[arm] for arm in order] for row in found], 6, MARGIN)
    for place, arm in enumerate(order):
        assert others[place].verdict == states[arm].verdict
        assert others[place].reason == states[arm].reason
        assert others[place].p_zero == pytest.approx(states[arm].p_zero)


# ── Single cases ───────────────────────────────────────────────────────────────────────────────


def test_what_cannot_be_a_history_is_refused() -> None:
    row: Look = [with_p(3, 0.5)]
    assert walk([], 10, MARGIN) == []
    with pytest.raises(ValueError, match="2 looks, but 3 seeds have only 1"):
        walk([row, row], 3, MARGIN)
    with pytest.raises(ValueError, match="each arm"):
        walk([row, row * 2], 10, MARGIN)
    with pytest.raises(ValueError, match="more than 3 pairs"):
        walk([[with_p(4, 0.5)]], 10, MARGIN)


def test_one_arm_is_judged_by_its_own_spread() -> None:
    (state,) = walk([[replace(with_p(3, 0.004), floor=0.9)]], 10, MARGIN)
    assert state.p_zero == pytest.approx(0.004 / weight(3, 10))
    assert (state.verdict, state.reason, state.n) == ("helps", "decided", 3)
    assert state.is_early
    found = with_p(3, 0.004)
    assert state.interval == pytest.approx(found.interval(1 - 0.05 * weight(3, 10)))
    (state,) = walk([[with_p(3, 0.006)]], 10, MARGIN)
    assert (state.verdict, state.is_open) == ("cannot tell", True)


def test_one_look_has_the_whole_level() -> None:
    (state,) = walk([[with_p(3, 0.04)]], 3, MARGIN)
    assert (state.verdict, state.is_early) == ("helps", False)
    assert state.p_zero == pytest.approx(0.04)
    (state,) = walk([[with_p(3, 0.06)]], 3, MARGIN)
    assert (state.verdict, state.reason) == ("cannot tell", "all seeds")


def test_what_an_early_look_found_counts_when_others_are_decided() -> None:
    """The first arm passes Holm's correction for two arms, not for three."""
    at_three: Look = [with_p(3, 0.005), with_p(3, 0.03), with_p(3, 0.4)]
    states = walk([at_three], 5, MARGIN)
    assert states[0].p_zero == pytest.approx(3 * 0.005 / weight(3, 5))
    assert states[0].is_open
    second = with_p(4, 0.0001)
    states = walk([at_three, [with_p(4, 0.02), second, with_p(4, 0.4)]], 5, MARGIN)
    assert [state.verdict for state in states] == ["helps", "helps", "cannot tell"]
    assert states[0].p_zero == pytest.approx(0.02 / weight(4, 5)), "its own at this look"
    # Its interval now includes zero: it cannot be said to help.
    states = walk([at_three, [with_p(4, 0.03), second, with_p(4, 0.4)]], 5, MARGIN)
    assert [state.verdict for state in states] == ["cannot tell", "helps", "cannot tell"]
    low, high = states[0].interval
    assert low < 0 < high


def test_an_arm_without_three_pairs_makes_no_test_and_keeps_its_place() -> None:
    pair = of_seeds(2, 0.3, 1e-12)
    found: list[Look] = [[with_p(3, 0.01), None, pair], [with_p(4, 0.01), None, pair]]
    states = walk(found, 4, MARGIN)
    assert [state.p_zero for state in states] == pytest.approx([3 * 0.01 / 0.66, 1, 1])
    for state in states[1:]:
        assert (state.verdict, state.reason) == ("cannot tell", "all seeds")
        assert (state.n, state.interval) == (4, None)
    for state in walk(found[:1], 4, MARGIN)[1:]:
        assert state.is_open


def test_pairs_that_failed_leave_the_weight_of_the_look() -> None:
    (state,) = walk([[with_p(3, 0.03)], [with_p(3, 0.03)], [with_p(4, 0.02)]], 5, MARGIN)
    assert (state.verdict, state.n) == ("helps", 5)
    assert state.p_zero == pytest.approx(0.02 / weight(5, 5))


def test_an_effect_below_the_margin_helps_all_the_same() -> None:
    small = of_seeds(3, 0.002, 1e-10)
    (state,) = walk([[small]], 10, MARGIN)
    assert small.p_margin is not None
    assert small.p_margin < 0.001
    assert (state.verdict, state.p_margin < 0.05) == ("helps", True)


@pytest.mark.parametrize(
    ("num_images", "verdict", "reason"),
    [(600, "cannot tell", "futile"), (4000, "no difference", "decided")],
)
def test_equal_predictions_on_all_images(num_images: int, verdict: str, reason: str) -> None:
    """More seeds will not help: the images are enough, or too few for the margin."""
    scores = (np.random.default_rng(1).random((3, num_images)) < 0.8).astype(np.float32)
    other = (np.random.default_rng(2).random((3, num_images)) < 0.8).astype(np.float32)
    found = [difference(scores, scores, MARGIN), difference(other, scores, MARGIN)]
    for state in (walk([found], 10, MARGIN)[0], walk([found[:1]], 10, MARGIN)[0]):
        assert (state.verdict, state.reason, state.n) == (verdict, reason, 3)
        assert state.interval[0] == -state.interval[1]


def test_an_arm_is_given_up_between_the_reach_of_both_verdicts() -> None:
    """Too small to be found by ten seeds, and the margin too small to be shown."""
    (state,) = walk([[of_seeds(3, 0.0002, 0.01**2)]], 10, MARGIN)
    assert (state.reason, state.is_open) == ("futile", False)
    (state,) = walk([[of_seeds(3, 0.01, 0.01**2)]], 10, MARGIN)
    assert state.is_open, "it may yet help"
    (state,) = walk([[of_seeds(3, 0.0002, 0.004**2)]], 10, MARGIN)
    assert state.is_open, "it may yet be no difference"


def test_the_last_look_gives_nobody_up() -> None:
    (state,) = walk([[with_p(3, 0.03)], [with_p(4, 0.3)]], 4, MARGIN)
    assert (state.verdict, state.reason, state.n) == ("cannot tell", "all seeds", 4)


@pytest.mark.whole
def test_a_replay_takes_a_moment() -> None:
    rng = np.random.default_rng(0)
    drawn = simulated.draw(rng, 16, 4000, [simulated.ARMS[name] for name in PROFILES["mixed"]],
                           [0, 0.01, 0.02, 0, 0.01, 0.03, 0])  # fmt: skip
    found = [
        [difference(trick[:n], drawn.baseline[:n], MARGIN) for trick in drawn.tricks]
        for n in looks(16)
    ]
    took = []
    for _ in range(5):
        start = perf_counter()
        walk(found, 16, MARGIN)
        took.append(perf_counter() - start)
    assert min(took) < 0.05


# ── Rates ──────────────────────────────────────────────────────────────────────────────────────


def volatile(kinds: Sequence[str], num_images: int) -> Arms:
    """The first arm varies three times as much between seeds."""
    return walks.arms(kinds, num_images).volatile(3)


def draw(arms: Arms, num_tables: int, max_seeds: int = 10, seed: int = 0) -> Walks:
    return walks.draw_seeds(np.random.default_rng(seed), num_tables, arms, max_seeds)


ALL_NULL = [
    pytest.param(make(PROFILES[profile], num_images), id=f"{profile}-{make.__name__}-{num_images}")
    for profile in ("one", "mixed")
    for make in (walks.arms, volatile)
    for num_images in NUM_IMAGES
]


def any_false(end: walks.End) -> float:
    return float(end.differs.any(axis=1).mean())


def size(arms: Arms, num_arms: int) -> int:
    """Numbers of tables that take the same time."""
    return num_arms // len(arms.deviations)


@pytest.mark.parametrize("arms", ALL_NULL)
def test_changes_without_effect_are_seldom_found(arms: Arms) -> None:
    assert any_false(walks.sequential(draw(arms, size(arms, 4000)), MARGIN)) <= ERRORS


def test_asking_again_with_more_seeds_is_another_test() -> None:
    """The control: a rule for a fixed number of seeds, asked at each look."""
    drawn = draw(walks.arms(PROFILES["mixed"], 3925), 1200)
    assert any_false(walks.fixed(drawn, judged, 10, MARGIN)) <= ERRORS
    assert any_false(walks.peeking(drawn, judged, MARGIN)) > ERRORS
    alone = draw(volatile(PROFILES["one"], 3925), 2000)
    assert any_false(walks.peeking(alone, judged_alone, MARGIN)) > 2 * ERRORS


def last_false(arms: Arms, num_tables: int, *, is_guarded: bool = True) -> float:
    """How often the first arm is said to help or hurt, if all others help by far."""
    others = np.arange(len(arms.deviations)) > 0
    drawn = shifted(draw(arms, num_tables), 0.2 * others)
    end = walks.sequential(drawn, MARGIN, is_guarded=is_guarded)
    assert end.said[:, 1:].min() == HELPS
    return float(end.differs[:, 0].mean())


def test_a_volatile_arm_among_calm_ones_is_not_believed_too_soon() -> None:
    arms = volatile(PROFILES["mixed"], 3925)
    assert last_false(arms, 1500) <= LAST_STEP
    assert last_false(arms, 500, is_guarded=False) > LAST_STEP, "the test cannot fail"


def test_effects_are_found_with_fewer_trainings_than_by_five_seeds() -> None:
    drawn, has_effect = walks.with_effect(draw(walks.arms(PROFILES["mixed"], 1500), 350), 0.02)
    end = walks.sequential(drawn, MARGIN)
    five = walks.fixed(drawn, judged, 5, MARGIN)
    found, by_five = ((one.said[has_effect] == HELPS).mean() for one in (end, five))
    assert found > by_five + 0.03
    assert end.trainings.mean() < 41
    assert five.trainings.mean() == 40


def test_a_difference_of_the_margin_is_seldom_called_none() -> None:
    margin = 0.02
    arms = walks.arms(PROFILES["mixed"], 3925)
    end = walks.sequential(shifted(draw(arms, 500), margin), margin)
    assert (end.said == NO_DIFFERENCE).any(axis=1).mean() <= ERRORS
    end = walks.sequential(draw(arms, 300), margin)
    assert (end.said == NO_DIFFERENCE).mean() > 0.9


def test_the_interval_at_the_stop_holds_although_the_stop_was_chosen() -> None:
    arms = walks.arms(PROFILES["mixed"], 3925)
    drawn, has_effect = walks.with_effect(draw(arms, 800), 0.005)
    end = walks.sequential(drawn, MARGIN)
    weights = np.vectorize(walks.linear(10).get)(end.seeds)
    early = (end.said == HELPS) & (end.seeds < 10)
    truth = 0.005 * has_effect
    assert end.covers(arms.image_errors, truth, 0.05 * weights)[early].mean() > 0.95
    usual = end.covers(arms.image_errors, truth, np.full(truth.shape, 0.05))[early].mean()
    assert usual < 0.95, "the usual interval would do"
    assert (end.means - truth)[early].mean() > 0.001, "the size is not overstated"


@pytest.mark.parametrize("is_fixed", [False, True])
@pytest.mark.parametrize("max_seeds", [5, 10])
@pytest.mark.parametrize("k", [1, 7])
def test_the_plan_is_right_to_fifteen_percent(k: int, max_seeds: int, is_fixed: bool) -> None:
    plan = design(k, 3925, max_seeds, is_fixed=is_fixed)
    arms = walks.arms(["mid"] * k, 3925)
    assert plan.deviation == pytest.approx(arms.deviations[0], abs=1e-4)
    drawn = draw(arms, 300 if k > 1 else 1000, max_seeds)
    first = np.arange(k) == 0

    def found(walk: Walks, margin: float, verdict: int) -> float:
        if is_fixed:
            end = walks.fixed(walk, judged, max_seeds, margin)
        else:
            end = walks.sequential(walk, margin)
        return float((end.said[:, 0] == verdict).mean())

    for factor, is_enough in ((0.85, False), (1.15, True)):
        one_helps = shifted(drawn, first * plan.effect * factor)
        assert (found(one_helps, MARGIN, HELPS) > 0.8) == is_enough
        others_help = shifted(drawn, 0.2 * ~first)
        margin = plan.provable_margin * factor
        assert (found(others_help, margin, NO_DIFFERENCE) > 0.8) == is_enough


def test_the_plan_follows_arms_seeds_and_images() -> None:
    usual = design(7, 3925, 10, is_fixed=False)
    assert design(1, 3925, 10, is_fixed=False).effect < usual.effect
    assert design(7, 1500, 10, is_fixed=False).effect > usual.effect
    assert design(7, 3925, 5, is_fixed=False).provable_margin > usual.provable_margin
    assert design(7, 3925, 10, is_fixed=True).effect < usual.effect
    assert design(7, 3925, 50, is_fixed=True).effect < usual.effect


def test_the_table_of_designs_has_a_row_per_design() -> None:
    lines = simulate_verdicts.sequential(6).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert len(rows) == 2 + 2 * len(NUM_IMAGES) * 4
    assert {len(row) for row in rows} == {len(rows[0])}
    assert rows[2][:3] == ["7", "1,500", "5 seeds"]
    assert rows[2][7] == "40.0 / 40.0 / 40.0 / 40.0"


# ── The whole simulations ──────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("max_seeds", [4, 5, 10, 20])
@pytest.mark.parametrize("arms", ALL_NULL)
def test_changes_without_effect_are_seldom_found_in_many_tables(arms: Arms, max_seeds: int) -> None:
    end = walks.sequential(draw(arms, size(arms, 70_000), max_seeds), MARGIN)
    assert any_false(end) <= ERRORS


@pytest.mark.slow
@pytest.mark.parametrize("max_seeds", [4, 5, 7, 10, 20])
@pytest.mark.parametrize(
    "deviations",
    [[1], [1, 3], [3, 1, 1], [1] * 7, [3] + [1] * 6, [4] + [1] * 6,
     [0.9, 1.25, 0.65, 0.9, 1.25, 0.65, 0.5]],
)  # fmt: skip
def test_without_floor_and_luck_of_images(deviations: list[float], max_seeds: int) -> None:
    """Nothing but the rule itself keeps the errors down, to within three standard errors."""
    arms = walks.bare(deviations)
    num_tables = 10_000
    end = walks.sequential(draw(arms, num_tables, max_seeds), 1e-9, futility=0)
    assert any_false(end) <= 0.05 + 3 * 0.0022
    if len(deviations) > 1:
        others = shifted(
            draw(arms, num_tables, max_seeds, 1), 2.0 * (np.arange(len(deviations)) > 0)
        )
        last = walks.sequential(others, 1e-9, futility=0).differs[:, 0]
        assert last.mean() <= 0.05 + 3 * 0.0022


@pytest.mark.slow
@pytest.mark.parametrize("num_images", NUM_IMAGES)
@pytest.mark.parametrize("profile", ["one", "three", "mixed", "extreme"])
def test_predictions_are_judged_as_seeds_are(profile: str, num_images: int) -> None:
    """Tables of predictions, with a floor and an error of images that are estimated."""
    arms = [simulated.ARMS[name] for name in PROFILES[profile]]
    drawn = simulated.draw_tables(len(profile), 1500, num_images, arms, looks(10))
    end = walks.sequential(drawn, MARGIN)
    of_seeds = draw(walks.arms(PROFILES[profile], num_images), 1500)
    expected = walks.sequential(of_seeds, MARGIN)
    assert any_false(end) <= ERRORS
    assert end.trainings.mean() == pytest.approx(expected.trainings.mean(), rel=0.1)
    for effect in (0.01, 0.03):
        found = [
            (walks.sequential(tables, MARGIN).said[has_effect] == HELPS).mean()
            for tables, has_effect in (
                walks.with_effect(drawn, effect),
                walks.with_effect(of_seeds, effect),
            )
        ]
        assert found[0] == pytest.approx(found[1], abs=0.06)
    again = simulated.judged if len(arms) > 1 else judged_alone
    assert any_false(walks.peeking(drawn, again, MARGIN)) > any_false(end) + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 7])
def test_failed_seeds_do_not_raise_the_errors(k: int) -> None:
    """One pair in five is missing, by chance."""
    arms = walks.arms(PROFILES["mixed"][:k], 3925).volatile(3)
    rng = np.random.default_rng(0)
    num_tables = 4000 // k + 1000
    values = walks.draw_values(rng, num_tables, arms, 10)
    there = rng.random(values.shape) < 0.8
    parts = [*zip(arms.floors.tolist(), arms.image_errors.tolist(), strict=True)]
    num_false = 0
    for rows, kept in zip(values, there, strict=True):
        found = []
        for n in looks(10):
            pairs = [row[:n][has[:n]] for row, has in zip(rows, kept, strict=True)]
            found.append([
                of_seeds(len(own), float(own.mean()), float(own.var(ddof=1)), *part)
                if len(own) > 2
                else None
                for own, part in zip(pairs, parts, strict=True)
            ])  # fmt: skip
        num_false += any(s.verdict in ("helps", "hurts") for s in walk(found, 10, MARGIN))
    assert num_false / num_tables <= ERRORS
