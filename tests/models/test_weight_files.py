"""Pretrained weights from a file: every way that programs save them, or refused with the reason."""

import argparse
import hashlib
import json
import os
import pickle
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import (
    OWN,
    Command,
    small_network,
    trained_tensors,
    with_metadata,
)
from torch import Tensor, nn

from runner.config.schema import Model
from runner.data.preprocess import Preprocess
from runner.errors import ArtefactError, ConfigError
from runner.models import build_model, find_weights, load_weights
from runner.models.pretrained import Weights
from runner.records import tensor_files


def of_file(path: Path) -> Weights:
    weights = find_weights(Model(weights=str(path)))
    assert weights is not None
    return weights


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
    with pytest.raises(ArtefactError, match="changed since it was checked") as caught:
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
    "two channels": ({"mean": [0.5, 0.5]}, "mean must be a list of 3"),
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
        ({"interpolation": "lanczos"}, "lanczos; this program has bilinear and bicubic"),
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
        assert f"it needs {reason}" in error.what, name
        assert error.where == f"model.weights={files / name}"
        # Torch's own message tells how to run it all the same.
        assert "weights_only" not in str(error)
        assert "safe_globals" not in str(error)
    assert not canary.exists()
    # Negative control: they do what they are made for when they are let.
    torch.load(files / "system.pth", weights_only=False)
    assert canary.exists()


def test_the_environment_cannot_weaken_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary, files = tmp_path / "canary", tmp_path / "files"
    files.mkdir()
    why = hostile(files, canary)
    torch.save(trained_tensors(), files / "good.pth")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    assert len(of_file(files / "good.pth").read()) == 16
    for name in why:
        with pytest.raises(ArtefactError):
            of_file(files / name).read()
    assert not canary.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.load(files / "system.pth")  # negative control: the variable does work
    assert canary.exists()


def test_the_environment_made_no_canary_before_the_control(
    command: Command, tmp_path: Path
) -> None:
    """As above, by the command itself and without the control at the end."""
    canary = tmp_path / "canary"
    hostile(tmp_path, canary)
    done = command(
        f"model.weights={tmp_path / 'system.pth'}", "normalize=imagenet", "budget=smoke",
        "resize.size=8", "threads=1", TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1",
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert "it needs posix.system, and only tensors are read" in done.stderr
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
    "a page as .pth": (".pth", HTML, "not a file of tensors"),
    "one tensor": (".pth", b"", "does not hold tensors by name"),
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
