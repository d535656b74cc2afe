"""SAM against the algorithm of the paper, by hand in float64 and in torch; what must not change."""

import copy
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from small import (
    Command,
    a_batch,
    small_config,
    small_learner,
    small_network,
    trained,
    weights,
)
from torch import Tensor, nn

from runner.config.accumulate import Accumulate
from runner.config.sam import Sam
from runner.config.schema import Optim
from runner.errors import DivergedError
from runner.training.optim import build_optimizer, freeze_body, set_rates
from runner.training.step import Learner, train_step
from runner.tricks.idea import Idea
from runner.tricks.sam import climbed

RHO = 0.05


def stepped(
    learner: Learner, sam: Sam, *, steps: int = 1, optim: Optim | None = None, **groups: Any
) -> Tensor:
    """Make some steps on one batch; return the loss of the last one."""
    optimizer = build_optimizer(
        learner.groups, optim or Optim(), [1.0] * len(learner.groups), learner.idea
    )
    set_rates(optimizer, 0.1, 0.9)
    batch = a_batch()
    for before in range(steps):
        now = replace(batch, moment=replace(batch.moment, before=before))
        loss = train_step(learner, optimizer, now, small_config(sam=sam, **groups)).loss
    return loss


def sgd() -> Optim:
    return Optim(name="sgd", weight_decay=0.0)


# ── Climbing ───────────────────────────────────────────────────────────────────────────────────


def test_weights_climb_and_come_back_to_the_bit() -> None:
    weight, frozen = nn.Parameter(torch.tensor([0.1, 0.2])), nn.Parameter(torch.ones(1))
    weight.grad = torch.tensor([3.0, -4.0])
    before = weight.detach().clone()
    with climbed(nn.Identity(), [weight, frozen], 0.5):
        torch.testing.assert_close(weight.detach(), torch.tensor([0.1 + 0.3, 0.2 - 0.4]))
        assert torch.equal(frozen.detach(), torch.ones(1))
    assert torch.equal(weight, before)
    with pytest.raises(ZeroDivisionError), climbed(nn.Identity(), [weight], 0.5):
        raise ZeroDivisionError
    assert torch.equal(weight, before)


def test_a_gradient_of_zero_climbs_nowhere() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.zeros(2)
    with climbed(nn.Identity(), [weight], 0.5):
        assert torch.equal(weight.detach(), torch.ones(2))


def test_a_gradient_whose_norm_overflows_does_not_turn_sam_off() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1e20, 1.0])
    with climbed(nn.Identity(), [weight], 0.5):
        assert not weight.isfinite().all()
    assert torch.equal(weight.detach(), torch.ones(2))


def test_the_first_gradients_do_not_outlive_the_climb() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    first = weakref.ref(weight.grad)
    with climbed(nn.Identity(), [weight], 0.5):
        weight.grad = None  # as the second pass does first
        assert first() is None


# ── Against the paper ──────────────────────────────────────────────────────────────────────────


def by_hand(
    images: NDArray[np.float64], labels: NDArray[np.int64], weight: NDArray[np.float64],
    bias: NDArray[np.float64], *, rho: float, steps: int, rate: float, momentum: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # fmt: skip
    """Algorithm 1 of the paper for softmax regression, whose gradient is written out."""
    hot, speed = np.eye(3)[labels], (0 * weight, 0 * bias)

    def gradient(
        weight: NDArray[np.float64], bias: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        powers = np.exp(images @ weight.T + bias)
        error = (powers / powers.sum(1, keepdims=True) - hot) / len(images)
        return error.T @ images, error.sum(0)

    for _ in range(steps):
        down, left = gradient(weight, bias)
        norm = np.sqrt((down**2).sum() + (left**2).sum())
        down, left = gradient(weight + rho * down / norm, bias + rho * left / norm)
        speed = (momentum * speed[0] + down, momentum * speed[1] + left)
        weight, bias = weight - rate * speed[0], bias - rate * speed[1]
    return weight, bias


@pytest.mark.parametrize("micro", [1, 4])
def test_three_steps_of_softmax_regression_by_hand(micro: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 3)))
    learner = small_learner(model)
    layer = model[0][1]
    start = [each.detach().double().numpy().copy() for each in (layer.weight, layer.bias)]
    stepped(learner, Sam(RHO), steps=3, optim=sgd(), accumulate=Accumulate(micro))
    batch = a_batch()
    images = batch.pixels.canvas.flatten(1).double().div(255).numpy()
    settings = {"steps": 3, "rate": 0.1, "momentum": 0.9}
    expected = by_hand(images, batch.labels.numpy(), *start, rho=RHO, **settings)
    plain = by_hand(images, batch.labels.numpy(), *start, rho=0.0, **settings)
    for found, wanted, without in zip((layer.weight, layer.bias), expected, plain, strict=True):
        assert np.abs(found.detach().numpy() - wanted).max() < 1e-6
        assert np.abs(wanted - without).max() > 1e-4  # negative control


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_a_network_in_torch_alone(precision: str) -> None:
    model = small_network().train()
    other = copy.deepcopy(model)
    loss = stepped(small_learner(model, precision=precision), Sam(RHO), optim=sgd())

    batch = a_batch()
    images = batch.pixels.canvas.float().div(255).contiguous(memory_format=torch.channels_last)
    parameters = list(other.parameters())

    def gradients() -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            outputs = other(images)
        found = F.cross_entropy(outputs.float(), F.one_hot(batch.labels, 3).float())
        return found.detach(), torch.autograd.grad(found, parameters)

    first, slopes = gradients()
    norm = torch.stack([(slope**2).sum() for slope in slopes]).sum().sqrt()
    start = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter += RHO * slope / norm
    _, slopes = gradients()
    assert float(loss) == float(first)  # the loss at the weights, not where the gradient is taken
    for ours, weight, slope in zip(model.parameters(), start, slopes, strict=True):
        largest = float(slope.abs().max())
        bound = (1e-5 if precision == "fp32" else 0.05) * largest + 1e-7
        assert float((ours.detach() - (weight - 0.1 * slope)).abs().max()) < bound


# ── What must not change ───────────────────────────────────────────────────────────────────────


def test_a_distance_of_zero_is_no_sam_exactly() -> None:
    plain = weights(trained(small_config()))
    assert torch.equal(plain, weights(trained(small_config(sam=Sam(0.0, every=2)))))
    assert not torch.equal(plain, weights(trained(small_config(sam=Sam(1e-3)))))


def test_batch_norms_keep_the_statistics_of_the_first_pass() -> None:
    plain, sharp = small_network().train(), small_network().train()
    assert stepped(small_learner(plain), Sam()) == stepped(small_learner(sharp), Sam(RHO))
    for (name, one), (_, other) in zip(plain.named_buffers(), sharp.named_buffers(), strict=True):
        assert torch.equal(one, other), name
    assert not torch.equal(plain[0][0].weight, sharp[0][0].weight)


class Watching(nn.Module):
    """A network that remembers what its dropout kept and what its weights were, pass by pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.dropout = small_network(), nn.Dropout(0.5)
        self.register_buffer("passes", torch.zeros(()))
        self.kept: list[Tensor] = []
        self.weights: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.passes = self.passes + 1  # another tensor, not the same one changed
        self.kept.append(self.dropout(torch.ones(64)))
        self.weights.append(torch.cat([each.detach().flatten() for each in self.parameters()]))
        return self.body(images) * self.kept[-1].mean()


def watched(**changes: Any) -> tuple[Watching, Learner]:
    model = Watching().train()
    learner = small_learner(model.body, **changes)
    groups = [list(part.parameters()) for part in model.body]
    return model, replace(learner, model=model, groups=groups)


@pytest.mark.parametrize("micro", [1, 3])
def test_layers_draw_the_same_in_both_passes_and_another_in_the_next_step(micro: int) -> None:
    model, learner = watched()
    stepped(learner, Sam(RHO), steps=2, accumulate=Accumulate(micro))
    passes = [model.kept[start : start + micro] for start in range(0, 4 * micro, micro)]
    assert len(model.kept) == 4 * micro
    for first, second in ((0, 1), (2, 3)):
        assert all(map(torch.equal, passes[first], passes[second]))
    assert not any(map(torch.equal, passes[0], passes[2]))
    assert model.passes == 2 * micro  # those of the first passes


def test_the_second_pass_is_at_the_given_distance_and_frozen_weights_stay() -> None:
    model, learner = watched()
    freeze_body(model.body, learner.groups, frozen=True)
    is_frozen = torch.cat(
        [torch.full((each.numel(),), not each.requires_grad) for each in model.parameters()]
    )
    stepped(learner, Sam(RHO))
    moved = model.weights[1] - model.weights[0]
    assert float(moved.norm()) == pytest.approx(RHO, rel=1e-3)
    assert is_frozen.any()
    assert not moved[is_frozen].any()


@pytest.mark.parametrize(("every", "passes"), [(1, 12), (2, 9), (3, 8), (6, 7), (7, 6)])
def test_every_nth_step_takes_two_passes(every: int, passes: int) -> None:
    model, learner = watched()
    stepped(learner, Sam(RHO, every), steps=6)
    assert len(model.kept) == passes


def test_own_losses_and_optimizers_work() -> None:
    """The loss of an idea is that of both passes; its optimizer updates the weights themselves."""
    idea = Idea(
        functions={
            "loss": lambda logits, targets: -(targets * logits.log_softmax(1)).sum(1),
            "optimizer": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9),
        }
    )
    models = [small_network().train(), small_network().train()]
    stepped(small_learner(models[0], idea=idea), Sam(RHO), optim=sgd())
    stepped(small_learner(models[1]), Sam(RHO), optim=sgd())
    torch.testing.assert_close(weights(models[0]), weights(models[1]), rtol=0, atol=1e-6)


class Steep(nn.Module):
    """A network whose loss is finite at its weights, and not where the second pass goes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small_network()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.body(images)
        return logits * (torch.inf if self.calls == 2 else 1)


def test_a_second_pass_that_is_not_finite_changes_nothing() -> None:
    model = Steep().train()
    learner = replace(small_learner(model.body), model=model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(DivergedError):
        stepped(learner, Sam(RHO))
    assert all(map(torch.equal, model.parameters(), before))
    assert model.calls == 2


def test_an_interval_longer_than_the_training_is_reported(
    command: Command, tmp_path: Any, tiny_words: tuple[str, ...]
) -> None:
    words = (*tiny_words, "+trick=sam", "sam.every=1000", f"run_dir={tmp_path / 'run'}")
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert "note: sam has no effect: sam.every=1000 of " in done.stdout + done.stderr
