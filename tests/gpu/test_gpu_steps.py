"""Training steps and evaluations on a GPU: no waits, the CPU's numbers, the same bits again."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import KINDS_OF_STEPS, small_dataset

from runner.config.idea import read_idea
from runner.data.dataset import load_dataset
from runner.data.resident import ResidentStore, resident
from runner.machine.hardware import on_device
from runner.training.learners import build_learner
from runner.training.loop import Training
from runner.training.predicting import evaluate
from runner.training.schedule import plan
from runner.training.step import _sizes
from runner.tricks.idea import NO_IDEA, load_idea
from runner.tricks.normalize import _on_gpu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    # What torch says of the debug mode itself.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]

EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = {
    "all tricks": ["+trick=[normalize,mixup,label_smoothing]"],
    **KINDS_OF_STEPS,
    "shrinking": ["augment=inception", "resize.size=12"],
    "fp32": ["precision=fp32", "model.dropout=0.2"],
    **{f"code {path.stem}": [f"code={path}"] for path in sorted(EXAMPLES.glob("*.py"))},
}


def made(composed, words, outputs, device="cuda", *, is_resident=True):
    """Configuration, data set and network of a run on the embedded images."""
    config = composed(f"device={device}", f"outputs={outputs}", "budget.epochs=1", *words)
    cache = Path(config.outputs) / "cache"
    dataset = load_dataset(config.data, config.largest_size, cache, lambda *_: None)
    idea = load_idea(read_idea(config.code)) if config.code is not None else NO_IDEA
    learner, _ = build_learner(config, dataset, idea=idea)
    assert {each.device.type for each in learner.model.parameters()} == {device}
    if is_resident:
        dataset = resident(dataset, learner.device)
        assert isinstance(dataset.store, ResidentStore) == (device == "cuda")
    return config, dataset, learner


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@contextmanager
def no_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_check_of_waits_can_fail():
    number = torch.zeros(1, device="cuda")
    with no_waits(), pytest.raises(RuntimeError, match="synchroniz"):
        number.item()


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("is_resident", [True, False], ids=["resident", "from the host"])
def test_a_step_waits_for_nothing(composed, outputs, words, is_resident):
    config, dataset, learner = made(composed, words, outputs, is_resident=is_resident)
    with closing(iter(Training(learner, dataset, plan(config, 6000), config))) as steps:
        for _ in range(3):
            next(steps)
        with no_waits():
            for _ in range(3):
                next(steps)


@pytest.mark.parametrize("tta", ["none", "book", "ten_crop", "scales"])
@pytest.mark.parametrize("is_resident", [True, False], ids=["resident", "from the host"])
def test_the_batches_of_an_evaluation_wait_for_nothing(composed, outputs, tta, is_resident):
    words = [f"tta={tta}", "+trick=normalize"]
    config, dataset, learner = made(composed, words, outputs, is_resident=is_resident)

    def watch(done, total):
        torch.cuda.set_sync_debug_mode("default" if done == total else "error")

    before = evaluate(learner, dataset, config, with_tta=True)
    try:
        found = evaluate(learner, dataset, config, with_tta=True, progress=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.array_equal(found.tta, before.tta)


@pytest.mark.parametrize("words", [[], WORDS["all tricks"], ["model=xresnet50", "resize.size=64"]])
def test_first_losses_are_those_of_the_cpu(composed, outputs, words):
    def losses(device):
        config, dataset, learner = made(composed, [*words, "precision=fp32"], outputs, device)
        with closing(iter(Training(learner, dataset, plan(config, 6000), config))) as steps:
            return [float(next(steps).loss) for _ in range(2)]

    assert losses("cuda") == pytest.approx(losses("cpu"), abs=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_equal_runs_are_equal_to_the_bit(composed, outputs, precision):
    def weights(seed):
        words = [*WORDS["all tricks"], f"precision={precision}", f"seed={seed}"]
        config, dataset, learner = made(composed, words, outputs)
        with closing(iter(Training(learner, dataset, plan(config, 6000), config))) as steps:
            for _ in range(40):
                next(steps)
        return torch.cat(
            [value.flatten().double() for value in learner.model.state_dict().values()]
        )

    first = weights(0)
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)  # negative control


def test_what_is_resident_is_evaluated_as_from_the_host(composed, outputs):
    words = ["tta=ten_crop", "precision=fp32"]
    config, dataset, learner = made(composed, words, outputs)
    host = replace(dataset, store=dataset.store._store)
    found = [evaluate(learner, each, config, with_tta=True) for each in (dataset, host)]
    assert np.array_equal(found[0].plain, found[1].plain)
    assert np.array_equal(found[0].tta, found[1].tta)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_are_seen(bad):
    gradients = [torch.randn(3, 4, 5, 5, device="cuda") for _ in range(3)]
    assert torch.isfinite(torch.stack(_sizes(gradients))).all()
    gradients[1][0, 1, 2, 3] = bad
    assert torch.isfinite(torch.stack(_sizes(gradients))).tolist() == [True, False, True]


def test_large_copies_come_over_whole():
    for shape in ((7,), (3, 300, 301)):
        tensor = torch.arange(int(np.prod(shape))).reshape(shape)
        assert torch.equal(on_device(tensor, torch.device("cuda")).cpu(), tensor)


def test_going_on_after_an_interruption_twice_in_an_epoch(composed, outputs):
    """Losses from a file and losses on the GPU are of one epoch."""
    from runner.training.meter import Meter

    config, dataset, learner = made(composed, [], outputs)
    stages = plan(config, len(dataset.train))
    meter = Meter(stages)
    with closing(iter(Training(learner, dataset, stages, config))) as steps:
        for _ in range(2):
            meter.step(next(steps))
        meter.restore(json.loads(json.dumps(meter.state())))
        meter.step(next(steps))
        assert len(meter.state()["losses"]) == 3


def test_constants_are_made_once():
    first = _on_gpu((0.1, 0.2), torch.float32, torch.device("cuda"))
    assert _on_gpu((0.1, 0.2), torch.float32, torch.device("cuda")) is first
    assert not first.is_inference()


def test_data_in_memory_is_not_made_resident():
    dataset = small_dataset()
    assert resident(dataset, torch.device("cuda")) is dataset
