"""EMA against torch's own average, a closed form and a loop; its run, stopped and gone on."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import Command, small_config, small_dataset, small_learner, small_network
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from runner.config.ema import Ema
from runner.config.schema import RunConfig
from runner.errors import ConfigError
from runner.records.bundle import open_bundle
from runner.training.loop import Training
from runner.training.predicting import evaluate
from runner.training.schedule import plan
from runner.tricks.ema import AveragedWeights, average, decay_at, is_too_short

STANDARD = Ema(span=0.1)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def moved(model: nn.Module, seed: int) -> nn.Module:
    """The network after something like an update: other weights, statistics and counters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=generator))
            else:
                value.add_(3)
    return model


# ── The decay ──────────────────────────────────────────────────────────────────────────────────


def test_the_first_update_is_taken_over_whole() -> None:
    assert decay_at(STANDARD, 0, 1000) == 0.0


@pytest.mark.parametrize(("total", "expected"), [(300, 1 - 1 / 30), (300_000, 1 - 1 / 30_000)])
def test_the_span_is_a_part_of_training_whatever_its_length(total: int, expected: float) -> None:
    assert decay_at(STANDARD, total - 1, total) == pytest.approx(
        min(expected, 1 - total ** (-2 / 3))
    )


def test_the_warm_up_is_that_of_timm() -> None:
    timm = pytest.importorskip("timm.utils.model_ema")
    theirs = timm.ModelEmaV3(nn.Linear(1, 1), decay=0.99, use_warmup=True)
    span = 1 / (0.01 * 1000)  # whose decay is .99 too
    for before in (0, 1, 5, 100, 999):
        # timm counts the update itself: its step 1 comes first.
        expected = theirs.get_decay(before + 1)
        assert decay_at(Ema(span=span), before, 1000) == pytest.approx(expected)


@given(span=st.floats(1e-6, 1), before=st.integers(0, 10_000), total=st.integers(1, 10_000))
def test_the_decay_is_a_weight(span: float, before: int, total: int) -> None:
    assert 0 <= decay_at(Ema(span=span), before, total) < 1


@pytest.mark.parametrize(("total", "expected"), [(3, True), (10, True), (11, False), (300, False)])
def test_an_average_over_less_than_two_updates_is_none(total: int, expected: bool) -> None:
    assert is_too_short(STANDARD, total) == expected
    assert all(decay_at(STANDARD, before, total) == 0 for before in range(total)) == expected
    assert not is_too_short(Ema(), total)
    assert not is_too_short(Ema(decay=0.5), total)


def test_an_explicit_decay_has_no_warm_up() -> None:
    assert [decay_at(Ema(decay=0.9), before, 10) for before in (0, 5)] == [0.9, 0.9]


# ── The average ────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=10, deadline=None)
@given(decay=st.floats(0, 0.999))
def test_ten_updates_against_torch_itself(decay: float) -> None:
    model = small_network()
    ours = copy.deepcopy(model)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    theirs.n_averaged += 1  # torch replaces the initial weights by the first ones
    for step in range(10):
        moved(model, step)
        average(ours, model, decay)
        theirs.update_parameters(model)
    for name, value in theirs.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(ours.state_dict()[name], value)


def test_floating_buffers_are_averaged_and_counters_copied() -> None:
    model = small_network()
    averaged = copy.deepcopy(model)
    before = state(averaged)
    moved(model, 0)
    average(averaged, model, 0.75)
    now, last = averaged.state_dict(), model.state_dict()
    mean = "0.1.running_mean"
    assert torch.allclose(now[mean], 0.75 * before[mean] + 0.25 * last[mean])
    assert not torch.equal(now[mean], last[mean])  # negative control
    counter = "0.1.num_batches_tracked"
    assert now[counter].dtype == torch.int64
    assert torch.equal(now[counter], last[counter])
    assert not torch.equal(now[counter], before[counter])


class Odd(nn.Module):
    """Two layers of one weight, and a buffer that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, 1), nn.Linear(1, 1)
        self.second.weight = self.first.weight
        self.register_buffer("calls", torch.zeros(1), persistent=False)


def test_shared_weights_are_averaged_once_and_unsaved_buffers_copied() -> None:
    model = Odd()
    averaged = copy.deepcopy(model)
    assert averaged.first.weight is averaged.second.weight
    with torch.no_grad():
        averaged.first.weight.zero_()
        model.first.weight.fill_(1.0)
        model.calls += 5
    average(averaged, model, 0.9)
    assert averaged.second.weight.item() == pytest.approx(0.1)
    assert averaged.calls.item() == 5


def test_a_network_that_cannot_be_copied_is_refused() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        layer = nn.utils.weight_norm(nn.Linear(2, 2))
    layer(torch.zeros(1, 2))  # keeps a result of its own
    with pytest.raises(ConfigError, match="cannot be copied") as caught:
        AveragedWeights(layer, STANDARD, 10)
    assert caught.value.where == "ema.span=0.1"


def test_a_decay_of_zero_is_the_last_weights_exactly() -> None:
    model = small_network()
    averaged = copy.deepcopy(model)
    for step in range(3):
        average(averaged, moved(model, step), 0.0)
        assert are_equal(state(averaged), state(model))
    average(averaged, moved(model, 9), 1e-3)  # negative control
    assert not are_equal(state(averaged), state(model))


# ── In a training ──────────────────────────────────────────────────────────────────────────────


def a_training(config: RunConfig, *, seed: int = 0) -> Training:
    dataset = small_dataset()
    learner = small_learner(small_network(seed=seed))
    return Training(learner, dataset, plan(config, len(dataset.train)), config)


def trained(config: RunConfig) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The last weights of a training, and those that are evaluated."""
    training = a_training(config)
    for _ in training:
        pass
    return training.tensors()["model"], state(training.evaluated.model)


def test_a_training_against_a_loop_over_its_weights() -> None:
    config = small_config(ema=Ema(span=0.5))
    training = a_training(config)
    by_hand = {name: value.double() for name, value in state(small_network()).items()}
    for step in training:
        decay = decay_at(config.ema, step.moment.before, training.total)
        for name, value in training.tensors()["model"].items():
            by_hand[name] = decay * by_hand[name] + (1 - decay) * value.double()
    for name, value in training.evaluated.model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), by_hand[name], rtol=1e-5, atol=1e-6)


def test_training_itself_goes_on_without_the_average() -> None:
    plain, evaluated = trained(small_config())
    assert are_equal(plain, evaluated)
    last, averaged = trained(small_config(ema=Ema(span=0.5)))
    assert are_equal(last, plain)
    assert not are_equal(averaged, plain)


@pytest.mark.parametrize("neutral", [Ema(), Ema(decay=0.0), Ema(span=0.3, decay=0.0)])
def test_neutral_settings_are_no_trick(neutral: Ema) -> None:
    config = small_config(ema=neutral)
    assert config.tricks == []
    last, evaluated = trained(config)
    assert are_equal(last, evaluated)


def test_evaluating_the_average_leaves_the_training_alone() -> None:
    config = small_config(ema=Ema(span=0.5))
    undisturbed, disturbed = a_training(config), a_training(config)
    for _ in undisturbed:
        pass
    for _ in disturbed:
        evaluate(disturbed.evaluated, small_dataset(), config, with_tta=False)
    assert are_equal(undisturbed.tensors()["model"], disturbed.tensors()["model"])
    assert are_equal(state(undisturbed.evaluated.model), state(disturbed.evaluated.model))


def test_going_on_needs_the_average() -> None:
    """The average after a stop at any step is that of no stop; without its state it is not."""
    config = small_config(ema=Ema(span=0.5))
    undisturbed = a_training(config)
    for _ in undisturbed:
        pass
    expected = state(undisturbed.evaluated.model)
    for stop in (1, 4, 7):
        first = a_training(config)
        for step in first:
            if step.done == stop:
                break
        saved = {
            group: {name: value.clone() for name, value in members.items()}
            for group, members in first.tensors().items()
        }
        for is_whole in (True, False):
            second = a_training(config, seed=1)
            tensors = saved if is_whole else {**saved, "average": saved["model"]}
            second.restore(stop, tensors)
            for _ in second:
                pass
            # The first update is taken over whole: after it the average is the last weights.
            assert are_equal(state(second.evaluated.model), expected) == (is_whole or stop == 1)


def test_the_state_of_another_network_is_refused() -> None:
    averaged = AveragedWeights(small_network(), STANDARD, 10)
    with pytest.raises(RuntimeError, match="size mismatch"):
        averaged.restore(AveragedWeights(small_network(5), STANDARD, 10).tensors())


# ── The command ────────────────────────────────────────────────────────────────────────────────


def test_the_average_is_shipped_and_evaluated_again(
    command: Command, tmp_path: Path, tiny_words: tuple[str, ...]
) -> None:
    words = (*tiny_words, "budget.epochs=2", "precision=fp32")
    for name, more in (("last", ()), ("averaged", ("+trick=ema", "ema.span=0.5"))):
        done = command(*words, *more, f"run_dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
    last, averaged = (open_bundle(tmp_path / name) for name in ("last", "averaged"))
    assert not are_equal(averaged.tensors, last.tensors)
    assert averaged.evaluated == last.evaluated
    again = command(str(tmp_path / "averaged"), "device=cpu", module="runner.evaluate")
    assert again.returncode == 0, again.stderr
    with np.load(tmp_path / "averaged" / "predictions.npz") as found:
        accuracy = (found["plain"].argmax(1) == found["labels"]).mean()
    assert f"{accuracy:.2%}" in again.stdout


def test_a_config_without_the_key_is_neutral() -> None:
    assert replace(RunConfig(), ema=Ema()) == RunConfig()
