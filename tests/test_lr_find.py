"""The learning rate finder: its suggestions, and that it leaves everything as it was."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import (
    generators_asked_for,
    small_config,
    small_dataset,
    small_learner,
    small_network,
)

from runner.config.schema import Data, Optim, RunConfig
from runner.errors import DataError, TrainingError
from runner.lr_find import RangeTest, _run, range_test
from runner.training import loop
from runner.training.step import Update


def falling_then_rising() -> RangeTest:
    """Loss flat to 1e-4, falling to its minimum at 1e-1, then rising; one point a third octave."""
    rates = 10.0 ** np.linspace(-7, 1, 101)[:-1]
    position = np.log10(rates)
    losses = 2.3 - 0.5 * np.clip(position + 4, 0, 3) + 2.0 * np.clip(position + 1, 0, None)
    return RangeTest(tuple(rates), tuple(losses))


def test_suggestions_on_a_known_curve() -> None:
    found = falling_then_rising().suggestions()
    assert found["minimum"] == pytest.approx(1e-2, rel=0.2)
    assert 1e-4 <= found["steep"] <= 1e-1
    assert 10**-3.5 <= found["valley"] <= 10**-1.5, "the middle of the slope"


def test_too_short_a_test_suggests_nothing() -> None:
    assert RangeTest((1e-7, 2e-7), (2.3, 2.2)).suggestions() == {}


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_suggestions_equal_fastais() -> None:
    schedule = pytest.importorskip("fastai.callback.schedule")
    rng = np.random.default_rng(0)
    for _ in range(20):
        curve = falling_then_rising()
        noisy = np.array(curve.losses) + rng.normal(0, 0.02, len(curve.losses))
        ours = RangeTest(curve.rates, tuple(noisy)).suggestions()
        rates = torch.tensor(curve.rates[10:-5], dtype=torch.float64)
        losses = torch.tensor(noisy[10:-5])
        for name in ("valley", "steep", "minimum"):
            suggested, _ = getattr(schedule, name)(rates, losses, 100)
            assert ours[name] == pytest.approx(float(suggested))


def test_the_network_and_the_random_state_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    config, dataset = small_config(), small_dataset()
    learner = small_learner(small_network())
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    asked = generators_asked_for(monkeypatch)
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    test = range_test(learner, dataset, config)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert asked == []
    for name, tensor in learner.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in learner.model.parameters())
    assert test.rates[0] == 1e-7
    assert np.all(np.diff(test.rates) > 0)
    assert len(test.rates) == len(test.losses) > 50


def test_a_frozen_body_is_frozen_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = small_learner(small_network(), layer_groups=3)
    convolution, head = learner.model[0][0].weight, learner.model[2][2].weight
    start = [convolution.clone(), head.clone()]
    moved: list[tuple[bool, bool]] = []
    step = loop.train_step

    def watched(*arguments: Any) -> Update:
        update = step(*arguments)
        pairs = zip((convolution, head), start, strict=True)
        moved.append(tuple(not torch.equal(now, before) for now, before in pairs))
        return update

    monkeypatch.setattr(loop, "train_step", watched)
    optim = Optim(layer_groups=3, frozen=True)
    range_test(learner, small_dataset(), small_config(optim=optim))
    assert moved[-1] == (False, True)
    assert all(parameter.requires_grad for parameter in learner.model.parameters())
    range_test(learner, small_dataset(), small_config(optim=replace(optim, frozen=False)))
    assert moved[-1] == (True, True)  # negative control


def test_it_stops_when_the_loss_has_grown_fourfold() -> None:
    test = range_test(small_learner(small_network()), small_dataset(), small_config())
    grown = [loss > 4 * min(test.losses[: i + 1]) for i, loss in enumerate(test.losses)]
    assert not any(grown[:-1])


def test_a_network_that_gives_no_finite_loss_is_refused_and_put_back() -> None:
    learner = small_learner(small_network())
    with torch.no_grad():
        learner.model[2][2].bias.fill_(torch.inf)
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    with pytest.raises(TrainingError, match="not finite") as caught:
        range_test(learner, small_dataset(), small_config())
    assert caught.value.where == "the first step, before any update"
    for name, tensor in learner.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_too_few_images() -> None:
    with pytest.raises(DataError):
        range_test(
            small_learner(small_network()),
            small_dataset(),
            small_config(data=Data(batch_size=1000)),
        )


def test_the_command_saves_its_curve(
    composed: Callable[..., RunConfig], tiny_folder: Path, tmp_path: Path
) -> None:
    config = composed(
        "data=folder", f"data.root={tiny_folder}", "data.batch_size=16", "resize.size=16",
        "model=timm", "model.name=test_resnet", "threads=1", f"outputs={tmp_path}",
    )  # fmt: skip
    found = _run(config, [])
    (path,) = (tmp_path / "lr_find").iterdir()
    assert str(path) == found["curve"]
    with Image.open(path) as picture:
        title = picture.text["Title"]
    assert f"valley {found['suggestions']['valley']:.1e}" in title
