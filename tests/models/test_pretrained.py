"""Pretrained weights: found by name or file, with the statistics they know, or refused.

Nothing is downloaded: what the libraries would fetch is put in their place.
"""

import argparse
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from small import COLOURS, small_config, small_network, small_preprocess, write_images
from torch import Tensor, nn

from runner import lr_find, train
from runner.config.schema import Data, Eval, Model, Normalize, Optim, Resize, RunConfig
from runner.data.preprocess import Preprocess
from runner.errors import ArtefactError, ConfigError, StorageError
from runner.models import build_model, find_weights, fitted, layer_groups, load_weights
from runner.models.build import torchvision_names
from runner.models.pretrained import Weights
from runner.records import tensor_files
from runner.records.bundle import read_bundle
from runner.records.identity import identity
from runner.records.run_folder import RunFolder
from runner.terminal.display import Display
from runner.training.learners import build_learner, fitted_to_weights
from runner.training.schedule import plan
from runner.training.step import build_optimizer

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
OWN = small_preprocess(presize=20, size=16, crop=0.8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))

Composed = Callable[..., RunConfig]


def found(model: Model) -> Weights:
    weights = find_weights(model)
    assert weights is not None
    return weights


# ── What torchvision and timm know of their weights ────────────────────────────────────────────


OFFERED = [
    (name, weights.name)
    for name in torchvision_names()
    for weights in torchvision.models.get_model_weights(name)
]


def test_torchvisions_statistics_are_taken_over() -> None:
    assert len(OFFERED) > 100
    means, sizes, ways = set(), set(), set()
    for name, weights in OFFERED:
        says = torchvision.models.get_model_weights(name)[weights].transforms()
        ours = found(Model(source="torchvision", name=name, weights=weights)).preprocess
        assert ours is not None
        assert ours.mean == tuple(says.mean), name
        assert ours.std == tuple(says.std), name
        assert [ours.presize] == says.resize_size, name
        assert [ours.size] == says.crop_size, name
        assert round(ours.crop * ours.presize) == ours.size, name  # the crop is not resized again
        assert ours.interpolation == says.interpolation.value, name
        means.add(ours.mean)
        sizes.add((ours.presize, ours.size))
        ways.add(ours.interpolation)
    # The table tells cases apart: it is not one answer a hundred times.
    assert len(means) >= 2
    assert {(256, 224), (232, 224), (384, 384)} <= sizes
    assert ways == {"bilinear", "bicubic"}


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "efficientnet_b0"])
def test_default_is_torchvisions_default(name: str) -> None:
    default = torchvision.models.get_model_weights(name).DEFAULT
    for model in (Model(weights="DEFAULT"), Model(pretrained=True)):
        weights = found(replace(model, source="torchvision", name=name))
        assert weights.name == default.name
        assert weights.identity == f"torchvision {name} {default.name}"
    first = found(Model(source="torchvision", name="resnet50", weights="IMAGENET1K_V1"))
    assert first.identity != found(replace(MODEL, name="resnet50", weights="DEFAULT")).identity


MODEL = Model(source="torchvision", name="resnet18")

UNKNOWN = {
    "weights of torchvision": (
        replace(MODEL, weights="IMAGENET21K"),
        "torchvision's resnet18 has no pretrained weights called IMAGENET21K",
        "one of DEFAULT, IMAGENET1K_V1",
    ),
    "weights of timm": (
        Model(source="timm", name="resnet18", weights="a9_in1k"),
        "timm's resnet18 has no pretrained weights called a9_in1k",
        "a1_in1k",
    ),
    "a network without weights": (
        Model(source="timm", name="densenet264d", weights="DEFAULT"),
        "timm's densenet264d has no pretrained weights",
        "another model.name",
    ),
    "an architecture": (replace(MODEL, name="resnet19", weights="DEFAULT"), "resnet19", "resnet18"),
    "our own": (Model(pretrained=True), "come without pretrained weights", "model.weights=FILE"),
    "a hub": (
        Model(source="timm", name="resnet18", weights="hf-hub:timm/resnet18.a1_in1k"),
        "weights are .safetensors or",
        "a file",
    ),
    "no file": (Model(weights="nowhere/model.pth"), "No such file", "another FILE"),
    "no name of a file": (Model(weights="a\0b.pth"), "embedded null byte", "another FILE"),
    "a name too long": (Model(weights="x" * 5000 + ".pth"), "File name too long", "another FILE"),
    "a text": (Model(weights="README.md"), "weights are .safetensors or", "a file"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_weights_that_do_not_exist_are_told(name: str) -> None:
    model, what, fix = UNKNOWN[name]
    with pytest.raises(ConfigError) as caught:
        find_weights(model)
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.exit_code == 2


def test_no_weights_are_none() -> None:
    assert find_weights(Model()) is None


def test_torchvisions_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = build_model("torchvision", "resnet18", 1000, seed=1).state_dict()
    asked: list[dict[str, Any]] = []

    def get_state_dict(self: Any, **how: Any) -> dict[str, Tensor]:
        asked.append(how)
        return trained

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", get_state_dict)
    weights = found(replace(MODEL, weights="IMAGENET1K_V1"))
    assert not asked  # found, but not yet read
    model = build_model("torchvision", "resnet18", 3, seed=0)
    loaded = load_weights(model, weights)
    assert asked[0]["check_hash"] is True
    assert asked[0]["weights_only"] is True
    assert loaded.fresh == ("fc.weight", "fc.bias") == loaded.unused
    assert loaded.num_loaded == len(trained) - 2
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, trained[key]) == (key not in loaded.fresh), key


@pytest.mark.parametrize("source", ["torchvision", "timm"])
def test_a_download_that_fails_is_told(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("Network is unreachable\nand much more")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", fail)
    monkeypatch.setattr(pytest.importorskip("timm"), "create_model", fail)
    weights = found(Model(source=source, name="resnet18", weights="DEFAULT"))
    with pytest.raises(StorageError) as caught:
        weights.read()
    assert caught.value.exit_code == 4
    assert caught.value.what == "cannot get the pretrained weights: Network is unreachable"
    assert caught.value.where.startswith(f"{source} resnet18")
    assert "model.weights=FILE" in caught.value.fix


# mean and std, size, crop as timm has it (before its rounding to whole pixels), interpolation
TAGS: dict[str, tuple[Any, int, float, str]] = {
    "resnet18.a1_in1k": (IMAGENET, 224, 0.95, "bicubic"),
    "resnet18.tv_in1k": (IMAGENET, 224, 0.875, "bilinear"),
    "resnet50.a1_in1k": (IMAGENET, 224, 0.95, "bicubic"),
    "convnext_tiny.fb_in1k": (IMAGENET, 224, 0.875, "bicubic"),
    "vit_base_patch16_224.augreg_in1k": (HALF, 224, 0.9, "bicubic"),
    "vit_base_patch16_384.augreg_in21k_ft_in1k": (HALF, 384, 1.0, "bicubic"),
    "vit_base_patch16_clip_224.openai": (CLIP, 224, 0.9, "bicubic"),
    "tf_efficientnet_lite0.in1k": (HALF, 224, 0.875, "bicubic"),
    "efficientnet_b0.ra_in1k": (IMAGENET, 224, 0.875, "bicubic"),
    "mobilenetv3_large_100.ra_in1k": (IMAGENET, 224, 0.875, "bicubic"),
    "inception_v3.tv_in1k": (HALF, 299, 0.875, "bicubic"),
    "mixer_b16_224.goog_in21k_ft_in1k": (HALF, 224, 0.875, "bicubic"),
}


@pytest.mark.parametrize("tag", TAGS)
def test_timms_statistics_are_taken_over(tag: str) -> None:
    timm = pytest.importorskip("timm")
    says = timm.get_pretrained_cfg(tag)
    name, _, own = tag.partition(".")
    weights = found(Model(source="timm", name=name, weights=own))
    ours = weights.preprocess
    assert ours is not None
    assert (ours.mean, ours.std) == (tuple(says.mean), tuple(says.std))
    assert (ours.presize, ours.size) == (int(says.input_size[1] / says.crop_pct), ours.size)
    assert (weights.name, weights.identity) == (own, f"timm {tag}")
    # Written down once, so that an update of timm that says otherwise is noticed.
    (mean, std), size, crop, interpolation = TAGS[tag]
    assert (ours.mean, ours.std) == (mean, std)
    assert (ours.size, ours.interpolation) == (size, interpolation)
    assert ours.crop == pytest.approx(crop, abs=0.01)
    # A tag in the name of the architecture means the same.
    assert found(Model(source="timm", name=tag, weights="DEFAULT")).identity == weights.identity


def test_every_tag_of_timm_is_taken_over_or_refused() -> None:
    timm = pytest.importorskip("timm")
    from runner.models.pretrained import _is_path, _of_timm

    refused = []
    tags = timm.list_pretrained()
    for tag in tags:
        says = timm.get_pretrained_cfg(tag)
        assert not _is_path(tag.partition(".")[2]), tag
        try:
            ours = _of_timm(says.to_dict())
        except ConfigError as error:
            assert "not square RGB" in error.what or "interpolation" in error.what  # noqa: PT017
            refused.append(tag)
            continue
        assert (ours.mean, ours.std) == (tuple(says.mean), tuple(says.std)), tag
        assert ours.size == says.input_size[-1], tag
        assert says.interpolation in (ours.interpolation, "random"), tag
        if says.crop_mode == "center":  # what lies beyond the image we do not show
            assert ours.presize == max(ours.size, int(ours.size / says.crop_pct)), tag
            assert round(ours.crop * ours.presize) == ours.size, tag
        else:
            assert (ours.presize, ours.crop) == (ours.size, 1.0), tag
    assert len(refused) < 0.01 * len(tags) > 10


def test_timms_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    create, trained = timm.create_model, build_model("timm", "resnet10t", 1000, seed=1)

    def create_model(name: str, **how: Any) -> nn.Module:
        return trained if how.get("pretrained") else create(name, **how)

    monkeypatch.setattr(timm, "create_model", create_model)
    model = build_model("timm", "resnet10t", 3, seed=0)
    state = torch.random.get_rng_state()
    loaded = load_weights(model, found(Model(source="timm", name="resnet10t", pretrained=True)))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert loaded.fresh == ("fc.weight", "fc.bias")
    assert torch.equal(model.conv1[0].weight, trained.conv1[0].weight)


# ── Files ──────────────────────────────────────────────────────────────────────────────────────


def trained_tensors(num_outputs: int = 3) -> dict[str, Tensor]:
    return small_network(num_outputs, seed=1).state_dict()


def with_metadata(path: Path, tensors: dict[str, Tensor], how: Preprocess = OWN) -> Path:
    description = json.dumps({"preprocess": how.to_dict()})
    path.write_bytes(tensor_files.to_bytes(tensors, {tensor_files.DESCRIPTION: description}))
    return path


def of_file(path: Path) -> Weights:
    return found(Model(weights=str(path)))


def test_a_file_with_its_description(tmp_path: Path) -> None:
    path = with_metadata(tmp_path / "own.safetensors", trained_tensors())
    weights = of_file(path)
    assert weights.preprocess == OWN
    assert weights.name == str(path)
    assert weights.identity == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    model = small_network()
    loaded = load_weights(model, weights)
    assert (loaded.fresh, loaded.unused) == ((), ())
    assert loaded.num_loaded == len(trained_tensors())
    for name, tensor in trained_tensors().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_file_without_description_says_nothing(tmp_path: Path) -> None:
    for name in ("plain.safetensors", "plain.pth"):
        tensors = trained_tensors()
        if name.endswith(".pth"):
            torch.save(tensors, tmp_path / name)
        else:
            (tmp_path / name).write_bytes(tensor_files.to_bytes(tensors))
        weights = of_file(tmp_path / name)
        assert weights.preprocess is None
        assert load_weights(small_network(), weights).num_loaded == len(tensors)


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda own: own,
    "state_dict": lambda own: {"state_dict": own, "epoch": 3, "arch": "resnet"},
    "model": lambda own: {"model": own, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "model_ema": lambda own: {"model": noise(own), "model_ema": own},
    "model_ema of a module": lambda own: {"model": noise(own), "model_ema": {"module": own}},
    "state_dict_ema": lambda own: {"state_dict": noise(own), "state_dict_ema": own},
    "model_state_dict": lambda own: {"model_state_dict": own},
    "module.": lambda own: prefixed("module.", own),
    "model.": lambda own: prefixed("model.", own),
    "_orig_mod.": lambda own: prefixed("_orig_mod.", own),
    "several": lambda own: {"state_dict": prefixed("module._orig_mod.", own)},
    "of Lightning": lambda own: {"state_dict": prefixed("net.model.", own), "epoch": 1},
    "parameters": lambda own: {
        name: nn.Parameter(value) if value.is_floating_point() else value
        for name, value in own.items()
    },
    "half": lambda own: {name: value.half() for name, value in own.items()},
}


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def noise(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_ways_that_programs_save_weights(tmp_path: Path, name: str) -> None:
    torch.save(WRAPPED[name](trained_tensors()), tmp_path / "model.pth")
    model = small_network()
    loaded = load_weights(model, of_file(tmp_path / "model.pth"))
    assert loaded.num_loaded == len(model.state_dict())
    assert (loaded.fresh, loaded.unused) == ((), ())
    tolerance = 1e-3 if name == "half" else 0
    for key, tensor in trained_tensors().items():
        torch.testing.assert_close(model.state_dict()[key], tensor, rtol=tolerance, atol=tolerance)
    assert model[0][0].weight.dtype == torch.float32


def test_a_backbone_leaves_the_head_as_it_was_drawn(tmp_path: Path) -> None:
    body = {name: value for name, value in trained_tensors().items() if not name.startswith("2.")}
    projector = {"projector.weight": torch.zeros(4, 8)}
    torch.save({**prefixed("backbone.", body), **projector}, tmp_path / "model.pth")
    model = small_network()
    loaded = load_weights(model, of_file(tmp_path / "model.pth"))
    assert loaded.fresh == ("2.2.weight", "2.2.bias")
    assert loaded.unused == ("projector.weight",)
    assert torch.equal(model[0][0].weight, trained_tensors()["0.0.weight"])
    assert torch.equal(model[2][2].weight, small_network()[2][2].weight)
    said = str(loaded)
    assert "drawn anew: 2.2.weight, 2.2.bias" in said
    assert "not used: projector.weight" in said


def test_another_number_of_classes_keeps_the_fresh_head(tmp_path: Path) -> None:
    path = with_metadata(tmp_path / "ten.safetensors", trained_tensors(10))
    model = small_network()
    loaded = load_weights(model, of_file(path))
    assert loaded.fresh == ("2.2.weight", "2.2.bias")
    assert set(loaded.unused) == set(loaded.fresh)  # the file's head of ten
    assert torch.equal(model[2][2].weight, small_network()[2][2].weight)
    assert torch.equal(model[1][0].weight, trained_tensors()["1.0.weight"])


def test_counters_that_old_files_lack_are_no_fault(tmp_path: Path) -> None:
    old = {name: v for name, v in trained_tensors().items() if "num_batches" not in name}
    assert len(old) == len(trained_tensors()) - 2
    torch.save(old, tmp_path / "model.pth")
    assert load_weights(small_network(), of_file(tmp_path / "model.pth")).num_loaded == len(old)


def test_another_architecture_is_refused_with_names_and_shapes(tmp_path: Path) -> None:
    other = trained_tensors()
    other["0.0.weight"] = torch.zeros(6, 3, 5, 5)
    del other["1.0.bias"]
    path = with_metadata(tmp_path / "other.safetensors", other)
    with pytest.raises(ArtefactError) as caught:
        load_weights(small_network(), of_file(path))
    error = caught.value
    assert error.exit_code == 7
    assert "2 of 16 tensors" in error.what
    assert "0.0.weight (6, 3, 5, 5) for (6, 3, 3, 3)" in error.what
    assert "no 1.0.bias" in error.what
    assert error.where == f"model.weights={path}"
    torch.save(build_model("torchvision", "resnet18", 3, seed=0).state_dict(), tmp_path / "r.pth")
    with pytest.raises(ArtefactError, match=r"no stem\.0\.conv\.weight"):
        load_weights(build_model("xresnet", "xresnet18", 3, seed=0), of_file(tmp_path / "r.pth"))


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    path = with_metadata(tmp_path / "own.safetensors", trained_tensors())
    weights = of_file(path)
    weights.read()
    with_metadata(path, noise(trained_tensors()))
    with pytest.raises(ArtefactError, match="changed since it was looked at") as caught:
        weights.read()
    assert str(path) in caught.value.where


TIMMS = {
    "architecture": "resnet18",
    "pretrained_cfg": {
        "input_size": [3, 288, 288], "crop_pct": 0.9, "interpolation": "bilinear",
        "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "tag": "mine", "crop_mode": "center",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_timms_description_beside_the_file_is_read(tmp_path: Path, name: str) -> None:
    if name.endswith(".bin"):
        torch.save(trained_tensors(), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(tensor_files.to_bytes(trained_tensors()))
    (tmp_path / "config.json").write_text(json.dumps(TIMMS))
    for path in (tmp_path / name, tmp_path):  # the folder, as timm saves it, is enough
        assert of_file(path).preprocess == Preprocess(
            320, 2.0, 0.9, 288, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)
        )
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')  # of another program
    assert of_file(tmp_path).preprocess is None
    own = with_metadata(tmp_path / "own.safetensors", trained_tensors())
    assert of_file(own).preprocess == OWN  # the file's own word counts


WRONG_DESCRIPTIONS: dict[str, tuple[Any, str]] = {
    "a mean that is text": ({"mean": ["a", "b", "c"]}, "mean must be a finite number"),
    "a mean that is code": ({"mean": "${oc.env:HOME}"}, "mean must be"),
    "two channels": ({"mean": [0.5, 0.5]}, "mean must be three"),
    "a deviation of zero": ({"std": [0.2, 0.0, 0.2]}, "std must be above 0"),
    "no deviation": ({"std": None}, "NoneType"),
    "a crop of hardly anything": ({"crop_pct": 1e-300}, "presize must be a whole number"),
    "a crop without end": ({"crop_pct": 1e-320}, "infinity"),
    "a crop of nothing": ({"crop_pct": 1e-9}, "presize"),
    "no pixels": ({"input_size": [3, 0, 0]}, "division by zero"),
    "a size of text": ({"input_size": "large"}, "too many values"),
    "code to run": ({"_target_": "os.system"}, "_target_"),
    "code within": ({"mean": [{"_args_": ["ls"]}]}, "_args_"),
}


@pytest.mark.parametrize("name", WRONG_DESCRIPTIONS)
def test_a_description_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    changes, why = WRONG_DESCRIPTIONS[name]
    torch.save(trained_tensors(), tmp_path / "pytorch_model.bin")
    says = {"pretrained_cfg": {**TIMMS["pretrained_cfg"], **changes}}  # type: ignore[dict-item]
    (tmp_path / "config.json").write_text(json.dumps(says))
    with pytest.raises(ArtefactError) as caught:
        of_file(tmp_path)
    assert why in caught.value.what
    assert caught.value.where == f"model.weights={tmp_path / 'config.json'}"


def test_what_we_cannot_do_is_told(tmp_path: Path) -> None:
    torch.save(trained_tensors(), tmp_path / "pytorch_model.bin")
    for change, why in (
        ({"input_size": [3, 224, 160]}, "not square RGB"),
        ({"input_size": [1, 28, 28]}, "not square RGB"),
        ({"interpolation": "lanczos"}, "lanczos, this program has bilinear and bicubic"),
    ):
        says = {"pretrained_cfg": {**TIMMS["pretrained_cfg"], **change}}  # type: ignore[dict-item]
        (tmp_path / "config.json").write_text(json.dumps(says))
        with pytest.raises(ConfigError, match=why):
            of_file(tmp_path)


def test_a_folder_without_weights_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no weights in this folder"):
        of_file(tmp_path)


# ── Files that want to do harm ─────────────────────────────────────────────────────────────────


class Calls:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], Any]:
        return self.call


def hostile(folder: Path, canary: Path) -> dict[str, str]:
    """Writes files that make ``canary`` when they are unpickled; why each is refused."""
    touch = f"touch {canary}"
    python = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    tensors = trained_tensors()
    payloads: dict[str, tuple[Any, str]] = {
        "system": ({**tensors, "x": Calls(os.system, touch)}, "posix.system"),
        "eval": ({**tensors, "x": Calls(eval, python)}, "eval"),
        "exec": ({"state_dict": Calls(exec, python)}, "exec"),
        "nested": ({"state_dict": tensors, "args": [{"deep": (Calls(eval, python),)}]}, "eval"),
        "as a key": ({**tensors, (Calls(os.system, touch),): 1}, "posix.system"),
        "getattr": ({**tensors, "x": Calls(getattr, os, "system")}, "getattr"),
        # Its name in the stream is that of Python 2.
        "subprocess": ({"model": Calls(subprocess.call, touch.split())}, "commands.call"),
        "namespace": ({"model": tensors, "args": argparse.Namespace(a=1)}, "argparse.Namespace"),
    }
    why = {}
    for name, (payload, reason) in payloads.items():
        if name != "getattr":  # a module cannot be pickled, its name in the stream can
            torch.save(payload, folder / f"{name}.pth")
            torch.save(payload, folder / f"{name}, old.pt", _use_new_zipfile_serialization=False)
            why[f"{name}.pth"] = why[f"{name}, old.pt"] = reason
    (folder / "plain.bin").write_bytes(pickle.dumps(Calls(os.system, touch), protocol=2))
    (folder / "getattr.ckpt").write_bytes(b"\x80\x02cposix\nsystem\nX\x01\x00\x00\x00x\x85R.")
    why |= {"plain.bin": "posix.system", "getattr.ckpt": "posix.system"}
    return why


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    files = tmp_path / "files"
    files.mkdir()
    why = hostile(files, canary)
    assert len(why) == 16
    for name, reason in why.items():
        weights = of_file(files / name)  # found is not yet read
        with pytest.raises(ArtefactError) as caught:
            weights.read()
        error = caught.value
        assert error.exit_code == 7
        assert f"it asks for {reason}" in error.what, name
        assert error.where == f"model.weights={files / name}"
        # Torch's own message tells how to run it all the same.
        assert "weights_only" not in str(error)
        assert "safe_globals" not in str(error)
    assert not canary.exists()
    # Negative control: they do what they are made for when they are let.
    torch.load(files / "system.pth", weights_only=False)
    assert canary.exists()


def test_the_environment_cannot_weaken_that(tmp_path: Path) -> None:
    canary, files = tmp_path / "canary", tmp_path / "files"
    files.mkdir()
    hostile(files, canary)
    torch.save(trained_tensors(), files / "good.pth")
    code = f"""
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from runner.errors import ArtefactError
from runner.models import find_weights
from runner.config.schema import Model
for path in sorted(Path({str(files)!r}).iterdir()):
    try:
        print(path.name, len(find_weights(Model(weights=str(path))).read()))
    except ArtefactError as error:
        print(path.name, "refused", error.exit_code)
import torch
torch.load({str(files / "system.pth")!r})  # negative control: the variable does work
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "good.pth 16" in lines
    assert sum(line.endswith("refused 7") for line in lines) == len(lines) - 1 == 16
    assert canary.exists()


def test_the_environment_made_no_canary_before_the_control(tmp_path: Path) -> None:
    """As above, by the command itself and without the control at the end."""
    canary = tmp_path / "canary"
    hostile(tmp_path, canary)
    done = subprocess.run(
        [
            sys.executable, "-W", "ignore", "-m", "runner.train", f"outputs={tmp_path / 'outputs'}",
            f"model.weights={tmp_path / 'system.pth'}", "normalize=imagenet", "budget=smoke",
            "resize.size=8", "threads=1",
        ],
        env={**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert "it asks for posix.system, and only tensors are read" in done.stderr
    assert f"where: model.weights={tmp_path / 'system.pth'}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not canary.exists()
    assert not list((tmp_path / "outputs").glob("fashion-*"))


def header(text: str, length: int | None = None) -> bytes:
    content = text.encode()
    return (len(content) if length is None else length).to_bytes(8, "little") + content


HTML = b"<!doctype html><html><body>404 Not Found</body></html>"
TENSOR = '"x":{"dtype":"F32","shape":[],"data_offsets":[0,4]}'
DAMAGED: dict[str, tuple[str, bytes, str]] = {
    "an empty .pth": (".pth", b"", "empty or cut"),
    "a page as .pth": (".pth", HTML, "no file of tensors"),
    "one tensor": (".pth", b"", "no tensors by name"),
    "a cut .pth": (".pth", b"", ""),
    "an empty .safetensors": (".safetensors", b"", "not a safetensors file"),
    "a page as .safetensors": (".safetensors", HTML, "not a safetensors file"),
    "a cut .safetensors": (".safetensors", b"", "not a safetensors file"),
    "a pickle as .safetensors": (
        ".safetensors", pickle.dumps(Calls(os.system, "false")), "not a safetensors file",
    ),
    "a header of 2⁶³ bytes": (
        ".safetensors", header(f"{{{TENSOR}}}", 1 << 63), "not a safetensors file",
    ),
    "a header of a terabyte": (
        ".safetensors", header("{}", 1 << 40), "not a safetensors file",
    ),
    "code in the metadata": (
        ".safetensors",
        header('{"__metadata__":{"_target_":"os.system"},%s}' % TENSOR) + bytes(4),  # noqa: UP031
        "_target_, which names code",
    ),
    "code in the description": (
        ".safetensors",
        tensor_files.to_bytes(
            {"x": torch.zeros(1)}, {tensor_files.DESCRIPTION: '{"preprocess":{"_target_":"x"}}'}
        ),
        "_target_, which names code",
    ),
    "a description of something else": (
        ".safetensors",
        tensor_files.to_bytes({"x": torch.zeros(1)}, {tensor_files.DESCRIPTION: '{"a":1}'}),
        "it has no 'preprocess'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    suffix, content, why = DAMAGED[name]
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    if name == "one tensor":
        torch.save(torch.zeros(2), path)
    elif name == "a cut .pth":
        torch.save(trained_tensors(), path)
        path.write_bytes(path.read_bytes()[:-200])
    elif name == "a cut .safetensors":
        with_metadata(path, trained_tensors())
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtefactError) as caught:
        of_file(path).read()
    assert "the weights are refused: " in caught.value.what
    assert why in caught.value.what
    assert caught.value.where == f"model.weights={path}"
    assert caught.value.exit_code == 7


# ── What the weights decide in a configuration ─────────────────────────────────────────────────


def weights_with(own: Preprocess | None, hint: str = "") -> Weights:
    return Weights("file.pth", "sha256:0", own, trained_tensors, hint)


def asked(source: str = "pretrained", *statistics: Any, **groups: Any) -> RunConfig:
    normalize = Normalize(source, *statistics)  # type: ignore[arg-type]
    return replace(RunConfig(), model=Model(weights="file.pth"), normalize=normalize, **groups)


def test_what_is_left_open_is_the_weights_own() -> None:
    own = replace(OWN, interpolation="bicubic")
    config = fitted(asked(), weights_with(own))
    assert (config.normalize.mean, config.normalize.std) == (own.mean, own.std)
    assert (config.resize.size, config.eval.crop) == (16, 0.8)
    assert (config.data.interpolation, config.data.presize) == ("bicubic", 20)
    assert "normalize" not in config.tricks


GIVEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "size": ({"resize": Resize(size=24)}, {"size": 24, "presize": None}),
    "their own size": ({"resize": Resize(size=16)}, {"size": 16, "presize": 20}),
    "crop": ({"eval": Eval(crop=1.0)}, {"crop": 1.0}),
    "interpolation": ({"data": Data(interpolation="bicubic")}, {"interpolation": "bicubic"}),
    "presize": ({"data": Data(presize=40)}, {"presize": 40}),
}


@pytest.mark.parametrize("name", GIVEN)
def test_what_the_user_says_is_kept(name: str) -> None:
    groups, kept = GIVEN[name]
    config = fitted(asked(**groups), weights_with(OWN))
    expected = {"size": 16, "crop": 0.8, "interpolation": "bilinear", "presize": 20, **kept}
    assert {
        "size": config.resize.size,
        "crop": config.eval.crop,
        "interpolation": config.data.interpolation,
        "presize": config.data.presize,
    } == expected
    assert config.normalize.mean == OWN.mean  # whatever else is chosen


MISMATCHES = {
    "ImageNet's": (("fixed", *IMAGENET), ["[0.485,0.456,0.406]", "[0.229,0.224,0.225]"]),
    "none": (("fixed",), ["[0,0,0]", "[1,1,1]"]),
    "one digit": (("fixed", (0.1, 0.2, 0.301), OWN.std), ["[0.1,0.2,0.301]"]),
    "std alone": (("fixed", OWN.mean, (0.5, 0.6, 0.8)), ["[0.5,0.6,0.8]"]),
    "the data's": (("dataset",), ["those of the training split"]),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_other_statistics_are_refused_and_both_are_named(name: str) -> None:
    statistics, named = MISMATCHES[name]
    with pytest.raises(ConfigError) as caught:
        fitted(asked(*statistics), weights_with(OWN))
    for text in ["mean [0.1,0.2,0.3] std [0.5,0.6,0.7]", *named]:
        assert text in caught.value.what
    assert "normalize=pretrained" in caught.value.fix
    assert "normalize.allow_mismatch=true" in caught.value.fix
    assert caught.value.exit_code == 2
    config = asked(*statistics)
    config = replace(config, normalize=replace(config.normalize, allow_mismatch=True))
    passed = fitted(config, weights_with(OWN))
    assert passed.normalize == config.normalize  # as asked for, to see what it costs
    assert "normalize" in passed.tricks


def test_pretrained_with_statistics_of_the_users_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        fitted(asked("pretrained", *IMAGENET), weights_with(OWN))
    assert "[0.1,0.2,0.3]" in caught.value.what
    assert "normalize.mean=[0.485,0.456,0.406]" in caught.value.where
    assert fitted(asked("pretrained", OWN.mean, OWN.std), weights_with(OWN)) == fitted(
        asked(), weights_with(OWN)
    )


def test_equal_statistics_spelled_out_are_the_same_run() -> None:
    words = {
        "resize": Resize(size=16), "eval": Eval(crop=0.8),
        "data": Data(presize=20, interpolation="bilinear"),
    }  # fmt: skip

    def name(config: RunConfig) -> str:
        return str(identity(config, 3, 20, "f", "sha256:0")["identity"])

    spelled = fitted(asked("fixed", OWN.mean, OWN.std, **words), weights_with(OWN))
    assert name(spelled) == name(fitted(asked(), weights_with(OWN)))
    assert spelled.normalize.source == "pretrained"
    mismatch = Normalize("fixed", *IMAGENET, allow_mismatch=True)
    other = fitted(replace(asked(**words), normalize=mismatch), weights_with(OWN))
    assert name(other) != name(spelled)  # negative control


def test_statistics_that_only_the_user_can_know_must_be_said() -> None:
    nothing = weights_with(None, " (timm's own weights of x have mean [0.5,0.5,0.5] std [1,1,1])")
    for config in (asked(), asked("fixed"), asked("dataset")):
        with pytest.raises(ConfigError, match="nothing says with which statistics") as caught:
            fitted(config, nothing)
        assert "timm's own weights of x have mean [0.5,0.5,0.5]" in caught.value.fix
        assert "normalize=imagenet" in caught.value.fix
    for statistics in (IMAGENET, ((0.0, 0.0, 0.0), (0.5, 0.5, 0.5))):
        config = fitted(asked("fixed", *statistics), nothing)
        assert (config.normalize.source, config.normalize.mean) == ("pretrained", statistics[0])
    free = replace(asked("dataset"), normalize=Normalize("dataset", allow_mismatch=True))
    assert fitted(free, nothing).normalize.source == "dataset"
    with pytest.raises(ConfigError):
        fitted(replace(free, normalize=Normalize("pretrained", allow_mismatch=True)), nothing)


def test_timms_statistics_are_the_hint_for_a_file_of_its_architecture(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    torch.save(trained_tensors(), tmp_path / "model.pth")
    model = Model(source="timm", name="tf_efficientnet_lite0", weights=str(tmp_path / "model.pth"))
    with pytest.raises(ConfigError) as caught:
        fitted(replace(asked(), model=model), find_weights(model))
    assert "tf_efficientnet_lite0 have mean [0.5,0.5,0.5] std [0.5,0.5,0.5]" in caught.value.fix


@pytest.mark.parametrize("name", ["resnet18.no_such_tag", "no_such_network"])
def test_an_unknown_network_has_no_hint(tmp_path: Path, name: str) -> None:
    pytest.importorskip("timm")
    torch.save(trained_tensors(), tmp_path / "model.pth")
    model = Model(source="timm", name=name, weights=str(tmp_path / "model.pth"))
    assert found(model).hint == ""


def test_statistics_of_no_weights_are_an_error() -> None:
    config = replace(asked(), model=Model())
    with pytest.raises(ConfigError, match="without pretrained weights there are no statistics"):
        fitted(config, None)
    assert fitted(RunConfig(), None) == RunConfig()


def test_the_tag_belongs_to_the_weights_and_not_to_the_network() -> None:
    pytest.importorskip("timm")
    model = Model(source="timm", name="resnet18.tv_in1k", pretrained=True)
    config = fitted(replace(asked(), model=model), find_weights(model))
    assert (config.model.name, config.model.weights) == ("resnet18", "tv_in1k")
    assert not config.model.pretrained


NOTES = {
    "progressive": ({"resize": Resize(schedule="progressive", size=16)}, "may damage them"),
    "book": ({"resize": Resize(schedule="book", size=16)}, "progressive resizing can hurt"),
    "Imagenette": ({"data": Data(name="imagenette")}, "have seen its images"),
}


@pytest.mark.parametrize("name", NOTES)
def test_what_can_go_wrong_with_pretrained_weights_is_told(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    groups, text = NOTES[name]
    path = str(with_metadata(tmp_path / "own.safetensors", trained_tensors()))
    told = {}
    for label, changes, weights in (
        ("with", groups, path), ("without weights", groups, None), ("without", {}, path),
    ):  # fmt: skip
        source = "pretrained" if weights else "fixed"
        config = replace(asked(source, **changes), model=Model(weights=weights))
        with Display() as display:
            fitted_to_weights(config, display)
        told[label] = text in capsys.readouterr().out
    assert told == {"with": True, "without weights": False, "without": False}


# ── From a run to the next ─────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def first(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory, composed: Composed) -> Path:
    """A finished run on three classes, with statistics, size, crop and interpolation of its own."""
    words = [
        "data=folder", f"data.root={tiny_folder}", "data.batch_size=16", "resize.size=16",
        "data.presize=20", "eval.crop=0.8", "data.interpolation=bicubic", "normalize=dataset",
        "budget.epochs=1", "threads=1", f"outputs={tmp_path_factory.mktemp('first')}",
    ]  # fmt: skip
    return Path(train.run(composed(*words), [])["folder"])


@pytest.fixture(scope="module")
def next_run(
    tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory, composed: Composed
) -> Callable[..., dict[str, Any]]:
    """Trains from weights; its result."""
    outputs = tmp_path_factory.mktemp("next")

    def from_weights(path: Path, *words: str) -> dict[str, Any]:
        config = composed(
            "data=folder", f"data.root={tiny_folder}", "data.batch_size=16", "budget.epochs=1",
            "threads=1", "normalize=pretrained", f"outputs={outputs}", f"model.weights={path}",
            *words,
        )  # fmt: skip
        result: dict[str, Any] = RunFolder(Path(train.run(config, [])["folder"])).result() or {}
        return result

    return from_weights


def test_a_run_starts_from_another(first: Path, next_run: Callable[..., dict[str, Any]]) -> None:
    source = read_bundle(first / "bundle")
    result = next_run(first, "optim.lr=1e-9", "optim.weight_decay=0")
    content = (first / "bundle" / "model.safetensors").read_bytes()
    assert result["model"]["weights"] == {
        "name": str(first / "bundle" / "model.safetensors"),
        "identity": f"sha256:{hashlib.sha256(content).hexdigest()}",
        "loaded": len(source.tensors),
        "fresh": [],
        "unused": [],
    }
    assert result["tricks"] == []
    for key in ("mean", "std"):
        assert result["model"][key] == list(getattr(source.preprocess, key))
    config = result["config"]
    assert (config["resize"]["size"], config["data"]["presize"]) == (16, 20)
    assert (config["eval"]["crop"], config["data"]["interpolation"]) == (0.8, "bicubic")
    before = json.loads((first / "result.json").read_text())["metrics"]["plain"]
    assert result["bundle"].keys() == {"model.json", "model.safetensors"}
    # Its weights hardly move, and so it predicts hardly otherwise; from scratch it would.
    assert result["metrics"]["plain"]["nll"] == pytest.approx(before["nll"], abs=0.3)


def test_the_next_network_sees_what_the_first_saw(
    first: Path, tiny_folder: Path, composed: Composed, tmp_path: Path
) -> None:
    config = composed(
        "data=folder", f"data.root={tiny_folder}", "threads=1", "normalize=pretrained",
        f"model.weights={first}", f"outputs={tmp_path}",
    )  # fmt: skip
    from runner.data.dataset import load_dataset
    from runner.training.predicting import evaluate

    with Display() as display:
        config, weights = fitted_to_weights(config, display)
    dataset = load_dataset(config.data, config.largest_size, tmp_path / "cache", lambda *_: None)
    learner, loaded = build_learner(config, dataset, weights=weights)
    assert learner.preprocess == read_bundle(first / "bundle").preprocess
    assert loaded is not None
    found = evaluate(learner, dataset, config, with_tta=False)
    assert found is not None
    saved = RunFolder(first).predictions()["plain"]
    assert abs(found.plain - saved).max() < 1e-6
    bare, _ = build_learner(config, dataset)  # negative control: without the weights
    other = evaluate(bare, dataset, config, with_tta=False)
    assert other is not None
    assert abs(other.plain - saved).max() > 1e-2


def test_other_classes_get_a_head_of_their_own(
    first: Path, composed: Composed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("a", "b")):
        for split, count in (("train", 8), ("val", 4)):
            colour = list(COLOURS.values())[seed]
            write_images(tmp_path / "two" / split / name, count, colour, 10 * seed + count)
    config = composed(
        "data=folder", f"data.root={tmp_path / 'two'}", "data.batch_size=8", "budget.epochs=1",
        "threads=1", "normalize=pretrained", f"model.weights={first / 'bundle'}",
        f"outputs={tmp_path}",
    )  # fmt: skip
    folder = Path(train.run(config, [])["folder"])
    weights = json.loads((folder / "result.json").read_text())["model"]["weights"]
    assert weights["fresh"] == ["head.3.weight", "head.3.bias"]
    assert set(weights["unused"]) == set(weights["fresh"])  # the first run's head
    assert "pretrained: " in (said := capsys.readouterr().out)
    assert "drawn anew: head.3.weight, head.3.bias" in said


def test_the_identity_follows_the_bytes_and_not_the_place(
    first: Path, next_run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    content = (first / "bundle" / "model.safetensors").read_bytes()
    tensors, described = tensor_files.from_bytes(content), tensor_files.described(content)
    here, there, changed = (tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.pth"))
    here.write_bytes(content)
    there.write_bytes(content)
    named = next_run(here)["identity"]
    assert next_run(there)["identity"] == named
    assert next_run(first)["identity"] == named
    tensors["head.3.bias"] += 1e-3
    changed = changed.with_suffix(".safetensors")
    metadata = {tensor_files.DESCRIPTION: json.dumps(described)}
    changed.write_bytes(tensor_files.to_bytes(tensors, metadata))
    other = next_run(changed)
    assert other["identity"] != named
    assert other["config"]["model"]["weights"] == str(changed)


def test_statistics_that_do_not_match_stop_the_run(
    first: Path, next_run: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(ConfigError) as caught:
        next_run(first, "normalize=imagenet", "resize.size=16")
    assert "[0.485,0.456,0.406]" in caught.value.what
    passed = next_run(
        first, "normalize=imagenet", "resize.size=16", "normalize.allow_mismatch=true"
    )
    assert passed["model"]["mean"] == [0.485, 0.456, 0.406]
    assert passed["tricks"] == ["normalize"]


def test_the_rate_finder_starts_from_the_weights(
    first: Path, tiny_folder: Path, composed: Composed, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen: list[Any] = []

    def range_test(learner: Any, dataset: Any, config: Any) -> lr_find.RangeTest:
        seen.append(learner)
        return lr_find.RangeTest((1e-7, 2e-7), (1.0, 1.0))

    monkeypatch.setattr(lr_find, "range_test", range_test)
    monkeypatch.setattr(lr_find, "_print", lambda *_: None)
    lr_find._run(
        composed(
            "data=folder", f"data.root={tiny_folder}", "normalize=pretrained", "threads=1",
            f"model.weights={first}", f"outputs={tmp_path}",
        ),
        [],
    )  # fmt: skip
    (learner,) = seen
    bundle = read_bundle(first / "bundle")
    assert learner.preprocess == bundle.preprocess
    for name, tensor in learner.model.state_dict().items():
        assert torch.equal(tensor, bundle.tensors[name]), name


# ── What trains, and how fast ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("option", ["linear_probe", "adamw"])
def test_a_linear_probe_trains_head_and_batch_norms_alone(
    first: Path, tmp_path: Path, tiny_folder: Path, composed: Composed, option: str
) -> None:
    config = composed(
        "data=folder", f"data.root={tiny_folder}", "data.batch_size=16", "budget.epochs=1",
        "threads=1", "normalize=pretrained", f"model.weights={first}", f"optim={option}",
        f"outputs={tmp_path}",
    )  # fmt: skip
    folder = Path(train.run(config, [])["folder"])
    before, after = (read_bundle(path / "bundle").tensors for path in (first, folder))
    model = build_model("xresnet", "xresnet18", 3, seed=0)
    norms = {
        f"{name}.{key}"
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for key in ("weight", "bias")
    }
    parameters = {name for name, _ in model.named_parameters()}
    head = {name for name in parameters if name.startswith("head.")}
    same = {name for name in parameters if torch.equal(before[name], after[name])}
    if option == "linear_probe":
        assert same == parameters - norms - head  # to the bit
    else:
        assert not same  # negative control
    assert not {name for name in head | norms if torch.equal(before[name], after[name])}


def test_fine_tuning_spreads_the_rates_over_the_layers() -> None:
    optim = Optim(schedule="fine_tune", layer_groups=3, lr_spread=100.0, lr=2e-3)
    frozen, whole = plan(small_config(optim=optim), 32)
    assert (frozen.frozen, whole.frozen) == (True, False)
    assert whole.lr_factors == pytest.approx((0.01, 0.1, 1.0))
    model = build_model("xresnet", "xresnet18", 3, seed=0)
    groups = layer_groups(model)
    assert all(groups)
    rates = {
        id(parameter): group["lr_factor"]
        for group in build_optimizer(groups, optim, whole.lr_factors).param_groups
        for parameter in group["params"]
    }
    first, *_, last = (rates[id(parameter)] for parameter in model.parameters())
    assert (first, last) == pytest.approx((0.01, 1.0))
    assert len(rates) == len(list(model.parameters()))
    assert sorted(set(rates.values())) == pytest.approx([0.01, 0.1, 1.0])
