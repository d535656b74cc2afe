"""Pretrained weights: found by name or file, with the statistics they know, or refused.

Nothing is downloaded: what the libraries would fetch is put in their place.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from small import (
    OWN,
    trained_tensors,
    with_metadata,
)
from torch import Tensor, nn

from runner.config.schema import Data, Eval, Model, Normalize, Resize, RunConfig
from runner.data.preprocess import Preprocess
from runner.errors import ConfigError, StorageError
from runner.models import build_model, find_weights, fitted, load_weights
from runner.models.build import torchvision_names
from runner.models.pretrained import Weights
from runner.records.identity import identity
from runner.terminal.display import Display
from runner.training.learners import fitted_to_weights

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

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
        with pytest.raises(ConfigError, match="do not state the statistics") as caught:
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
    with pytest.raises(ConfigError, match="needs pretrained weights"):
        fitted(config, None)
    assert fitted(RunConfig(), None) == RunConfig()


def test_the_tag_belongs_to_the_weights_and_not_to_the_network() -> None:
    pytest.importorskip("timm")
    model = Model(source="timm", name="resnet18.tv_in1k", pretrained=True)
    config = fitted(replace(asked(), model=model), find_weights(model))
    assert (config.model.name, config.model.weights) == ("resnet18", "tv_in1k")
    assert not config.model.pretrained


NOTES = {
    "progressive": ({"resize": Resize(schedule="progressive", size=16)}, "may damage"),
    "book": ({"resize": Resize(schedule="book", size=16)}, "trains on smaller images"),
    "Imagenette": ({"data": Data(name="imagenette")}, "have seen these images"),
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
