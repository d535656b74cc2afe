"""One run from configuration to result: what is on disk after success, failure and refusal."""

import csv
import gzip
import hashlib
import json
import re
import signal
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from small import (
    CLASSES,
    all_predictions,
    small_config,
    small_dataset,
    small_learner,
    small_network,
    whole_result,
)
from torch import nn

from runner.config.schema import (
    Augment,
    Budget,
    Checkpoint,
    Data,
    Mixup,
    Model,
    Normalize,
    Optim,
    Resize,
    Smoothing,
    Tta,
    to_dict,
)
from runner.data import preprocess
from runner.errors import (
    ArtefactError,
    BusyError,
    ConfigError,
    DivergedError,
    StorageError,
    TrainingError,
)
from runner.machine import hardware
from runner.machine.locks import locked
from runner.machine.processes import Processes
from runner.machine.signals import Interrupted, raise_on_signals
from runner.records import checkpoint, run_folder
from runner.records.bundle import read_bundle
from runner.records.run_folder import RunFolder
from runner.terminal.display import Display
from runner.training import learners, loop, session
from runner.training.experiment import Experiment
from runner.training.learners import build_learner
from runner.training.predicting import evaluate
from runner.training.session import train_and_evaluate

TRICKS = {
    "normalize": Normalize(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    "mixup": Mixup(probability=1.0),
    "smoothing": Smoothing(0.1),
    "tta": Tta(flip=True),
}


def small_model(source, name, num_outputs, *, seed, **_):
    return small_network(num_outputs, seed=seed)


@pytest.fixture(autouse=True)
def _small_models(monkeypatch):
    monkeypatch.setattr(learners, "build_model", small_model)


def what(config):
    values = {"optim": {"lr": config.optim.lr}, "seed": config.seed}
    return {"identity": "id-1", "fingerprint": "f" * 64, "values": values}


def attempt(folder, config, *, dataset=None, overrides=()):
    """How a run came to its result, and the result."""
    experiment = Experiment(config, dataset or small_dataset(), what(config), overrides)
    with Display() as display:
        return train_and_evaluate(experiment, folder, display)


def run(folder, config, **more):
    how, result = attempt(folder, config, **more)
    assert how == "finished"  # in one go
    return result


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")
    return small_config(**TRICKS, outputs=str(outputs), seed=5)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """The folder of a run with every trick on but progressive resizing, and its result."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learners, "build_model", small_model)
        result = run(folder, config, overrides=["seed=5", "+api_token=hush"])
    return folder, result


def status(folder):
    return json.loads((folder.path / "status.json").read_text())


def rows(folder, log="metrics.jsonl"):
    return [json.loads(line) for line in (folder.path / log).read_text().splitlines()]


def predictions(folder):
    return all_predictions(folder.path)


def cross_entropy(probabilities, labels):
    return float(F.nll_loss(torch.from_numpy(probabilities).double().log(), torch.tensor(labels)))


# ── What a finished run holds ──────────────────────────────────────────────────────────────────


def test_the_folder_holds_every_file_of_the_format(finished):
    folder, _ = finished
    listed = re.findall(r"^    ([a-z.]+)/?  ", run_folder.__doc__, re.MULTILINE)
    assert {"run.json", "config.yaml", "predictions.npz", "bundle", "result.json"} < set(listed)
    listed.remove("checkpoints")  # only while the run is unfinished
    assert {path.suffix for path in (folder.path / "evaluations").iterdir()} == {".json", ".npz"}
    listed.remove("code.py")  # only of a run with code
    listed.remove("figures")  # only on request
    listed.remove("logged")  # only of a run with a logger
    assert {path.name for path in folder.path.iterdir()} == {*listed, "run.lock"}
    assert {path.name for path in (folder.path / "bundle").iterdir()} == {
        "model.json", "model.safetensors",
    }  # fmt: skip
    assert status(folder)["status"] == "finished"


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize(
    ("every", "evaluated"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (3, [3, 5]), (9, [5])]
)
def test_rarer_evaluations_change_nothing_but_the_rows(
    config, tmp_path, monkeypatch, every, evaluated
):
    config = replace(config, budget=replace(config.budget, epochs=5))
    often, seldom = RunFolder(tmp_path / "often"), RunFolder(tmp_path / "seldom")
    expected = run(often, config)
    config = replace(config, eval=replace(config.eval, every=every))
    at_step(monkeypatch, 10, lambda: signal.raise_signal(signal.SIGTERM))  # within a row, resumed
    with pytest.raises(Interrupted):
        run(seldom, config)
    how, found = attempt(seldom, config)
    assert how == "resumed"
    assert found["metrics"] == expected["metrics"]
    assert [row["epoch"] for row in rows(seldom)] == evaluated
    # What was trained is counted once, whatever the rows.
    assert found["budget"]["images"] == expected["budget"]["images"] == rows(seldom)[-1]["images"]
    by_epoch = {row["epoch"]: row for row in rows(often)}
    before = 0
    for row in rows(seldom):
        whole = [by_epoch[epoch]["train_loss"] for epoch in range(before + 1, row["epoch"] + 1)]
        assert row["train_loss"] == pytest.approx(fmean(whole))
        assert row["val_loss"] == by_epoch[row["epoch"]]["val_loss"]
        before = row["epoch"]


def test_the_result_says_what_was_done(finished, config):
    folder, result = finished
    assert result == whole_result(folder.path)
    assert result["status"] == "finished"
    assert result["seed"] == 5
    assert result["tricks"] == ["normalize", "mixup", "label_smoothing", "tta"]
    assert result["config"] == to_dict(config)
    assert result["identity"] == "id-1"
    data = result["data"]
    assert (data["name"], data["fingerprint"]) == ("small", "f" * 64)
    assert (data["num_train"], data["num_val"]) == (33, 15)
    assert data["skipped"] == 1
    assert data["skipped_images"] == [{"image": "broken.png", "reason": "cut short"}]
    assert result["model"]["num_outputs"] == 3
    assert result["model"]["mean"] == [0.5, 0.5, 0.5]
    assert result["model"]["num_parameters"] == sum(p.numel() for p in small_network().parameters())
    environment = result["environment"]
    assert environment["torch"] == torch.__version__
    assert (environment["precision"], environment["threads"]) == ("fp32", 1)


def test_the_budget_is_what_was_used(finished):
    budget = finished[1]["budget"]
    assert (budget["steps"], budget["images"], budget["pixels"]) == (8, 64, 64 * 16**2)
    assert budget["epochs"] == 2
    assert budget["forward_passes_plain"] == 15
    assert 0 < budget["train_seconds"] < budget["seconds"]
    assert budget["images_per_second"] == pytest.approx(64 / budget["train_seconds"])


def test_groups_of_images_are_recorded(finished, config, tmp_path):
    assert "groups" not in predictions(finished[0])
    dataset, folder = small_dataset(), RunFolder(tmp_path / "run")
    groups = np.arange(len(dataset.val))[::-1] // 4
    train = replace(dataset.train, groups=np.arange(len(dataset.train)))
    dataset = replace(dataset, train=train, val=replace(dataset.val, groups=groups))
    run(folder, config, dataset=dataset)
    np.testing.assert_array_equal(folder.predictions()["groups"], groups)
    for name, values in predictions(finished[0]).items():
        np.testing.assert_array_equal(predictions(folder)[name], values)  # and change nothing else
    with gzip.open(folder.path / "split.csv.gz", "rt") as file:
        found = [row["group"] for row in csv.DictReader(file) if row["split"] == "val"]
    assert found == [str(group) for group in groups]


def test_the_metrics_are_of_the_predictions(finished):
    folder, result = finished
    found = predictions(folder)
    assert found["labels"].tolist() == small_dataset().val.labels.tolist()
    for view in ("plain", "tta"):
        metrics, probabilities = result["metrics"][view], found[view]
        hits = probabilities.argmax(axis=1) == found["labels"]
        assert metrics["accuracy"] == pytest.approx(hits.mean())
        low, high = metrics["accuracy_ci"]
        assert low <= metrics["accuracy"] <= high
        assert metrics["log_loss"] == pytest.approx(cross_entropy(probabilities, found["labels"]))
        targets = np.eye(3)[found["labels"]]
        assert metrics["brier"] == pytest.approx(((probabilities - targets) ** 2).sum(1).mean())
        assert 0 <= metrics["ece"] <= 1
        assert set(metrics["per_class"]) == set(CLASSES)
    assert result["metrics"]["plain"]["log_loss"] != result["metrics"]["tta"]["log_loss"]
    assert result["metrics"]["tta"]["forward_passes"] == 2


def test_the_validation_loss_is_plain_whatever_the_training_loss(finished):
    folder, result = finished
    found, last = predictions(folder), rows(folder)[-1]
    plain = cross_entropy(found["plain"], found["labels"])
    assert last["val_loss"] == pytest.approx(plain, rel=1e-6)
    assert last["val_loss"] == result["metrics"]["plain"]["log_loss"]
    smoothed = 0.9 * plain - 0.1 * float(np.log(found["plain"]).mean())  # negative control
    assert abs(last["val_loss"] - smoothed) > 1e-4


def test_a_row_per_epoch(finished):
    folder, _ = finished
    first, second = rows(folder)
    assert [(row["epoch"], row["step"], row["images"]) for row in (first, second)] == [
        (1, 4, 32), (2, 8, 64),
    ]  # fmt: skip
    assert first["pixels"] == 32 * 16**2
    assert {row["size"] for row in (first, second)} == {16}
    assert first["train_loss"] != second["train_loss"]
    assert first["lr"] > second["lr"] > 0


def test_the_configuration_and_the_split_are_kept(finished, config):
    folder, _ = finished
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == to_dict(config)
    with gzip.open(folder.path / "split.csv.gz", "rt") as file:
        header, *images = csv.reader(file)
    assert header == ["split", "image", "label", "sha256"]
    assert images == [list(row) for row in small_dataset().manifest]
    # The rows of the predictions are the validation rows of the split.
    labels = [CLASSES.index(label) for split, _, label, _ in images if split == "val"]
    assert predictions(folder)["labels"].tolist() == labels


def test_no_file_holds_a_secret_of_the_command_line(finished):
    folder, result = finished
    assert result["command"][-2:] == ["seed=5", "+api_token=<redacted>"]
    for path in folder.path.rglob("*"):
        assert path.is_dir() or b"hush" not in path.read_bytes(), path


def test_the_bundle_reloads_to_the_same_predictions(finished, config):
    folder, _ = finished
    bundle = folder.path / "bundle"
    description = json.loads((bundle / "model.json").read_text())
    content = (bundle / "model.safetensors").read_bytes()
    assert description["files"] == {"model.safetensors": hashlib.sha256(content).hexdigest()}
    assert description["classes"] == list(CLASSES)
    how = preprocess.from_dict(description["preprocess"])
    assert (how.size, how.presize) == (16, 16)
    assert how.mean == config.normalize.mean

    model = small_network(description["model"]["num_outputs"], seed=1)
    learner = small_learner(model, preprocess=how)
    fresh = evaluate(learner, small_dataset(), config, with_tta=True)
    model.load_state_dict(load_file(bundle / "model.safetensors"))
    again = evaluate(learner, small_dataset(), config, with_tta=True)
    found = predictions(folder)
    np.testing.assert_allclose(again.plain, found["plain"], atol=1e-6)
    np.testing.assert_allclose(again.tta, found["tta"], atol=1e-6)
    assert np.abs(fresh.plain - found["plain"]).max() > 1e-3


def test_the_same_command_gives_the_same_bytes(finished, config, tmp_path):
    folder, result = finished
    again = RunFolder(tmp_path / "again")
    other = run(again, config, overrides=["seed=5"])
    for name in ("split.csv.gz", "config.yaml", "bundle/model.safetensors", "bundle/model.json"):
        assert (again.path / name).read_bytes() == (folder.path / name).read_bytes(), name
    assert other["metrics"] == result["metrics"]
    seeded = run(RunFolder(tmp_path / "seeded"), replace(config, seed=6))
    assert seeded["metrics"]["plain"]["log_loss"] != result["metrics"]["plain"]["log_loss"]


@pytest.mark.parametrize(
    "groups",
    [
        {"resize": Resize(schedule="progressive", size=16, match="compute")},
        {"resize": Resize(schedule="book", size=16, first_size=8, first_batch_size=16)},
        {"optim": Optim(schedule="fine_tune", layer_groups=3)},
        {"optim": Optim(name="sgd", lr=0.1, schedule="flat_cosine")},
        {"model": Model(num_outputs=8), "smoothing": Smoothing(0.1)},
        {"augment": Augment(min_scale=0.5, flip=0.5), "tta": Tta(passes=2, beta=0.25)},
        {"mixup": Mixup(probability=0.5, cutmix=0.5, until=0.5)},
        {"normalize": Normalize(source="dataset")},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_every_kind_of_run_finishes(groups, tmp_path):
    config = small_config(outputs=str(tmp_path), **{"budget": Budget(epochs=1), **groups})
    folder = RunFolder(tmp_path / "run")
    result = run(folder, config)
    assert result["status"] == "finished"
    found = rows(folder)
    assert [row["epoch"] for row in found] == list(range(1, len(found) + 1))
    assert result["budget"]["images"] == found[-1]["images"]
    assert predictions(folder)["plain"].shape == (15, config.model.num_outputs or 3)


# ── Stopped, and gone on ───────────────────────────────────────────────────────────────────────


@pytest.fixture
def _signals():
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    raise_on_signals()
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def at_step(monkeypatch, number, act):
    """Let something happen during the ``number``-th step that this test makes; counts them."""
    made, original = [], loop.train_step

    def watched(*arguments):
        made.append(None)
        if len(made) == number:
            act()
        return original(*arguments)

    monkeypatch.setattr(loop, "train_step", watched)
    return made


def crash():
    raise RuntimeError("a crash")


def outcome(folder):
    """All of a finished run that must not depend on what happened to it on the way."""
    names = ("metrics.jsonl", "predictions.npz", "split.csv.gz", "run.json",
             "bundle/model.safetensors", "bundle/model.json")  # fmt: skip
    result = folder.result()
    for key in ("seconds", "train_seconds", "images_per_second"):
        del result["budget"][key]
    del result["command"]
    return {**{name: (folder.path / name).read_bytes() for name in names}, "result": result}


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 3, 4, 5, 8])  # 4 and 8 are the last of their epochs
def test_a_signal_saves_and_the_next_attempt_goes_on(
    finished, config, tmp_path, monkeypatch, step, signum
):
    folder = RunFolder(tmp_path / "run")
    made = at_step(monkeypatch, step, lambda: signal.raise_signal(signum))
    with pytest.raises(Interrupted) as caught:
        run(folder, config)
    assert caught.value.signum == signum
    assert len(made) == step
    assert folder.status()["status"] == "interrupted"
    assert status(folder)["reason"] == f"{signal.Signals(signum).name} after step {step} of 8"
    assert folder.result() is None
    assert [path.name for path in folder.checkpoints.iterdir()][-1].startswith("step-")

    how, result = attempt(folder, config)
    assert (how, result["status"], len(made)) == ("resumed", "finished", 8)
    assert outcome(folder) == outcome(finished[0])
    assert [row["epoch"] for row in rows(folder, "timings.jsonl")] == [1, 2]
    assert not folder.checkpoints.exists()


@pytest.mark.usefixtures("_signals")
def test_a_run_that_is_interrupted_again_and_again(finished, config, tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    for step in range(1, 9):
        with monkeypatch.context() as patch:
            made = at_step(patch, 1, lambda: signal.raise_signal(signal.SIGTERM))
            with pytest.raises(Interrupted):
                run(folder, config)
            assert len(made) == 1
            assert f"after step {step} of 8" in status(folder)["reason"]
    made = at_step(monkeypatch, 1, crash)
    assert attempt(folder, config)[0] == "resumed"
    assert made == []  # only the evaluation was missing
    assert outcome(folder) == outcome(finished[0])


@pytest.mark.parametrize(("minutes", "lost"), [(0.0, 0), (1000.0, 2)])
def test_a_crash_costs_the_steps_since_the_last_saving(
    finished, config, tmp_path, monkeypatch, minutes, lost
):
    config = replace(config, checkpoint=Checkpoint(minutes=minutes))
    folder = RunFolder(tmp_path / "run")
    made = at_step(monkeypatch, 7, crash)
    with pytest.raises(RuntimeError, match="a crash"):
        run(folder, config)
    assert_failed(folder, "RuntimeError: a crash")
    assert attempt(folder, config)[0] == "resumed"
    assert len(made) == 7 + 2 + lost  # the seventh was not made
    theirs = outcome(finished[0])
    theirs["result"]["config"]["checkpoint"]["minutes"] = minutes
    assert outcome(folder) == theirs


def test_rows_of_steps_that_were_lost_are_written_once(finished, config, tmp_path, monkeypatch):
    """The row of the first epoch is there, its checkpoint is not."""
    folder = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", lambda *_: crash())
        with pytest.raises(RuntimeError, match="a crash"):
            run(folder, config)
    assert len(rows(folder)) == len(rows(folder, "timings.jsonl")) == 1
    assert run(folder, config)["status"] == "finished"
    assert outcome(folder) == outcome(finished[0])
    assert len(rows(folder, "timings.jsonl")) == 2


def stopped(tmp_path, config, monkeypatch):
    """The folder of a run that crashed in its last step, with all checkpoints before."""
    folder = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        at_step(patch, 8, crash)
        with pytest.raises(RuntimeError, match="a crash"):
            run(folder, replace(config, checkpoint=Checkpoint(minutes=0)))
    assert len(list(folder.checkpoints.iterdir())) == 2
    return folder


def test_a_damaged_checkpoint_is_told_and_the_older_one_used(
    finished, config, tmp_path, monkeypatch, capsys
):
    folder = stopped(tmp_path, config, monkeypatch)
    (folder.checkpoints / "step-000000007" / "optimizer.safetensors").write_bytes(b"")
    made = at_step(monkeypatch, 99, crash)
    assert attempt(folder, config)[0] == "resumed"
    assert len(made) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: cannot use a checkpoint, an older one is used: step-000000007: optim" in said
    assert "resuming after step 6 of 8" in said
    assert outcome(folder) == outcome(finished[0])


def test_with_no_checkpoint_left_nothing_begins_unasked(finished, config, tmp_path, monkeypatch):
    folder = stopped(tmp_path, config, monkeypatch)
    for path in folder.checkpoints.glob("*/state.json"):
        path.write_bytes(b"")
    with pytest.raises(ArtefactError, match="no checkpoint can be used") as caught:
        run(folder, config)
    assert caught.value.exit_code == 7
    assert len(rows(folder)) == 1  # what was there is there
    assert_failed(folder, "no checkpoint can be used")
    assert run(folder, replace(config, force=True))["status"] == "finished"
    assert outcome(folder)["predictions.npz"] == outcome(finished[0])["predictions.npz"]


def test_force_goes_on_from_nothing(config, tmp_path, monkeypatch):
    folder = stopped(tmp_path, config, monkeypatch)
    made = at_step(monkeypatch, 99, crash)
    run(folder, replace(config, force=True))
    assert len(made) == 8
    assert [row["epoch"] for row in rows(folder)] == [1, 2]


def test_the_checkpoint_of_another_network_is_refused(config, tmp_path, monkeypatch):
    folder = stopped(tmp_path, config, monkeypatch)
    with pytest.raises(ArtefactError, match="the checkpoint belongs to another network"):
        run(folder, replace(config, model=Model(num_outputs=5)))
    assert_failed(folder, "belongs to another network")


def test_rows_that_were_changed_meanwhile_are_refused(config, tmp_path, monkeypatch):
    folder = stopped(tmp_path, config, monkeypatch)
    log = folder.path / "metrics.jsonl"
    log.write_text(log.read_text().replace('"epoch": 1', '"epoch": 7'))
    with pytest.raises(ArtefactError, match="have been changed") as caught:
        run(folder, config)
    assert caught.value.where == str(log)


def test_another_machine_is_told(config, tmp_path, monkeypatch, capsys):
    folder = stopped(tmp_path, config, monkeypatch)
    assert attempt(folder, replace(config, threads=2))[0] == "resumed"
    said = " ".join(capsys.readouterr().out.split())
    assert "note: threads 1 → 2: the result is the same except for rounding" in said
    machine = json.loads((folder.path / "result.json").read_text())["environment"]
    (change,) = machine["resumed"]
    assert change["differences"] == ["threads 1 → 2"]
    assert change["after_step"] > 0


def test_what_decides_the_bits_is_recorded_and_told(config, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    folder = stopped(tmp_path, config, monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert attempt(folder, config)[0] == "resumed"
    said = " ".join(capsys.readouterr().out.split())
    machine = json.loads((folder.path / "result.json").read_text())["environment"]
    (change,) = machine["resumed"]
    kinds = [each.partition(" ")[0] for each in change["differences"]]
    assert kinds == ["cpu_capability", "onednn", "OMP_NUM_THREADS"]
    assert change["differences"][1:] == ["onednn True → False", "OMP_NUM_THREADS unset → 7"]
    assert all(f"note: {each}: the result" in said for each in change["differences"])
    assert machine["variables"]["OMP_NUM_THREADS"] == "7"


def test_a_run_that_was_not_moved_says_so(finished):
    folder, _ = finished
    machine = json.loads((folder.path / "result.json").read_text())["environment"]
    assert machine["resumed"] == []


def test_a_finished_run_is_not_run_again(finished, config, monkeypatch):
    folder, result = finished
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    made = at_step(monkeypatch, 1, crash)
    assert attempt(folder, config) == ("skipped", result)
    assert made == []
    del before[folder.lock]  # says who looked last
    assert {path: path.read_bytes() for path in before} == before


def test_times_are_not_among_the_metrics(finished):
    folder, _ = finished
    names = set().union(*rows(folder))
    assert {"epoch", "train_loss", "val_accuracy"} < names
    assert [name for name in names if "seconds" in name or "time" in name] == []
    for row in rows(folder, "timings.jsonl"):
        assert set(row) == {"epoch", "seconds", "eval_seconds", "total_seconds",
                            "images_per_second"}  # fmt: skip
        assert row["total_seconds"] >= row["seconds"] + row["eval_seconds"] > 0


# ── The network and its device ─────────────────────────────────────────────────────────────────


def test_tricks_do_not_change_the_initial_weights(tmp_path):
    def initial(**groups):
        config = small_config(outputs=str(tmp_path), **groups)
        model = build_learner(config, small_dataset())[0].model
        return torch.cat([value.flatten().double() for value in model.state_dict().values()])

    baseline = initial()
    for group, trick in {**TRICKS, "resize": Resize(schedule="progressive", size=16)}.items():
        assert torch.equal(initial(**{group: trick}), baseline)
    assert not torch.equal(initial(seed=1), baseline)


def test_compiling_is_asked_for_and_keeps_the_names_of_the_weights(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(nn.Module, "compile", lambda model, **options: asked.append(options))
    config = small_config(outputs=str(tmp_path))
    plain = build_learner(config, small_dataset())[0].model
    assert asked == []
    compiled = build_learner(replace(config, compile="reduce-overhead"), small_dataset())[0].model
    assert asked == [{"mode": "reduce-overhead", "dynamic": False}]
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_dataset_statistics_are_of_the_training_split(tmp_path):
    dataset = small_dataset()
    config = small_config(normalize=Normalize(source="dataset"), outputs=str(tmp_path))
    learner, _ = build_learner(config, dataset)
    pixels = np.concatenate(
        [dataset.store.images[index].reshape(-1, 3) for index in dataset.train.indices]
    )
    assert learner.preprocess.mean == pytest.approx((pixels / 255).mean(axis=0))
    assert learner.preprocess.std == pytest.approx((pixels / 255).std(axis=0))
    everything = np.concatenate([image.reshape(-1, 3) for image in dataset.store.images])
    assert learner.preprocess.mean != pytest.approx((everything / 255).mean(axis=0), rel=1e-6)


def test_fewer_outputs_than_classes_are_refused(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(ConfigError, match="2 outputs cannot tell 3 classes") as caught:
        run(folder, small_config(model=Model(num_outputs=2)))
    assert caught.value.exit_code == 2
    assert caught.value.where == "model.num_outputs=2"
    assert not folder.path.exists()  # refused before anything is written


def test_batches_that_cannot_be_divided_are_refused(tmp_path):
    folder, config = RunFolder(tmp_path / "run"), small_config(data=Data(batch_size=3))
    experiment = Experiment(config, small_dataset(), what(config))
    with pytest.raises(ConfigError) as caught, Display() as display:
        train_and_evaluate(experiment, folder, display, Processes(1, 4))
    assert caught.value.what == "batches of 3 images cannot be divided among 4 processes"
    assert caught.value.where == "data.batch_size=3"
    assert not folder.path.exists()


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7"])
def test_a_gpu_that_is_not_there(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=r"no GPU|0 CUDA devices") as caught:
        build_learner(small_config(device=name), small_dataset())
    assert caught.value.exit_code == 2
    assert (caught.value.where, caught.value.fix) == (f"device={name}", "device=auto")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_by_machine_or_by_word(monkeypatch, precision):
    monkeypatch.setattr(hardware, "fastest_precision", lambda kind: precision)
    for asked in ("auto", precision):
        learner, _ = build_learner(small_config(precision=asked), small_dataset())
        assert (learner.device.type, learner.precision) == ("cpu", precision)


# ── Failure ────────────────────────────────────────────────────────────────────────────────────


def assert_failed(folder, reason):
    assert status(folder)["status"] == "failed"
    assert reason in status(folder)["reason"]
    assert folder.result() is None
    assert not (folder.path / "result.json").exists()


@pytest.mark.parametrize("batch_size", [8, 33])  # in an epoch, and in its evaluation
def test_a_run_that_diverges_is_marked_failed(tmp_path, batch_size):
    folder = RunFolder(tmp_path / "run")
    wild = small_config(
        optim=Optim(lr=1e30, schedule="constant"), data=Data(batch_size=batch_size, default_size=16)
    )
    with pytest.raises(DivergedError, match="not finite") as caught:
        run(folder, wild)
    assert caught.value.exit_code == 5
    assert "1e+30" in caught.value.where
    assert_failed(folder, "not finite")
    assert status(folder)["error_kind"] == "DivergedError"

    result = run(folder, small_config())  # another attempt finds a clean folder
    assert result["status"] == "finished"
    assert len(rows(folder)) == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fp32_means_fp32_and_equal_bits_on_a_gpu_too(precision):
    build_learner(small_config(precision=precision), small_dataset())
    assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.deterministic == (precision == "fp32")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_that_is_loaded_computes_as_deterministically_as_it_was_trained(
    finished, monkeypatch, precision
):
    folder, result = finished
    monkeypatch.setattr(learners, "build_model", small_model)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", precision != "fp32")
    bundle = read_bundle(folder.path / "bundle", result["bundle"])
    learners.trained_learner(bundle, device="cpu", precision=precision, threads=1)
    assert torch.backends.cudnn.deterministic == (precision == "fp32")


def test_running_out_of_memory_names_a_smaller_batch(tmp_path, monkeypatch):
    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "train_step", exhausted)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(TrainingError, match="out of memory") as caught:
        run(folder, small_config())
    assert "data.batch_size=8" in caught.value.where
    assert "data.batch_size=4" in caught.value.fix
    assert_failed(folder, "out of memory")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: out of memory\nSearch for ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["allocator", "card", "library"],
)
def test_no_memory_from_the_start_is_told_alike(tmp_path, monkeypatch, error):
    """Other programs have taken what the GPU has."""

    def exhausted(*_):
        raise error

    monkeypatch.setattr(session, "build_learner", exhausted)
    with pytest.raises(TrainingError, match="out of memory"):
        run(RunFolder(tmp_path / "run"), small_config())


def test_other_errors_from_the_start_stay_what_they_are(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(session, "build_learner", broken)
    with pytest.raises(RuntimeError, match="illegal"):
        run(RunFolder(tmp_path / "run"), small_config())


def test_a_result_that_cannot_be_written_is_a_failure(tmp_path, monkeypatch):
    folder, write = RunFolder(tmp_path / "run"), RunFolder.write_text

    def full(self, name, text):
        if name == "result.json":
            raise StorageError("cannot write: No space left on device", where=name)
        write(self, name, text)

    monkeypatch.setattr(RunFolder, "write_text", full)
    with pytest.raises(StorageError, match="No space left"):
        run(folder, small_config(budget=Budget(epochs=1)))
    assert_failed(folder, "No space left")


def test_outputs_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError) as caught:
        run(RunFolder(tmp_path / "file" / "run"), small_config())
    assert caught.value.exit_code == 4


def test_a_folder_that_was_not_begun_stays_free_for_the_next_attempt(tmp_path, monkeypatch):
    folder, config, write = RunFolder(tmp_path / "run"), small_config(), RunFolder.write_text

    def full(self, name, text):
        if name == "run.json":
            raise StorageError("cannot write: No space left on device", where=name)
        write(self, name, text)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_text", full)
        with pytest.raises(StorageError, match="No space left"):
            run(folder, config)
    assert [path.name for path in folder.path.iterdir()] == ["run.lock"]
    folder.check(what(config))
    assert run(folder, config)["status"] == "finished"


def test_who_comes_second_is_told_and_changes_nothing(finished, config, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin(what(config), to_dict(config), ["seed=5"])
    folder.append_row({"epoch": 1})
    before = {path: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
    with locked(folder.path / "run.lock"):
        with pytest.raises(BusyError) as caught:
            run(folder, small_config())
        assert caught.value.exit_code == 75
        assert caught.value.where == str(folder.path / "run.lock")
    assert {path: path.read_bytes() for path in before} == before
    assert run(folder, small_config())["status"] == "finished"  # once it is free


def test_the_lock_is_free_after_success_and_failure(finished, tmp_path):
    with locked(finished[0].path / "run.lock", wait=False):
        pass
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(TrainingError):
        run(folder, small_config(optim=Optim(lr=1e30, schedule="constant")))
    with locked(folder.path / "run.lock", wait=False):
        pass
