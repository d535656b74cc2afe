"""Intervals and verdicts of whole tables, with arms as unequal as real ones, and a known truth."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import simulated
from simulated import (
    ARMS,
    NUM_IMAGES,
    PROFILES,
    SPREADS,
    FloatArray,
    PValues,
    Tables,
    any_false,
    any_false_equal,
    components,
    corrected,
    covered,
    draw,
    draw_tables,
    found,
    judged,
    judged_alone,
    judged_unguarded,
    last_false,
)

from runner.report import family, statistics
from runner.report.statistics import difference
from scripts import simulate_verdicts

MARGIN = 0.02  # one that these numbers of images can show
COVERAGE, ERRORS, LAST_STEP = 0.94, 0.055, 0.07
KEYS = ("p_zero", "p_margin")
POWER = dict(zip(NUM_IMAGES, (0.55, 0.62), strict=True))  # of 3 points, of seven arms, 3 seeds


def chance(rate: float, num: int) -> float:
    """Three standard errors of a rate that was counted in ``num`` tables."""
    return 3 * float(np.sqrt(rate * (1 - rate) / num))


def many_tables(
    profile: str, num_images: int, num_tables: int, seeds: tuple[int, ...] = (3,)
) -> dict[int, Tables]:
    arms = [ARMS[name] for name in PROFILES[profile]]
    return draw_tables(len(profile), num_tables, num_images, arms, seeds)


@pytest.mark.parametrize(("place", "num_images"), [*enumerate(NUM_IMAGES)])
def test_the_arms_are_as_unequal_as_real_ones(place: int, num_images: int) -> None:
    drawn = draw_tables(0, 120, num_images, [*ARMS.values()], (8,))[8]
    for parts, which in (
        (drawn.variances, "seeds"),
        (drawn.floors, "floor"),
        (drawn.image_errors**2, "images"),
    ):
        ours = 100 * np.sqrt(parts.mean(axis=0))
        expected = [getattr(SPREADS[name], which)[place] for name in ARMS]
        np.testing.assert_allclose(ours, expected, rtol=0.08, err_msg=which)


@pytest.mark.parametrize("name", ["tta", "huge"])
def test_the_effects_are_what_they_are_said_to_be(name: str) -> None:
    drawn = draw(np.random.default_rng(0), 40, 20_000, [ARMS[name]] * 2, [0.02, -0.05])
    assert drawn.baseline.mean() == pytest.approx(simulated.accuracy(), abs=0.01)
    effects = [float(trick.mean() - drawn.baseline.mean()) for trick in drawn.tricks]
    assert effects == pytest.approx([0.02, -0.05], abs=0.006)


# ── Many at once, and one by one ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("num_tables", "n", "num_images"),
    [
        (2, 3, 1500),
        (1, 5, 1500),
        *(pytest.param(50, n, size, marks=pytest.mark.slow) for n in (3, 5) for size in NUM_IMAGES),
    ],
)
def test_many_tables_at_once_are_judged_as_one_by_one(
    num_tables: int, n: int, num_images: int
) -> None:
    rng, arms = np.random.default_rng(n), [ARMS[name] for name in PROFILES["mixed"]]
    for _ in range(num_tables):
        effects = [float(effect) for effect in rng.choice([0, 0.01, 0.02, 0.04], len(arms))]
        drawn = draw(rng, n, num_images, arms, effects)
        each = [difference(trick, drawn.baseline, MARGIN) for trick in drawn.tricks]
        per_image = (np.stack(drawn.tricks) - drawn.baseline).astype(np.int8)
        many = Tables(n, *components(per_image)[:, None])
        agree(many.means, [one.mean for one in each], 1e-6)
        agree(many.variances, [one.variance for one in each], 1e-8)
        agree(many.floors, [one.floor for one in each], 1e-8)
        agree(many.image_errors, [one.image_error for one in each], 1e-5)
        moderated = family.moderated(each, MARGIN)
        for ours, theirs in ((many.own(MARGIN), each), (many.moderated(MARGIN), moderated)):
            agree(ours.zero, [one.p_zero for one in theirs], 0.01)
            agree(ours.margin, [one.p_margin for one in theirs], 0.01)
        # The correction multiplies by the number of arms, so it is compared for equal p-values.
        ours = corrected(p_values(each), p_values(moderated))
        said = family.judged(each, MARGIN, num_images)
        agree(ours.zero, [one.p_zero for one in said], 1e-12)
        agree(ours.margin, [one.p_margin for one in said], 1e-12)


def p_values(results: Sequence[Any]) -> PValues:
    """Those of one table."""
    zero, equal = (np.array([[getattr(one, key) for one in results]]) for key in KEYS)
    return PValues(zero, equal)


def agree(ours: FloatArray, theirs: Sequence[float | None], tolerance: float) -> None:
    np.testing.assert_allclose(ours[0], np.array(theirs, float), rtol=0, atol=tolerance)


# ── Rates ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("num_images", NUM_IMAGES)
@pytest.mark.parametrize("profile", ["one", "three", "mixed", "fifteen"])
def test_tables_of_any_number_of_arms_are_right_as_often_as_they_say(
    profile: str, num_images: int
) -> None:
    check(many_tables(profile, num_images, 200, (3,)), 200)


def check(tables: Mapping[int, Tables], num_tables: int) -> None:
    """The rates of errors at every number of seeds, within what chance leaves."""
    for many in tables.values():
        assert covered(many).min() > COVERAGE - chance(COVERAGE, num_tables)
        assert any_false(many, judged) < ERRORS + chance(ERRORS, num_tables)
        for margin in (0.005, MARGIN):
            wrong = any_false_equal(many, judged, margin)
            assert wrong < ERRORS + chance(ERRORS, num_tables)


@pytest.mark.parametrize("num_images", NUM_IMAGES)
def test_three_points_are_found_in_a_table_of_seven_with_three_seeds(num_images: int) -> None:
    check_power(many_tables("mixed", num_images, 300, (3,))[3], num_images, 300)


def check_power(many: Tables, num_images: int, num_tables: int) -> None:
    now, before = (found(many, rule, 0.03) for rule in (judged, judged_alone))
    assert now.mean() > POWER[num_images]
    assert now.min() > 0.4, "the most volatile arm"
    limit = POWER[num_images] - chance(0.5, num_tables)
    assert before.mean() < limit, "the control: the rule before"


def test_an_arm_that_is_three_times_as_volatile_is_not_believed_too_soon() -> None:
    many = many_tables("extreme", 3925, 500, (3,))[3]
    assert many.variances[:, 0].mean() > 2.7**2 * many.variances[:, 1:].mean()
    assert last_false(many, judged) < LAST_STEP
    too_often = last_false(many, judged_unguarded)
    assert too_often > LAST_STEP + chance(too_often, 500), "the control: without the own p-value"


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("times", [1, 3])
def test_without_any_luck_of_images_the_own_spread_guards(n: int, times: int) -> None:
    """The hardest case: no floor hides that the spread of one arm is another one."""
    rng, num_tables = np.random.default_rng(times), 4000
    deviations = np.array([times, 1, 1, 1, 1, 1, 1])
    per_seed = deviations * rng.standard_normal((num_tables, n, 7))
    none = np.zeros((num_tables, 7))
    many = Tables(n, per_seed.mean(axis=1), per_seed.var(axis=1, ddof=1), none + 1e-9, none)
    assert any_false(many, judged) < ERRORS + chance(ERRORS, num_tables)
    assert last_false(many, judged) < LAST_STEP
    if times == 3:
        assert last_false(many, judged_unguarded) > LAST_STEP + 0.03, "the control"


@pytest.mark.parametrize(
    ("num_tables", "num_resamples"),
    [(120, 100), pytest.param(1500, 1000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
)
def test_images_that_come_in_groups_are_resampled_by_group(
    monkeypatch: pytest.MonkeyPatch, num_tables: int, num_resamples: int
) -> None:
    monkeypatch.setattr(statistics, "_NUM_RESAMPLES", num_resamples)
    statistics._resampled_counts.cache_clear()
    rng, groups = np.random.default_rng(5), np.arange(1500) // 5
    holds: dict[bool, list[bool]] = {True: [], False: []}
    for _ in range(num_tables):
        one = draw(rng, 10, 1500, [ARMS["mid"]], group_size=5)
        for is_grouped, held in holds.items():
            named = groups if is_grouped else None
            low, high = difference(one.tricks[0], one.baseline, MARGIN, named).over_both
            held.append(low <= 0 <= high)
    statistics._resampled_counts.cache_clear()
    assert np.mean(holds[True]) > COVERAGE - chance(COVERAGE, num_tables)
    assert np.mean(holds[False]) < 0.85, "the control: by image"
    print(f"by group {np.mean(holds[True]):.3f}, by image {np.mean(holds[False]):.3f}")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("num_images", NUM_IMAGES)
@pytest.mark.parametrize("profile", PROFILES)
def test_many_tables_are_right_as_often_as_they_say(profile: str, num_images: int) -> None:
    num_tables = 4000
    many = many_tables(profile, num_images, num_tables, (3, 4, 5, 8, 10))
    check(many, num_tables)
    for one in many.values():
        assert last_false(one, judged) < LAST_STEP
    if profile == "mixed":
        check_power(many[3], num_images, num_tables)


def test_the_table_of_the_readme_has_a_row_per_setting() -> None:
    lines = simulate_verdicts.fixed(8).splitlines()
    assert lines[0].startswith("Percent of 8 tables")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert len(rows) == 2 + 4 * len(NUM_IMAGES) * 3
    assert {len(row) for row in rows} == {len(rows[0])}
    assert rows[2][:3] == ["7", "1,500", "3"]
    numbers = [
        float(cell) for row in rows[2:] for cell in " ".join(row[3:]).split() if cell[0] != "("
    ]
    assert min(numbers) >= 0
    assert max(numbers) <= 100
