"""Tables of other people's words: what a cell says is read back as it was, and obeyed by nobody."""

import csv
import io
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from runner.terminal.console import printable
from runner.terminal.tables import Table, inert, to_csv

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
HOSTILE = (
    "[red]red[/red]",
    "[/]",
    "[link=file:///etc/passwd]x[/link]",
    "back\\",
    "\\[bold]x",
    ":bomb:",
    "a|b",
    "<script>alert(1)</script>",
    "`code` *bold* _it_ ~~gone~~ [a](b) ![c](d) # e",
    "&lt;&amp;",
    "=HYPERLINK(1)",
)


def printed(table: Table, width: int) -> str:
    out = io.StringIO()
    table.print(Console(file=out, width=width, highlight=False))
    return out.getvalue()


def one_cell(text: str) -> Table:
    return Table("title", ("name", "number"), ((text, "1"),), ("name",))


def letters(text: str) -> str:
    """What is left of a printed table without its lines and spaces."""
    return re.sub(r"[\s─-╿]", "", text)


# ── Terminal ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", HOSTILE)
def test_no_markup_is_obeyed_in_the_terminal(text: str) -> None:
    assert f" {text} " in printed(one_cell(text), 120)
    assert text in printed(Table(text, ("name",), (("x",),)), 120), "not folded to the table"
    assert text in printed(Table("title", (text,), (("x",),)), 120)


@pytest.mark.parametrize("control", ["\x1b[31m", "\x07", "\r", "\x9b2J", "\u202e", "\udcff"])
def test_control_characters_never_reach_the_terminal(control: str) -> None:
    out = printed(Table(f"t{control}t", ("name",), ((f"a{control}b",),)), 120)
    assert control not in out
    assert f"a{printable(control)}b" in out
    assert f"t{printable(control)}t" in out


def test_a_line_break_stays_in_its_cell() -> None:
    lines = printed(one_cell("first\nsecond"), 80).splitlines()
    first = next(number for number, line in enumerate(lines) if line.strip().startswith("first"))
    assert lines[first].split() == ["first", "1"]
    assert lines[first + 1].strip() == "second"


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_narrow_terminal_folds_and_loses_nothing(width: int) -> None:
    words = "progressive_resizing+label_smoothing"
    out = printed(Table("a title of some words", ("trick", "n"), ((words, "12345"),)), width)
    assert max(map(len, out.splitlines())) <= width
    body = out[out.index("─") :].replace("─", "")
    assert "12345" in body, "a number stays in one piece"
    assert "".join(body.replace("12345", "").split()) == words


def test_more_columns_than_the_terminal_has_room_for_are_not_silently_emptied() -> None:
    names = tuple(f"column{number}" for number in range(8))
    cells = tuple(f"{number}{number}{number}" for number in range(8))
    out = letters(printed(Table("title", names, (cells,), names), 20))
    # Below 33 columns eight cells of one character each have no room side by side.
    assert [cell for cell in cells if cell[0] not in out] == []


@pytest.mark.parametrize("width", [1, 2, 5, 10])
def test_a_terminal_of_no_width_to_speak_of_is_no_error(width: int) -> None:
    printed(Table("title", ("a", "b", "c"), (("one", "two", "three"),)), width)


def test_an_empty_table_is_printed() -> None:
    assert "name" in printed(Table("nothing", ("name",), ()), 80)


# ── Markdown ───────────────────────────────────────────────────────────────────────────────────


def parsed(markdown: str) -> tuple[str, list[list[str]]]:
    """Title and rows of cells as a reader of GitHub's Markdown sees them: literal text only."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)
    title, rows = "", []
    for before, token in pairwise(tokens):
        if token.type == "tr_open":
            rows.append([])
        if token.type != "inline":
            continue
        kinds = {child.type for child in token.children or ()}
        text = "".join(child.content for child in token.children or ())
        if before.type in ("th_open", "td_open"):
            assert kinds <= {"text"}, f"obeyed: {kinds} in {text!r}"
            rows[-1].append(text)
        else:
            assert kinds <= {"text", "strong_open", "strong_close"}, f"obeyed: {kinds} in {text!r}"
            title = text
    return title, rows


def test_the_parser_of_these_tests_sees_what_is_obeyed() -> None:
    with pytest.raises(AssertionError, match="obeyed"):
        parsed("| a |\n|---|\n| *x* |\n")
    assert parsed("| a | b |\n|---|---|\n| x\\|y | z |\n")[1] == [["a", "b"], ["x|y", "z"]]


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_the_text_and_obeys_nothing(text: str) -> None:
    table = Table(text, (text, "number"), ((text, "1"), ("", "-2")), (text,))
    assert parsed(table.markdown()) == (text, [[text, "number"], [text, "1"], ["", "-2"]])


@given(
    st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.lists(st.text(max_size=12), min_size=width, max_size=width), min_size=1, max_size=4
        )
    )
)
@settings(max_examples=150, deadline=None)
def test_any_table_in_markdown_parses_back_into_its_cells(rows: list[list[str]]) -> None:
    columns = tuple(f"c{number}" for number in range(len(rows[0])))
    markdown = Table("title", columns, tuple(map(tuple, rows))).markdown()
    seen = [[printable(cell).replace("\n", " ").strip() for cell in row] for row in rows]
    # Runs of spaces are one in HTML; a parser may already say so.
    assert parsed(markdown) == ("title", [list(columns), *seen])


def test_columns_of_words_are_left_and_of_numbers_right() -> None:
    assert "\n|---|---:|\n" in one_cell("x").markdown()


# ── CSV ────────────────────────────────────────────────────────────────────────────────────────


def read_back(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("start", FORMULA_STARTS)
def test_no_cell_is_a_formula(start: str) -> None:
    for text in (f"{start}HYPERLINK(1)", start, f"{start}{start}1"):
        _, (cell, plain) = read_back(to_csv(("a", "b"), [[text, f"x{text}"]]))
        assert not cell.startswith(FORMULA_STARTS)
        assert cell.lstrip("'") == printable(text)
        assert plain == printable(f"x{text}"), "what is no formula is left alone"


def test_no_control_character_reaches_csv() -> None:
    text = to_csv(["a\0", "b\x1b[2J"], [["\0", "\x07\u202e"], ["\ud800", "é\n"]])
    assert text == 'a\\x00,b\\x1b[2J\n\\x00,\\x07\\u202e\n\\ud800,"é\n"\n'


@pytest.mark.parametrize("number", [0.1 + 0.2, -1 / 3, 5e-324, 1e308, -7, 2**63, True])
def test_numbers_are_written_exactly(number: float) -> None:
    _, (cell,) = read_back(to_csv(("n",), [[number]]))
    assert cell == str(number)
    assert isinstance(number, bool) or type(number)(cell) == number
    assert inert(number) is number


def test_nothing_is_an_empty_cell() -> None:
    assert to_csv(("a", "b"), [[None, 1], [None, None]]) == "a,b\n,1\n,\n"


CELLS = st.one_of(
    st.none(), st.integers(), st.floats(allow_nan=False), st.text(max_size=12),
    st.builds(str.__add__, st.sampled_from(FORMULA_STARTS), st.text(max_size=5)),
)  # fmt: skip


@given(st.lists(st.tuples(CELLS, CELLS), max_size=5))
@settings(max_examples=200, deadline=None)
def test_any_rows_come_back_from_csv(rows: list[tuple[object, object]]) -> None:
    header, *found = read_back(to_csv(("a", "b"), rows))
    assert header == ["a", "b"]
    for row, cells in zip(rows, found, strict=True):
        for value, cell in zip(row, cells, strict=True):
            if isinstance(value, str):
                text = printable(value)
                assert cell == (f"'{text}" if text.startswith(FORMULA_STARTS) else text)
            else:
                assert cell == ("" if value is None else repr(value))


def test_columns_are_shortened_where_words_allow_it_and_none_is_cut_off() -> None:
    columns = ("change", "n", "a b", "points", "over seeds and images", "verdict")
    row = (
        "model.name=xresnet34 + augment=none",
        "2",
        "x",
        "-13.93",
        "[-45.29, +17.42]",
        "cannot tell",
    )
    out = printed(Table("title", columns, (row,), ("change", "a b", "verdict")), 80)
    assert max(map(len, out.splitlines())) <= 80
    for piece in ("model.name=xresnet34 +", "-13.93", "[-45.29, +17.42]", "cannot tell"):
        assert piece in out
    out = printed(Table("title", columns, (row,), ("change", "a b", "verdict")), 64)
    for piece in ("model.name=xresnet34", "-13.93", "[-45.29, +17.42]", "cannot"):
        assert piece in out
