"""A bundle is read back whole, or refused with its file and the reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import CLASSES, small_network, small_preprocess

from runner.config.schema import Augment
from runner.errors import ArtefactError
from runner.records.bundle import Architecture, EvaluationSettings, bundle_files, read_bundle

ARCHITECTURE = Architecture("xresnet", "xresnet18", 3)
PREPROCESS = small_preprocess(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), crop=0.875)
EVALUATED = EvaluationSettings("fp32", 256, 7, Augment(flip=0.5, max_rotate=10.0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = bundle_files(
        small_network(),
        architecture=ARCHITECTURE,
        classes=CLASSES,
        preprocess=PREPROCESS,
        evaluated=EVALUATED,
    )
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def test_what_was_written_is_read_back(folder: Path) -> None:
    bundle = read_bundle(folder)
    assert (bundle.architecture, bundle.classes) == (ARCHITECTURE, CLASSES)
    assert (bundle.preprocess, bundle.evaluated) == (PREPROCESS, EVALUATED)
    model = small_network(seed=1)
    assert not torch.equal(model[0][0].weight, small_network()[0][0].weight)
    bundle.load_into(model)
    for name, tensor in small_network().state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_reference_stays_the_text_that_it_is(tmp_path: Path) -> None:
    names = ("${oc.env:HOME}", "${hydra:runtime.cwd}")
    files = bundle_files(
        small_network(2),
        architecture=Architecture("xresnet", "${oc.env:HOME}", 2),
        classes=names,
        preprocess=PREPROCESS,
        evaluated=EVALUATED,
    )
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    bundle = read_bundle(tmp_path)
    assert bundle.classes == names
    assert bundle.architecture.name == "${oc.env:HOME}"


@pytest.mark.parametrize("num_outputs", [10**12, 10**30, 7 * 10**9])
def test_a_number_of_outputs_that_the_weights_do_not_have_is_refused(
    tmp_path: Path, num_outputs: int
) -> None:
    """Before it sizes a network in memory."""
    files = bundle_files(
        small_network(),
        architecture=Architecture("xresnet", "xresnet18", num_outputs),
        classes=CLASSES,
        preprocess=PREPROCESS,
        evaluated=EVALUATED,
    )
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtefactError, match="num_outputs"):
        read_bundle(tmp_path)


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    bundle = read_bundle(folder)
    with pytest.raises(ArtefactError, match="not the weights of xresnet18"):
        bundle.load_into(small_network(4))


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another format": (lambda found: found.update(format=1), "the format is 1"),
    "no format": (lambda found: found.pop("format"), "it has no 'format'"),
    "no statistics": (lambda found: found["preprocess"].pop("mean"), "it has no 'mean'"),
    "no digest": (lambda found: found["files"].clear(), "it has no 'model.safetensors'"),
    "another digest": (
        lambda found: found["files"].update({"model.safetensors": "0" * 64}), "SHA-256",
    ),
    "code at the top": (lambda found: found.update(_target_="os.system"), "_target_"),
    "code within": (
        lambda found: found["model"].update(x=[{"_partial_": True}]), "key model.x.0._partial_",
    ),
    "arguments": (lambda found: found["preprocess"].update(_args_=["ls"]), "key preprocess._args_"),
    "more classes": (lambda found: found["classes"].append("violet"), "4 classes do not fit"),
    "a class twice": (lambda found: found["classes"].__setitem__(0, "red"), "different texts"),
    "a deviation of zero": (
        lambda found: found["preprocess"].update(std=[1, 0, 1]), "std must be above 0",
    ),
    "a mean that is none": (
        lambda found: found["preprocess"].update(mean=[0, float("nan"), 0]), "finite",
    ),
    "a number without end": (
        lambda found: found["preprocess"].update(presize=10**400), "presize must be a whole",
    ),
    "two channels": (lambda found: found["preprocess"].update(mean=[0, 0]), "a list of 3"),
    "a number for text": (lambda found: found["model"].update(name=7), "must be text"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_description_is_refused(folder: Path, name: str) -> None:
    change, reason = EDITS[name]
    edit(folder, change)
    refused(folder, reason)


@pytest.mark.parametrize("text", ["", "[]", "7", '{"format": 1', "\x00", "[" * 100_000])
def test_a_description_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "model.json").write_text(text)
    refused(folder, "model.json")


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, name)


@pytest.mark.parametrize("position", [0, 100, -1])
def test_a_flipped_bit_is_found(folder: Path, position: int) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    refused(folder, "SHA-256")


def test_cut_weights_are_found(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    refused(folder, "SHA-256")


def refused(folder: Path, reason: str) -> None:
    with pytest.raises(ArtefactError) as caught:
        read_bundle(folder)
    error = caught.value
    assert reason in str(error)
    assert str(folder) in error.where
    assert error.fix
    assert error.exit_code == 7
