"""The forest plot in text: to scale, in its width, in ASCII where the terminal needs it."""

import io

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from runner.report.forest import Forest, ForestRow, can_draw

ROWS = (
    ForestRow("mixup", 0.018, (0.007, 0.029), "+1.80  helps"),
    ForestRow("label smoothing", -0.008, (-0.019, 0.003), "-0.80  cannot tell"),
    ForestRow("too early", 0.002, None, "+0.20  open"),
    ForestRow("diverged", None, None, "       failed"),
)
FOREST = Forest("points", ROWS, 0.005)


def test_a_plot_by_hand() -> None:
    forest = Forest("points", (ForestRow("a", 0.01, (0.0, 0.02), "w"),), 0.01)
    # 20 characters for -1 to 2 points: a character is 3 / 19 points.
    assert forest.lines(26) == [
        "a  ░░░░░░├──────●─────┤  w",
        "   │     │      │     │",
        "   -1    0      1     2",
    ]


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("is_ascii", [False, True])
def test_marks_are_to_scale(width: int, is_ascii: bool) -> None:
    lines = FOREST.lines(width, is_ascii=is_ascii)
    assert len(lines) == len(ROWS) + 2
    assert max(map(cell_len, lines)) <= width
    mean, zero = ("o", "|") if is_ascii else ("●", "│")
    places = [lines[number].index(mean, 16) for number in range(3)]
    origin = lines[3].index(zero)
    values = [0.018, -0.008, 0.002, 0.0]
    slope, start = np.polyfit(values, [*places, origin], 1)
    assert slope > 0
    np.testing.assert_allclose([*places, origin], start + slope * np.array(values), atol=0.6)
    if is_ascii:
        assert all(line.isascii() for line in lines)
    else:
        assert "├" in lines[0]


def test_the_ruler_has_round_numbers_at_their_places() -> None:
    *rows, ticks, numbers = FOREST.lines(80)
    zero = rows[3].index("│")
    assert ticks[zero] == "│"
    assert [float(number) for number in numbers.split()] == [-1, 0, 1, 2]
    assert [place for place, mark in enumerate(ticks) if mark == "│"] == sorted(
        place for place, mark in enumerate(ticks) if mark == "│"
    )


def test_a_very_wide_interval_does_not_set_the_scale() -> None:
    wide = ForestRow("wide", 0.0, (-0.9, 0.9), "cannot tell")
    lines = Forest("points", (*ROWS, wide), 0.005).lines(80)
    assert "◀" in lines[4]
    assert "▶" in lines[4]
    assert "◀" not in "".join(FOREST.lines(80)), "the negative control"
    width = [line.rindex("┤") - line.index("├") for line in lines[:2]]
    assert min(width) >= 4, "the others can still be read"


@pytest.mark.parametrize("margin", [0.0001, 0.3])
@pytest.mark.parametrize("scale", [1e-5, 1e-3, 1.0])
def test_any_size_can_be_drawn(margin: float, scale: float) -> None:
    rows = tuple(
        ForestRow("x", scale * mean, (scale * (mean - 0.2), scale * (mean + 0.2)), "w")
        for mean in (-0.7, 0.0, 0.7)
    )
    for row in (*[(row,) for row in rows], rows):
        lines = Forest("points", row, margin).lines(70)
        assert all("●" in line for line in lines[: len(row)])
        assert max(map(len, lines)) <= 70


def test_equal_predictions_can_be_drawn() -> None:
    (line, *_) = Forest("points", (ForestRow("x", 0.0, (0.0, 0.0), ""),), 0.005).lines()
    assert "●" in line


def test_nothing_is_drawn_without_an_interval_or_room() -> None:
    assert Forest("points", ROWS[3:], 0.005).lines() == []
    assert FOREST.lines(40) == []
    assert Forest("points", (), 0.005).lines() == []
    assert Forest("points", ROWS[3:], 0.005).markdown() == ""


def test_long_and_wide_names_keep_the_columns() -> None:
    names = ("x" * 300, "画像" * 20, "two\nlines", "\x1b[2J")
    rows = tuple(ForestRow(name, 0.01, (0.0, 0.02), "w") for name in names)
    lines = Forest("points", rows, 0.005).lines(80)[: len(names)]
    assert {cell_len(line.partition("●")[0]) for line in lines} == {
        cell_len(lines[0].partition("●")[0])
    }
    assert max(map(cell_len, lines)) <= 80
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(
    ("encoding", "is_unicode"),
    [("utf-8", True), ("ascii", False), ("latin-1", False), ("no such", False)],
)
def test_the_encoding_decides(encoding: str, is_unicode: bool) -> None:
    assert can_draw(encoding) is is_unicode


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [60, 200, 20])
def test_a_console_gets_characters_that_it_has(encoding: str, width: int) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    FOREST.print(Console(file=file, width=width))
    file.flush()
    lines = raw.getvalue().decode(encoding).splitlines()
    expected = FOREST.lines(min(80, width), is_ascii=encoding == "ascii")
    assert lines == (["points", *expected] if width > 20 else [])


def test_markdown_is_a_block_of_code() -> None:
    title, empty, *lines = FOREST.markdown().splitlines()
    assert (title, empty) == ("points", "")
    assert lines == [f"    {line}" for line in FOREST.lines()]
