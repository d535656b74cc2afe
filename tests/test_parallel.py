"""One run in several processes: the result is that of one process, but for the order of its sums.

Most ranks here are forks of a server (``kill.py``) in an environment as torchrun makes it; what
torchrun itself does to them, and submitit, is tried with the real ones.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import kill
import numpy as np
import pytest
import torch
from kill import PREDICT, STEP, Attempt, Place, Setup, Trap, at_work, statuses, wait_until
from small import (
    EVERY_TRICK,
    all_predictions,
    small_config,
    small_dataset,
    small_learner,
    small_network,
)
from torch import nn

from runner.config.schema import Eval, Tta
from runner.errors import ConfigError
from runner.machine.processes import from_environment, joined
from runner.models import share_batch_norm
from runner.models.global_norm import GlobalBatchNorm2d

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(240),
]

# Batches of 17 and of 5 can be divided neither by 2 nor by 3.
# The draws of layers are other draws in each process, so stochastic depth cannot be equal.
ALL = (
    EVERY_TRICK, "stochastic_depth.probability=0", "normalize=dataset", "augment.crop_per=batch",
    "optim.layer_groups=3", "erasing.probability=0.9", "erasing.fill=noise",
)  # fmt: skip
BOOK = (
    "+trick=tta", "resize=book", "resize.first_epochs=1", "resize.first_size=8",
    "resize.first_batch_size=17", "budget.epochs=1",
)  # fmt: skip

# Sums over processes round differently: by 5e-7 of the losses and 4e-7 of the probabilities here.
# Another network, as with shares that are forgotten, differs by 7e-4 and more.
BOUND = 2e-5

STOP = "os.kill(os.getpid(), signal.SIGSTOP)"

Make = Callable[..., Place]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[Make]:
    """A new place for a command with these words."""
    root = tmp_path_factory.mktemp("parallel").resolve()
    uneven = shutil.copytree(tiny_folder, root / "photos")
    for path in (uneven / "train" / "red").glob("01?.png"):
        path.unlink()  # so that the weights of the classes differ; two batches as before
    words = (
        "data=folder", f"data.root={uneven}", "data.batch_size=17", "resize.size=16",
        "model=timm", "model.name=test_resnet", "budget.epochs=2", "threads=1",
        "eval.batch_size=5", "precision=fp32",  # in bf16, other rounding is other weights
    )  # fmt: skip
    numbers = iter(range(10**6))

    def make_one(*more: str) -> Place:
        return Place(root / str(next(numbers)), (*words, *more))

    yield make_one
    kill.end_all()


@pytest.fixture(scope="module")
def single(make: Make) -> Callable[..., Place]:
    """The run of one process with these words."""

    return kill.finished_once(make)


def start_ranks(
    place: Place,
    count: int,
    *words: str,
    traps: dict[int, Sequence[Trap]] | None = None,
    setup: Sequence[Setup] = (),
) -> list[Attempt]:
    """Start the processes of one run; ``traps`` by rank."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        place.start(
            *words,
            traps=(traps or {}).get(rank, ()),
            setup=[partial(_become, rank, count, port), *setup],
        )
        for rank in range(count)
    ]


def run_ranks(place: Place, count: int, *words: str, setup: Sequence[Setup] = ()) -> list[Attempt]:
    ranks = [rank.wait() for rank in start_ranks(place, count, *words, setup=setup)]
    assert [rank.code for rank in ranks] == [0] * count, [rank.err for rank in ranks]
    return ranks


def _become(rank: int, count: int, port: int) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
    }  # fmt: skip


def torchrun(place: Place, count: int, *, hook: bool = False) -> "subprocess.Popen[str]":
    """The command under the real torchrun; with a ``hook`` it stops before its first row."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if hook:
        environment["PYTHONPATH"] = kill.write_hook(place, act=STOP, seeds="0", is_later=False)
    program = ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return subprocess.Popen(
        [sys.executable, "-m", *program, "-m", "runner.train", *place.words],
        cwd=place.root,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(place: Place, process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit code, output and errors; no process is left over."""
    try:
        output, errors = process.communicate(timeout=60)
    finally:
        for pid in at_work(place):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return process.returncode, output, errors


def stopped(place: Place) -> list[int]:
    return [pid for pid, state in at_work(place).items() if state == "T"]


def awaits(pid: int, signum: int) -> bool:
    """Whether a signal has been sent to a process that has not seen it yet."""
    masks = re.findall(r"^(?:Sig|Shd)Pnd:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    return any(int(mask, 16) >> (signum - 1) & 1 for mask in masks)


def rows(place: Place) -> list[dict[str, float]]:
    return [json.loads(row) for row in (place.folder / "metrics.jsonl").read_text().splitlines()]


def result(place: Place) -> dict[str, dict[str, float]]:
    return dict(json.loads((place.folder / "result.json").read_text()))


def distance(place: Place, reference: Place) -> float:
    """Largest difference of losses, relative, and probabilities; what is counted must be equal."""
    ours, theirs = (all_predictions(each.folder) for each in (place, reference))
    assert ours.keys() == theirs.keys()
    assert np.array_equal(ours.pop("labels"), theirs["labels"])
    found = [np.abs(ours[name] - theirs[name]).max() for name in ours]
    assert len(rows(place)) == len(rows(reference))
    for our, their in zip(rows(place), rows(reference), strict=True):
        for key in ("epoch", "step", "stage", "size", "lr", "images", "pixels"):
            assert our[key] == their[key]
        found += [abs(our[key] / their[key] - 1) for key in ("train_loss", "val_loss")]
    kept = ("epochs", "steps", "images", "pixels", "forward_passes_plain")
    our_budget, their_budget = result(place)["budget"], result(reference)["budget"]
    assert [our_budget[key] for key in kept] == [their_budget[key] for key in kept]
    return float(max(found))


def keep_batch_norms_apart() -> None:
    from runner.training import learners

    learners.share_batch_norm = lambda model, device: model


def forget_the_shares() -> None:
    """The processes' mean losses count alike, however many images each has."""
    from runner.training import loop

    shared = loop.training_batches

    def batches(dataset, batch_size, moments, config, processes):
        own = len(processes.share(batch_size))
        for batch in shared(dataset, batch_size, moments, config, processes):
            yield replace(batch, num_images=own * processes.count)

    loop.training_batches = batches


# ── Equal to one process ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (2, ALL),
        pytest.param(3, ALL, marks=pytest.mark.slow),
        pytest.param(2, BOOK, marks=pytest.mark.whole),
    ],
    ids=["2-all", "3-all", "2-book"],
)
def test_processes_do_what_one_does(
    make: Make, single: Callable[..., Place], count: int, words: tuple[str, ...]
) -> None:
    place = make(*words)
    run_ranks(place, count)
    assert distance(place, single(*words)) < BOUND
    assert result(place)["environment"]["processes"] == count


@pytest.mark.parametrize(
    "setup", [keep_batch_norms_apart, pytest.param(forget_the_shares, marks=pytest.mark.slow)]
)
def test_a_mistake_in_sharing_would_be_seen(
    make: Make, single: Callable[..., Place], setup: Setup
) -> None:
    place = make(*ALL)
    run_ranks(place, 2, setup=[setup])
    assert distance(place, single(*ALL)) > 10 * BOUND


# ── In pieces ──────────────────────────────────────────────────────────────────────────────────


def leave_after(work: Callable[..., None], *arguments: object) -> None:
    """Instead of the command: connect the processes and ``work``."""
    torch.set_num_threads(1)
    processes = from_environment()
    with joined(processes, "cpu"):
        work(processes, *arguments)
    sys.exit(0)


def normalized(norm: nn.Module, images: torch.Tensor, weights: torch.Tensor) -> dict[str, object]:
    """What a BatchNorm makes of images, and all gradients of a weighted sum of that."""
    images = images.clone().requires_grad_()
    outputs = norm(images)
    torch.autograd.backward((outputs * weights).sum())
    state = {name: buffer.double() for name, buffer in norm.named_buffers()}
    return {"outputs": outputs.detach(), "images": images.grad, "weight": norm.weight.grad,
            "bias": norm.bias.grad, **state}  # fmt: skip


def norms_and_images() -> tuple[nn.BatchNorm2d, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(4, momentum=0.3)
    nn.init.uniform_(norm.weight, 0.5, 2, generator=generator)
    nn.init.uniform_(norm.bias, -1, 1, generator=generator)
    images = 3 + 2 * torch.randn(7, 4, 5, 3, generator=generator)
    return norm, images, torch.randn(images.shape, generator=generator)


def normalize_a_share(processes: object, root: str) -> None:
    rank = processes.rank
    mine = torch.arange(7)[:5] if rank == 0 else torch.arange(7)[5:]
    for kind in (nn.BatchNorm2d, GlobalBatchNorm2d):
        norm, images, weights = norms_and_images()
        norm.__class__ = kind
        found = normalized(norm, images[mine], weights[mine])
        torch.save(found, Path(root) / f"{kind.__name__}-{rank}.pt")


def test_a_shared_batch_norm_is_that_of_the_whole_batch(make: Make) -> None:
    place = make()
    run_ranks(place, 2, setup=[partial(leave_after, normalize_a_share, str(place.root))])
    norm, images, weights = norms_and_images()
    expected = normalized(norm.double(), images.double(), weights.double())

    def largest_difference(kind: str) -> dict[str, float]:
        parts = [torch.load(place.root / f"{kind}-{rank}.pt") for rank in range(2)]
        whole = {name: parts[0][name] for name in parts[0]}
        for name in ("outputs", "images"):
            whole[name] = torch.cat([part[name] for part in parts])
        for name in ("weight", "bias"):
            whole[name] = parts[0][name] + parts[1][name]
        assert torch.equal(parts[0]["num_batches_tracked"], expected["num_batches_tracked"])
        return {name: float((whole[name] - expected[name]).abs().max()) for name in whole}

    assert max(largest_difference("GlobalBatchNorm2d").values()) < 1e-5  # of float32
    apart = largest_difference("BatchNorm2d")
    for name in ("outputs", "images", "weight", "running_mean", "running_var"):
        assert apart[name] > 1e-2


def test_a_shared_batch_norm_evaluates_as_any() -> None:
    norm, images, _ = norms_and_images()
    norm(images)
    norm.eval()
    expected = norm(images)
    assert share_batch_norm(norm, torch.device("cpu")) is norm
    assert torch.equal(norm(images), expected)


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm2d(4, momentum=None),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.BatchNorm1d(4),
        "timm",
    ],
    ids=str,
)
def test_what_cannot_be_shared_is_refused(module: nn.Module | str) -> None:
    if module == "timm":
        module = pytest.importorskip("timm.layers").BatchNormAct2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), module)
    with pytest.raises(ConfigError, match=r"\(1\) cannot share its statistics") as caught:
        share_batch_norm(model, torch.device("cpu"))
    assert caught.value.exit_code == 2


def evaluate_a_share(processes: object, root: str) -> None:
    predictions = predicted(processes=processes)
    np.savez(Path(root) / f"{processes.rank}.npz", **predictions)


def predicted(**changes: object) -> dict[str, np.ndarray]:
    """By two batches, of 10 and 5 images."""
    from runner.training.predicting import evaluate

    config = small_config(eval=Eval(batch_size=10), tta=Tta(passes=2, beta=0.25))
    learner = small_learner(small_network(), **changes)
    found = evaluate(learner, small_dataset(), config, with_tta=True)
    return {"labels": found.labels, "plain": found.plain, "tta": found.tta}


def test_three_processes_evaluate_two_batches_as_one_does(make: Make) -> None:
    place, threads = make(), torch.get_num_threads()
    run_ranks(place, 3, setup=[partial(leave_after, evaluate_a_share, str(place.root))])
    torch.set_num_threads(1)
    expected = predicted()
    torch.set_num_threads(threads)
    for rank in range(3):
        with np.load(place.root / f"{rank}.npz") as found:
            for name, values in expected.items():
                assert np.array_equal(found[name], values)


# ── Ended, and begun again ─────────────────────────────────────────────────────────────────────

LONG = ("+trick=mixup", "budget.epochs=4", "checkpoint.minutes=0")  # eight steps


def test_a_run_that_was_killed_goes_on_with_another_number_of_processes(
    make: Make, single: Callable[..., Place]
) -> None:
    place = make(*LONG)
    killed = start_ranks(place, 2, traps={rank: [Trap(STEP, 4, kill.die)] for rank in range(2)})
    assert {rank.wait().code for rank in killed} == {-signal.SIGKILL}
    assert place.checkpoints[0].name == "step-000000003"
    alone = place.run(traps=[Trap(STEP, 3, kill.die)])
    assert "after step 3 of 8" in alone.out
    assert "processes 2 → 1" in alone.out
    first = run_ranks(place, 3)[0]
    assert "after step 5 of 8" in first.out
    assert "processes 1 → 3" in first.out
    kill.check_sound(place)
    assert distance(place, single(*LONG)) < BOUND


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(
    make: Make, single: Callable[..., Place]
) -> None:
    place = make(*LONG)
    process = torchrun(place, 2, hook=True)
    try:
        wait_until(lambda: stopped(place))
        (first,) = stopped(place)
        process.terminate()
        wait_until(lambda: awaits(first, signal.SIGTERM))
        os.kill(first, signal.SIGCONT)
    finally:
        code, _, errors = end(place, process)
    assert code != 0
    assert place.status() == "interrupted", errors
    assert [path.name for path in place.checkpoints] == ["step-000000002", "step-000000001"]
    assert place.run(traps=[Trap(STEP, 3, kill.die)]).code == -signal.SIGKILL
    code, output, errors = end(place, torchrun(place, 2))
    assert code == 0, errors
    assert "Traceback" not in errors
    for told in ("after step 4 of 8", "processes 1 → 2", "epoch 3/4", "epoch 4/4", "results: "):
        assert output.count(told) == 1, output
    kill.check_sound(place)
    assert distance(place, single(*LONG)) < BOUND


@pytest.mark.parametrize(
    ("dying", "pattern"), [pytest.param(0, PREDICT, marks=pytest.mark.slow), (1, STEP)]
)
def test_when_one_process_dies_the_others_end(
    make: Make, single: Callable[..., Place], dying: int, pattern: str
) -> None:
    place = make(*LONG)
    ranks = start_ranks(place, 2, traps={dying: [Trap(pattern, 4, kill.die)]})
    assert ranks[dying].wait(30).code == -signal.SIGKILL
    other = ranks[1 - dying].wait(30)
    assert other.code == 5, other.err
    assert ("has ended" in other.err) is (dying == 1), "the first alone speaks"
    run_ranks(place, 2)
    kill.check_sound(place)
    assert distance(place, single(*LONG)) < BOUND


def test_a_run_that_another_process_is_at_is_told_once(make: Make) -> None:
    place = make()
    alone = place.start(traps=[Trap(STEP, 1, kill.pause)])
    alone.wait_for(lambda: alone.is_paused)
    ranks = [rank.wait(30) for rank in start_ranks(place, 2)]
    assert ranks[0].code == 75
    assert f"process {alone.pid}" in ranks[0].err
    assert ranks[1].code not in (0, None)
    assert ranks[1].out + ranks[1].err == ""
    os.kill(alone.pid, signal.SIGCONT)
    assert alone.wait().code == 0


@pytest.mark.slow
def test_a_run_anew_forgets_its_checkpoints_in_all_processes(
    make: Make, single: Callable[..., Place]
) -> None:
    place = make(*LONG)
    assert place.run(traps=[Trap(STEP, 6, kill.die)]).code == -signal.SIGKILL
    first = run_ranks(place, 2, "force=true")[0]
    assert first.count(STEP) == 8
    assert distance(place, single(*LONG)) < BOUND


def differ_in_precision() -> None:
    from runner.machine import hardware

    flags = {"0": {"avx512_bf16"}, "1": {"avx2"}}[os.environ["RANK"]]
    hardware.cpu_flags = lambda: frozenset(flags)


def differ_in_version() -> None:
    from runner.records import identity

    identity.VERSION += int(os.environ["RANK"])


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        (differ_in_precision, "precision=auto is bf16 for some of them and fp32 for others"),
        (differ_in_version, "do not have the same words, data, weights, code and version"),
    ],
)
def test_processes_that_would_train_different_runs_are_refused(
    make: Make, setup: Setup, said: str
) -> None:
    place = make()
    ranks = [rank.wait() for rank in start_ranks(place, 2, "precision=auto", setup=[setup])]
    assert [rank.code for rank in ranks] == [2, 2], [rank.err for rank in ranks]
    assert said in ranks[0].err
    assert ("precision=fp32" in ranks[0].err) is (setup is differ_in_precision)
    assert ranks[1].err == ""
    assert not list((place.root / "outputs").glob("*/run.json"))


# ── Sweeps ─────────────────────────────────────────────────────────────────────────────────────


def test_a_sweep_under_torchrun_is_refused(make: Make) -> None:
    place = make()
    place.words = ("-m", *place.words, "seed=0,1")
    ranks = [rank.wait() for rank in start_ranks(place, 2)]
    assert [rank.code for rank in ranks] == [2, 2]
    assert "hydra/launcher=submitit_local" in ranks[0].err
    assert "Traceback" not in ranks[0].err
    assert ranks[1].err == ""
    assert not (place.root / "outputs").exists()


@pytest.mark.slow
def test_tasks_of_a_job_share_its_run_also_when_its_time_is_up(
    make: Make, single: Callable[..., Place]
) -> None:
    place = make(*LONG)
    words = ("hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2")
    hook = kill.write_hook(place, act=STOP, seeds="0", is_later=False)
    process = subprocess.Popen(
        [sys.executable, "-m", "runner.train", "-m", *place.words, *words],
        cwd=place.root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": hook},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: stopped(place))
        (first,) = stopped(place)
        assert statuses(place) == ["running"]
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in at_work(place)}
        tasks = [pid for pid, command in commands.items() if b"submitit.core._submit" in command]
        assert len(tasks) == 2
        for pid in tasks:
            os.kill(pid, signal.SIGUSR2)  # as submitit does before the end of a job's time
        os.kill(first, signal.SIGCONT)
    finally:
        code, output, errors = end(place, process)
    assert code == 0, output + errors
    assert statuses(place) == ["resumed"]
    assert result(place)["environment"]["processes"] == 2
    kill.check_sound(place)
    assert distance(place, single(*LONG)) < BOUND
