"""Several processes that share a run: who they are, whose turn it is, and that they agree.

What takes two processes is done once, by one pair of them, for all tests here.
"""

import json
import os
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import small_config, small_dataset, small_learner, small_network

from runner.config.schema import Augment, Budget, Eval, Mixup, Optim, Resize, Tta
from runner.errors import BusyError, ConfigError, RunnerError, StorageError
from runner.machine import processes as distributed
from runner.machine.processes import ALONE, Processes, from_environment, joined
from runner.machine.signals import Interrupted

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
TRAININGS = {
    "plain": {},
    "mixup": {"mixup": Mixup(probability=1.0, cutmix=0.5), "augment": Augment(flip=0.5)},
    "one crop": {"augment": Augment(min_scale=0.5, crop_per="batch", crop_from="rectangle")},
    "fine_tune": {"optim": Optim(lr=1e-2, schedule="fine_tune", layer_groups=3)},
    "progressive": {"resize": Resize(schedule="progressive", size=16)},
}


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in list(os.environ):
        if name in TORCHRUN or name.startswith(("SUBMITIT", "MASTER_")):
            monkeypatch.delenv(name)


# ── Who we are ─────────────────────────────────────────────────────────────────────────────────


def test_alone_by_default():
    assert from_environment() is ALONE
    assert Processes(rank=0, count=1, local_rank=0, local_count=1) == ALONE
    assert ALONE.is_first
    assert [ALONE.any(flag) for flag in (False, True)] == [False, True]
    assert ALONE.have_same(7)
    ALONE.agree(None)
    with pytest.raises(BusyError):
        ALONE.agree(BusyError("busy"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("0", "2", "0", "2"), Processes(0, 2, 0, 2, 2)),
        (("1", "2", "1", "2"), Processes(1, 2, 1, 2, 2)),
        (("5", "8", "1", "4"), Processes(5, 8, 1, 4, 4)),
        (("0", "1", "0", "1"), ALONE),
    ],
)
def test_started_by_torchrun(monkeypatch, values, expected):
    for name, value in zip(TORCHRUN, values, strict=True):
        monkeypatch.setenv(name, value)
    assert from_environment() == expected
    assert from_environment().is_first == (values[0] == "0")


@pytest.mark.parametrize(("num_tasks", "shared_by"), [(None, 4), ("1", 4), ("4", 1), ("2", 2)])
def test_tasks_of_slurm_share_no_cores(monkeypatch, num_tasks, shared_by):
    """Four processes of a run, as so many tasks of a step of Slurm; the others are torchrun's."""
    for name, value in zip(TORCHRUN, ("1", "4", "1", "4"), strict=True):
        monkeypatch.setenv(name, value)
    if num_tasks is not None:
        monkeypatch.setenv("SLURM_STEP_ID", "0")
        monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", num_tasks)
    assert from_environment().cores_shared_by == shared_by


@pytest.mark.parametrize("name", TORCHRUN)
@pytest.mark.parametrize("garbage", ["", "two", "1.0", "0x1"])
def test_garbage_in_the_environment_is_refused(monkeypatch, name, garbage):
    for each in TORCHRUN:
        monkeypatch.setenv(each, "1")
    monkeypatch.setenv(name, garbage)
    with pytest.raises(ConfigError, match="not a number") as caught:
        from_environment()
    assert caught.value.exit_code == 2
    assert repr(garbage) in caught.value.what
    assert name in caught.value.where
    assert "torchrun" in caught.value.fix


def test_a_rank_alone_means_nothing(monkeypatch):
    """Some schedulers set it for every job of theirs."""
    monkeypatch.setenv("RANK", "3")
    assert from_environment() is ALONE


@pytest.mark.parametrize(
    ("tasks", "nodes", "rank", "local_rank", "expected"),
    [
        (2, 1, 1, 1, Processes(1, 2, 1, 2)),
        (8, 2, 5, 1, Processes(5, 8, 1, 4)),
        (1, 1, 0, 0, ALONE),
    ],
)
def test_started_by_submitit(monkeypatch, tasks, nodes, rank, local_rank, expected):
    pytest.importorskip("submitit")
    values = {
        "JOB_ID": 7, "NTASKS": tasks, "JOB_NUM_NODES": nodes, "NODEID": rank // (tasks // nodes),
        "GLOBALID": rank, "LOCALID": local_rank,
    }  # fmt: skip
    for name in (*TORCHRUN, "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")  # so that what is exported is taken back
        del os.environ[name]
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    for name, value in values.items():
        monkeypatch.setenv(f"SUBMITIT_LOCAL_{name}", str(value))
    assert from_environment() == expected
    assert "CUDA_VISIBLE_DEVICES" not in os.environ  # local_rank picks one of all


@settings(max_examples=100)
@given(count=st.integers(1, 12), num_items=st.integers(0, 100))
def test_shares_are_a_partition(count, num_items):
    shares = [Processes(rank, count).share(num_items) for rank in range(count)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(num_items))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert ALONE.share(num_items).tolist() == list(range(num_items))


def test_one_process_needs_no_connection():
    with joined(ALONE, "cpu"), ALONE.first_alone():
        torch = pytest.importorskip("torch")
        assert not torch.distributed.is_initialized()
        assert ALONE.sum(torch.tensor([1.5, 2.0])).tolist() == [1.5, 2.0]


@pytest.mark.parametrize("rank", [0, 1])
def test_the_others_do_not_come(monkeypatch, rank):
    monkeypatch.setattr(distributed, "_MEETING", timedelta(seconds=0.5))
    values = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    started = time.monotonic()
    with (
        pytest.raises(StorageError, match="the 2 processes of this run did not meet") as caught,
        joined(from_environment(), "cpu"),
    ):
        pass
    assert time.monotonic() - started < 30
    assert caught.value.exit_code == 4
    assert "MASTER_ADDR" in caught.value.where
    assert "torchrun" in caught.value.fix


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# ── Two of them ────────────────────────────────────────────────────────────────────────────────


def take_turns(processes, folder):
    """What each finds of the first one's work when it comes to its own."""
    found = []
    for number in range(3):
        with processes.first_alone():
            found.append((folder / f"turn-{number}").exists())
            if processes.is_first:
                time.sleep(0.3)
                (folder / f"turn-{number}").touch()
    return found


def take_no_turns(processes, folder):
    processes.any(False)  # both are here
    found = (folder / "no-turn").exists()
    if processes.is_first:
        time.sleep(0.3)
        (folder / "no-turn").touch()
    return found


def first_fails_alone(processes, folder):
    try:
        with processes.first_alone():
            if processes.is_first:
                raise ValueError("of the first")
    except ValueError as error:
        return str(error)
    return "went on"


def agree_on(processes, folder):
    ends = []
    for error in (None, BusyError("at it", where="there"), None):
        try:
            processes.agree(error if processes.is_first else None)
            ends.append("went on")
        except RunnerError as caught:
            ends.append(str(caught))
        except SystemExit as caught:
            ends.append(caught.code)
    return ends


def ask_any(processes, folder):
    flags = [(False, False), (True, False), (False, True), (True, True)]
    return [processes.any(pair[processes.rank]) for pair in flags]


def compare_numbers(processes, folder):
    numbers = [(0, 0), (0, 1), (1, 0), (2**60, 2**60), (2**60, 2**60 - 1)]
    return [processes.have_same(pair[processes.rank]) for pair in numbers]


def add_up(processes, folder):
    """Every row is the one's or the other's: sums are exact."""
    import torch

    whole = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    mine = torch.zeros_like(whole)
    mine[processes.share(9)] = whole[processes.share(9)]
    return torch.equal(processes.sum(mine), whole)


def train(processes, groups, *, shares_statistics=True):
    """Weights and losses of a training, and the predictions after it."""
    from runner.models import share_batch_norm
    from runner.training.loop import Training
    from runner.training.predicting import evaluate
    from runner.training.schedule import plan

    eval_ = Eval(batch_size=4)  # four batches
    config = small_config(**{"budget": Budget(epochs=1), "eval": eval_, **groups})
    config = replace(config, tta=Tta(flip=True))
    dataset, model = small_dataset(), small_network()
    layer_groups = config.optim.layer_groups
    if processes.count > 1 and shares_statistics:
        share_batch_norm(model, small_learner(model).device)
    learner = small_learner(model, layer_groups=layer_groups, processes=processes)
    training = Training(learner, dataset, plan(config, len(dataset.train)), config)
    losses = [float(step.loss) for step in training]
    weights = {
        name: value.double().flatten().tolist() for name, value in model.state_dict().items()
    }
    found = evaluate(learner, dataset, config, with_tta=True)
    alone = evaluate(replace(learner, processes=ALONE), dataset, config, with_tta=True)
    same = np.array_equal(found.plain, alone.plain) and np.array_equal(found.tta, alone.tta)
    return {"losses": losses, "weights": weights, "evaluates as one": bool(same)}


def stop_evaluating(processes, folder):
    """Only the second is asked to."""
    from runner.training.predicting import evaluate

    config, dataset = small_config(eval=Eval(batch_size=4)), small_dataset()
    learner = small_learner(small_network(), processes=processes)
    asked = not processes.is_first
    try:
        evaluate(learner, dataset, config, with_tta=False, should_stop=lambda: asked)
    except Interrupted:
        return True
    return False


JOBS = {
    **{job.__name__: job for job in (take_turns, take_no_turns, first_fails_alone, agree_on,
                                     ask_any, compare_numbers, add_up, stop_evaluating)},
    **{f"train {name}": lambda processes, folder, groups=groups: train(processes, groups)
       for name, groups in TRAININGS.items()},
    "train apart": lambda processes, folder: train(processes, {}, shares_statistics=False),
}  # fmt: skip


def work(folder):
    """In each process of the pair: do all jobs, and write down what came of them."""
    import torch

    torch.set_num_threads(1)
    processes, came = from_environment(), {}
    with joined(processes, "cpu"):
        for name, job in JOBS.items():
            try:
                came[name] = job(processes, Path(folder))
            except Exception:
                came[name] = traceback.format_exc()
    Path(folder, f"{processes.rank}.json").write_text(json.dumps(came))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What came of every job, in the first and in the second process."""
    folder = tmp_path_factory.mktemp("pair")
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
              "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}  # fmt: skip
    code = f"import test_processes; test_processes.work({str(folder)!r})"
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    shared["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=180)[1] for process in both]
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert [process.returncode for process in both] == [0, 0], errors
    came = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    return {name: [each[name] for each in came] for name in JOBS}


def test_the_first_goes_first_and_the_other_finds_its_work(pair):
    assert pair["take_turns"] == [[False] * 3, [True] * 3]
    assert pair["take_no_turns"] == [False, False]  # negative control


def test_a_failure_of_the_first_keeps_the_other_from_waiting_for_ever(pair):
    assert pair["first_fails_alone"] == ["of the first", "went on"]


def test_an_error_of_the_first_ends_both(pair):
    first, second = pair["agree_on"]
    assert first == ["went on", "at it\nwhere: there", "went on"]
    assert (second[0], second[2]) == ("went on", "went on")
    assert isinstance(second[1], int)
    assert second[1] != 0


def test_all_get_the_same_answer(pair):
    assert pair["ask_any"] == [[False, True, True, True]] * 2


def test_all_know_whether_they_have_the_same_number(pair):
    assert pair["compare_numbers"] == [[True, False, False, True, False]] * 2


def test_sums_of_rows_of_one_or_the_other_are_exact(pair):
    assert pair["add_up"] == [True, True]


def test_an_evaluation_stops_in_both(pair):
    assert pair["stop_evaluating"] == [True, True]


@pytest.mark.parametrize("name", TRAININGS)
def test_two_train_the_network_that_one_trains(pair, name):
    first, second = pair[f"train {name}"]
    assert first == second  # to the bit
    alone = train(ALONE, TRAININGS[name])
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    for key, values in alone["weights"].items():
        # A bias before a BatchNorm changes nothing: its gradient is rounding alone.
        if key.endswith((".weight", "2.2.bias", "running_var")):
            assert first["weights"][key] == pytest.approx(values, abs=1e-4), key
    assert first["evaluates as one"]
    if name == "plain":
        # Negative control: with statistics of their own, they train another network.
        apart = pair["train apart"][0]
        assert np.abs(np.subtract(apart["losses"], alone["losses"])).max() > 1e-3
