"""Runs that start from the weights of another."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import COLOURS, small_config, write_images
from torch import nn

from runner import lr_find, train
from runner.config.schema import Optim, RunConfig
from runner.errors import ConfigError
from runner.models import build_model, layer_groups
from runner.records import tensor_files
from runner.records.bundle import read_bundle
from runner.records.run_folder import RunFolder
from runner.terminal.display import Display
from runner.training.learners import build_learner, fitted_to_weights
from runner.training.optim import build_optimizer
from runner.training.schedule import plan

Composed = Callable[..., RunConfig]


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
    assert result["metrics"]["plain"]["log_loss"] == pytest.approx(before["log_loss"], abs=0.3)


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
