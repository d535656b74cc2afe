"""Gradient clipping against torch alone and a gradient by hand; what a run records of it."""

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small import (
    Command,
    a_batch,
    small_config,
    small_dataset,
    small_learner,
    small_network,
    trained,
    weights,
)
from torch import nn

from runner.config.clip import Clip
from runner.config.schema import Optim
from runner.training.loop import Step, Training
from runner.training.meter import Meter
from runner.training.optim import build_optimizer, set_rates
from runner.training.schedule import moment, plan
from runner.training.step import train_step
from runner.tricks.clip import clip_gradients


@pytest.mark.parametrize(("norm", "is_clipped"), [(4.9, True), (5.0, False), (5.1, False)])
def test_the_gradients_are_as_long_together_as_allowed(norm: float, is_clipped: bool) -> None:
    one, other, frozen = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    one.grad, other.grad = torch.tensor([3.0]), torch.tensor([-4.0])
    assert bool(clip_gradients([one, other, frozen], norm)) == is_clipped
    scale = norm / 5 if is_clipped else 1.0
    torch.testing.assert_close(one.grad, torch.tensor([3.0 * scale]))
    torch.testing.assert_close(other.grad, torch.tensor([-4.0 * scale]))
    assert frozen.grad is None


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_gradient_that_is_not_finite_stays_so(bad: float) -> None:
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1.0, bad])
    clip_gradients([weight], 1.0)
    assert not weight.grad.isfinite().all()


def test_finite_gradients_whose_norm_overflows_are_not_made_zeros() -> None:
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([1e20, 1.0, 1.0])
    assert bool(clip_gradients([weight], 1.0))
    assert not weight.grad.isfinite().all()


def test_a_step_equals_torch_alone() -> None:
    batch, norm = a_batch(), 0.05

    def stepped(by_hand: bool, norm: float | None) -> torch.Tensor:
        model = small_network().train()
        learner = small_learner(model)
        optimizer = build_optimizer(learner.groups, Optim(), [1.0])
        set_rates(optimizer, 0.01, 0.9)
        if by_hand:
            images = batch.pixels.canvas.float().div(255)
            images = images.contiguous(memory_format=torch.channels_last)
            torch.autograd.backward(
                F.cross_entropy(model(images), F.one_hot(batch.labels, 3).float())
            )
            if norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), norm)
            optimizer.step()
        else:
            update = train_step(learner, optimizer, batch, small_config(clip=Clip(norm)))
            assert (update.clipped is None) == (norm is None)
            assert norm is None or bool(update.clipped) == (norm < 1)
        return weights(model)

    for each in (norm, None, 1e9):
        assert torch.equal(stepped(False, each), stepped(True, each))
    assert torch.equal(stepped(False, 1e9), stepped(False, None))
    assert not torch.equal(stepped(False, norm), stepped(False, None))  # negative control


def test_a_limit_that_no_gradient_reaches_trains_as_no_limit() -> None:
    plain = weights(trained(small_config()))
    assert torch.equal(plain, weights(trained(small_config(clip=Clip(1e9)))))
    assert not torch.equal(plain, weights(trained(small_config(clip=Clip(1e-3)))))


# ── What is recorded ───────────────────────────────────────────────────────────────────────────


def test_the_part_of_clipped_steps_survives_a_checkpoint() -> None:
    stages = plan(small_config(), 33)  # two epochs of four steps
    plain = defaultdict(lambda: 0.5)  # the metrics of the validation split

    def counted(stop: int | None, clips: list[bool | None]) -> tuple[list[object], float | None]:
        meter, found = Meter(stages), []
        for number, clipped in enumerate(clips):
            value = None if clipped is None else torch.tensor(clipped)
            meter.step(Step(moment(stages, number), 8, torch.tensor(1.0), 0.5, value))
            if number == stop:
                state = json.loads(json.dumps(meter.state()))
                meter = Meter(stages)
                meter.restore(state)
            if meter.is_row_over:
                found.append(meter.end_row(plain, 0.1)[0].get("clipped"))
        return found, meter.clipped

    clips: list[bool | None] = [True, False, False, False, True, True, False, True]
    expected = counted(None, clips)
    assert expected == ([0.25, 0.75], 0.5)
    assert all(counted(stop, clips) == expected for stop in range(8))
    assert counted(2, [None] * 8) == ([None, None], None)


def test_a_training_says_which_steps_were_clipped() -> None:
    config = small_config(clip=Clip(1e-3))
    training = Training(small_learner(small_network()), small_dataset(), plan(config, 33), config)
    assert all(step.clipped is not None and bool(step.clipped) for step in training)
    plain = replace(config, clip=Clip())
    training = Training(small_learner(small_network()), small_dataset(), plan(plain, 33), plain)
    assert all(step.clipped is None for step in training)


def test_the_row_the_line_and_the_result_say_how_often(
    command: Command, tmp_path: Path, tiny_words: tuple[str, ...]
) -> None:
    done = command(*tiny_words, "+trick=clip", "clip.norm=1e-6", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "clipped 100%" in done.stdout
    (row, *_) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(row)["clipped"] == 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["clipped"] == 1
