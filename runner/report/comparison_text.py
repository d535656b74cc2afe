"""The answer of a comparison in words and tables, for the terminal and for Markdown."""

from collections.abc import Iterator

from runner.records.comparison_folder import BASELINE
from runner.report import confirmation
from runner.report.comparison_words import verdict_line
from runner.report.comparisons import ComparisonAnswer, Standing
from runner.report.forest import Forest, ForestRow
from runner.report.measures import PLUS_MINUS, mean_text, p_text
from runner.report.metric import ACCURACY, Metric
from runner.report.statistics import LEVEL
from runner.terminal.tables import Table

_PRICES = {
    "images": "images ×",
    "pixels": "pixels ×",
    "seconds": "seconds ×",
    "forward_passes": "passes ×",
}


def comparison_parts(
    answer: ComparisonAnswer, *, is_explained: bool = True
) -> Iterator[Table | Forest | str]:
    """Yield the answer in reading order: verdicts in words, their table, the plot, the price.

    Args:
        answer: the answer.
        is_explained: say what ± is, if the table has it.
    """
    yield comparison_title(answer)
    for one in answer.standings:
        yield f"- {verdict_line(one, answer.plan.margin, answer.metric)}"
    yield standings_table(answer)
    values = (answer.base_value, *(one.value for one in answer.standings))
    if is_explained and any(value is not None and value.interval for value in values):
        yield PLUS_MINUS
    yield forest_of(answer)
    yield prices_table(answer)
    if answer.confirmation is not None:
        yield confirmation.table(answer.confirmation, answer)
    yield from answer.notes


def comparison_title(answer: ComparisonAnswer) -> str:
    """Say what is compared and how, in one line."""
    plan = answer.plan
    seeds = f"{plan.max_seeds} seeds each" if plan.is_fixed else f"up to {plan.max_seeds} seeds"
    if plan.num_folds > 1:
        seeds = f"{plan.num_folds} folds, {plan.max_seeds} seed{'s' * (plan.max_seeds > 1)} each"
    arms = f"{len(plan.arms)} arm{'s' * (len(plan.arms) > 1)} against the baseline"
    state = "" if answer.is_ended else " (not ended)"
    margin = f"{answer.metric.size(plan.margin)}{answer.metric.within}"
    return f"comparison {plan.name}{state}: {arms}, {seeds}, margin {margin}"


def standing_text(one: Standing, margin: float, metric: Metric = ACCURACY) -> str:
    """Return how an arm stands, in a few words."""
    if one.is_open:
        return "open"
    if one.verdict == "no difference":
        return f"no difference larger than {metric.plain(margin)}"
    is_small = one.p_margin is not None and one.p_margin < LEVEL
    is_small = is_small and one.verdict in ("helps", "hurts")
    return f"{one.verdict}, by less than {metric.plain(margin)}" if is_small else one.outcome


def standings_table(answer: ComparisonAnswer) -> Table:
    """Return the table of the arms: seeds, accuracy, difference and interval, p-value, verdict."""
    plan, metric, value = answer.plan, answer.metric, answer.base_value
    base = [BASELINE, _count(answer.base_seeds, answer.base_failed, plan.num_folds)]
    rows = [(*base, mean_text(value, metric) if value else "", "", "", "", "")]
    for one in answer.standings:
        rows.append(
            (
                one.label,
                _count(one.seeds, one.failed, plan.num_folds),
                mean_text(one.value, metric) if one.value else "",
                metric.text(one.mean) if one.mean is not None else "",
                metric.interval_text(one.interval),
                p_text(one.p_zero),
                standing_text(one, plan.margin, metric),
            )
        )
    kind = (
        "95 % intervals over seeds and images"
        if plan.is_fixed
        else "intervals over seeds and images hold at every look together"
    )
    return Table(
        f"difference in {_what(metric)}, paired by seed{' and fold' * (plan.num_folds > 1)}; "
        f"{kind}",
        (
            "arm", "n", metric.heading, metric.difference_heading, "interval", "p (Holm)",
            "verdict",
        ),
        tuple(rows),
        ("arm", "verdict"),
        optional_columns=("p (Holm)", metric.heading),
    )  # fmt: skip


def _what(metric: Metric) -> str:
    """Return what the numbers of a difference are, with their direction where less is better."""
    of = "" if metric.name == "accuracy" else f" of {metric.label}"
    what = f"percentage points{of}" if metric.unit else metric.label
    return f"{what} ({metric.direction})" if metric.direction else what


def _count(seeds: tuple[int, ...], failed: object, num_folds: int) -> str:
    """Return the number of pairs that count, and of seeds that failed."""
    num_failed = len(failed) if isinstance(failed, dict) else 0
    count = str(num_folds * len(seeds))
    return f"{count}, {num_failed} failed" if num_failed else count


def forest_of(answer: ComparisonAnswer) -> Forest:
    """Return the forest plot of the arms."""
    metric = answer.metric
    rows = [(one, "" if one.mean is None else metric.text(one.mean)) for one in answer.standings]
    width = max((len(size) for _, size in rows), default=0)
    margin = answer.plan.margin
    return Forest(
        f"difference in {_what(metric)}; shaded: smaller than the margin of {metric.plain(margin)}",
        tuple(
            ForestRow(
                one.label,
                one.mean,
                one.interval,
                f"{size:>{width}}  {_short(one)}",
            )
            for one, size in rows
        ),
        margin,
        metric.scale,
    )


def _short(one: Standing) -> str:
    return "open" if one.is_open else one.outcome


def prices_table(answer: ComparisonAnswer) -> Table:
    """Return the table of what each arm costs, relative to the baseline."""
    counts = [f"{answer.num_trainings} training{'s' * (answer.num_trainings != 1)}"]
    if answer.num_evaluations:
        plural = "s" * (answer.num_evaluations > 1)
        counts.append(f"{answer.num_evaluations} evaluation{plural} with TTA")
    price = answer.base_price
    base = [f"{price['images']:,.0f} images"] if "images" in price else []
    base += [f"{price['seconds']:,.0f} s"] if "seconds" in price else []
    relative = f"; cost of training relative to the baseline ({', '.join(base)})" if base else ""
    return Table(
        f"{' and '.join(counts)}{relative}",
        ("arm", *_PRICES.values()),
        tuple(
            (one.label, *(f"{one.price[key]:.2f}" if key in one.price else "–" for key in _PRICES))
            for one in answer.standings
        ),
        ("arm",),
    )


def looks_table(answer: ComparisonAnswer) -> Table:
    """Return the table of what every look found."""
    return Table(
        "every look, with p-values corrected for arms and looks",
        (
            "arm", "seeds", "pairs", answer.metric.difference_heading, "p, no difference",
            "p, the margin", "verdict",
        ),
        tuple(
            (
                row.label,
                str(row.n),
                str(row.num_pairs),
                answer.metric.text(row.mean),
                p_text(row.p_zero),
                p_text(row.p_margin),
                row.verdict,
            )
            for row in answer.looks
        ),
        ("arm", "verdict"),
    )  # fmt: skip


def pairs_table(answer: ComparisonAnswer) -> Table:
    """Return the table of every pair of runs."""
    return Table(
        "seed by seed",
        ("arm", "seed", "difference", "gained", "lost", "McNemar p"),
        tuple(
            (
                one.label,
                str(pair.seed),
                answer.metric.text(pair.difference),
                str(pair.gained),
                str(pair.lost),
                f"{pair.p:.3g}",
            )
            for one in answer.standings
            for pair in one.pairs
        ),
        ("arm",),
    )
