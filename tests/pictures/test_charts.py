"""Charts show the numbers that they were given, stay readable, and say what is seen."""

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from runner.pictures import charts
from runner.pictures.paper import picture_bytes

ROWS = [
    {
        "epoch": number, "train_loss": 2 / number, "val_loss": 3 / number,
        "val_accuracy": number / 10, "lr": 0.1 / number, "size": 16 * number,
    }
    for number in (1, 2, 3)
]  # fmt: skip
RNG = np.random.default_rng(0)


def lines(figure: Figure) -> list[list[float]]:
    return [list(line.get_ydata()) for axes in figure.axes for line in axes.lines]  # type: ignore[arg-type]


def texts(figure: Figure) -> str:
    return picture_bytes(figure, ".svg", "").decode()


def predictions(num_classes: int, num_images: int = 500) -> tuple[Any, Any]:
    labels = RNG.integers(0, num_classes, num_images)
    probabilities = RNG.dirichlet(np.ones(num_classes), num_images)
    return probabilities, labels


def test_curves_and_schedule_are_the_rows() -> None:
    assert np.allclose(lines(charts.curves(ROWS)), [[2, 1, 2 / 3], [3, 1.5, 1], [10, 20, 30]])
    assert np.allclose(lines(charts.schedule(ROWS)), [[0.1, 0.05, 0.1 / 3], [16, 32, 48]])
    assert "from 10.0% to 30.0% in 3 epochs" in charts.curves_alt(ROWS)
    assert "from 16 to 48 px" in charts.schedule_alt(ROWS)


def test_a_run_without_rows_is_said() -> None:
    for draw, alt in ((charts.curves, charts.curves_alt), (charts.schedule, charts.schedule_alt)):
        assert "no evaluation was recorded" in texts(draw([]))
        assert "no evaluation was recorded" in alt([])


def test_counts_are_those_of_scikit_learn() -> None:
    probabilities, labels = predictions(7)
    expected = confusion_matrix(labels, probabilities.argmax(axis=1), labels=range(7))
    assert np.array_equal(charts.counts(probabilities, labels, 7), expected)
    # A network may have more outputs than there are classes.
    assert charts.counts(probabilities, labels % 5, 5).shape == (5, 7)


def test_a_small_matrix_is_whole_and_a_large_one_its_most_frequent_mistakes() -> None:
    matrix = np.array([[8, 2, 0], [0, 10, 0], [5, 0, 0]])
    small = texts(charts.confusion(matrix, ["<a>", "$b$", "c"]))
    assert all(f">{share}<" in small for share in ("80", "20", "100"))
    assert "&lt;a&gt;" in small
    assert "$b$" in small
    assert charts.mistakes(matrix, "abc", 9) == [("c", "a", 5, 1.0), ("a", "b", 2, 0.2)]

    names = [f"class {place}" for place in range(1000)]
    large = np.diag(np.full(1000, 50))
    large[7, 11], large[900, 2] = 30, 4
    text = texts(charts.confusion(large, names))
    assert "30 (38%)" in text
    assert "→ class 11" in text
    assert len(text) < 100_000
    assert "class 7 taken for class 11 30 times" in charts.confusion_alt(large, names)
    assert "no mistakes" in texts(charts.confusion(np.diag(np.full(30, 5)), names[:30]))


def test_outputs_without_a_class_are_named() -> None:
    assert "output 2" in texts(charts.confusion(np.array([[1, 0, 4], [0, 1, 0]]), ["a", "b"]))


def test_reliability_is_accuracy_by_confidence() -> None:
    confidence = np.linspace(0.5, 1, 1000)
    labels = np.where(np.arange(1000) < 500, 1, 0)  # the less confident half is wrong
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    drawn = lines(charts.reliability(probabilities, labels))[1]
    assert drawn == [0] * 5 + [100] * 5
    assert "75.0%, the accuracy is 50.0%" in charts.reliability_alt(probabilities, labels)


@pytest.mark.parametrize("num_images", [1, 3, 10])
def test_few_images_are_drawn(num_images: int) -> None:
    found = predictions(3, num_images)
    assert b"<svg" in picture_bytes(charts.reliability(*found), ".svg", "")
    assert b"<svg" in picture_bytes(charts.curves(ROWS[:1]), ".svg", "")


def test_the_learning_rates_of_a_range_test_are_readable() -> None:
    rates = 10.0 ** np.linspace(-7, 1, 100)
    losses = 2.3 - 0.5 * np.clip(np.log10(rates) + 4, 0, 3)
    figure = charts.learning_rates(rates.tolist(), losses.tolist(), {"valley": 1e-3})
    text = picture_bytes(figure, ".svg", "alt").decode()
    assert all(f">{rate}<" in text for rate in ("1e-05", "0.001", "1"))
    assert "$" not in text, "a formula would be shown as it is written"
    assert ">valley: optim.lr=1.0e-03 (" in text
    assert not charts.learning_rates([1e-7], [2.3], {}).legends
