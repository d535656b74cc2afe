"""The answer as one self-contained HTML page: it needs no network and no other file.

Jinja2 or matplotlib escapes all text from runs (names of classes, files, tricks). The content
security policy allows the page's one script by its hash, and nothing from elsewhere.
"""

import base64
import hashlib
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from runner import __version__
from runner.errors import ArtefactError
from runner.records.comparison_folder import BASELINE
from runner.records.run_folder import FIGURES
from runner.report import comparison_text, confirmation, figures, text
from runner.report.answer import Answer, GroupAnswer
from runner.report.comparison_words import verdict_line
from runner.report.comparisons import ComparisonAnswer
from runner.report.curves import AXES, curve, leads
from runner.report.details import (
    Confusion,
    GroupDetails,
    Misclassified,
    find_codes,
    find_series,
)
from runner.report.groups import Arm, RunGroup
from runner.report.metric import ACCURACY, Metric
from runner.report.paired import Comparison
from runner.terminal.console import printable
from runner.terminal.tables import Table

_HERE = Path(__file__).parent
_INLINED = ("page.css", "page.js")
_SYMBOLS = {"helps": "▲", "hurts": "▼", "no difference": "=", "cannot tell": "?", "failed": "×"}


_MOST_DETAILED = 8  # most groups with all figures; with more, a page would take megabytes


@dataclass(frozen=True)
class _Details:
    """The parts about the runs of one group or comparison; figures are SVG.

    A brief section has none of them.
    """

    is_brief: bool = True
    curves: Markup | None = None
    leads: Table | None = None
    reliability: Markup | None = None
    confusions: Sequence[Confusion] = ()
    misclassified: Misclassified | None = None
    classes: Sequence[Table] = ()


@dataclass(frozen=True)
class _Section:
    """The parts of the page about one group; figures are SVG."""

    id: str
    found: GroupAnswer
    answer: Table
    metrics: Table
    contributions: Table | None
    prices: Table
    pairs: Table
    forest: tuple[Markup, Markup] | None
    forest_within: tuple[Markup, Markup] | None
    details: _Details


@dataclass(frozen=True)
class _ComparisonSection:
    """The parts of the page about one comparison; figures are SVG."""

    id: str
    answer: ComparisonAnswer
    title: str
    forest: tuple[Markup, Markup] | None
    verdicts: Table
    prices: Table
    confirmation: Table | None
    looks: Table
    pairs: Table
    group: RunGroup | None
    details: _Details


def page(found: Answer, folder: Path | None = None) -> str:
    """Write the answer as an HTML page.

    Args:
        found: the answer; its runs' folders are read once more for the details.
        folder: folder of the page, to which links to figures of runs are relative; None: links
            hold on this machine alone.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"printable": printable, "points": ACCURACY.text}
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in _INLINED)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    compared = [
        _comparison_section(one, group, number, is_brief=number >= _MOST_DETAILED)
        for number, (one, group) in enumerate(
            zip_longest(found.comparisons, found.compared_runs[: len(found.comparisons)])
        )
    ]
    sections = [
        _section(
            group,
            number,
            found.margin,
            found.metric,
            is_brief=number + len(compared) >= _MOST_DETAILED,
        )
        for number, group in enumerate(found.groups)
    ]
    titles = [*(one.title for one in compared), *(one.found.group.title for one in sections)]
    values = find_series([group.group for group in found.groups], found.by)
    return environment.get_template("page.html").render(
        sections=sections,
        comparisons=compared,
        is_sequential=any(not one.plan.is_fixed for one in found.comparisons),
        heading=titles[0] if titles else "no finished runs",
        line=verdict_line,
        series=[
            (one, Markup(figures.series(f"series-{number}", one.key, one.lines)))  # noqa: S704
            for number, one in enumerate(values)
        ],
        codes=find_codes([group.group for group in found.groups]),
        unranked=text.unranked_table(found) if found.unranked else None,
        foreign=found.foreign,
        notes=[(note, text.is_command(note)) for note in found.notes],
        compared=" and ".join(found.by) or "trick",
        margin=found.metric.size(found.margin),
        metric=found.metric,
        legend=text.legend(found.metric, has_folds=text.has_folds(found)),
        sequential=text.SEQUENTIAL,
        style=Markup(style),  # noqa: S704  ours
        script=Markup(script),  # noqa: S704  ours
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        version=__version__,
        time=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        symbols=_SYMBOLS,
        verdict=lambda one: text.verdict_text(one, found.margin, found.metric),
        sentence=lambda one: _sentence(one, found.margin, found.metric),
        command=shlex.join,
        figures_of=lambda run: _figures_of(run.path, folder),
    )


def comparison_page(
    answer: ComparisonAnswer, group: RunGroup | None, folder: Path | None = None
) -> str:
    """Write the answer of one comparison as an HTML page.

    Args:
        answer: the answer, or the state so far.
        group: its runs, of :func:`runner.report.comparisons.compared_runs`; None for a page
            without their details.
        folder: see :func:`page`.
    """
    return page(
        Answer(
            groups=(),
            unranked=(),
            foreign=(),
            margin=answer.plan.margin,
            metric=answer.metric,
            comparisons=(answer,),
            compared_runs=(group,),
        ),
        folder,
    )


def _section(
    found: GroupAnswer, number: int, margin: float, metric: Metric, *, is_brief: bool
) -> _Section:
    name = f"group-{number}"
    return _Section(
        id=name,
        found=found,
        answer=text.answer_table(found, margin, metric),
        contributions=(
            text.contribution_table(found, margin, metric) if found.contributions else None
        ),
        metrics=text.metrics_table(found, metric),
        prices=text.price_table(found),
        pairs=_pairs(found, metric),
        forest=_forest(f"{name}-forest", _effects(found.comparisons), margin, metric),
        forest_within=_forest(f"{name}-within", _effects(found.contributions), margin, metric),
        details=_Details() if is_brief else _details(found.group, name, lambda: _leads(found)),
    )


def _comparison_section(
    answer: ComparisonAnswer, group: RunGroup | None, number: int, *, is_brief: bool
) -> _ComparisonSection:
    name = f"comparison-{number}"
    effects = [
        figures.Effect(one.label, one.mean, one.interval)
        for one in answer.standings
        if one.mean is not None
    ]
    return _ComparisonSection(
        id=name,
        answer=answer,
        title=comparison_text.comparison_title(answer),
        forest=_forest(f"{name}-forest", effects, answer.plan.margin, answer.metric),
        verdicts=comparison_text.standings_table(answer),
        prices=comparison_text.prices_table(answer),
        confirmation=confirmation.table(answer.confirmation, answer)
        if answer.confirmation
        else None,
        looks=comparison_text.looks_table(answer),
        pairs=comparison_text.pairs_table(answer),
        group=group,
        details=_Details()
        if is_brief or group is None
        else _details(group, name, lambda: _leads_of(group)),
    )


def _details(group: RunGroup, name: str, leads_of: Callable[[], Table | None]) -> _Details:
    """Read the runs of a group once more; brief if their files have changed since."""
    try:
        details = GroupDetails(group)
    except ArtefactError:
        return _Details()
    return _Details(
        is_brief=False,
        curves=_curves(group, name),
        leads=leads_of(),
        reliability=_drawn(figures.reliability, f"{name}-reliability", details.reliability()),
        confusions=details.confusions(),
        misclassified=details.misclassified(),
        classes=tuple(text.class_tables(group)),
    )


def _figures_of(run: Path, folder: Path | None) -> list[tuple[str, str]]:
    """Name and address of each figure that ``python -m runner.look`` has drawn of a run."""
    found = []
    for name in FIGURES:
        for suffix in (".svg", ".png"):
            path = run.absolute() / "figures" / f"{name}{suffix}"
            if path.is_file():
                address = path.as_uri()
                if folder is not None:
                    address = quote(Path(os.path.relpath(path, folder.absolute())).as_posix())
                found.append((name, address))
                break
    return found


def _drawn(draw: Callable[[str, Any], str], name: str, content: Any) -> Markup | None:
    """Draw a figure; None if there is nothing to draw."""
    return Markup(draw(name, content)) if content else None  # noqa: S704  escaped there


def _effects(comparisons: Sequence[Comparison]) -> list[figures.Effect]:
    return [
        figures.Effect(one.label, one.found.mean, one.found.over_both, one.found.over_seeds)
        for one in comparisons
    ]


def _forest(
    name: str, effects: Sequence[figures.Effect], margin: float, metric: Metric
) -> tuple[Markup, Markup] | None:
    """Return the forest plot for wide and for narrow screens; None without a line."""
    if not effects:
        return None
    wide, narrow = (
        Markup(  # noqa: S704  escaped there
            figures.forest(f"{name}-{is_narrow}", effects, margin, metric, is_narrow=is_narrow)
        )
        for is_narrow in (False, True)
    )
    return wide, narrow


def _curves(group: RunGroup, name: str) -> Markup | None:
    """Draw the curves of plain views: training has no TTA."""
    trained = [arm for arm in group.arms if arm.view == "plain"]
    by_axis = {}
    for axis in AXES:
        lines = {arm.label: curve(arm, axis) for arm in trained}
        if drawn := {label: line for label, line in lines.items() if line is not None}:
            by_axis[axis] = drawn
    return _drawn(figures.curves, f"{name}-curves", by_axis)


def _leads(found: GroupAnswer) -> Table | None:
    """Return a table of the arms that are ahead of the baseline, and when."""
    arms = {arm.label: arm for arm in found.group.arms}
    pairs = [(one.label, arms[one.label], arms[one.reference]) for one in found.comparisons]
    return _leads_table(pairs, text.change(found), str(found.baseline))


def _leads_of(group: RunGroup) -> Table | None:
    """Return the same table for the arms of a comparison."""
    first, *others = group.arms
    pairs = [(arm.label, arm, first) for arm in others] if first.label == BASELINE else []
    return _leads_table(pairs, "arm", BASELINE)


def _leads_table(pairs: Sequence[tuple[str, Arm, Arm]], column: str, baseline: str) -> Table | None:
    rows = []
    for label, arm, reference in pairs:
        if arm.view == "plain":
            along = leads(arm, reference)
            cells = [text.lead_text(axis, along[axis]) if axis in along else "" for axis in AXES]
            rows.append((label, *cells))
    if not rows:
        return None
    columns = (column, "by epochs", "by seconds", "by pixels")
    return Table(f"against {baseline}, mean over seeds", columns, tuple(rows), columns)


def _pairs(found: GroupAnswer, metric: Metric) -> Table:
    """Return a table of every seed of every comparison."""
    return Table(
        "seed by seed",
        (text.change(found), "without it", "seed", "difference", "gained", "lost", "McNemar p"),
        tuple(
            (
                one.label, one.reference, str(pair.seed), metric.text(pair.difference),
                str(pair.gained), str(pair.lost), f"{pair.p:.3g}",
            )
            for one in (*found.comparisons, *found.contributions)
            for pair in one.pairs
        ),
        (text.change(found), "without it"),
    )  # fmt: skip


def _sentence(one: Comparison, margin: float, metric: Metric) -> str:
    """One comparison in one sentence."""
    mean = " ".join(filter(None, [metric.text(one.found.mean), metric.unit]))
    said = (
        f"{mean} {metric.interval_text(one.found.over_both)}{metric.within}, "
        f"{len(one.seeds)} seed{'s' * (len(one.seeds) > 1)}"
        + (f" of {one.num_folds} folds" if one.found.is_of_folds else "")
    )
    advice = text.advice(one, margin, metric)
    return f"{said}; {advice}" if advice else said
