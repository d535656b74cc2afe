"""Tables of verdicts in terminals of 60, 80 and 120 columns: what folds, and what never breaks."""

import io
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fabricated import write_comparison, write_run
from rich.console import Console

from runner.records.comparison_folder import ComparisonFolder
from runner.report import __main__ as report_main
from runner.report import text
from runner.report.answer import answer
from runner.report.comparison_text import (
    prices_table,
    standings_table,
)
from runner.report.comparisons import ComparisonAnswer, standings
from runner.report.runs import find_runs
from runner.report.scores import ScoreBook
from runner.terminal.tables import Table

ROOT = Path(__file__).parents[2]
LABELS = ("mixup", "resize=progressive resize.size=16 optim.lr=1e-2 model=timmxx")
VERDICTS = ("helps, by less than 0.5", "cannot tell", "no difference larger than 0.5", "failed")
COUNTS = ("3", "5 of 10", "3 (+1 failed)", "2, 1 failed")
assert [len(label) for label in LABELS] == [5, 60]


def printed(table: Table, width: int) -> str:
    out = io.StringIO()
    table.print(Console(file=out, width=width, highlight=False))
    return out.getvalue()


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> ComparisonAnswer:
    folder: ComparisonFolder = write_comparison(
        tmp_path_factory.mktemp("comparison") / "outputs",
        {"mixup": (0.62, 0.61, 0.60), "normalize": (0.801, 0.81, 0.80)},
        base=(0.8, 0.81, 0.79),
        is_fixed=True,
        max_seeds=3,
    )
    outputs = folder.path.parent.parent
    book = ScoreBook(outputs / "cache" / "report.npz")
    return standings(folder.plan(), folder.runs(), outputs, book)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Combinations with and without TTA, and a run that failed."""
    place = tmp_path_factory.mktemp("outputs")
    for seed in range(3):
        write_run(place, seed=seed, accuracy=0.4 + 0.1 * (seed % 2), num_images=30)
        write_run(place, "mixup", seed=seed, accuracy=0.7, num_images=30)
        write_run(place, "mixup", "tta", seed=seed, accuracy=0.8, num_images=30)
    failed = write_run(place, "mixup", seed=8, num_images=30, finish=False)
    failed.write_status("failed", "the loss is not finite, as it was in the runs before")
    return place


@pytest.fixture(scope="module")
def tables(compared: ComparisonAnswer, outputs: Path) -> list[Table]:
    """Return every table that compare and report print."""
    made = [make(compared) for make in (standings_table, prices_table)]
    for by in ([], ["mixup", "tta"]):
        found = answer(find_runs([outputs]), ScoreBook(Path("/nowhere/x.npz")), 0.01, by=by)
        made += [part for part in text.content(found, per_class=True) if isinstance(part, Table)]
    return made


def relabeled(table: Table, label: str) -> Iterator[Table]:
    """Yield the table with another label in its first column, with each verdict and count."""
    for verdict, count in zip(VERDICTS, COUNTS, strict=True):
        cells = {table.columns[0]: label, "verdict": f"{verdict} ≠", "n": count}
        if "without it" in table.columns:  # which counts pairs alone
            del cells["n"]
        yield replace(
            table,
            rows=tuple(
                tuple(
                    cells.get(column, cell) for column, cell in zip(table.columns, row, strict=True)
                )
                for row in table.rows
            ),
        )


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("label", LABELS, ids=["short", "long"])
def test_words_of_verdicts_headings_and_numbers_are_never_broken(
    tables: list[Table], label: str, width: int
) -> None:
    assert len({table.columns for table in tables}) >= 6
    for given in tables:
        for table in relabeled(given, label):
            if table.columns[0] in table.name_columns:
                continue
            out = printed(table, width).partition("\n")[2]  # its title is folded by the terminal
            assert max(map(len, out.splitlines())) <= width
            left_out = table.left_out(width)
            assert {*left_out} <= {*table.optional_columns}
            words = {*out.split()}
            for at, column in enumerate(table.columns):
                if column in left_out:
                    continue
                assert words >= {*column.split()}, out
                if column not in (table.label_columns or table.columns[:1]):
                    assert all(words >= {*row[at].split()} for row in table.rows), out
            numbers = [
                row[at]
                for row in table.rows
                for at, column in enumerate(table.columns)
                if column not in left_out and re.search(r"±|, [+-]", row[at])
            ]
            assert all(number.partition(" images")[0] in out for number in numbers), out


def test_a_label_folds_before_a_column_is_left_out(compared: ComparisonAnswer) -> None:
    table = standings_table(compared)
    long, *_ = relabeled(table, LABELS[1])
    assert table.left_out(80) == long.left_out(80) == ()
    assert table.left_out(60) == ("accuracy, %", "p (Holm)"), "the negative control"


def test_columns_left_out_are_named_once(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("runner.terminal.command.raise_on_signals", lambda: None)
    monkeypatch.setattr(sys, "argv", ["report", str(outputs)])
    note = "left out of tables, because the terminal is narrow: "
    for width, count in ((60, 1), (80, 1), (120, 0)):
        monkeypatch.setenv("COLUMNS", str(width))
        report_main.main()
        out = capsys.readouterr().out
        assert out.count(note) == count, out
        assert ("p (Holm)" in out.partition("left out of")[0].replace("\n", " ")) == (width > 60)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_names_of_runs_that_are_not_compared_stay_in_one_piece(
    tables: list[Table], width: int
) -> None:
    table = next(one for one in tables if one.title == "not compared")
    names = [row[0] for row in table.rows]
    assert names
    assert {*names} <= {*printed(table, width).split()}


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_table_of_a_page_is_what_a_terminal_of_80_columns_shows(
    page: str, compared: ComparisonAnswer
) -> None:
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith(" arm "))
    shown = lines[start : lines.index("```", start)]
    cells = [re.split(r"\s{2,}", line.strip()) for line in shown]
    columns = tuple(cells[0])
    rows = tuple((*row, *[""] * (len(columns) - len(row))) for row in cells[2:])
    table = replace(standings_table(compared), rows=rows)
    assert table.columns == columns
    out = [line.rstrip() for line in printed(table, 80).splitlines()]
    assert out[-len(shown) - 1 :] == [*shown, ""]
