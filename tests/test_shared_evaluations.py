"""A job evaluates in one pass for other jobs that differ from it only in TTA."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small import Command

from runner import train
from runner.config.requested import Requested, by_training
from runner.config.schema import RunConfig, Tta
from runner.errors import DivergedError
from runner.machine.signals import Interrupted
from runner.records import evaluations
from runner.records.run_folder import RunFolder
from runner.records.sweep_folder import SweepFolder
from runner.training import session
from runner.tricks.tta import share_of_cost

Composed = Callable[..., RunConfig]
Trained = Callable[..., tuple[dict[str, Any], Path]]
OTHERS = ("tta=flip", "tta=ten_crop", "tta=none")


@pytest.fixture
def words(tiny_folder: Path) -> list[str]:
    return [
        "data=folder", f"data.root={tiny_folder}", "data.batch_size=24", "resize.size=16",
        "model=timm", "model.name=test_resnet", "budget.epochs=1", "threads=1",
    ]  # fmt: skip


@pytest.fixture
def trained(composed: Composed, words: list[str], tmp_path: Path) -> Trained:
    """Runs a job that also evaluates for ``others``; its summary, and the folder of the run."""

    def run(
        *more: str, others: tuple[str, ...] = (), outputs: str = "outputs"
    ) -> tuple[dict[str, Any], Path]:
        place = [*words, f"outputs={tmp_path / outputs}"]
        requested = [Requested(composed(*place, one), (*place, one)) for one in others]
        summary = train.run(composed(*place, *more), [*place, *more], requested)
        return summary, Path(summary["folder"])

    return run


def kept(folder: Path) -> dict[str, tuple[dict[str, Any], bytes]]:
    """The evaluations of a run by name: the content without what the clock decides, and numbers."""
    run = RunFolder(folder)
    found = {}
    for name in evaluations.names(run):
        content = dict(evaluations.read(run, name) or {})
        del content["seconds"], content["command"]
        found[name] = content, evaluations.probabilities(run, name).tobytes()
    return found


def statuses(summary: dict[str, Any]) -> list[str | None]:
    return [None if one is None else one["status"] for one in summary["others"]]


@pytest.mark.parametrize("own", ["tta=book", pytest.param("tta=none", marks=pytest.mark.whole)])
def test_evaluations_in_one_pass_are_those_of_jobs_of_their_own(trained: Trained, own: str) -> None:
    alone = trained("tta=none", outputs="alone")[1]
    names = {own: trained(own, outputs="alone")[0]["evaluation"]}
    for other in OTHERS:
        summary, _ = trained(other, outputs="alone")
        names[other] = summary["evaluation"]
        assert "others" not in summary
    summary, folder = trained(own, others=OTHERS)
    assert summary["status"] == "finished"
    assert statuses(summary) == ["evaluated", "evaluated", "skipped"]
    assert [one["evaluation"] for one in summary["others"]] == [names[one] for one in OTHERS]
    assert {one["folder"] for one in summary["others"]} == {str(folder)}
    assert kept(folder) == kept(alone)
    assert len({content for _, content in kept(folder).values()}) == len(kept(folder)) >= 2
    for other in OTHERS[:2]:
        found = evaluations.read(RunFolder(folder), str(names[other])) or {}
        assert found["command"][-1] == other, "each has the command that repeats it"
        assert trained(other)[0]["status"] == "skipped"
    again, _ = trained(own, others=OTHERS)
    assert again["status"] == "skipped"
    assert statuses(again) == ["skipped"] * 3


def test_one_job_makes_all_missing_evaluations_of_a_finished_run(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained("tta=flip")
    passes = list[int]()
    real = session.evaluate_variants

    def counted(learner: Any, dataset: Any, config: Any, variants: Any, **more: Any) -> Any:
        passes.append(len(variants))
        return real(learner, dataset, config, variants, **more)

    monkeypatch.setattr(session, "evaluate_variants", counted)
    summary, folder = trained("tta=book", others=("tta=ten_crop", "tta=flip", "tta=scales"))
    assert (summary["status"], statuses(summary)) == (
        "evaluated",
        ["evaluated", "skipped", "evaluated"],
    )
    assert passes == [3], "one pass over the images, for what was missing"
    assert len(kept(folder)) == 4


def test_an_evaluation_that_fails_fails_for_its_own_job_alone(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained("tta=book", others=OTHERS, outputs="whole")[1]
    real = session.evaluate_variants

    def refusing(learner: Any, dataset: Any, config: Any, variants: Any, **more: Any) -> Any:
        if any(tta.crops > 1 or tta.corners for tta in variants):
            raise DivergedError("a prediction is not finite")
        return real(learner, dataset, config, variants, **more)

    monkeypatch.setattr(session, "evaluate_variants", refusing)
    summary, folder = trained("tta=book", others=OTHERS)
    assert summary["status"] == "finished"
    assert statuses(summary) == [None, None, "skipped"], "the other jobs run themselves"
    assert trained("tta=flip")[0]["status"] == "evaluated"
    with pytest.raises(DivergedError):
        trained("tta=ten_crop")
    monkeypatch.undo()
    assert trained("tta=ten_crop")[0]["status"] == "evaluated"
    assert kept(folder) == kept(whole)


def test_a_signal_during_the_pass_loses_no_training(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained("tta=none", others=OTHERS, outputs="whole")[1]

    def stopped(*_: Any, **more: Any) -> Any:
        raise Interrupted(15)

    monkeypatch.setattr(session, "evaluate_variants", stopped)
    with pytest.raises(Interrupted):
        trained("tta=none", others=OTHERS)
    monkeypatch.undo()
    summary, folder = trained("tta=none", others=OTHERS)
    assert (summary["status"], statuses(summary)) == ("skipped", [None, None, "skipped"])
    assert statuses(trained("tta=flip", others=OTHERS[1:])[0]) == ["evaluated", "skipped"]
    assert kept(folder) == kept(whole)


def test_a_damaged_evaluation_is_left_to_its_job(trained: Trained) -> None:
    summary, folder = trained("tta=flip")
    path = folder / "evaluations" / f"{summary['evaluation']}.json"
    path.write_text("{")
    assert statuses(trained("tta=book", others=OTHERS)[0]) == [None, "evaluated", "skipped"]
    assert path.read_text() == "{"


def test_each_has_its_share_of_the_seconds(trained: Trained) -> None:
    _, folder = trained("tta=none", others=("tta=flip", "tta=ten_crop"))
    found = [evaluations.read(RunFolder(folder), name) for name in kept(folder)]
    seconds = {
        one["tta"]["crops"] + 4 * one["tta"]["corners"]: one["seconds"] for one in found if one
    }
    few, many = sorted(seconds.values())
    # Ten views of which one is known, and one of two; the mirrored one is in both.
    assert many == pytest.approx(9 * few)


def test_the_share_of_a_variant() -> None:
    flip, scales = Tta(flip=True), Tta(scales=(1.0, 2.0))
    assert share_of_cost(flip, [flip]) == 1.0
    assert share_of_cost(flip, [flip, scales]) == pytest.approx(1 / 5)
    assert share_of_cost(scales, [flip, scales]) == pytest.approx(4 / 5)
    assert share_of_cost(Tta(), [Tta()]) == 1.0, "a known view alone"


def test_jobs_of_one_training_are_found(composed: Composed) -> None:
    jobs = [("seed=0",), ("tta=flip", "seed=1"), ("tta=book", "seed=0"), ("tta=flip", "seed=0"),
            ("mixup=beta", "tta=flip", "seed=0"), ("tta=flip", "seed=0", "force=true")]  # fmt: skip
    configs = {number: composed(*job) for number, job in enumerate(jobs)}
    assert by_training(range(6), configs) == {0: (2, 3)}
    assert by_training((3, 2, 0), configs) == {3: (2, 0)}
    del configs[0]
    assert by_training(range(6), configs) == {2: (3,)}


@pytest.mark.whole
@pytest.mark.parametrize("launcher", [(), ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")])
def test_a_sweep_evaluates_each_training_once(
    process: Command, words: list[str], tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    words = [*words, f"outputs={tmp_path / 'outputs'}"]
    done = process("-m", *words, "tta=none,flip,book,ten_crop", "seed=0,1", *launcher)
    assert done.returncode == 0, done.stderr
    assert "2 finished, 6 evaluated" in done.stdout
    (sweep,) = SweepFolder.all_in(tmp_path / "outputs")
    for seed in ("seed=0", "seed=1"):
        own = [number for number, job in enumerate(sweep.jobs()) if job[-1] == seed]
        assert len({sweep.read(number)["pid"] for number in own}) == 1, "one process for a seed"
