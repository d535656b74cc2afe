"""The cache of right and wrong: it gives what reading anew would give, whatever its file is."""

import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated import predictions, saved, write_run

from runner.errors import ArtefactError
from runner.records import evaluations
from runner.records.run_folder import RunFolder, packed, require_metrics
from runner.report.classes import class_means
from runner.report.groups import group_runs
from runner.report.metric import METRICS
from runner.report.runs import FinishedRun, StoredPredictions, find_runs
from runner.report.scores import ScoreBook

NUM_IMAGES = 37  # no multiple of 8, which bits are packed by


@pytest.fixture
def runs(tmp_path: Path) -> list[FinishedRun]:
    """By seed: 0, 1 and 2."""
    for seed in range(3):
        write_run(
            tmp_path / "outputs", "tta", seed=seed, name=f"run{seed}", num_images=NUM_IMAGES,
            accuracy=0.4 + 0.1 * seed, tta_accuracy=0.9, is_old=True,
        )  # fmt: skip
    return find_runs([tmp_path / "outputs"]).runs


@pytest.fixture
def book(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "cache" / "report.npz"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs whose predictions are read, as they are."""
    names: list[str] = []
    original = FinishedRun.predictions

    def read(self: FinishedRun) -> StoredPredictions:
        names.append(self.name)
        return original(self)

    monkeypatch.setattr(FinishedRun, "predictions", read)
    return names


def right(run: FinishedRun, view: str) -> list[bool]:
    """Image by image, from the file."""
    found = saved(RunFolder(run.path), view)
    rows, labels = found["probabilities"].tolist(), found["labels"].tolist()
    return [row.index(max(row)) == label for row, label in zip(rows, labels, strict=True)]


def check(path: Path, runs: list[FinishedRun]) -> None:
    """All scores are those of the files, and all runs are on the same images."""
    found = ScoreBook(path)
    for run in runs:
        scores = found.scores(run)
        for view in ("plain", "tta"):
            assert scores.correct[view].tolist() == right(run, view)
        named = RunFolder(run.path).predictions().get("groups")
        assert (scores.groups is None) == (named is None)
        if named is not None:
            np.testing.assert_array_equal(scores.groups, named)
    assert len({found.scores(run).labels for run in runs}) == 1


def fill(path: Path, runs: list[FinishedRun]) -> None:
    written = ScoreBook(path)
    for run in runs:
        written.scores(run)
    written.save()
    assert path.is_file()


def name_groups(run: FinishedRun, groups: np.ndarray) -> None:
    """Add groups of images to the predictions of a run."""
    folder = RunFolder(run.path)
    folder.write_bytes("predictions.npz", packed(**{**folder.predictions(), "groups": groups}))


def rewrite(run: FinishedRun, accuracy: float, *, seconds: int = 2, shift: int = 0) -> None:
    """Other predictions in the place of a run's, of the same size on disk but of another time."""
    labels, plain = predictions(accuracy, NUM_IMAGES, seed=99)
    labels, plain = np.roll(labels, shift), np.roll(plain, shift, axis=0)
    path = run.path / "predictions.npz"
    np.savez(path, labels=labels, plain=plain, tta=plain)
    os.utime(path, (seconds, seconds))


def test_what_is_remembered_is_what_would_be_read(
    runs: list[FinishedRun], book: Path, reads: list[str]
) -> None:
    fill(book, runs)
    assert reads == ["run0", "run1", "run2"]
    check(book, runs)
    assert len(reads) == 3, "nothing is read twice"
    assert len({tuple(right(run, "plain")) for run in runs}) == 3, "or the check could not fail"


def test_runs_are_remembered_in_any_order_and_added_to(
    runs: list[FinishedRun], book: Path, reads: list[str]
) -> None:
    fill(book, [runs[2]])
    fill(book, [runs[0]])
    fill(book, [runs[1]])
    assert reads == ["run2", "run0", "run1"]
    check(book, runs)
    assert len(reads) == 3


def test_changed_predictions_are_read_anew(
    runs: list[FinishedRun], book: Path, reads: list[str]
) -> None:
    path = runs[1].path / "predictions.npz"
    rewrite(runs[1], 0.5, seconds=1)
    fill(book, runs)
    before, size = right(runs[1], "plain"), path.stat().st_size
    rewrite(runs[1], 0.9)
    assert right(runs[1], "plain") != before
    assert path.stat().st_size == size, "only the time tells"
    check(book, runs)
    assert reads == ["run0", "run1", "run2", "run1"]
    fill(book, runs)
    reads.clear()
    check(book, runs)
    assert reads == []


def test_a_changed_evaluation_is_read_anew(tmp_path: Path, book: Path) -> None:
    folder = write_run(tmp_path / "outputs", "tta", num_images=NUM_IMAGES, tta_accuracy=0.9)
    plain, run = find_runs([tmp_path / "outputs"]).runs
    fill(book, [plain, run])
    before = ScoreBook(book).scores(run)
    assert before.correct["tta"].tolist() == right(run, "tta") != right(run, "plain")
    (name,) = evaluations.names(folder)
    content = evaluations.read(folder, name)
    assert content is not None
    evaluations.write(folder, name, content, folder.predictions()["plain"])
    os.utime(folder.path / "evaluations" / f"{name}.npz", (2, 2))
    assert ScoreBook(book).scores(run).correct["tta"].tolist() == right(run, "plain")


def test_other_labels_are_told(runs: list[FinishedRun], book: Path) -> None:
    fill(book, runs)
    rewrite(runs[1], 0.5, shift=1)
    found = ScoreBook(book)
    assert found.scores(runs[0]).labels == found.scores(runs[2]).labels
    assert found.scores(runs[0]).labels != found.scores(runs[1]).labels


def test_groups_are_remembered_once_and_told_apart(
    runs: list[FinishedRun], book: Path, reads: list[str]
) -> None:
    halves, thirds = np.arange(NUM_IMAGES) // 2, np.arange(NUM_IMAGES) // 3
    for run, groups in zip(runs, (halves, halves, thirds), strict=True):
        name_groups(run, groups)
    fill(book, runs)
    with np.load(book) as file:
        assert len(file["names"]) == 3 * NUM_IMAGES, "runs on the same data share them"
    reads.clear()
    check(book, runs)
    found = [ScoreBook(book).scores(run).grouping for run in runs]
    assert found[0] == found[1] != found[2]
    assert reads == []
    name_groups(runs[2], halves)
    fill(book, runs)
    with np.load(book) as file:
        assert len(file["names"]) == 2 * NUM_IMAGES, "what no run uses is dropped"
    check(book, runs)


@pytest.mark.parametrize("damage", ["removed", "emptied"])
def test_predictions_that_are_gone_are_not_remembered(
    damage: str, runs: list[FinishedRun], book: Path
) -> None:
    fill(book, runs)
    path = runs[0].path / "predictions.npz"
    path.unlink() if damage == "removed" else path.write_bytes(b"")
    with pytest.raises(ArtefactError):
        ScoreBook(book).scores(runs[0])


def test_within_one_report_a_run_is_read_once(runs: list[FinishedRun], book: Path) -> None:
    # Somebody may remove or rewrite a run between two looks at it; the report must not end there.
    found = ScoreBook(book)
    before = found.scores(runs[0]).correct["plain"].tolist()
    (runs[0].path / "predictions.npz").unlink()
    assert found.scores(runs[0]).correct["plain"].tolist() == before


def test_a_book_without_news_is_not_written(runs: list[FinishedRun], book: Path) -> None:
    fill(book, runs)
    before = book.stat().st_mtime_ns, book.stat().st_ino
    fill(book, runs)
    assert (book.stat().st_mtime_ns, book.stat().st_ino) == before
    ScoreBook(book.with_name("other.npz")).save()
    assert not book.with_name("other.npz").exists()


# ── A cache file that is not as we wrote it ────────────────────────────────────────────────────


def archive(**arrays: Any) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def changed(whole: bytes, change: Callable[[dict[str, Any], np.ndarray], Any]) -> bytes:
    """The file with its index, or its bits where ``change`` gives any, replaced."""
    with np.load(io.BytesIO(whole)) as file:
        index, bits = json.loads(file["index"].tobytes()), file["bits"]
        rest = {name: file[name] for name in ("names", "f4", "f8")}
    bits = given if (given := change(index, bits)) is not None else bits
    packed = np.frombuffer(json.dumps(index).encode(), np.uint8)
    return archive(index=packed, bits=bits, **rest)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "text": lambda whole: b"scores",
    "truncated": lambda whole: whole[:-30],
    "half": lambda whole: whole[: len(whole) // 2],
    "flipped": lambda whole: whole[:200] + bytes([whole[200] ^ 255]) + whole[201:],
    "another archive": lambda whole: archive(labels=np.arange(3)),
    "index no JSON": lambda whole: archive(index=np.zeros(3, np.uint8), bits=np.zeros(9, np.uint8)),
    "nested index": lambda whole: archive(
        index=np.frombuffer(b"[" * 200_000, np.uint8), bits=np.zeros(9, np.uint8)
    ),
    "the format before other metrics": lambda whole: changed(
        whole, lambda index, bits: index.update(format=3)
    ),
    "other groups": lambda whole: changed(
        whole, lambda index, bits: index.update(names=dict.fromkeys(index["names"], 36))
    ),
    "no such groups": lambda whole: changed(
        whole,
        lambda index, bits: [stamp.append("0" * 16) for stamp in index["stamps"].values()] and None,
    ),
    "another format": lambda whole: changed(whole, lambda index, bits: index.update(format=0)),
    "no stamps": lambda whole: changed(whole, lambda index, bits: index.pop("stamps") and None),
    "bits missing": lambda whole: changed(whole, lambda index, bits: bits[:15]),
    "bits of another kind": lambda whole: changed(
        whole, lambda index, bits: bits.astype(np.float64)
    ),
    "stamps of another kind": lambda whole: changed(
        whole, lambda index, bits: index.update(stamps=[1, 2, 3])
    ),
    "stamps of texts": lambda whole: changed(
        whole, lambda index, bits: index.update(stamps=dict.fromkeys(index["stamps"], "x"))
    ),
}


def test_a_metric_without_a_value_costs_no_other_run_its_scores(
    book: Path, tmp_path: Path, reads: list[str]
) -> None:
    write_run(tmp_path / "outputs", classes=("one", "two"), num_images=1)  # of one class
    found = find_runs([tmp_path / "outputs"]).runs
    opened = ScoreBook(book)
    assert np.isnan(opened.measured(found[0], "plain", METRICS["auroc"]).value)
    opened.save()
    reads.clear()
    ScoreBook(book).scores(found[0])
    assert reads == []


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_made_anew(damage: str, runs: list[FinishedRun], book: Path) -> None:
    for run in runs:
        name_groups(run, np.arange(NUM_IMAGES) // 2)
    fill(book, runs)
    book.write_bytes(DAMAGE[damage](book.read_bytes()))
    check(book, runs)
    # Once more through the file that takes the place of the damaged one, read in another order.
    fill(book, runs[::-1])
    check(book, runs)


def test_a_folder_in_the_place_of_the_cache_does_no_harm(
    runs: list[FinishedRun], book: Path
) -> None:
    book.mkdir(parents=True)
    found = ScoreBook(book)
    found.scores(runs[0])
    found.save()
    check(book, runs)


def test_a_cache_that_cannot_be_written_does_no_harm(
    runs: list[FinishedRun], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "report.npz"
    found = ScoreBook(path)
    found.scores(runs[0])
    found.save()
    check(path, runs)


def test_two_reports_at_once(runs: list[FinishedRun], book: Path) -> None:
    first, second = ScoreBook(book), ScoreBook(book)
    first.scores(runs[0])
    second.scores(runs[1])
    first.save()
    second.save()
    check(book, runs)


def test_many_reports_at_once_leave_a_cache_that_does_no_harm(
    runs: list[FinishedRun], book: Path
) -> None:
    errors: list[BaseException] = []

    def report(order: list[FinishedRun]) -> None:
        try:
            for count in (1, 2, 3):
                found = ScoreBook(book)
                for run in order[:count]:
                    assert found.scores(run).correct["plain"].tolist() == right(run, "plain")
                found.save()
        except BaseException as error:  # a thread's error is seen by nobody else
            errors.append(error)

    threads = [threading.Thread(target=report, args=(order,)) for order in (runs, runs[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    check(book, runs)


def _make_older(folder: RunFolder) -> None:
    """Write the metrics of a run and its evaluations as versions before class metrics did."""
    for path in [folder.path / "result.json", *(folder.path / "evaluations").glob("*.json")]:
        found = json.loads(path.read_text())
        views = found["metrics"].values() if path.name == "result.json" else [found["metrics"]]
        for metrics in views:
            metrics["nll"] = metrics.pop("log_loss")
            for name in ("balanced_accuracy", "macro_f1", "auroc"):
                del metrics[name]
            metrics["per_class"] = {
                name: {"accuracy": scores["recall"], "n": scores["support"]}
                for name, scores in metrics["per_class"].items()
            }
        path.write_text(json.dumps(found))


@pytest.mark.parametrize("is_old", [True, False], ids=["record version 4", "evaluations apart"])
def test_metrics_of_earlier_runs_come_from_their_predictions_once(
    tmp_path: Path, book: Path, reads: list[str], is_old: bool
) -> None:
    folder = write_run(tmp_path / "outputs", "tta", accuracy=0.5, tta_accuracy=0.9, is_old=is_old)
    expected = find_runs([tmp_path / "outputs"]).runs
    assert all(run.has_all_metrics for run in expected)
    means = [[class_means(arm) for arm in group_runs([run])[0].arms] for run in expected]
    assert reads == []
    _make_older(folder)
    older = find_runs([tmp_path / "outputs"]).runs
    assert [run.has_all_metrics for run in older] == [False] * len(expected)
    assert [run.metrics["tta"]["log_loss"] for run in older] == [
        run.metrics["tta"]["log_loss"] for run in expected
    ]
    require_metrics((folder.result() or {})["metrics"]["plain"])
    first = ScoreBook(book)
    assert [first.completed(run).metrics for run in older] == [run.metrics for run in expected]
    assert len(reads) == len(older)
    first.save()
    second = ScoreBook(book)
    assert [second.completed(run).metrics for run in older] == [run.metrics for run in expected]
    assert len(reads) == len(older), "they are remembered"
    assert [[class_means(arm) for arm in group_runs([run])[0].arms] for run in older] == means, (
        "what is known of the classes comes from the predictions"
    )
    predictions_file = folder.path / "predictions.npz"
    labels, plain = predictions(0.25, 60, seed=9)
    predictions_file.write_bytes(
        packed(labels=labels, plain=plain, **({"tta": plain} if is_old else {}))
    )
    third = ScoreBook(book)
    changed = third.completed(older[0]).metrics["plain"]["balanced_accuracy"]
    assert changed == pytest.approx(0.25)
    predictions_file.write_bytes(packed(labels=labels, plain=3 * plain, tta=3 * plain))
    with pytest.raises(ArtefactError, match=r"cannot compute metrics: .* sum to 3"):
        ScoreBook(book).completed(older[0])


def test_a_metric_that_is_undefined_stays_so(tmp_path: Path, book: Path) -> None:
    folder = write_run(tmp_path / "outputs", classes=("one", "two"), num_images=1)
    (run,) = find_runs([tmp_path / "outputs"]).runs
    assert np.isnan(run.metrics["plain"]["auroc"])
    _make_older(folder)
    (older,) = find_runs([tmp_path / "outputs"]).runs
    for _ in range(2):
        opened = ScoreBook(book)
        assert np.isnan(opened.completed(older).metrics["plain"]["auroc"])
        opened.save()
