"""Runs that differ only in TTA are one training with several evaluations."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import Command

from runner import train
from runner.config.schema import RunConfig
from runner.records import evaluations
from runner.records.run_folder import RunFolder
from runner.report.runs import find_runs

Composed = Callable[..., RunConfig]
TTA = ("tta=flip", "tta=book", "tta=none")


@pytest.fixture
def words(tiny_folder: Path, tmp_path: Path) -> list[str]:
    return [
        "data=folder", f"data.root={tiny_folder}", "data.batch_size=24", "resize.size=16",
        "model=timm", "model.name=test_resnet", "budget.epochs=1", "threads=1",
        "precision=fp32", f"outputs={tmp_path / 'outputs'}",
    ]  # fmt: skip


@pytest.fixture
def trained(composed: Composed, words: list[str]) -> Callable[..., tuple[str, Path]]:
    """Trains or evaluates with more words; how it came to its result, and the folder."""

    def run(*more: str) -> tuple[str, Path]:
        summary = train.run(composed(*words, *more), [*words, *more])
        return summary["status"], Path(summary["folder"])

    return run


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file of a run outside its evaluations, with its inode, time and content."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()
        )
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "evaluations" and path.name != "run.lock"
    }  # fmt: skip


def kept(folder: Path) -> dict[str, dict[str, Any]]:
    """The evaluations of a run by name: the content of each, and its ``probabilities``."""
    run = RunFolder(folder)
    return {
        name: {
            **(evaluations.read(run, name) or {}),
            "probabilities": evaluations.probabilities(run, name),
        }
        for name in evaluations.names(run)
    }


@pytest.mark.parametrize("order", [TTA, TTA[::-1]], ids=["flip first", "none first"])
def test_three_commands_that_differ_in_tta_train_once(
    trained: Callable[..., tuple[str, Path]], order: tuple[str, ...]
) -> None:
    status, folder = trained(order[0])
    assert status == "finished"
    before = snapshot(folder)
    for word in order[1:]:
        status, again = trained(word)
        assert again == folder
        assert status == ("skipped" if word == "tta=none" else "evaluated")
    for word in order:
        assert trained(word) == ("skipped", folder)
    assert snapshot(folder) == before, "nothing of the training was written again"
    assert sorted(tuple(run.tricks) for run in find_runs([folder]).runs) == [
        (), ("tta",), ("tta",),
    ]  # fmt: skip
    # What changes the weights is another run, so the check above could fail.
    assert trained("seed=1")[0] == "finished"


def test_an_evaluation_afterwards_is_that_of_the_end_of_training(
    trained: Callable[..., tuple[str, Path]], tmp_path: Path
) -> None:
    tricks = "+trick=[mixup,ema]"
    at_once = trained(tricks, "ema.span=1", "tta=book")[1]
    elsewhere = f"outputs={tmp_path / 'elsewhere'}"
    later = trained(tricks, "ema.span=1", elsewhere)[1]
    assert trained(tricks, "ema.span=1", elsewhere, "tta=book") == ("evaluated", later)
    assert trained(tricks, "ema.span=1", elsewhere, "tta=flip") == ("evaluated", later)
    assert later.name == at_once.name
    (name, first), found = *kept(at_once).items(), kept(later)
    second = found.pop(name)
    for key in ("evaluation", "identity", "tricks", "tta", "metrics"):
        assert second[key] == first[key]
    assert np.array_equal(second["probabilities"], first["probabilities"])
    (other,) = found.values()  # negative control
    assert not np.array_equal(other["probabilities"], first["probabilities"])
    plain = RunFolder(later).predictions()["plain"]
    assert not np.array_equal(first["probabilities"], plain)


def test_what_evaluate_keeps_answers_train_and_the_report(
    command: Command, words: list[str], trained: Callable[..., tuple[str, Path]]
) -> None:
    folder = trained()[1]
    before = snapshot(folder)
    done = command(str(folder), "-m", "tta=flip,ten_crop", module="runner.evaluate")
    assert done.returncode == 0, done.stderr
    assert snapshot(folder) == before
    assert [len(found["command"]) for found in kept(folder).values()] == [3 + len(words) + 1] * 2, (
        "each has the command that repeats it"
    )
    for found in kept(folder).values():
        assert found["command"][-1] in ("tta=flip", "tta=ten_crop")
        assert trained(found["command"][-1]) == ("skipped", folder)
    assert trained("tta=scales") == ("evaluated", folder)
    answer = command(str(folder), "--csv", "-", module="runner.report")
    assert len({line.split(",")[2] for line in answer.stdout.splitlines()}) >= 2
    assert len(find_runs([folder]).runs) == 4


def test_an_evaluation_that_does_not_reproduce_the_run_is_not_kept(
    command: Command, trained: Callable[..., tuple[str, Path]]
) -> None:
    folder = trained()[1]
    done = command(str(folder), "tta=flip", "precision=bf16", module="runner.evaluate")
    assert done.returncode == 0, done.stderr
    assert "the plain row differs" in done.stderr
    assert kept(folder) == {}


def test_a_process_that_was_killed_before_the_evaluation_is_continued_by_it(
    trained: Callable[..., tuple[str, Path]],
) -> None:
    folder = trained("tta=flip")[1]
    before, evaluated = snapshot(folder), kept(folder)
    (name,) = evaluated
    (folder / "evaluations" / f"{name}.json").unlink()  # the proof, written last
    assert trained("tta=flip") == ("evaluated", folder)
    assert snapshot(folder) == before
    again = kept(folder)[name]
    assert again["metrics"] == evaluated[name]["metrics"]
    assert np.array_equal(again["probabilities"], evaluated[name]["probabilities"])


@pytest.mark.parametrize(
    "content", ["", "{", "[" * 100_000, '{"record_version": 99}', '{"record_version": 5}']
)
def test_a_damaged_evaluation_is_named_and_harms_no_other(
    command: Command, words: list[str], trained: Callable[..., tuple[str, Path]], content: str
) -> None:
    folder = trained("tta=flip")[1]
    (name,) = kept(folder)
    path = folder / "evaluations" / f"{name}.json"
    path.write_text(content)
    done = command(*words, "tta=flip")
    assert done.returncode == 7
    assert str(path) in done.stderr
    assert "remove the file" in done.stderr
    found = find_runs([folder])
    assert [run.tricks for run in found.runs] == [()]
    assert [run.status for run in found.unranked] == ["unreadable"]
    assert trained() == ("skipped", folder)


def test_force_removes_what_was_evaluated_before(
    trained: Callable[..., tuple[str, Path]],
) -> None:
    folder = trained("tta=flip")[1]
    assert trained("force=true", "tta=book") == ("finished", folder)
    assert [found["tta"]["passes"] for found in kept(folder).values()] == [4]


@pytest.mark.whole
def test_a_sweep_over_tta_trains_once(process: Command, words: list[str], tmp_path: Path) -> None:
    done = process("-m", *words, ",".join(["tta=none", "flip", "book"]), "seed=0,1")
    assert done.returncode == 0, done.stderr
    assert "2 finished, 4 evaluated" in done.stdout
    results = list((tmp_path / "outputs").glob("*/result.json"))
    assert len(results) == 2
    for path in results:
        assert len(json.loads(path.read_text())["metrics"]) == 1
        assert len(kept(path.parent)) == 2
