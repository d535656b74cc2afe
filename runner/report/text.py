"""The answer in words and tables: for the terminal, Markdown, CSV and JSON."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from runner.records.comparison_folder import BASELINE, displayed_label
from runner.report.answer import Answer, GroupAnswer, Row
from runner.report.classes import class_means
from runner.report.comparison_json import to_json as comparison_json
from runner.report.comparison_text import comparison_parts
from runner.report.comparisons import ComparisonAnswer
from runner.report.curves import Lead
from runner.report.family import FEWEST_SEEDS, MOST_SEEDS
from runner.report.forest import Forest
from runner.report.groups import RunGroup
from runner.report.measures import (
    PLUS_MINUS,
    PRICES,
    Interval,
    mean_of,
    mean_text,
    p_text,
)
from runner.report.metric import ACCURACY, Metric
from runner.report.more_runs import MoreRuns
from runner.report.paired import Comparison
from runner.report.statistics import LEVEL
from runner.terminal.console import printable
from runner.terminal.metric_tables import class_table, metric_label, metric_text
from runner.terminal.tables import Table, markdown_text, to_csv
from runner.training.metrics import METRICS

UNEQUAL = "≠"
_FEW_SEEDS = {1: "one seed", 2: "two seeds"}
_COURSES = {
    "ahead": "ahead all the way",
    "behind": "behind all the way",
    "level": "level all the way",
    "overtakes": "ahead from {at} on",
    "falls behind": "behind from {at} on",
}
_AXIS_UNITS = {"epoch": "epoch {:.1f}", "seconds": "{:.0f} s", "pixels": "{:.3g} pixels"}


def verdict_text(one: Comparison, margin: float, metric: Metric = ACCURACY) -> str:
    """Return the verdict in words."""
    if one.num_units < FEWEST_SEEDS:
        few = "two folds" if one.found.is_of_folds else _FEW_SEEDS[one.num_units]
        return f"{few}: no verdict"
    if one.verdict == "no difference":
        return f"no difference larger than {metric.plain(margin)}"
    if one.verdict == "cannot tell":
        return "cannot tell"
    is_small = one.p_margin is not None and one.p_margin < LEVEL
    return f"{one.verdict}, by less than {metric.plain(margin)}" if is_small else one.verdict


def advice(one: Comparison, margin: float, metric: Metric = ACCURACY) -> str:
    """Advice that would settle a comparison whose verdict is cannot tell; otherwise empty."""
    if one.verdict != "cannot tell":
        return ""
    if one.outlook is None:
        return _ADVICE_ON_FOLDS if one.found.is_of_folds else "a verdict takes three seeds or more"
    what: str = one.outlook.would_show
    if what == "no difference":
        what = f"no difference larger than {metric.size(margin)}"
    if one.outlook.images is not None:
        return (
            f"more seeds alone would not settle it: to show {what}, more than "
            f"{one.outlook.images:,} validation images would be needed"
        )
    if one.outlook.seeds is None:
        most = max(MOST_SEEDS, len(one.seeds))
        return f"more than {most} seeds would be needed to show {what}"
    more = one.outlook.seeds - len(one.seeds)
    return f"about {more} more seed{'s' * (more > 1)} would probably show {what}"


_ADVICE_ON_FOLDS = "more images would settle it sooner than more seeds, which repeat the same folds"


def lead_text(axis: str, lead: Lead) -> str:
    """Describe which arm is ahead along an axis."""
    at = "" if lead.at is None else _AXIS_UNITS[axis].format(lead.at)
    return _COURSES[lead.course].format(at=at)


def change(found: GroupAnswer) -> str:
    """Return the heading of the column of a group's arms: ``trick``, a key, or ``change``."""
    factors = found.group.factors
    if factors.are_tricks:
        return "trick"
    return factors.all[0].name if len(factors.all) == 1 else "change"


def answer_table(found: GroupAnswer, margin: float, metric: Metric = ACCURACY) -> Table:
    """Return the table of the verdicts of one group."""
    compared = {one.label: one for one in found.comparisons}
    rows = []
    for row in found.rows:
        one = compared.get(row.label)
        cells = [row.label, _count(row, one), mean_text(row.metrics[metric.name], metric)]
        rows.append((*cells, *(_comparison_cells(one, margin, metric) if one else [""] * 5)))
    return Table(
        found.group.title,
        (
            change(found), "n", metric.heading, metric.difference_heading, "over seeds",
            "over seeds and images", "p (Holm)", "verdict",
        ),
        tuple(rows),
        (change(found), "verdict"),
        optional_columns=("over seeds", "p (Holm)", metric.heading),
    )  # fmt: skip


def _count(row: Row, one: Comparison | None) -> str:
    """Return the numbers of seeds: of the comparison, of the arm if it has more, and failed."""
    own, paired = (
        row.num_folds * count
        for count in (len(row.seeds), len(one.seeds) if one else len(row.seeds))
    )
    finished = str(own) if own == paired else f"{paired} of {own}"
    if not row.failed:
        return finished
    seeds = f" seed{'s' * (len(row.failed) != 1)}" if row.num_folds > 1 else ""  # n counts pairs
    return f"{finished} (+{len(row.failed)}{seeds} failed)"


def contribution_table(found: GroupAnswer, margin: float, metric: Metric = ACCURACY) -> Table:
    """Return the table of what each change adds to other changes, for one group."""
    # Labels of changes name what the change is added to; those of tricks do not.
    named = () if found.group.factors.are_tricks else ("without it",)
    return Table(
        f"inside combinations: with the {change(found)}, against all the same without it",
        (
            change(found), "without it", "n", metric.difference_heading, "over seeds",
            "over seeds and images", "p (Holm)", "verdict",
        ),
        tuple(
            (one.label, one.reference, str(one.num_pairs), *_comparison_cells(one, margin, metric))
            for one in found.contributions
        ),
        (change(found), "without it", "verdict"),
        label_columns=(change(found), "without it"),
        optional_columns=("over seeds", *named, "p (Holm)"),
    )  # fmt: skip


def _comparison_cells(one: Comparison, margin: float, metric: Metric) -> list[str]:
    mark = "" if one.is_equal_budget else f" {UNEQUAL}"
    return [
        metric.text(one.found.mean),
        metric.interval_text(one.found.over_seeds),
        metric.interval_text(one.found.over_both) + (" images only" if one.num_units == 1 else ""),
        p_text(one.p_zero),
        verdict_text(one, margin, metric) + mark,
    ]


def metrics_table(found: GroupAnswer, metric: Metric = ACCURACY) -> Table:
    """Return the table of the metrics of each arm of a group, besides the one that is compared."""
    names = [name for name in METRICS if name != metric.name]
    return Table(
        "further metrics, means over seeds",
        (change(found), *(metric_label(name) for name in names)),
        tuple(
            (row.label, *(metric_text(name, row.metrics[name].mean) for name in names))
            for row in found.rows
        ),
        (change(found),),
    )


def class_tables(group: RunGroup) -> Iterator[Table]:
    """Yield for each arm the table of the scores of each class."""
    for arm in group.arms:
        if means := class_means(arm):
            yield class_table(f"{arm.label}, by class, means over seeds", means)


def price_table(found: GroupAnswer) -> Table:
    """Return the table of the cost of each arm of a group."""
    compared = {one.label: one for one in found.comparisons}
    first = found.rows[0]
    rows = []
    for row in found.rows:
        one = compared.get(row.label)
        prices = [_relative(key, row, first, one) for key in PRICES]
        rows.append((row.label, *prices, f"{row.forward_passes:g}"))
    return Table(
        f"cost of training relative to {first.label} "
        f"({first.price['images']:,.0f} images, {first.price['seconds']:,.0f} s), median of seeds",
        (change(found), "images ×", "pixels ×", "seconds ×", "passes per image"),
        tuple(rows),
        (change(found),),
        optional_columns=(
            ("passes per image",) if all(row.forward_passes == 1 for row in found.rows) else ()
        ),
    )  # fmt: skip


def _relative(key: str, row: Row, first: Row, one: Comparison | None) -> str:
    if key == "seconds" and row is not first and not (one and one.is_timed):
        return "–"
    ratio = one.price[key] if one else row.price[key] / max(first.price[key], 1e-9)
    return f"{ratio:.2f}"


def unranked_table(found: Answer) -> Table:
    """Return the table of runs that are not compared, with the reasons."""
    return Table(
        "not compared",
        ("run", "status", "reason"),
        tuple((run.name, run.status, run.reason) for run in found.unranked),
        ("run", "status", "reason"),
        name_columns=("run",),
    )


def content(found: Answer, *, per_class: bool = False) -> Iterator[Table | Forest | str]:
    """Yield comparisons, then tables with the sentences below them, in reading order."""
    for number, one in enumerate(found.comparisons):  # with groups, the legend explains
        yield from comparison_parts(one, is_explained=number == 0 and not found.groups)
    alone = [group for group in found.groups if found.by and len(group.rows) == 1]
    for group in found.groups:
        if group in alone:
            continue
        yield answer_table(group, found.margin, found.metric)
        if group.contributions:
            yield contribution_table(group, found.margin, found.metric)
        yield metrics_table(group, found.metric)
        yield price_table(group)
        if per_class:
            yield from class_tables(group.group)
        yield from remarks(group, found.margin, found.metric)
    if alone:
        names = "; ".join(f"{group.group.title}: {group.rows[0].label}" for group in alone)
        yield f"with nothing to compare: {names}"
    yield from found.notes
    if found.groups:
        yield legend(found.metric, has_folds=has_folds(found))
    elif not found.comparisons:
        yield "no finished runs"
    if found.unranked:
        yield unranked_table(found)
    if found.foreign:
        names = ", ".join(found.foreign[:5]) + (" …" if len(found.foreign) > 5 else "")
        yield f"skipped, not runs: {names}"


def remarks(group: GroupAnswer, margin: float, metric: Metric = ACCURACY) -> Iterator[str]:
    """Yield the sentences that belong below the tables of a group."""
    yield from group.notes
    compared = (*group.comparisons, *group.contributions)
    if any(not one.is_equal_budget for one in compared):
        yield f"{UNEQUAL} trained on more or fewer images or pixels than the reference"
    few = [one.label for one in compared if one.num_units < FEWEST_SEEDS]
    if few:
        what = "folds" if any(one.found.is_of_folds for one in compared) else "seeds"
        yield f"{', '.join(few)}: a verdict takes three {what} or more"
    for one in compared:
        said = advice(one, margin, metric)
        if said and one.num_units >= FEWEST_SEEDS and not _is_noted(one, group, margin):
            yield f"{one.label}: {said}"
    if more := _merged(compared):
        yield SEQUENTIAL
        yield from (f"    {one.command}" for one in more)


def _is_noted(one: Comparison, group: GroupAnswer, margin: float) -> bool:
    """Return whether a note of the group already reports too few images for its margin."""
    smallest = group.family.smallest_margin
    too_few = smallest is not None and smallest[0] > margin
    return (
        too_few
        and one.outlook is not None
        and one.outlook.images is not None
        and one.outlook.would_show == "no difference"
    )


def _merged(compared: Iterable[Comparison]) -> list[MoreRuns]:
    """Return the runs that any comparison needs, each once."""
    seeds: dict[tuple[str, ...], set[int]] = {}
    for one in compared:
        for more in one.more:
            seeds.setdefault(more.words, set()).update(more.seeds)
    return [MoreRuns(words, tuple(sorted(found))) for words, found in seeds.items()]


SEQUENTIAL = (
    "more seeds, to be chosen beforehand; python -m runner.compare adds seeds until there is a "
    "verdict, and corrects for that:"
)
_LEGEND = (
    "n: seeds{pairs}. {plus_minus}. {first}, paired by seed, with 95 % "
    "intervals: over seeds for these images, and over seeds and images, which decides. "
    "p-values are corrected by Holm over all comparisons of a group, which share the spread of "
    "their seeds for that, and are never below the comparison's own; each group is a family of its "
    "own. Below 5 % a change helps or hurts: then the interval over seeds and images leaves out "
    "zero. A verdict takes three seeds{folds}, and is for a number of seeds fixed beforehand. "
    "Further metrics are described, not tested; of log loss, Brier score and ECE, less is better. "
    "Seconds are compared where at least three seeds took turns on one machine and agree to 20 %, "
    "else –."
)


def legend(metric: Metric = ACCURACY, *, has_folds: bool = False) -> str:
    """Return how to read the tables of groups, of which some are of folds if ``has_folds``."""
    unit = "difference in percentage points of" if metric.unit else "in"
    direction = f" ({metric.direction})" if metric.direction else ""
    return _LEGEND.format(
        plus_minus=PLUS_MINUS,
        first=f"{metric.difference_heading.capitalize()}: {unit} {metric.label}{direction}",
        pairs=", or pairs of seed and fold under cross-validation" if has_folds else "",
        folds=(
            ", or three folds, of which only the interval over seeds and images is known"
            if has_folds
            else ""
        ),
    )


LEGEND = legend()


def has_folds(found: Answer) -> bool:
    """Return whether some group is of cross-validations."""
    return any(row.num_folds > 1 for group in found.groups for row in group.rows)


def markdown(found: Answer, *, per_class: bool = False) -> str:
    """Write the answer as Markdown; commands, which are indented, are code in Markdown too."""
    return "\n".join(f"{_markdown_part(part)}\n" for part in content(found, per_class=per_class))


def _markdown_part(part: Table | Forest | str) -> str:
    if isinstance(part, Table | Forest):
        return part.markdown()
    return printable(part).replace("\n", " ") if is_command(part) else markdown_text(part)


def is_command(sentence: str) -> bool:
    """Return whether a sentence of :func:`content` is a command to paste."""
    return sentence.startswith("    ")


_INTERVALS = ("over_seeds", "over_both")
CSV_COLUMNS = (
    "group", "table", "arm", "reference", "seeds", "paired_seeds", "failed_seeds",
    "accuracy", "accuracy_low", "accuracy_high",
    "difference", *(f"{name}_{end}" for name in _INTERVALS for end in ("low", "high")),
    "p_holm", "p_margin_holm", "verdict", "is_equal_budget",
    *METRICS[1:], *PRICES, "forward_passes",
    *(f"{name}_difference{end}" for name in METRICS[1:] for end in ("", "_low", "_high")),
    "design", "reason", "metric", "value", "value_low", "value_high",
)  # fmt: skip


def csv(found: Answer) -> str:
    """Write one line per arm and per contribution as CSV; parts of 1, not percent.

    The column ``design`` is sequential or fixed; arms of comparisons are before those of groups.
    ``value`` is the ``metric`` that is compared, of which ``difference`` and verdict are.
    """
    lines: list[list[object]] = []
    for comparison in found.comparisons:
        lines += _csv_lines(comparison)
    for group in found.groups:
        compared = {one.label: one for one in group.comparisons}
        rows = {row.label: row for row in group.rows}
        for row in group.rows:
            lines.append(_csv_line(group, "baseline", row, compared.get(row.label), found.metric))
        for one in group.contributions:
            lines.append(_csv_line(group, "combination", rows[one.arm], one, found.metric))
    return to_csv(CSV_COLUMNS, lines)


def _csv_lines(answer: ComparisonAnswer) -> Iterator[list[object]]:
    """Yield the lines of a comparison: the baseline, and each arm."""
    plan = answer.plan
    shared = {
        "group": plan.name,
        "table": "comparison",
        "design": "fixed" if plan.is_fixed else "sequential",
        "metric": plan.metric,
    }
    accuracy = answer.base
    base = {"arm": "baseline", "seeds": len(answer.base_seeds), **answer.base_price}
    base["failed_seeds"] = len(answer.base_failed)
    if accuracy is not None:
        base |= {"accuracy": accuracy.mean, **_ends("accuracy", accuracy.interval)}
    if (value := answer.base_value) is not None:
        base |= {"value": value.mean, **_ends("value", value.interval)}
    yield [{**shared, **base}.get(column) for column in CSV_COLUMNS]
    for one in answer.standings:
        line: dict[str, object] = {
            **shared,
            "arm": one.label,
            "reference": "baseline",
            "seeds": len(one.seeds) + len(one.failed),
            "paired_seeds": len(one.seeds),
            "failed_seeds": len(one.failed),
            "difference": one.mean,
            **_ends("over_both", one.interval),
            "p_holm": one.p_zero,
            "p_margin_holm": one.p_margin,
            "verdict": one.outcome,
            "reason": "open" if one.is_open else one.reason,
        }
        if one.accuracy is not None:
            line |= {"accuracy": one.accuracy.mean, **_ends("accuracy", one.accuracy.interval)}
        if one.value is not None:
            line |= {"value": one.value.mean, **_ends("value", one.value.interval)}
        yield [line.get(column) for column in CSV_COLUMNS]
    if answer.confirmation is None:
        return
    for side in (answer.confirmation.base, *answer.confirmation.arms):
        line = {
            "group": plan.name,
            "table": "confirmation on test",
            "arm": displayed_label(side.label),
            "reference": None if side is answer.confirmation.base else BASELINE,
            "paired_seeds": len(side.values),
            "difference": side.mean,
            **_ends("over_both", side.interval),
        }
        if side.values:
            mean = mean_of([*side.values.values()]).mean
            line |= {"metric": plan.metric, "value": mean}
            line |= {"accuracy": mean} if answer.metric is ACCURACY else {}
        yield [line.get(column) for column in CSV_COLUMNS]


def _csv_line(
    group: GroupAnswer, table: str, row: Row, one: Comparison | None, metric: Metric
) -> list[object]:
    accuracy = row.metrics["accuracy"]
    line: dict[str, object] = {
        "group": group.group.title,
        "table": table,
        "arm": one.label if one else row.label,
        "seeds": len(row.seeds),
        "failed_seeds": len(row.failed),
        "accuracy": accuracy.mean,
        **_ends("accuracy", accuracy.interval),
        **{name: row.metrics[name].mean for name in METRICS[1:]},
        **row.price,
        "forward_passes": row.forward_passes,
        "design": "fixed",
        "metric": metric.name,
        "value": row.metrics[metric.name].mean,
        **_ends("value", row.metrics[metric.name].interval),
    }
    if one:
        line |= {
            "reference": one.reference,
            "paired_seeds": len(one.seeds),
            "difference": one.found.mean,
            **_ends("over_seeds", one.found.over_seeds),
            **_ends("over_both", one.found.over_both),
            "p_holm": one.p_zero,
            "p_margin_holm": one.p_margin,
            "verdict": one.verdict,
            "is_equal_budget": one.is_equal_budget,
            **{f"{name}_difference": paired.mean for name, paired in one.others.items()},
            **{
                column: end
                for name, paired in one.others.items()
                for column, end in _ends(f"{name}_difference", paired.interval).items()
            },
        }
    return [_defined(line.get(column)) for column in CSV_COLUMNS]


def _defined(value: object) -> object:
    """Return the value of a cell: an undefined number is an empty cell."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _ends(name: str, interval: Interval | None) -> dict[str, object]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def to_json(found: Answer) -> str:
    """Write everything except the figures as JSON, every number in full."""
    content = {
        "margin": found.margin,
        "metric": found.metric.name,
        "by": found.by,
        "comparisons": [comparison_json(one) for one in found.comparisons],
        "groups": [
            {
                "title": group.group.title,
                "values": dict(group.group.values),
                "baseline": group.baseline,
                "arms": [asdict(row) for row in group.rows],
                "per_class": {arm.label: class_means(arm) for arm in group.group.arms},
                "comparisons": [_without_resamples(one) for one in group.comparisons],
                "contributions": [_without_resamples(one) for one in group.contributions],
                "num_tested": group.family.num_tested,
                "smallest_margin": group.family.smallest_margin and group.family.smallest_margin[0],
                "image_groups": group.family.image_groups,
                "notes": group.notes,
                "runs": [
                    {"run": run.name, "seed": seed, "arm": arm.label,
                     "identity": run.identity, "command": run.command}
                    for arm in group.group.arms
                    for seed, whole in sorted(arm.runs.items())
                    for run in whole.parts or (whole,)
                ],
            }
            for group in found.groups
        ],
        "notes": found.notes,
        "not_compared": [asdict(run) for run in found.unranked],
        "foreign": found.foreign,
    }  # fmt: skip
    return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"


def _without_resamples(one: Comparison) -> dict[str, Any]:
    """Return the fields of a comparison, except the thousands of resampled means."""
    found = asdict(one)
    del found["found"]["means"]
    return found


def _finite(value: Any) -> Any:
    """Prepare ``value`` for JSON, which has no NaN: a ratio to zero becomes null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
