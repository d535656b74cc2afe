"""Stochastic depth against torchvision and timm given the same draws; its networks, and its run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small import Command, small_config, small_dataset, small_learner, small_network
from torch import nn
from torchvision.ops import StochasticDepth as TorchvisionDepth
from torchvision.ops import stochastic_depth as torchvision_depth

from runner.config.schema import RunConfig
from runner.config.schema import StochasticDepth as Settings
from runner.errors import ArtefactError, ConfigError
from runner.models import build_model, changes_of, own_drop_rate
from runner.predict import find_images, rank
from runner.records.bundle import Change, open_bundle
from runner.records.run_folder import RunFolder
from runner.training.loop import Training, layer_seed
from runner.training.schedule import moment, plan
from runner.tricks.idea import NO_IDEA
from runner.tricks.stochastic_depth import StochasticDepth, drop, rates

HALF = Change("stochastic_depth", {"probability": 0.5})


# ── The draws and the arithmetic ───────────────────────────────────────────────────────────────


def test_rates_are_those_of_timm() -> None:
    timm = pytest.importorskip("timm.layers")
    for probability, count in ((0.1, 8), (0.3, 16), (0.0, 4), (0.2, 1)):
        assert rates(probability, count) == pytest.approx(
            timm.calculate_drop_path_rates(probability, count)
        )
    assert rates(0.1, 3) == pytest.approx([0, 0.05, 0.1])
    assert rates(0.1, 0) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 3, 5, 4), (64, 7, 9), (64, 2)])
def test_the_layer_is_torchvisions_given_the_same_draws(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    branches = torch.randn(shape, dtype=dtype)
    layer = StochasticDepth(0.3).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        ours = layer(branches)
        torch.manual_seed(1)
        theirs = torchvision_depth(branches, 0.3, "row")
        torch.manual_seed(2)
        others = layer(branches)
    assert torch.equal(ours, theirs)
    assert not torch.equal(others, theirs)  # negative control


def test_each_image_keeps_its_branch_or_loses_it_and_the_mean_stays() -> None:
    branches = torch.ones(20_000, 2, 1, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = StochasticDepth(0.2).train()(branches)[:, :, 0, 0]
    assert torch.equal(found[:, 0], found[:, 1])
    assert set(found.unique().tolist()) == {0.0, 1.25}
    # Four standard errors of a rate of .2 among 20,000.
    assert (found[:, 0] == 0).float().mean().item() == pytest.approx(0.2, abs=0.0113)
    assert found.mean().item() == pytest.approx(1, abs=0.0142)


def test_what_is_kept_is_divided_by_its_probability() -> None:
    branches = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = drop(branches, torch.tensor([True, False]), 0.75)
    assert found.tolist() == [[4.0, 8.0], [0.0, 0.0]]


def test_nothing_is_dropped_or_drawn_at_evaluation_and_at_the_neutral_value() -> None:
    branches = torch.randn(4, 3)
    state = torch.default_generator.get_state()
    assert StochasticDepth(0.5).eval()(branches) is branches
    assert StochasticDepth(0.0).train()(branches) is branches
    assert torch.equal(torch.default_generator.get_state(), state)
    StochasticDepth(0.5).train()(branches)  # negative control
    assert not torch.equal(torch.default_generator.get_state(), state)
    torch.default_generator.set_state(state)


# ── The networks ───────────────────────────────────────────────────────────────────────────────


def test_a_group_that_is_neutral_changes_no_network() -> None:
    assert changes_of(RunConfig(), NO_IDEA) == ()
    config = RunConfig(stochastic_depth=Settings(probability=0.1))
    assert config.tricks == ["stochastic_depth"]
    assert changes_of(config, NO_IDEA) == (Change("stochastic_depth", {"probability": 0.1}),)


def test_our_network_drops_the_residual_branch_of_an_image() -> None:
    plain = build_model("xresnet", "xresnet18", 3, seed=0)
    model = build_model("xresnet", "xresnet18", 3, seed=0, changes=[HALF])
    expected = plain.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    layers = [each for each in model.modules() if isinstance(each, StochasticDepth)]
    # The first of eight blocks has the rate 0, and no layer.
    assert [each.probability for each in layers] == pytest.approx(rates(0.5, 8)[1:])
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(model.eval()(images), plain.eval()(images))

    block = model.stages[3][1].train()
    nn.init.ones_(block.residual[1].norm.weight)
    maps = torch.rand(64, 512, 2, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = block(maps)
    is_identity = (found == maps).flatten(1).all(dim=1)
    assert 10 < is_identity.sum() < 54
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kept = torch.empty(64).bernoulli_(0.5)
    assert torch.equal(is_identity, kept == 0)


def test_timms_networks_are_those_of_its_own_argument() -> None:
    timm = pytest.importorskip("timm")
    model = build_model("timm", "test_resnet", 3, seed=0, changes=[HALF], dropout=0.25)
    with torch.random.fork_rng(devices=[]):
        theirs = timm.create_model("test_resnet", num_classes=3, drop_path_rate=0.5)
    assert repr(model).replace("0.25", "0.0") == repr(theirs)
    assert "DropPath(drop_prob=0.500)" in repr(model)
    plain = build_model("timm", "test_resnet", 3, seed=0)
    assert "DropPath" not in repr(plain)
    assert all(map(torch.equal, model.state_dict().values(), plain.state_dict().values()))


def test_torchvisions_networks_have_the_rates_of_ours() -> None:
    model = build_model("torchvision", "efficientnet_b0", 3, seed=0, changes=[HALF])
    found = [each.p for each in model.modules() if isinstance(each, TorchvisionDepth)]
    assert found == pytest.approx(rates(0.5, 16))
    plain = build_model("torchvision", "efficientnet_b0", 3, seed=0)
    own = [each.p for each in plain.modules() if isinstance(each, TorchvisionDepth)]
    assert own == pytest.approx([0.2 * block / 16 for block in range(16)])  # as ever
    assert all(map(torch.equal, model.state_dict().values(), plain.state_dict().values()))


@pytest.mark.parametrize(
    ("source", "name"),
    [("torchvision", "squeezenet1_1"), ("timm", "ghostnet_050")],
)
def test_a_network_without_such_branches_is_refused(source: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"model.source={source} model.name={name} has no") as it:
        build_model(source, name, 3, seed=0, changes=[HALF])
    assert it.value.exit_code == 2
    assert it.value.where == "stochastic_depth.probability=0.5"
    assert "stochastic_depth=none" in it.value.fix


@pytest.mark.parametrize("values", [{"probability": "much"}, {"probability": 1}, {"rate": 0.1}])
def test_values_of_no_run_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ArtefactError, match="not those of any run"):
        build_model("xresnet", "xresnet18", 3, seed=0, changes=[Change("stochastic_depth", values)])


# ── The training ───────────────────────────────────────────────────────────────────────────────


def a_training() -> Training:
    network = small_network()
    network[1].append(StochasticDepth(0.5))
    config = small_config()
    dataset = small_dataset()
    return Training(small_learner(network), dataset, plan(config, len(dataset.train)), config)


def test_a_training_that_was_stopped_continues_to_the_bit() -> None:
    undisturbed = a_training()
    for _ in undisturbed:
        pass
    expected = undisturbed.tensors()["model"]
    for stop in (1, 5):
        first = a_training()
        for step in first:
            if step.done == stop:
                break
        saved = {
            group: {name: value.clone() for name, value in tensors.items()}
            for group, tensors in first.tensors().items()
        }
        torch.rand(17)  # whatever else draws in between
        again = a_training()
        again.restore(stop, saved)
        for _ in again:
            pass
        assert all(torch.equal(value, expected[name])
                   for name, value in again.tensors()["model"].items())  # fmt: skip


def test_processes_drop_the_branches_of_other_images() -> None:
    now = moment(plan(small_config(), 33), 3)
    assert layer_seed(0, now, 0) != layer_seed(0, now, 1)


def test_a_run_and_its_bundle(
    finished_run: Callable[..., Path], tiny_folder: Path, tmp_path: Path
) -> None:
    run = finished_run("+trick=stochastic_depth", "stochastic_depth.probability=0.5")
    bundle = open_bundle(run)
    assert bundle.architecture.changes == (HALF,)
    description = json.loads((run / "bundle" / "model.json").read_text())
    assert description["format"] == 3
    assert description["model"]["changes"] == [{"name": "stochastic_depth", "probability": 0.5}]
    images = find_images([str(tiny_folder / "val")], iter).paths
    copy = Path(shutil.copytree(run / "bundle", tmp_path / "bundle"))  # without the run's folder
    found = rank(open_bundle(copy), images, top=3, threads=1)
    rows = np.array([[dict(one.top)[name] for name in bundle.classes] for one in found])
    assert np.array_equal(rows, RunFolder(run).predictions()["plain"].astype(float))


def test_the_command_refuses_a_network_that_cannot(
    command: Command, tiny_words: tuple[str, ...], tmp_path: Path
) -> None:
    done = command("+trick=stochastic_depth", *tiny_words, "model=torchvision",
                   "model.name=squeezenet1_1", "resize.size=32")  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "squeezenet1_1" in done.stderr
    assert "stochastic_depth.probability=0.1" in done.stderr


@pytest.mark.parametrize(
    ("source", "name", "own"),
    [("torchvision", "efficientnet_b0", 0.1875), ("torchvision", "resnet18", 0.0),
     ("xresnet", "xresnet18", 0.0)],
)  # fmt: skip
def test_a_rate_that_a_network_brings_is_known(source: str, name: str, own: float) -> None:
    before = torch.random.get_rng_state()
    assert own_drop_rate(source, name) == pytest.approx(own)
    assert torch.equal(torch.random.get_rng_state(), before)
