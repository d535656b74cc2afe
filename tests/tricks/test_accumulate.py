"""Micro-batches against the whole batch: the same gradients, with less memory."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small import CLASSES, small_config, small_dataset, small_learner, small_network
from torch import Tensor, nn

from runner.config import checks
from runner.config.accumulate import Accumulate
from runner.config.loss import Loss
from runner.config.schema import Data, Model, Resize, to_dict
from runner.errors import ConfigError
from runner.machine.processes import Processes
from runner.models import build_model
from runner.training.loop import Training
from runner.training.schedule import plan
from runner.training.session import out_of_memory, require_divisible
from runner.training.step import Learner, compute_gradients
from runner.tricks.accumulate import micro_batches
from runner.tricks.idea import Idea


@given(images=st.integers(1, 300), count=st.integers(1, 5), data=st.data())
def test_micro_batches_hold_each_image_once_however_many_processes(
    images: int, count: int, data: st.DataObject
) -> None:
    steps = data.draw(st.integers(1, images))
    alone = micro_batches(images, steps)
    sizes = [rows.stop - rows.start for rows in alone]
    assert len(sizes) == steps
    assert max(sizes) - min(sizes) <= 1
    shared: list[list[int]] = [[] for _ in range(steps)]
    for rank in range(count):
        processes = Processes(rank, count)
        mine = processes.share(images).tolist()
        for found, rows in zip(shared, micro_batches(images, steps, processes), strict=True):
            found += mine[rows]
            assert mine[rows] or images // steps < count
    everything = list(range(images))
    assert [sorted(found) for found in shared] == [everything[rows] for rows in alone]


# ── The gradients ──────────────────────────────────────────────────────────────────────────────


def without_batch_norm() -> nn.Sequential:
    network = small_network()
    for part in (network[0], network[1]):
        part[1] = nn.GroupNorm(2, part[1].num_features)
    return network


def inputs(count: int = 10) -> tuple[Tensor, Tensor]:
    """Images, and targets as mixing makes them."""
    random = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, 16, 16, generator=random)
    return images, torch.rand(count, len(CLASSES), generator=random).softmax(dim=1)


def computed(
    model: nn.Sequential, steps: int, *, loss: Loss | None = None, **changes: Any
) -> dict[str, Tensor]:
    """The loss and the gradients of one batch."""
    learner: Learner = small_learner(model.train(), **changes)
    optimizer = torch.optim.SGD(model.parameters())
    config = small_config(accumulate=Accumulate(steps), loss=loss or Loss())
    images, targets = inputs()
    found = compute_gradients(learner, optimizer, images, targets, len(images), config)
    gradients = {name: each.grad for name, each in model.named_parameters()}
    assert all(isinstance(each, Tensor) for each in gradients.values())
    return {"loss": found, **{name: each for name, each in gradients.items() if each is not None}}


def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest value of each tensor."""
    return max(float((one[name] - other[name]).abs().max() / one[name].abs().max()) for name in one)


def of_an_idea(loss: Callable[[Tensor, Tensor], Tensor]) -> Idea:
    return Idea(functions={"loss": loss})


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "weighted": {"class_weights": torch.tensor([0.2, 1.0, 5.0])},
    "binary": {"loss": Loss(kind="bce")},
    "weighted binary": {
        "loss": Loss(kind="bce"),
        "class_weights": torch.tensor([0.2, 1.0, 5.0]),
    },
    "idea of a mean": {"idea": of_an_idea(lambda z, y: F.mse_loss(z.sigmoid(), y))},
    "idea of each image": {"idea": of_an_idea(lambda z, y: -((y * z.log_softmax(1)).sum(1) ** 2))},
}


# Ten images: four micro-batches have two or three, three have three or four, ten have one.
@pytest.mark.parametrize("steps", [2, 3, 4, 10])
@pytest.mark.parametrize("case", CASES)
def test_the_gradients_are_those_of_the_whole_batch(case: str, steps: int) -> None:
    whole = computed(without_batch_norm(), 1, **CASES[case])
    assert differ(whole, computed(without_batch_norm(), steps, **CASES[case])) < 2e-6


def test_batch_norms_see_micro_batches() -> None:
    """The one difference, and the control that the test above can fail."""
    assert differ(computed(small_network(), 1), computed(small_network(), 4)) > 1e-2


def test_the_loss_is_the_mean_that_torch_computes() -> None:
    model = without_batch_norm()
    images, targets = inputs()
    expected = F.cross_entropy(model(images), targets).detach()
    for steps in (1, 3):
        assert float(computed(model, steps)["loss"]) == pytest.approx(float(expected), abs=1e-6)


def test_memory_for_activations_falls_with_the_size_of_the_micro_batches() -> None:
    def most(steps: int) -> int:
        """The largest number of values that any backward pass waits for."""
        sizes, peaks = [0], [0]

        def pack(tensor: Tensor) -> Tensor:
            sizes[0] += tensor.numel() * (tensor.ndim == 4)
            peaks.append(sizes[0])
            return tensor

        def unpack(tensor: Tensor) -> Tensor:
            sizes[0] = 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            computed(without_batch_norm(), steps)
        return max(peaks)

    weights = most(10) - (most(5) - most(10))  # are kept whatever the batch is
    assert (most(1) - weights) / (most(5) - weights) == pytest.approx(5, rel=0.02)


# ── What cannot be ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("groups", "key", "fix"),
    [
        ({}, "data.batch_size=8", "accumulate.steps=8"),
        (
            {"data": Data(batch_size=16), "resize": Resize(schedule="book", first_batch_size=4)},
            "resize.first_batch_size=4",
            "accumulate.steps=4",
        ),
    ],
)
def test_more_micro_batches_than_images_are_refused(
    groups: dict[str, Any], key: str, fix: str
) -> None:
    config = small_config(accumulate=Accumulate(9), **groups)
    with pytest.raises(ConfigError, match=f"accumulate.steps=9: {key} has fewer images") as caught:
        checks.from_dict(to_dict(config))
    assert caught.value.fix == fix


@pytest.mark.parametrize(
    ("mode", "steps", "is_refused"),
    [("reduce-overhead", 4, True), ("reduce-overhead", 1, False), ("default", 4, False)],
)
def test_cuda_graphs_do_not_accumulate(mode: str, steps: int, is_refused: bool) -> None:
    values = to_dict(small_config(accumulate=Accumulate(steps), compile=mode))
    if not is_refused:
        checks.from_dict(values)
        return
    with pytest.raises(ConfigError, match="CUDA graphs") as caught:
        checks.from_dict(values)
    assert caught.value.fix == "compile=default"


def test_a_micro_batch_of_one_image_is_refused_where_a_batch_of_one_is() -> None:
    config = small_config(
        model=Model(name="xresnet18"), resize=Resize(size=32), accumulate=Accumulate(5)
    )
    model = build_model("xresnet", "xresnet18", 3, seed=0)
    learner = replace(
        small_learner(small_network()), model=model, groups=[list(model.parameters())]
    )
    with pytest.raises(ConfigError, match="a micro-batch of one image of 32 px") as caught:
        Training(learner, small_dataset(), plan(config, 12), config)
    assert (caught.value.where, caught.value.fix) == ("accumulate.steps=5", "accumulate.steps=4")
    fixed = replace(config, accumulate=Accumulate(4))
    Training(learner, small_dataset(), plan(fixed, 12), fixed)


def test_each_process_needs_an_image_of_each_micro_batch() -> None:
    config = small_config(accumulate=Accumulate(3))
    with pytest.raises(ConfigError, match="there are processes, 3") as caught:
        require_divisible(plan(config, 33), config, Processes(0, 3, 0, 3))
    assert (caught.value.where, caught.value.fix) == ("accumulate.steps=3", "accumulate.steps=2")
    require_divisible(plan(config, 33), config, Processes(0, 2, 0, 2))


@pytest.mark.parametrize(
    ("batch", "steps", "fix"),
    [
        (8, 1, "accumulate.steps=2 eval.batch_size=4, which keeps the batch, or "
               "data.batch_size=4 eval.batch_size=4"),
        (8, 8, "data.batch_size=4 eval.batch_size=4 accumulate.steps=4"),
        (1, 1, "data.batch_size=1 eval.batch_size=1"),
    ],
)  # fmt: skip
def test_out_of_memory_names_more_micro_batches(batch: int, steps: int, fix: str) -> None:
    config = small_config(data=Data(batch_size=batch), accumulate=Accumulate(steps))
    assert out_of_memory(config).fix == fix
