"""BlurPool against timm's own layer; networks with it keep their weights' names and their sizes."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import Command
from torch import nn

from runner.config.schema import Blurpool, RunConfig
from runner.errors import ArtefactError, ConfigError
from runner.models import build_model, changes_of
from runner.models.convolutions import CpuConv2d, suit_convolutions
from runner.predict import find_images, rank
from runner.records.bundle import Change, open_bundle
from runner.records.run_folder import RunFolder
from runner.tricks.blurpool import BlurMaxPool2d, add_blurs, blur
from runner.tricks.idea import NO_IDEA

POOLING = Change("blurpool", {"layers": "pooling"})
ALL = Change("blurpool", {"layers": "all"})


def timms_blur(maps: torch.Tensor, stride: int, mode: str = "reflect") -> torch.Tensor:
    timm = pytest.importorskip("timm.layers")
    found: torch.Tensor = timm.BlurPool2d(stride=stride, pad_mode=mode).double()(maps)
    return found


# ── The blur ───────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=30, deadline=None)
@given(height=st.integers(2, 17), width=st.integers(2, 17), stride=st.sampled_from([1, 2]))
def test_the_blur_is_timms(height: int, width: int, stride: int) -> None:
    maps = torch.randn(2, 3, height, width, dtype=torch.float64)
    found = blur(maps, (stride, stride))
    torch.testing.assert_close(found, timms_blur(maps, stride), rtol=1e-12, atol=1e-12)
    zeros = timms_blur(maps, stride, "constant")
    assert not torch.allclose(found, zeros)  # negative control: another border


def test_its_gradient_is_timms() -> None:
    maps = torch.randn(2, 3, 7, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, 4, 3, dtype=torch.float64)
    (ours,) = torch.autograd.grad((blur(maps, (2, 2)) * weights).sum(), maps)
    (theirs,) = torch.autograd.grad((timms_blur(maps, 2) * weights).sum(), maps)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 1)])
def test_a_map_of_one_place_is_its_own_neighbor(size: tuple[int, int]) -> None:
    flat = torch.full((2, 3, *size), 7.0)
    assert torch.equal(blur(flat), flat)
    assert blur(flat, (2, 2)).shape == (2, 3, -(-size[0] // 2), -(-size[1] // 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_stays_channels_last_and_flat_maps_stay_flat(dtype: torch.dtype) -> None:
    maps = torch.ones(2, 5, 8, 6, dtype=dtype).to(memory_format=torch.channels_last)
    found = blur(maps, (2, 2))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.dtype == dtype
    assert torch.equal(found, torch.ones(2, 5, 4, 3, dtype=dtype))


# ── Pooling ────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(3, 15), width=st.integers(3, 15), kernel=st.integers(1, 3),
    stride=st.integers(2, 3), padding=st.integers(0, 1), ceil_mode=st.booleans(),
)  # fmt: skip
def test_sizes_are_those_of_the_replaced_layer(
    height: int, width: int, kernel: int, stride: int, padding: int, ceil_mode: bool
) -> None:
    pool = nn.MaxPool2d(kernel, stride, min(padding, kernel // 2), ceil_mode=ceil_mode)
    maps = torch.randn(1, 2, height, width)
    assert BlurMaxPool2d(pool)(maps).shape == pool(maps).shape


@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (2, 0)])
def test_pooling_is_that_of_torch_and_timm_in_turn(kernel: int, padding: int) -> None:
    maps = torch.randn(2, 3, 11, 8, dtype=torch.float64)
    pool = nn.MaxPool2d(kernel, 2, padding)
    expected = timms_blur(nn.MaxPool2d(kernel, 1, padding)(maps), 2)
    torch.testing.assert_close(BlurMaxPool2d(pool)(maps), expected)
    assert not torch.allclose(pool(maps), expected)  # negative control


def test_a_shifted_image_changes_the_maps_less() -> None:
    """What the blur is for: after a shift by one place, maps are closer to those before."""
    torch.manual_seed(0)
    images = torch.rand(8, 3, 33, 33)
    pool = nn.MaxPool2d(3, 2, 1)

    def change(layer: nn.Module) -> float:
        before, after = layer(images[..., :-1]), layer(images[..., 1:])
        inner = (before - after)[..., 2:-2, 2:-2]
        return (inner.std() / before.std()).item()

    assert change(BlurMaxPool2d(pool)) < 0.8 * change(pool)


# ── Networks ───────────────────────────────────────────────────────────────────────────────────


def test_a_group_that_is_neutral_changes_no_network() -> None:
    assert changes_of(RunConfig(), NO_IDEA) == ()
    config = RunConfig(blurpool=Blurpool("pooling"))
    assert config.tricks == ["blurpool"]
    assert changes_of(config, NO_IDEA) == (POOLING,)
    model = build_model("xresnet", "xresnet18", 3, seed=0)
    same = copy.deepcopy(model)
    assert add_blurs(same, "none") == 0
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(same.eval()(images), model.eval()(images))


@pytest.mark.parametrize(
    ("source", "name", "pooling", "everything"),
    [
        ("xresnet", "xresnet18", 1, 4),
        ("torchvision", "resnet18", 1, 7),  # a block's shortcut is a strided convolution too
        ("torchvision", "squeezenet1_1", 3, 3),
        ("timm", "test_resnet", 1, 4),
    ],
)
def test_layers_blur_and_weights_keep_their_names(
    source: str, name: str, pooling: int, everything: int
) -> None:
    plain = build_model(source, name, 3, seed=0)
    initial = {key: value.clone() for key, value in plain.state_dict().items()}
    for module in plain.modules():  # as after a training, when no residual branch is zero
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    images = torch.randn(2, 3, 33, 33)  # where the sizes of floor and ceil differ
    assert add_blurs(copy.deepcopy(plain), "pooling") == pooling
    assert add_blurs(copy.deepcopy(plain), "all") == everything
    outputs = [plain.eval()(images)]
    for change in (POOLING, ALL):
        model = build_model(source, name, 3, seed=0, changes=[change])
        found = model.state_dict()
        assert found.keys() == initial.keys()
        assert all(torch.equal(found[key], initial[key]) for key in initial)
        model.load_state_dict(plain.state_dict())  # strict
        outputs.append(model.eval()(images))
        suit_convolutions(model)  # as on a CPU
        torch.testing.assert_close(model(images), outputs[-1])
        copied = copy.deepcopy(model)  # as EMA does
        assert torch.equal(copied(images), model(images))
    assert not torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[1], outputs[2]) == (pooling == everything)


def test_a_strided_convolution_gets_a_blurred_input() -> None:
    convolution = nn.Conv2d(16, 4, 3, 2, 1, bias=False)
    few = nn.Conv2d(15, 4, 3, 2, 1)
    dense = nn.Conv2d(16, 4, 3, 1, 1)
    model = nn.ModuleList([convolution, few, dense])
    maps = torch.randn(2, 16, 9, 9)
    before = [convolution(maps), few(maps[:, :15]), dense(maps)]
    expected = nn.functional.conv2d(
        timms_blur(maps.double(), 1).float(), convolution.weight, stride=2, padding=1
    )
    assert add_blurs(model, "all") == 1
    torch.testing.assert_close(convolution(maps), expected)
    assert not torch.allclose(expected, before[0])  # negative control
    assert torch.equal(few(maps[:, :15]), before[1])
    assert torch.equal(dense(maps), before[2])
    suit_convolutions(model)
    assert type(convolution) is CpuConv2d
    torch.testing.assert_close(convolution(maps), expected)


def test_layers_of_other_kinds_stay() -> None:
    class Own(nn.MaxPool2d):
        pass

    model = nn.Sequential(nn.MaxPool2d(3, 1, 1), Own(2), nn.AvgPool2d(2))
    assert add_blurs(model, "all") == 0


@pytest.mark.parametrize(
    ("layers", "fix"), [("pooling", "blurpool=all, which blurs"), ("all", "blurpool=none")]
)
def test_a_network_without_such_layers_is_refused(layers: str, fix: str) -> None:
    change = Change("blurpool", {"layers": layers})
    with pytest.raises(ConfigError, match=r"model\.name=test_vit has no max pooling") as caught:
        build_model("timm", "test_vit", 3, seed=0, changes=[change])
    assert caught.value.exit_code == 2
    assert caught.value.where == f"blurpool.layers={layers}"
    assert caught.value.fix.startswith(fix)


@pytest.mark.parametrize("values", [{"layers": "some"}, {"layers": 1}, {"where": "all"}])
def test_values_of_no_run_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ArtefactError, match="not those of any run"):
        build_model("xresnet", "xresnet18", 3, seed=0, changes=[Change("blurpool", values)])


@pytest.mark.whole
def test_a_compiled_network_computes_the_same() -> None:
    change = Change("stochastic_depth", {"probability": 0.2})
    model = build_model("timm", "test_resnet", 3, seed=0, changes=[change, ALL])
    images = torch.randn(4, 3, 32, 32)
    expected = model.eval()(images)
    # Traced whole, hooks included; a compiler behind that would take a minute.
    model.compile(backend="eager", dynamic=False, fullgraph=True)
    torch.testing.assert_close(model(images), expected)
    loss = model.train()(images).square().mean()
    torch.autograd.backward(loss)
    assert all(torch.isfinite(each.grad).all() for each in model.parameters())


# ── The run ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def run(finished_run: Callable[..., Path]) -> Path:
    return finished_run("+trick=[blurpool,stochastic_depth]", "blurpool=all")


def test_a_run_and_its_bundle(run: Path, tiny_folder: Path, tmp_path: Path) -> None:
    bundle = open_bundle(run)
    assert bundle.architecture.changes == (
        Change("stochastic_depth", {"probability": 0.1}), ALL)  # fmt: skip
    description = json.loads((run / "bundle" / "model.json").read_text())
    assert description["format"] == 3
    images = find_images([str(tiny_folder / "val")], iter).paths
    folder = Path(shutil.copytree(run / "bundle", tmp_path / "bundle"))  # without the run's folder
    found = rank(open_bundle(folder), images, top=3, threads=1)
    rows = np.array([[dict(one.top)[name] for name in bundle.classes] for one in found])
    assert np.array_equal(rows, RunFolder(run).predictions()["plain"].astype(float))


def test_weights_that_were_trained_with_another_blur_are_noted(
    run: Path, finished_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"model.weights={run}", "normalize.allow_mismatch=true")
    finished_run(*words, "blurpool=all")
    assert "warning: the weights were trained with blurpool" not in capsys.readouterr().out
    finished_run(*words)
    told = " ".join(capsys.readouterr().out.split())
    assert "trained with blurpool=all, and the run has blurpool=none" in told


@pytest.mark.slow
def test_an_export_predicts_the_same(run: Path, tmp_path: Path) -> None:
    from runner.data.embedded import load_fashion
    from runner.data.images import ArrayImages
    from runner.export.__main__ import export

    real = ArrayImages("fashion", load_fashion().val_images[:9])
    for kind in ("onnx", "torch"):
        assert export(open_bundle(run), kind, real, threads=1).difference < 1e-4


def test_the_command_refuses_a_network_that_cannot(
    command: Command, tiny_words: tuple[str, ...]
) -> None:
    done = command("+trick=blurpool", *tiny_words, "model.name=test_vit", "resize.size=160")
    assert done.returncode == 2, done.stderr
    assert "test_vit has no max pooling" in done.stderr
    assert "blurpool.layers=pooling" in done.stderr
