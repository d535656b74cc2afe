"""Training, evaluation and the search for a rate on a pretended GPU: see ``fake_gpu.py``.

``test_fake_gpu.py`` runs these tests in a process of their own: torch's autograd counts the devices
when it is first used, so nothing may be differentiated in a process before the device is there.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_gpu
import numpy as np
import pytest
import torch
from fake_gpu import MixedError, WaitError, no_waits
from small import EVERY_TRICK, KINDS_OF_STEPS

from runner.config.schema import RunConfig
from runner.data.dataset import load_dataset
from runner.data.resident import ResidentStore
from runner.lr_find import range_test
from runner.machine import hardware
from runner.training import learners
from runner.training.learners import build_learner
from runner.training.loop import Training
from runner.training.predicting import evaluate
from runner.training.schedule import plan

WORDS = {
    "baseline": [],
    "every trick": [EVERY_TRICK],
    **KINDS_OF_STEPS,
}
Made = tuple[RunConfig, Any, Any]


@pytest.fixture(autouse=True)
def entered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fake_gpu.register()
    monkeypatch.setattr(torch, "Generator", fake_gpu.generator)
    with fake_gpu.FakeGpu():
        yield


@pytest.fixture
def made(
    composed: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, tiny_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Made]:  # fmt: skip
    """Configuration, data and learner of a run on the tiny folder, on the fake GPU or the CPU."""
    outputs = tmp_path_factory.mktemp("outputs")
    # The batches are small. So nearly all that a step copies has to be pinned.
    monkeypatch.setattr(hardware, "_MOST_STAGED", 64)

    def make(*words: str, device: str = fake_gpu.NAME, is_resident: bool = False) -> Made:
        config = composed(
            "data=folder", f"data.root={tiny_folder}", "data.batch_size=16", "resize.size=16",
            "model=timm", "model.name=test_resnet", "budget.epochs=3", "threads=1",
            "precision=fp32", f"outputs={outputs}", *words,
        )  # fmt: skip
        cache = Path(config.outputs) / "cache"
        dataset = load_dataset(config.data, config.largest_size, cache, lambda *_: None)
        place = torch.device(device)
        monkeypatch.setattr(learners, "_device", lambda *_: place)
        learner, _ = build_learner(config, dataset)
        if is_resident:
            dataset = replace(dataset, store=ResidentStore(dataset.store, place))
        return config, dataset, learner

    return make


def losses(made: Made, steps: int = 6) -> list[float]:
    """The losses of the first steps, of which none but the first two may wait.

    The first two build the state of the optimizer, and constants.
    """
    config, dataset, learner = made
    found = []
    with closing(iter(Training(learner, dataset, plan(config, 48), config))) as training:
        for number in range(steps):
            # The end of an epoch reads its last loss, and the next one begins with no wait.
            if number > 1 and number % 3 != 2:
                with no_waits():
                    step = next(training)
            else:
                step = next(training)
            found.append(step.loss)
    return [float(loss) for loss in found]


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("is_resident", [False, True], ids=["from the host", "resident"])
def test_steps_wait_for_nothing_and_have_the_losses_of_the_cpu(
    made: Callable[..., Made], words: list[str], is_resident: bool
) -> None:
    on_gpu = losses(made(*words, is_resident=is_resident))
    on_cpu = losses(made(*words, device="cpu"), steps=2)
    assert on_gpu[:2] == pytest.approx(on_cpu, rel=3e-4)  # later steps amplify rounding


@pytest.mark.parametrize("is_resident", [False, True], ids=["from the host", "resident"])
def test_steps_that_pin_nothing_wait(
    made: Callable[..., Made], monkeypatch: pytest.MonkeyPatch, is_resident: bool
) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    with pytest.raises(WaitError, match="not pinned"):
        losses(made(is_resident=is_resident))


@pytest.mark.parametrize("tta", ["none", "book", "ten_crop", "scales"])
def test_batches_of_an_evaluation_wait_for_nothing(made: Callable[..., Made], tta: str) -> None:
    words = (f"tta={tta}", "+trick=normalize", "eval.batch_size=5")
    config, dataset, learner = made(*words)

    def watch(done: int, total: int) -> None:
        fake_gpu._State.forbids_waits = done != total

    evaluate(learner, dataset, config, with_tta=True)
    try:
        found = evaluate(learner, dataset, config, with_tta=True, progress=watch)
    finally:
        fake_gpu._State.forbids_waits = False
    config, dataset, learner = made(*words, device="cpu")
    expected = evaluate(learner, dataset, config, with_tta=True)
    assert np.allclose(found.tta, expected.tta, atol=1e-5)
    assert np.allclose(found.plain, expected.plain, atol=1e-5)


def test_the_search_for_a_rate(made: Callable[..., Made]) -> None:
    config, dataset, learner = made("budget.epochs=40")
    on_gpu = range_test(learner, dataset, config)
    config, dataset, learner = made("budget.epochs=40", device="cpu")
    on_cpu = range_test(learner, dataset, config)
    assert on_gpu.losses[:8] == pytest.approx(on_cpu.losses[:8], rel=1e-3)


def on_gpu(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, device=fake_gpu.NAME)


def diagonal() -> torch.Tensor:
    return torch.eye(2, device=fake_gpu.NAME)


def rows() -> torch.Tensor:
    return torch.arange(2, device=fake_gpu.NAME)


def upload(tensor: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return tensor.to(fake_gpu.NAME, dtype, non_blocking=True)


LARGE = 2**20  # elements of 4 bytes


@pytest.mark.parametrize(
    "case",
    {
        "item": lambda: on_gpu(1).item(),
        "bool": lambda: bool(on_gpu(1) > 0),
        "list": lambda: on_gpu(2).tolist(),
        "to the CPU": lambda: on_gpu(2).cpu(),
        "from the CPU": lambda: torch.ones(2).to(fake_gpu.NAME),
        "constant": lambda: torch.tensor([1.0, 2.0], device=fake_gpu.NAME),
        "mask": lambda: on_gpu(2)[on_gpu(2) > 0],
        "list as an index": lambda: on_gpu(2)[[1, 0]],
        "number of results": lambda: on_gpu(2).nonzero(),
        "equal": lambda: torch.equal(on_gpu(2), on_gpu(2)),
        "print": lambda: str(on_gpu(1)),
        "closeness": lambda: torch.allclose(on_gpu(2), on_gpu(2)),
        "different values": lambda: on_gpu(2).unique(),
        "different rows": lambda: on_gpu(2, 2).unique(dim=0),
        "runs of values": lambda: on_gpu(2).unique_consecutive(),
        "runs of rows": lambda: on_gpu(2, 2).unique_consecutive(dim=0),
        "counts": lambda: on_gpu(2).long().bincount(),
        "histogram": lambda: on_gpu(2).histc(),
        "repeats": lambda: on_gpu(2).repeat_interleave(on_gpu(2).long()),
        "draws": lambda: on_gpu(2).multinomial(1),
        "deviations": lambda: torch.normal(on_gpu(2), on_gpu(2)),
        "inverse": lambda: torch.linalg.inv(diagonal()),
        "solution": lambda: torch.linalg.solve(diagonal(), on_gpu(2)),
        "least squares": lambda: torch.linalg.lstsq(diagonal(), on_gpu(2, 1)),
        "Cholesky": lambda: torch.linalg.cholesky(diagonal()),
        "singular values": lambda: torch.linalg.svd(diagonal()),
        "eigenvalues": lambda: torch.linalg.eigh(diagonal()),
        "complex eigenvalues": lambda: torch.linalg.eig(diagonal()),
        "a number of the CPU, chosen": lambda: on_gpu(2).where(on_gpu(2) > 0, torch.tensor(1.0)),
        "a number of the CPU, put": lambda: on_gpu(2).index_put_((rows(),), torch.tensor(1.0)),
        "large upload": lambda: upload(torch.ones(LARGE)),
        "large upload by copy_": lambda: on_gpu(LARGE).copy_(torch.ones(LARGE), non_blocking=True),
        "upload that converts": lambda: upload(torch.ones(LARGE).pin_memory(), torch.float64),
        "upload that reorders": lambda: upload(torch.ones(9, LARGE).pin_memory()[:, ::2]),
        "download": lambda: torch.ones(2).copy_(on_gpu(2), non_blocking=True),
        "download by pieces": lambda: (
            torch.ones(2, 2).pin_memory()[:, 0].copy_(on_gpu(2), non_blocking=True)
        ),
    }.items(),
    ids=lambda case: case[0],
)
def test_what_waits_raises(case: tuple[str, Callable[[], object]]) -> None:
    _, act = case
    act()
    with no_waits(), pytest.raises(WaitError):
        act()


@pytest.mark.parametrize(
    "mix",
    [
        lambda: on_gpu(2) + torch.ones(2),
        lambda: on_gpu(2).add_(torch.ones(2)),
        lambda: torch.stack([on_gpu(2), torch.ones(2)]),
        lambda: torch.nn.functional.linear(on_gpu(2, 2), torch.ones(2, 2)),
        lambda: torch.stack([on_gpu(1)[0], torch.tensor(1.0)]),
        lambda: torch.tensor(1.0).add_(on_gpu(1)[0]),
        lambda: on_gpu(2).index_put_((rows(),), torch.ones(2)),
        lambda: torch.ones(2)[rows()],
    ],
)
def test_mixing_devices_raises(mix: Callable[[], object]) -> None:
    with pytest.raises(MixedError):
        mix()


def test_numpy_raises() -> None:
    with pytest.raises(TypeError, match="numpy"):
        on_gpu(2).numpy()


def test_what_waits_for_nothing_is_allowed() -> None:
    with no_waits():
        found = torch.ones(3).to(fake_gpu.NAME, non_blocking=True) + on_gpu(3) * 2.0
        copied = found.to("cpu", non_blocking=True)
    assert copied.tolist() == [3, 3, 3]
    assert found.device.type == fake_gpu.NAME


@pytest.mark.parametrize(
    "act",
    [
        lambda: upload(torch.ones(LARGE).pin_memory()),
        lambda: upload(torch.ones(2, LARGE).pin_memory()[1]),
        lambda: upload(torch.ones(LARGE // 128)),
        lambda: hardware.on_device(torch.ones(LARGE), torch.device(fake_gpu.NAME)),
        lambda: on_gpu(LARGE).to("cpu", torch.float64, non_blocking=True),
        lambda: torch.ones(2).pin_memory().copy_(on_gpu(2), non_blocking=True),
        lambda: on_gpu(2).repeat_interleave(on_gpu(2).long(), output_size=2),
        lambda: on_gpu(2).repeat_interleave(2),
        lambda: torch.linalg.inv_ex(diagonal()),
        lambda: on_gpu(2) * torch.tensor(2.0),
        lambda: on_gpu(2).masked_fill(on_gpu(2) > 0, torch.tensor(2.0)),
        lambda: on_gpu(2).where(on_gpu(2) > 0, 2.0),
        lambda: on_gpu(2)[rows()],
    ],
)
def test_what_only_looks_like_waiting_is_allowed(act: Callable[[], object]) -> None:
    with no_waits():
        act()


def test_memory_is_pinned_as_torch_pins_it() -> None:
    assert not torch.ones(2).is_pinned()
    pinned = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last).pin_memory()
    assert pinned.is_pinned()
    assert pinned[1:].is_pinned()
    assert pinned.is_contiguous(memory_format=torch.channels_last)
    assert not (pinned + 1).is_pinned()
    assert on_gpu(2).to("cpu", non_blocking=True).is_pinned()
    assert not on_gpu(2).cpu().is_pinned()
