"""The answer in words: every form says the same numbers, and other people's words stay words."""

import csv
import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from fabricated import TRICKS, write_run
from markdown_it import MarkdownIt
from rich.console import Console

from runner.config.schema import Optim
from runner.records.run_folder import RunFolder
from runner.report import metric, text
from runner.report.answer import Answer, answer
from runner.report.curves import Lead
from runner.report.metric import ACCURACY
from runner.report.runs import Found, Unranked, find_runs
from runner.report.scores import ScoreBook
from runner.terminal.tables import Table
from runner.training.metrics import METRICS

MARGIN = 0.05
ALL = tuple(TRICKS)


def ask(outputs: Path) -> Answer:
    return answer(find_runs([outputs]), ScoreBook(Path("/nowhere/x.npz")), MARGIN)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of some tricks and all, one of label smoothing, another group, a failed run."""
    place = tmp_path_factory.mktemp("outputs")
    for seed in range(3):
        write_run(place, seed=seed, accuracy=0.4 + 0.1 * (seed % 2), num_images=30)
        write_run(place, "mixup", seed=seed, accuracy=0.7, num_images=30, pixels=2_000_000)
        write_run(place, *ALL, seed=seed, accuracy=0.8, tta_accuracy=0.9, num_images=30)
        write_run(place, *ALL[1:], seed=seed, accuracy=0.7, tta_accuracy=0.7, num_images=30)
    write_run(place, "label_smoothing", num_images=30)
    write_run(place, optim=Optim(lr=0.125), num_images=30)
    folder = write_run(place, "mixup", seed=8, name="failed", finish=False)
    folder.write_status("failed", "the loss is not finite")
    return place


@pytest.fixture(scope="module")
def found(outputs: Path) -> Answer:
    return ask(outputs)


# ── CSV, JSON, Markdown ────────────────────────────────────────────────────────────────────────


def cells(found: Answer) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text.csv(found), newline="")))


def test_csv_has_every_number_of_the_answer_in_full(found: Answer) -> None:
    lines = cells(found)
    assert tuple(lines[0]) == text.CSV_COLUMNS
    expected = sum(len(group.rows) + len(group.contributions) for group in found.groups)
    assert len(lines) == expected
    group = found.groups[0]
    by_trick = {
        (line["table"], line["arm"]): line for line in lines if line["group"] == group.group.title
    }
    for row in group.rows:
        line = by_trick["baseline", row.label]
        assert int(line["seeds"]) == len(row.seeds) or row.label != group.baseline
        assert float(line["accuracy"]) == row.metrics["accuracy"].mean
        for key in METRICS[1:]:
            assert float(line[key]) == row.metrics[key].mean
        for key in ("images", "pixels", "seconds"):
            assert float(line[key]) == row.price[key]
    assert by_trick["baseline", "baseline"]["difference"] == ""
    for table, comparisons in (
        ("baseline", group.comparisons), ("combination", group.contributions),
    ):  # fmt: skip
        assert comparisons
        for one in comparisons:
            line = by_trick[table, one.label]
            assert line["reference"] == one.reference
            assert float(line["difference"]) == one.found.mean
            assert int(line["seeds"]) == len(one.seeds)
            for name in ("over_seeds", "over_both"):
                ends = getattr(one.found, name)
                said = [line[f"{name}_{end}"] for end in ("low", "high")]
                assert said == (["", ""] if ends is None else [repr(end) for end in ends])
            for column, value in (("p_holm", one.p_zero), ("p_margin_holm", one.p_margin)):
                assert line[column] == ("" if value is None else repr(value))
            assert line["verdict"] == one.verdict
            assert line["is_equal_budget"] == str(one.is_equal_budget)
    assert by_trick["baseline", "mixup"]["is_equal_budget"] == "False"


def strict(content: str) -> Any:
    """JSON as its standard has it: no NaN, no infinity."""
    return json.loads(content, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_json_has_the_whole_answer(found: Answer) -> None:
    said = strict(text.to_json(found))
    assert said["margin"] == MARGIN
    assert [group["title"] for group in said["groups"]] == [
        group.group.title for group in found.groups
    ]
    for group, expected in zip(said["groups"], found.groups, strict=True):
        assert group["baseline"] == expected.baseline
        for key, values in (
            ("arms", expected.rows),
            ("comparisons", expected.comparisons),
            ("contributions", expected.contributions),
        ):
            fields = [asdict(value) for value in values]
            for one in fields if key != "arms" else ():
                del one["found"]["means"]
            # Through JSON and back, which makes lists of tuples and changes nothing else.
            assert group[key] == json.loads(json.dumps(fields))
        assert group["notes"] == list(expected.notes)
    assert said["not_compared"] == [
        {"name": "failed", "status": "failed", "reason": "the loss is not finite"}
    ]
    seeds = {(run["arm"], run["seed"]) for run in said["groups"][0]["runs"] if run["identity"]}
    assert ("mixup", 2) in seeds
    assert ("all", 0) in seeds


def test_json_is_strict_also_where_a_ratio_is_to_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, num_images=30, pixels=0, seconds=0.0)
    write_run(tmp_path, "mixup", num_images=30, pixels=1000, seconds=1.0)
    (one,) = strict(text.to_json(ask(tmp_path)))["groups"][0]["comparisons"]
    assert one["price"]["seconds"] is None
    assert one["is_equal_budget"] is False


def markdown_rows(content: str) -> list[list[str]]:
    rows: list[list[str]] = []
    tokens = MarkdownIt("commonmark").enable("table").parse(content)
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        if token.type == "inline" and token.level == 4:
            rows[-1].append("".join(child.content for child in token.children or ()))
    return rows


def only_tables(found: Answer) -> list[Table]:
    return [part for part in text.content(found) if isinstance(part, Table)]


def test_markdown_says_what_the_terminal_says(found: Answer) -> None:
    expected: list[list[str]] = []
    for table in only_tables(found):
        expected += [list(table.columns), *map(list, table.rows)]
    content = text.markdown(found)
    assert markdown_rows(content) == expected
    assert "the loss is not finite" in content
    assert text.LEGEND in content


def test_markdown_says_what_limits_the_comparison(found: Answer) -> None:
    content = text.markdown(found)
    group = found.groups[0]
    for line in text.remarks(group, MARGIN):
        if text.UNEQUAL in line:
            assert line in content, "the mark in the table is explained"
    assert any(text.UNEQUAL in line for line in text.remarks(group, MARGIN))


def test_nothing_found_can_be_told() -> None:
    empty = answer(Found(), ScoreBook(Path("/nowhere/x.npz")), MARGIN)
    assert strict(text.to_json(empty))["groups"] == []
    assert text.csv(empty).strip() == ",".join(text.CSV_COLUMNS)
    assert text.markdown(empty).strip() == "no finished runs"


# ── Words ──────────────────────────────────────────────────────────────────────────────────────


def test_verdicts_in_words(found: Answer) -> None:
    (one,) = [one for one in found.groups[0].comparisons if one.label == "mixup"]
    assert len(one.seeds) == 3

    def said(verdict: str, p_margin: float | None = None) -> str:
        return text.verdict_text(replace(one, verdict=verdict, p_margin=p_margin), MARGIN)  # type: ignore[arg-type]

    assert said("helps") == "helps"
    assert said("hurts", 0.5) == "hurts"
    assert said("helps", 0.01) == "helps, by less than 5"
    assert said("no difference", 0.01) == "no difference larger than 5"
    assert said("cannot tell") == "cannot tell"
    alone = replace(one, seeds=(0,), verdict="cannot tell")
    assert text.verdict_text(alone, MARGIN) == "one seed: no verdict"
    two = replace(one, seeds=(0, 1), verdict="cannot tell")
    assert text.verdict_text(two, MARGIN) == "two seeds: no verdict"


def test_numbers_in_words() -> None:
    assert ACCURACY.text(0.01234) == "+1.23"
    assert ACCURACY.text(-0.5) == "-50.00"
    assert ACCURACY.text(0.9, signed=False) == "90.00"
    assert ACCURACY.interval_text((-0.01, 0.02)) == "[-1.00, +2.00]"
    assert ACCURACY.interval_text(None) == ""
    assert metric.METRICS["log_loss"].text(0.01234) == "+0.0123"
    assert metric.METRICS["ece"].size(0.015) == "1.5 points"
    assert metric.METRICS["brier"].size(0.015) == "0.015"
    assert text.lead_text("epoch", Lead("overtakes", 2.25)) == "ahead from epoch 2.2 on"
    assert text.lead_text("seconds", Lead("falls behind", 31.4)) == "behind from 31 s on"
    assert text.lead_text("pixels", Lead("ahead", None)) == "ahead all the way"


def test_the_first_row_is_the_baseline_and_prices_are_relative_to_it(found: Answer) -> None:
    group = found.groups[0]
    table = text.answer_table(group, MARGIN)
    assert table.rows[0][0] == "baseline"
    assert table.rows[0][3:] == ("",) * 5
    prices = {row[0]: dict(zip(table.columns, row, strict=True))
              for table in [text.price_table(group)] for row in table.rows}  # fmt: skip
    assert prices["baseline"]["pixels ×"] == "1.00"
    assert prices["mixup"]["pixels ×"] == "2.00"
    assert prices["all"]["passes per image"] == "2"


def test_a_contribution_of_unequal_budget_is_marked_with_its_explanation(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, seed=seed, num_images=30)
        write_run(tmp_path, "mixup", seed=seed, num_images=30)
        tricks = ("mixup", "label_smoothing")
        write_run(tmp_path, *tricks, seed=seed, num_images=30, pixels=3_000_000)
    (group,) = ask(tmp_path).groups
    (row,) = text.contribution_table(group, MARGIN).rows
    assert row[:3] == ("label_smoothing in mixup + label_smoothing", "mixup", "2")
    assert row[-1].endswith(text.UNEQUAL)
    assert sum(text.UNEQUAL in line for line in text.remarks(group, MARGIN)) == 1


# ── Other people's words ───────────────────────────────────────────────────────────────────────

HOSTILE = "=HYPERLINK(1) [red]x[/red] \x1b[2J </script> |<b>"


def hostile(place: Path) -> Answer:
    """Runs whose environment, tricks, names and reasons are hostile."""
    for seed, tricks in enumerate(((), ("mixup",))):
        folder = write_run(place, *tricks, num_images=30, name=f"run{seed} [b]")
        change(folder, seed)
    write_run(place, "normalize", num_images=30, seed=9)
    bad = write_run(place, seed=3, name="=1+1[red]", finish=False)
    bad.write_status("failed", HOSTILE)
    return ask(place)


def change(folder: RunFolder, number: int) -> None:
    path = folder.path / "result.json"
    content = json.loads(path.read_text())
    content["environment"]["device"] = f"{HOSTILE} {number}"
    content["command"] += [HOSTILE]
    if content["tricks"]:
        content["tricks"] = [HOSTILE]
    path.write_text(json.dumps(content))


def test_hostile_words_in_csv_and_json(tmp_path: Path) -> None:
    found = hostile(tmp_path)
    lines = cells(found)
    assert any("HYPERLINK" in line["arm"] for line in lines), "or nothing is tested"
    for line in lines:
        for cell in line.values():
            is_number = cell.replace(".", "").replace("e", "").lstrip("-").isdigit()
            assert is_number or not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
            assert "\x1b" not in cell
    said = strict(text.to_json(found))
    assert HOSTILE in {row["label"] for row in said["groups"][0]["arms"]}, "exact in JSON"
    assert {"name": "=1+1[red]", "status": "failed", "reason": HOSTILE} in said["not_compared"]


def test_hostile_words_in_markdown(tmp_path: Path) -> None:
    content = text.markdown(hostile(tmp_path))
    assert "HYPERLINK" in content
    assert "\x1b" not in content
    tokens = MarkdownIt("commonmark").enable("table").parse(content)
    kinds = {child.type for token in tokens for child in token.children or ()}
    assert "html_inline" not in kinds
    assert "html_block" not in {token.type for token in tokens}
    for group in hostile(tmp_path).groups:
        for note in group.notes:
            assert note not in content or "<" not in note, "notes are other people's words, too"


def test_hostile_words_in_the_terminal(tmp_path: Path) -> None:
    out = io.StringIO()
    for table in only_tables(hostile(tmp_path)):
        table.print(Console(file=out, width=400, highlight=False))
    said = out.getvalue()
    assert "\x1b" not in said
    assert "=HYPERLINK(1) [red]x[/red] \\x1b[2J </script> |<b>" in said


def test_a_name_of_several_lines_is_one_cell() -> None:
    found = Answer((), (Unranked("a\nb|c", "failed", "x\ny"),), (), MARGIN)
    assert markdown_rows(text.markdown(found))[1] == ["a b|c", "failed", "x y"]


@pytest.mark.parametrize(
    ("seeds", "hours", "ratios", "threads", "shown"),
    [
        (3, [0, 0, 0], [1.5, 1.45, 1.55], 2, "1.50"),
        (5, [0, 0, 0, 0, 0], [0.8, 0.82, 0.9, 0.84, 0.88], 2, "0.84"),
        (2, [0, 0], [1.5, 1.5], 2, "–"),  # too few
        (3, [0, 0, 0], [0.64, 1.47, 1.5], 2, "–"),  # neighbours on the machine
        (3, [9, 9, 9], [1.47, 1.47, 1.47], 2, "–"),  # all in another hour
        (3, [9, 0, 9], [1.5, 1.5, 1.5], 2, "1.50"),
        (3, [0, 0, 0], [1.5, 1.5, 1.5], 1, "–"),  # another number of threads
    ],
)
def test_seconds_are_a_price_only_where_they_tell_of_the_change(
    tmp_path: Path, seeds: int, hours: list[int], ratios: list[float], threads: int, shown: str
) -> None:
    def at(folder: RunFolder, hour: int) -> None:
        status = folder.path / "status.json"
        content = json.loads(status.read_text())
        status.write_text(json.dumps({**content, "time": f"2026-01-01T{hour:02}:00:00+00:00"}))

    for seed in range(seeds):
        at(write_run(tmp_path, seed=seed, num_images=30, seconds=10.0), seed)
        mixup = write_run(tmp_path, "mixup", seed=seed, num_images=30, seconds=10 * ratios[seed])
        at(mixup, seed + hours[seed])
        result = json.loads((mixup.path / "result.json").read_text())
        result["environment"]["threads"] = threads
        (mixup.path / "result.json").write_text(json.dumps(result))
    table = text.price_table(ask(tmp_path).groups[0])
    place = table.columns.index("seconds ×")
    assert [row[place] for row in table.rows] == ["1.00", shown]


def test_classes_are_shown_on_request_and_always_in_json(found: Answer) -> None:
    quiet = [part for part in text.content(found) if isinstance(part, Table)]
    shown = [part for part in text.content(found, per_class=True) if isinstance(part, Table)]
    arms = [arm for group in found.groups for arm in group.group.arms]
    added = [table for table in shown if table not in quiet]
    assert [table.title for table in added] == [
        f"{arm.label}, by class, means over seeds" for arm in arms
    ]
    recall = [float(row[3]) / 100 for row in added[0].rows]
    accuracy = found.groups[0].rows[0].metrics["accuracy"].mean
    assert sum(recall) / 3 == pytest.approx(accuracy, abs=1e-4), "classes of equal size"
    per_class = json.loads(text.to_json(found))["groups"][0]["per_class"]
    assert [*per_class] == [arm.label for arm in found.groups[0].group.arms]
    assert per_class["mixup"]["bag"]["support"] == 10
