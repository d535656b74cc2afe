"""Figures of the page: sound SVG, in the page's own colours, with every name as text."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from runner.report import figures
from runner.report.curves import Curve

SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}"
NAMES = (
    "mixup",
    "<b>bold</b> & more",
    "</svg><script>hacked=1</script>",
    "$x^2$ and \\frac{1}{2}",
    "{{ 7*7 }}",
    "\x1b[31m\u202e",
    "\"quoted\" and 'single'",
    "-->",
)
SHOWN = (*NAMES[:5], "\\x1b[31m\\u202e", *NAMES[6:])


def effect(label: str, mean: float, half: float, *, seeds: int = 3) -> figures.Effect:
    return figures.Effect(
        label,
        mean,
        (mean - half, mean + half),
        (mean - half / 2, mean + half / 2) if seeds > 1 else None,
    )


@cache
def forest(name: str) -> str:
    compared = [effect(label, 0.01 * i, 0.02) for i, label in enumerate(NAMES)]
    return figures.forest(name, compared, 0.005)


@cache
def curves(name: str) -> str:
    x = np.arange(1.0, 4.0)
    line = Curve(x, x / 4, x / 5, x / 3.5)
    return figures.curves(
        name, {axis: dict.fromkeys(NAMES, line) for axis in ("epoch", "seconds", "pixels")}
    )


@cache
def reliability(name: str) -> str:
    bins = np.linspace(0.3, 0.9, 10)
    return figures.reliability(name, dict.fromkeys(NAMES, (bins, bins**2)))


@cache
def series(name: str) -> str:
    points = [(1.0, 0.5, 0.4, 0.6), (5.0, 0.7, 0.65, 0.75)]
    return figures.series(name, NAMES[3], dict.fromkeys(NAMES, points))


DRAWN = pytest.mark.parametrize("draw", [forest, curves, reliability, series])
Draw = Callable[[str], str]


def parse(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314  ours


def ids(text: str) -> list[str]:
    return [name for element in parse(text).iter() if (name := element.get("id"))]


@DRAWN
def test_is_one_well_formed_element_that_fits_any_width(draw: Draw) -> None:
    text = draw("one")
    root = parse(text)
    assert text.startswith("<svg ")
    assert root.tag == f"{SVG}svg"
    assert root.get("viewBox")
    assert root.get("width") is None
    assert root.get("height") is None
    assert not [e for e in root.iter() if e.tag in (f"{SVG}style", f"{SVG}script")]
    assert "<metadata" not in text
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)


@DRAWN
def test_takes_every_colour_from_the_page(draw: Draw) -> None:
    style = (Path(figures.__file__).parent / "page.css").read_text(encoding="utf-8")
    known = {f"var({name})" for name in re.findall(r"(--[\w-]+):", style)} | {"none"}
    used = set()
    text = draw("one")
    for element in parse(text).iter():
        found = re.findall(r"(?:^|[; ])(?:fill|stroke): ([^;]+)", element.get("style", ""))
        found += [value for key in ("fill", "stroke") if (value := element.get(key))]
        used |= set(found)
        if element.tag == f"{SVG}text":  # unsaid it would be black, also on black
            assert len(found) == 1
    assert used <= known
    assert "var(--ink)" in used
    assert "var(--series-0)" in used
    assert not re.search(r"(?<!&)#[0-9a-fA-F]{3,8}\b(?=[;\"])", text)


@DRAWN
def test_identifiers_are_met_once_and_not_in_another_figure(draw: Draw) -> None:
    first, second = draw("one"), draw("two")
    assert ids(first)
    assert len(ids(first)) == len(set(ids(first)))
    assert not set(ids(first)) & set(ids(second))
    used = re.findall(r"url\(#([^)]+)\)", first)
    used += [link[1:] for e in parse(first).iter() if (link := e.get(f"{XLINK}href"))]
    assert used
    assert set(used) <= set(ids(first))


@DRAWN
def test_names_are_text(draw: Draw) -> None:
    root = parse(draw("one"))
    texts = ["".join(element.itertext()).strip() for element in root.iter(f"{SVG}text")]
    for name in SHOWN:
        assert name in texts
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert tags <= {"svg", "g", "defs", "path", "use", "text", "tspan", "clipPath", "rect"}


def test_long_names_are_cut() -> None:
    text = figures.forest("one", [effect("x" * 300, 0.01, 0.02)], 0.005)
    assert f">{'x' * 40}…<" in text


@pytest.mark.parametrize("is_narrow", [False, True])
def test_long_labels_of_two_parts_are_in_two_lines(is_narrow: bool) -> None:
    parts = ("augment=inception with", "model.name=convnext_tiny")
    text = figures.forest("one", [effect(" ".join(parts), 0.01, 0.02)], 0.005, is_narrow=is_narrow)
    lines = ["".join(e.itertext()).strip() for e in parse(text).iter() if e.tag.endswith("text")]
    lines += ["".join(e.itertext()).strip() for e in parse(text).iter(f"{SVG}tspan")]
    assert {*parts} <= {*lines}


@pytest.mark.parametrize(("values", "is_log"), [((1e-3, 3e-3, 1e-2), True), ((1, 2, 4), False),
                                                ((0, 1, 10), False)])  # fmt: skip
def test_values_over_decades_are_on_a_logarithmic_axis(
    values: tuple[float, ...], is_log: bool
) -> None:
    def place(value: float) -> float:
        return np.log(value) if is_log else value

    points = [(value, 0.5, 0.5, 0.5) for value in values]
    drawn = parse(figures.series("one", "optim.lr", {"runs": points}))
    line = next(  # before that of the legend
        e.get("d", "")
        for e in drawn.iter(f"{SVG}path")
        if e.get("d", "").count("L") == 2 and "stroke: var(--series-0)" in e.get("style", "")
    )
    x = [float(pair.split()[0]) for pair in re.split("[ML]", line)[1:]]
    expected = (place(values[1]) - place(values[0])) / (place(values[2]) - place(values[0]))
    assert (x[1] - x[0]) / (x[2] - x[0]) == pytest.approx(expected, abs=1e-3)


@DRAWN
def test_same_input_gives_the_same_bytes(draw: Draw) -> None:
    first = draw("one")
    draw.cache_clear()  # type: ignore[attr-defined]
    assert draw("one") == first


def test_forest_without_an_interval_over_seeds() -> None:
    one, three = (
        figures.forest("one", [effect("mixup", 0.01, 0.02, seeds=n)], 0.005) for n in (1, 3)
    )
    assert three.count("var(--series-0)") == one.count("var(--series-0)") + 1


@pytest.mark.parametrize("half", [0.0, 0.02, 5.0])
@pytest.mark.parametrize("mean", [-0.3, 0.0, 0.001, 0.3])
def test_forest_shows_zero_the_margin_and_every_mean(mean: float, half: float) -> None:
    compared = [effect("mixup", mean, half), effect("tta", mean / 2, 0.001)]
    low, high = figures._limits(compared, 0.005)
    for shown in (0, -0.5, 0.5, 100 * mean, 50 * mean):
        assert low < shown < high
    assert high - low < max(100, 6 * 100 * abs(mean))  # an absurd interval does not set the scale


def test_one_axis_and_one_arm() -> None:
    x = np.array([1.0])
    parse(figures.curves("one", {"epoch": {"baseline": Curve(x, x, x, x)}}))
    parse(figures.reliability("one", {"baseline": (x, x)}))
