"""Metrics as text: undefined ones are dashes, and of many classes the worst are shown."""

import io

import pytest
from rich.console import Console

from runner.terminal.metric_tables import MOST_CLASSES, class_table, metric_text
from runner.training.metrics import METRICS


def scores(f1: float | None, support: int = 1234567) -> dict[str, float | int | None]:
    return {"precision": f1, "recall": f1, "f1": f1, "support": support}


def test_of_many_classes_the_worst_are_shown_and_the_others_counted() -> None:
    per_class = {f"class {number}": scores(1 - number / 100) for number in range(30)}
    per_class["empty"] = scores(None, 0)
    table = class_table("plain", per_class)
    assert [row[0] for row in table.rows] == [f"class {number}" for number in range(29, 9, -1)]
    assert table.title == f"plain, the {MOST_CLASSES} lowest F1; 11 more classes"
    few = class_table("plain", {"b": scores(0.5), "a": scores(None, 0)})
    assert few.title == "plain"
    assert few.rows == (
        ("b", "1,234,567", "50.00", "50.00", "50.00"),
        ("a", "0", "–", "–", "–"),
    )


def test_the_table_fits_80_columns() -> None:
    table = class_table("plain", {"a name of a class that is rather long": scores(0.5)})
    output = io.StringIO()
    table.print(Console(file=output, width=80))
    assert max(map(len, output.getvalue().splitlines())) <= 80


@pytest.mark.parametrize("name", METRICS)
def test_an_undefined_metric_is_a_dash(name: str) -> None:
    assert metric_text(name, None) == metric_text(name, float("nan")) == "–"
    assert metric_text(name, 0.5) in ("50.00%", "0.5000")
