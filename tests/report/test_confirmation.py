"""The confirmation of a comparison on test images: its arithmetic, its record, and its places."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fabricated import predictions, write_comparison

from runner.errors import ArtefactError
from runner.records.comparison_folder import BASE, ComparisonFolder
from runner.records.evaluations_on_test import PredictionsOnTest
from runner.report import text
from runner.report.answer import answer as report_answer
from runner.report.comparison_json import from_json, to_json
from runner.report.comparison_text import comparison_parts
from runner.report.comparisons import ComparisonAnswer, standings
from runner.report.confirmation import (
    Confirmation,
    confirmed,
    counted,
    of_answer,
    record,
    with_recorded,
)
from runner.report.found_comparisons import find_comparisons
from runner.report.metric import METRICS
from runner.report.page import comparison_page
from runner.report.runs import Found
from runner.report.scores import ScoreBook
from runner.report.statistics import difference
from runner.terminal.tables import Table
from runner.training.metrics import classification_metrics

ACCURACIES = {BASE: 0.6, "mixup": 0.8, "normalize": 0.5}
FINGERPRINT = "a" * 64


@pytest.fixture
def folder(tmp_path: Path) -> ComparisonFolder:
    """A comparison of two arms that has ended."""
    arms = {"mixup": [0.9, 0.92, 0.91], "normalize": [0.7, "diverged", 0.72]}
    outputs = tmp_path / "outputs"
    found = write_comparison(outputs, arms, base=[0.7, 0.71, 0.72], max_seeds=3, is_fixed=True)
    book = ScoreBook(tmp_path / "scores.npz")
    with found.locked():
        found.write_answer(to_json(standings(found.plan(), found.runs(), outputs, book)))
    return found


def answered(folder: ComparisonFolder) -> ComparisonAnswer:
    return from_json(folder.answer() or {})


def on_test(answer: ComparisonAnswer, num_images: int = 90) -> Confirmation:
    """The confirmation from drawn predictions."""
    found = {}
    for label, seed in counted(answer):
        labels, probabilities = predictions(ACCURACIES[label], num_images, seed=seed)
        found[label, seed] = PredictionsOnTest(labels, probabilities)
    return confirmed(answer, found, FINGERPRINT)


def test_the_numbers_are_those_of_the_pairs(folder: ComparisonFolder) -> None:
    answer = answered(folder)
    found = on_test(answer)
    assert [one.label for one in found.arms] == ["mixup", "normalize"]
    mixup, normalize = found.arms
    assert found.base.values == dict.fromkeys(range(3), pytest.approx(0.6))
    assert (found.base.mean, found.base.interval) == (None, None)
    assert mixup.values == dict.fromkeys(range(3), pytest.approx(0.8))
    assert mixup.mean == pytest.approx(0.2)
    assert [*normalize.values] == [0, 2], "the seeds that have a pair"
    rows = {}
    for label in (BASE, "mixup"):
        drawn = [predictions(ACCURACIES[label], 90, seed=seed) for seed in range(3)]
        rows[label] = np.stack([p.argmax(axis=1) == labels for labels, p in drawn])
    expected = difference(rows["mixup"].astype(float), rows[BASE].astype(float), 0.01)
    assert mixup.interval == expected.over_both


@pytest.mark.parametrize("name", ["log_loss", "macro_f1"])
def test_it_is_about_the_metric_of_the_comparison(folder: ComparisonFolder, name: str) -> None:
    answer = answered(folder)
    answer = replace(answer, plan=replace(answer.plan, metric=name))
    found = on_test(answer)
    assert found.metric == name
    for label, side in ((BASE, found.base), ("mixup", found.arms[0])):
        for seed in range(3):
            labels, probabilities = predictions(ACCURACIES[label], 90, seed=seed)
            expected = classification_metrics(probabilities, labels, ("a", "b", "c"))[name]
            assert side.values[seed] == pytest.approx(expected, abs=1e-6)
    mean = found.arms[0].mean
    assert mean is not None
    assert (mean < 0) == (name == "log_loss")
    (shown,) = [part for part in comparison_parts(replace(answer, confirmation=found))
                if isinstance(part, Table) and "test images" in part.title]  # fmt: skip
    assert METRICS[name].heading in shown.columns


def test_other_images_are_refused(folder: ComparisonFolder) -> None:
    answer = answered(folder)
    labels, probabilities = predictions(0.5, 30, seed=0)
    found = {place: PredictionsOnTest(labels, probabilities) for place in counted(answer)}
    found["mixup", 1] = PredictionsOnTest(labels[::-1], probabilities)
    with pytest.raises(ArtefactError, match="different images"):
        confirmed(answer, found, FINGERPRINT)


def test_it_is_recorded_apart_and_shown_everywhere(folder: ComparisonFolder) -> None:
    answer = answered(folder)
    before = (folder.path / "answer.json").read_bytes()
    plain = to_json(answer), text_of(answer), comparison_page(answer, None)
    assert with_recorded(answer, folder) == answer
    found = on_test(answer)
    record(folder, found)
    assert (folder.path / "answer.json").read_bytes() == before
    confirmed_answer = with_recorded(answer, folder)
    assert confirmed_answer.confirmation == found
    content = to_json(confirmed_answer)["confirmation"]
    assert content["is_verdict"] is False
    assert content["arms"][0]["difference"] == pytest.approx(0.2)
    assert json.loads(json.dumps(content)) == content
    assert {**to_json(confirmed_answer)} == {**plain[0], "confirmation": content}
    shown = text_of(confirmed_answer)
    assert "no verdict" in shown
    assert "+20.00" in shown
    assert plain[1] == shown.replace(shown_table(confirmed_answer), "")
    page = comparison_page(confirmed_answer, None)
    assert "On the test images" in page
    assert "On the test images" not in plain[2]
    verdicts = [one.verdict for one in answer.standings]
    assert [one.verdict for one in confirmed_answer.standings] == verdicts
    listed = find_comparisons([folder.outputs], ScoreBook(folder.path / "none.npz"))
    assert listed.answers[0].confirmation == found
    report = report_answer(Found(), ScoreBook(folder.path / "none.npz"), 0.01, comparisons=listed)
    lines = [line for line in text.csv(report).splitlines() if "confirmation on test" in line]
    assert len(lines) == 3


def text_of(answer: ComparisonAnswer) -> str:
    parts = comparison_parts(answer)
    return "\n".join(part if isinstance(part, str) else part.markdown() for part in parts)


def shown_table(answer: ComparisonAnswer) -> str:
    tables = [part for part in comparison_parts(answer) if isinstance(part, Table)]
    return tables[-1].markdown() + "\n"


def test_leaked_test_images_are_named_and_recorded(folder: ComparisonFolder) -> None:
    answer = answered(folder)
    found = replace(on_test(answer), num_leaked=7)
    assert "which no training" not in found.title
    record(folder, found)
    again = with_recorded(answer, folder)
    assert again.confirmation == found
    assert to_json(again)["confirmation"]["num_leaked"] == 7
    for shown in (text_of(again), comparison_page(again, None)):
        assert "7 of which are in training or validation too" in shown
        assert "which no training" not in shown


def test_it_belongs_to_one_answer_and_may_not_be_edited(folder: ComparisonFolder) -> None:
    answer = answered(folder)
    record(folder, on_test(answer))
    path = folder.path / "confirmation.json"
    with folder.locked():
        folder.write_answer(to_json(replace(answer, notes=("another answer",))))
    assert folder.confirmation() is not None
    assert of_answer(folder) is None, "so that the command makes another one"
    assert with_recorded(answer, folder).confirmation is None
    content = json.loads(path.read_text())
    content["confirmation"]["base"]["values"]["0"] = 0.9
    path.write_text(json.dumps(content))
    with pytest.raises(ArtefactError, match="it was edited"):
        with_recorded(answer, folder)
