"""Draw the answer of a comparison for a page: ``python -m scripts.answer_picture answer.json``.

``answer.json`` is what ``python -m runner.compare … --json answer.json`` writes. The forest plot
with the verdicts is written next to it, as ``answer-light.svg`` and ``answer-dark.svg``: a page on
GitHub shows the one that suits the reader's theme. Both are drawn by the code of the report's page.
"""

import argparse
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path

from runner.report import figures
from runner.report.comparison_json import from_json

_CSS = Path(figures.__file__).with_name("page.css")
_COLOR = re.compile(r"--([\w-]+): (#[0-9a-f]{6})")


def colors() -> dict[str, dict[str, str]]:
    """The colors of the report's page by name, for ``light`` and ``dark``."""
    light, dark, *_ = re.split(r"color-scheme: dark;", _CSS.read_text())
    return {"light": dict(_COLOR.findall(light)), "dark": dict(_COLOR.findall(dark))}


def pictures(answer: dict[str, object]) -> dict[str, str]:
    """The picture of an answer as SVG, for ``light`` and ``dark``."""
    found = from_json(answer)
    effects = [
        figures.Effect(f"{one.label}: {one.verdict}", one.mean, one.interval)
        for one in found.standings
        if one.mean is not None
    ]
    drawn = figures.forest("answer", effects, found.plan.margin, found.metric, is_narrow=True)
    words = "; ".join(effect.label for effect in effects)
    return {theme: _filled(drawn, known, words) for theme, known in colors().items()}


def _filled(drawn: str, known: Mapping[str, str], words: str) -> str:
    """The figure of a page as a file of its own."""
    font = f"background: {known['paper']}; font-family: sans-serif"
    opening = f'<svg role="img" aria-label="{html.escape(words)}" style="{font}" '
    colored = re.sub(r"var\(--([\w-]+)\)", lambda name: known[name[1]], drawn)
    return colored.replace('<svg aria-hidden="true" focusable="false" ', opening, 1)


def main() -> None:
    """Write the two pictures; see above."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("answer", type=Path, help="a file of compare --json")
    path = parser.parse_args().answer
    for theme, picture in pictures(json.loads(path.read_text())).items():
        target = path.with_name(f"{path.stem}-{theme}.svg")
        target.write_text(picture)
        print(target)


if __name__ == "__main__":
    main()
