"""Models by source and name: reproducible weights, refusals with a way out, layer groups."""

import sys

import pytest
import torch
from torch import nn

from runner.config.model import XRESNETS
from runner.errors import ConfigError
from runner.models import build_model, layer_groups
from runner.models.xresnet import DEPTHS

# One of each source and of each kind of head and body that the rules of layer_groups meet.
MODELS = [
    ("xresnet", "xresnet18"),
    ("xresnet", "xresnet50"),
    ("torchvision", "resnet18"),
    ("torchvision", "mobilenet_v3_small"),  # a head of two linear layers
    ("torchvision", "squeezenet1_1"),  # a head without a linear layer
    ("torchvision", "swin_t"),
    ("timm", "efficientnet_b0"),
    ("timm", "convnext_atto"),  # the classifier is a part of the module `head`
    ("timm", "vit_tiny_patch16_224"),  # parameters held by the model itself
    ("timm", "deit_tiny_distilled_patch16_224"),  # two classifiers
]


def ids(parameters: list[nn.Parameter]) -> list[int]:
    return [id(parameter) for parameter in parameters]


def ids_of_modules(modules: list[nn.Module]) -> list[int]:
    return [id(parameter) for module in modules for parameter in module.parameters()]


def dropouts(model: nn.Module) -> set[float]:
    return {each.p for each in model.modules() if isinstance(each, nn.Dropout)}


@pytest.mark.parametrize(
    ("source", "name"),
    [("xresnet", "xresnet18"), ("torchvision", "resnet18"), ("timm", "vit_tiny_patch16_224")],
)
def test_weights_depend_on_the_seed_alone(source: str, name: str) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = build_model(source, name, 10, seed=3)
    assert torch.equal(torch.get_rng_state(), before)

    torch.rand(5)  # the caller's generator has moved on
    again = build_model(source, name, 10, seed=3).state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.state_dict().items())

    other = build_model(source, name, 10, seed=4).state_dict()
    drawn = [key for key, tensor in first.state_dict().items() if tensor.unique().numel() > 2]
    assert drawn
    assert not any(torch.equal(first.state_dict()[key], other[key]) for key in drawn)


def test_accelerators_are_not_reseeded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(seed: int) -> None:
        raise AssertionError("reseeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", fail)
    build_model("xresnet", "xresnet18", 10, seed=0)
    with pytest.raises(AssertionError, match="reseeded"):
        torch.manual_seed(0)  # negative control: the trap is set


@pytest.mark.parametrize(
    ("source", "name", "suggestion"),
    [
        ("xresnet", "xresnet51", "model.name=xresnet50"),
        ("xresnet", "xresnet18_deep", "model.name=xresnet18"),
        ("torchvision", "resnet5O", "model.name=resnet50"),
        ("torchvision", "quantized_resnet50", "model.name=resnet50"),  # known, but no classifier
        ("timm", "efficientnetb0", "model.name=efficientnet_b0"),
        ("timm", "resnet50.a1_in1k", "model.name=resnet50"),
        ("timm", "hf-hub:timm/resnet50", "model.name="),  # would be downloaded
    ],
)
def test_unknown_name(source: str, name: str, suggestion: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(source, name, 10, seed=0)
    assert caught.value.where == f"model.name={name}"
    assert suggestion in caught.value.fix
    assert repr(name) in caught.value.what


def test_unknown_source() -> None:
    with pytest.raises(ConfigError) as caught:
        build_model("tim", "resnet18", 10, seed=0)
    assert caught.value.where == "model.source=tim"
    assert "did you mean model.source=timm?" in caught.value.fix


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # what makes `import timm` fail
    build_model("xresnet", "xresnet18", 10, seed=0)
    with pytest.raises(ConfigError) as caught:
        build_model("timm", "resnet18", 10, seed=0)
    assert caught.value.fix == "pip install timm"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("xresnet", "xresnet18"),
        ("torchvision", "squeezenet1_1"),
        ("torchvision", "mobilenet_v3_small"),
    ],
)
def test_dropout_replaces_the_default(source: str, name: str) -> None:
    assert dropouts(build_model(source, name, 10, seed=0)) == {0.0}
    assert dropouts(build_model(source, name, 10, seed=0, dropout=0.3)) == {0.3}


def test_dropout_by_its_other_names() -> None:
    densenet = build_model("torchvision", "densenet121", 2, seed=0, dropout=0.3)
    assert densenet.features.denseblock1.denselayer1.drop_rate == 0.3
    assert build_model("timm", "resnet18", 2, seed=0, dropout=0.3).drop_rate == 0.3


def test_dropout_refused_where_there_is_none() -> None:
    build_model("torchvision", "resnet18", 10, seed=0, dropout=0.0)
    with pytest.raises(ConfigError) as caught:
        build_model("torchvision", "resnet18", 10, seed=0, dropout=0.3)
    assert caught.value.where == "model.dropout=0.3"
    assert caught.value.fix == "model.dropout=0.0"


@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 80)])
def test_plain_logits_while_training(name: str, size: int) -> None:
    model = build_model("torchvision", name, 10, seed=0).train()
    logits = model(torch.zeros(2, 3, size, size))
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 10)


@pytest.mark.parametrize(("source", "name"), MODELS)
def test_layer_groups_are_a_partition(source: str, name: str) -> None:
    model = build_model(source, name, 11, seed=0)
    groups = layer_groups(model)
    assert len(groups) == 3
    assert all(groups)
    grouped = [each for group in groups for each in ids(group)]
    assert sorted(grouped) == sorted(ids_of_modules([model]))

    # Outputs are computed in the head and nowhere else.
    early, late, head = groups
    assert any(parameter.shape[0] == 11 for parameter in head)
    assert not any(parameter.shape[0] == 11 for parameter in early + late)
    # Balanced, and each group in the order of the model.
    assert 0.5 < len(early) / len(late) < 2
    position = {each: i for i, each in enumerate(ids_of_modules([model]))}
    for group in groups:
        positions = [position[each] for each in ids(group)]
        assert positions == sorted(positions)


@pytest.mark.parametrize("name", ["xresnet18", "xresnet34", "xresnet50"])
def test_layer_groups_of_an_xresnet_are_whole_stages(name: str) -> None:
    model = build_model("xresnet", name, 10, seed=0)
    stem, stages, head = model.stem, model.stages, model.head
    expected = [[stem, *stages[:2]], list(stages[2:]), [head]]
    assert list(map(ids, layer_groups(model))) == list(map(ids_of_modules, expected))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_layer_groups_of_a_resnet_are_those_of_fastai(name: str) -> None:
    model = build_model("torchvision", name, 10, seed=0)
    # fastai 2.8.7, `_resnet_split`: children up to layer2, layer3 and layer4, head.
    children = list(model.children())
    expected = [children[:6], children[6:8], children[8:]]
    assert list(map(ids, layer_groups(model))) == list(map(ids_of_modules, expected))


def test_layer_groups_keep_what_the_model_holds_itself_early() -> None:
    model = build_model("timm", "vit_tiny_patch16_224", 10, seed=0)
    early, late, head = layer_groups(model)
    assert {id(model.cls_token), id(model.pos_embed)} < set(ids(early))
    assert ids(early)[-len(ids_of_modules(model.blocks[:6])) :] == ids_of_modules(model.blocks[:6])
    assert ids(late) == ids_of_modules([*model.blocks[6:], model.norm])
    assert ids(head) == ids_of_modules([model.head])


def test_layer_groups_of_small_and_shared() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    assert [len(group) for group in layer_groups(linear)] == [0, 0, 2]

    shared = nn.Linear(4, 4)
    twice = nn.Sequential(shared, nn.Linear(4, 4), shared, nn.Linear(4, 2))
    groups = layer_groups(twice)
    assert [len(group) for group in groups] == [2, 2, 2]
    assert groups[0][0] is shared.weight

    frozen = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).requires_grad_(False)
    assert [len(group) for group in layer_groups(frozen)] == [2, 0, 2]


def test_the_configuration_knows_the_depths_that_there_are():
    assert tuple(f"xresnet{depth}" for depth in DEPTHS) == XRESNETS
