"""The answer as one self-contained HTML page: it needs no network and no other file.

Jinja2 or matplotlib escapes all text from runs (names of classes, files, tricks). The content
security policy allows the page's one script by its hash, and nothing from elsewhere.
"""

import base64
import hashlib
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from runner import __version__
from runner.errors import ArtefactError
from runner.report import figures, text
from runner.report.answer import Answer, GroupAnswer
from runner.report.curves import AXES, curve, leads
from runner.report.details import Confused, Confusion, GroupDetails, find_codes, find_series
from runner.report.paired import Comparison
from runner.terminal.console import printable
from runner.terminal.tables import Table

_HERE = Path(__file__).parent
_INLINED = ("page.css", "page.js")
_SYMBOLS = {"helps": "▲", "hurts": "▼", "no difference": "=", "cannot tell": "?"}


_MOST_DETAILED = 8  # most groups with all figures; with more, a page would take megabytes


@dataclass(frozen=True)
class _Section:
    """The parts of the page about one group; figures are SVG."""

    id: str
    found: GroupAnswer
    answer: Table
    contributions: Table | None
    prices: Table
    pairs: Table
    forest: tuple[Markup, Markup] | None
    forest_within: tuple[Markup, Markup] | None
    is_brief: bool
    curves: Markup | None
    leads: Table | None
    reliability: Markup | None
    confusions: list[Confusion]
    confused: list[Confused]


def page(found: Answer) -> str:
    """Write the answer as an HTML page.

    Args:
        found: the answer; its runs' folders are read once more for the details.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"printable": printable, "points": text.points}
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in _INLINED)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    sections = [_section(group, number, found.margin) for number, group in enumerate(found.groups)]
    values = find_series([group.group for group in found.groups], found.by)
    return environment.get_template("page.html").render(
        sections=sections,
        series=[
            (one, Markup(figures.series(f"series-{number}", one.key, one.lines)))  # noqa: S704
            for number, one in enumerate(values)
        ],
        codes=find_codes([group.group for group in found.groups]),
        unranked=text.unranked_table(found) if found.unranked else None,
        foreign=found.foreign,
        notes=[(note, text.is_command(note)) for note in found.notes],
        compared=" and ".join(found.by) or "trick",
        margin=100 * found.margin,
        legend=text.LEGEND,
        sequential=text.SEQUENTIAL,
        style=Markup(style),  # noqa: S704  ours
        script=Markup(script),  # noqa: S704  ours
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        version=__version__,
        time=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        symbols=_SYMBOLS,
        verdict=lambda one: text.verdict_text(one, found.margin),
        sentence=lambda one: _sentence(one, found.margin),
        command=shlex.join,
    )


def _section(found: GroupAnswer, number: int, margin: float) -> _Section:
    group, name = found.group, f"group-{number}"
    details = None
    if number < _MOST_DETAILED:
        with suppress(ArtefactError):  # the files may have changed since the answer was made
            details = GroupDetails(group)
    return _Section(
        id=name,
        found=found,
        answer=text.answer_table(found, margin),
        contributions=text.contribution_table(found, margin) if found.contributions else None,
        prices=text.price_table(found),
        pairs=_pairs(found),
        forest=_forest(f"{name}-forest", found.comparisons, margin),
        forest_within=_forest(f"{name}-within", found.contributions, margin),
        is_brief=details is None,
        curves=_curves(found, name) if details else None,
        leads=_leads(found) if details else None,
        reliability=_drawn(figures.reliability, f"{name}-reliability", details.reliability())
        if details
        else None,
        confusions=details.confusions() if details else [],
        confused=details.most_confused() if details else [],
    )


def _drawn(draw: Callable[[str, Any], str], name: str, content: Any) -> Markup | None:
    """Draw a figure; None if there is nothing to draw."""
    return Markup(draw(name, content)) if content else None  # noqa: S704  escaped there


def _forest(
    name: str, comparisons: Sequence[Comparison], margin: float
) -> tuple[Markup, Markup] | None:
    """The forest plot for wide and for narrow screens; None without comparisons."""
    if not comparisons:
        return None
    wide, narrow = (
        Markup(figures.forest(f"{name}-{is_narrow}", comparisons, margin, is_narrow=is_narrow))  # noqa: S704
        for is_narrow in (False, True)
    )
    return wide, narrow


def _curves(found: GroupAnswer, name: str) -> Markup | None:
    """Draw the curves of plain views: training has no TTA."""
    trained = [arm for arm in found.group.arms if arm.view == "plain"]
    by_axis = {}
    for axis in AXES:
        lines = {arm.label: curve(arm, axis) for arm in trained}
        if drawn := {label: line for label, line in lines.items() if line is not None}:
            by_axis[axis] = drawn
    return _drawn(figures.curves, f"{name}-curves", by_axis)


def _leads(found: GroupAnswer) -> Table | None:
    """A table of the arms that are ahead of the baseline, and when."""
    arms = {arm.label: arm for arm in found.group.arms}
    rows = []
    for one in found.comparisons:
        arm, reference = arms[one.label], arms[one.reference]
        if arm.view == "plain":
            along = leads(arm, reference)
            cells = [text.lead_text(axis, along[axis]) if axis in along else "" for axis in AXES]
            rows.append((one.label, *cells))
    if not rows:
        return None
    columns = (text.change(found), "by epochs", "by seconds", "by pixels")
    return Table(f"against {found.baseline}, mean over seeds", columns, tuple(rows), columns)


def _pairs(found: GroupAnswer) -> Table:
    """A table of every seed of every comparison."""
    return Table(
        "seed by seed",
        (text.change(found), "without it", "seed", "difference", "gained", "lost", "McNemar p"),
        tuple(
            (
                one.label, one.reference, str(pair.seed), text.points(pair.difference),
                str(pair.gained), str(pair.lost), f"{pair.p:.3g}",
            )
            for one in (*found.comparisons, *found.contributions)
            for pair in one.pairs
        ),
        (text.change(found), "without it"),
    )  # fmt: skip


def _sentence(one: Comparison, margin: float) -> str:
    """One comparison in one sentence."""
    said = (
        f"{text.points(one.found.mean)} points {text.interval_text(one.found.over_both)}, "
        f"{len(one.seeds)} seed{'s' * (len(one.seeds) > 1)}"
    )
    advice = text.advice(one, margin)
    return f"{said}; {advice}" if advice else said
