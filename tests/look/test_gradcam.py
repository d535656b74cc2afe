"""Grad-CAM against its definition, and the layer that it takes of networks of every kind."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import SwinTransformer, VisionTransformer, squeezenet1_1, vgg11

from runner.data.preprocess import Preprocess
from runner.errors import ConfigError
from runner.look.gradcam import Layer, find_layer, heat_maps, network_input
from runner.models import build_model
from runner.training.step import Learner

SIZE = 32


def learner_of(model: nn.Module, size: int = SIZE) -> Learner:
    preprocess = Preprocess(
        presize=size, max_aspect=2, crop=1, size=size, interpolation="bilinear",
        mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4),
    )  # fmt: skip
    return Learner(model.eval(), [], 3, preprocess, torch.device("cpu"), "fp32")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.body = nn.Conv2d(4, 5, 3, stride=2, padding=1)
        self.head = nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(self.stem(images).tanh()).tanh().mean(dim=(2, 3)))


def test_heat_is_that_of_the_definition() -> None:
    torch.manual_seed(0)
    learner, images = learner_of(Small()), torch.rand(4, 3, SIZE, SIZE)
    outputs = [0, 1, 2, 0]
    heat, layer = heat_maps(learner, images, outputs)
    assert layer == Layer("body", 8, "NCHW")

    # Selvaraju et al. (2017), equations 1 and 2, with torch's own gradients.
    model: Any = learner.model
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    maps = model.body(model.stem((images - mean) / std).tanh())
    logits = model.head(maps.tanh().mean(dim=(2, 3)))
    (gradients,) = torch.autograd.grad(logits[range(4), outputs].sum(), maps)
    expected = (gradients.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1).relu()
    expected = F.interpolate(expected[:, None], (SIZE, SIZE), mode="bilinear")[:, 0]
    for ours, theirs in zip(heat, expected.detach().numpy(), strict=True):
        assert (ours.min(), ours.max()) == pytest.approx((0, 1), abs=0.02)
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.99
    # The heat of another class is another one.
    other, _ = heat_maps(learner, images, [1, 2, 0, 1])
    assert np.abs(other - heat).max() > 0.3


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("test_resnet", "NCHW"), ("test_efficientnet", "NCHW"), ("test_convnext", "NCHW"),
        ("test_vit", "tokens"), ("test_vit2", "tokens"),
    ],
)  # fmt: skip
def test_networks_of_timm(name: str, layout: str) -> None:
    size = 160 if "vit" in name else 96
    learner = learner_of(build_model("timm", name, 3, seed=0), size)
    heat, layer = heat_maps(learner, torch.rand(2, 3, size, size), [0, 1])
    assert heat.shape == (2, size, size)
    assert layer.layout == layout
    assert layer.side >= 3
    assert 0 <= heat.min() <= heat.max() <= 1


def swin() -> nn.Module:
    return SwinTransformer([2, 2], 12, [1, 1], [2, 2], [4, 4], num_classes=3)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: VisionTransformer(SIZE, 8, 2, 2, 12, 24, num_classes=3),
         Layer("encoder.layers.encoder_layer_1.ln_1", 4, "tokens")),
        (swin, Layer("permute", 8, "NCHW")),
        (lambda: squeezenet1_1(num_classes=3), Layer("features", 5, "NCHW")),
    ],
    ids=["vit", "swin", "squeezenet"],
)  # fmt: skip
def test_networks_of_torchvision(make: Any, expected: Layer) -> None:
    torch.manual_seed(0)
    size = 96 if expected.name == "features" else SIZE
    with warnings.catch_warnings():
        learner = learner_of(make(), size)
    heat, layer = heat_maps(learner, torch.rand(2, 3, size, size), [0, 1])
    assert layer == expected
    assert heat.shape == (2, size, size)


def test_a_map_without_places_is_passed_over() -> None:
    model = vgg11(num_classes=3).features  # the last maps have 2 × 2 places, then 1 × 1
    layer = find_layer(model, lambda: model(torch.rand(1, 3, SIZE, SIZE)))
    assert layer is not None
    assert layer.side == 4


def test_a_network_without_maps_is_said() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3 * SIZE**2, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(images.flatten(1))

    with pytest.raises(ConfigError, match="no layer of the network has a map of places"):
        heat_maps(learner_of(Flat()), torch.rand(1, 3, SIZE, SIZE), [0])


def test_the_input_is_that_of_the_network() -> None:
    learner = learner_of(Small())
    square = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    found = network_input([square, square[:32, :32]], learner)
    assert found.shape == (2, 3, SIZE, SIZE)
    np.testing.assert_allclose(found[1].permute(1, 2, 0) * 255, square[:32, :32], atol=1e-4)
