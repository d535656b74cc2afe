"""Structure, initial weights and function of xresnet, against formulas, timm and fastai."""

import math
import warnings
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from runner.models.xresnet import DEPTHS, ResidualBlock, xresnet

# From fastai 2.8.7, `xresnet*(n_out=10)`.
NUM_PARAMETERS = {
    18: 11_200_874,
    34: 21_309_034,
    50: 23_547_754,
    101: 42_539_882,
    152: 58_183_530,
}


@pytest.fixture(scope="module")
def fastai_xresnet() -> Callable[[int], nn.Module]:
    pytest.importorskip("fastai")
    with warnings.catch_warnings():
        # fastai calls torch.jit.script while it is imported, which torch has deprecated.
        warnings.simplefilter("ignore")
        from fastai.vision.models import xresnet as theirs

    return lambda depth: getattr(theirs, f"xresnet{depth}")(n_out=10)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def layers_with_weights(model: nn.Module) -> list[nn.Module]:
    return [each for each in model.modules() if isinstance(each, nn.Conv2d | nn.Linear)]


def fan_in(layer: nn.Module) -> int:
    return layer.weight[0].numel()


def randomise_norms(model: nn.Module) -> None:
    """Arbitrary statistics, and no γ of 0, behind which a wrong block would go unnoticed."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)


@torch.no_grad()
def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    pairs = zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    for theirs, ours in pairs:
        assert ours.shape == theirs.shape
        ours.copy_(theirs)


@torch.no_grad()
def largest_difference(ours: nn.Module, theirs: nn.Module, height: int, width: int) -> float:
    images = torch.randn(2, 3, height, width)
    expected: Tensor = theirs.eval()(images)
    assert expected.std() > 0.01  # not two constants that agree by being constant
    return (ours.eval()(images) - expected).abs().max().item()


@pytest.mark.parametrize("depth", DEPTHS)
def test_number_of_parameters(depth: int) -> None:
    with torch.device("meta"):
        assert num_parameters(xresnet(depth, 10)) == NUM_PARAMETERS[depth]


@pytest.mark.peers
@pytest.mark.parametrize("depth", DEPTHS)
def test_shapes_equal_fastai_in_order(depth: int, fastai_xresnet) -> None:
    with torch.device("meta"):
        ours, theirs = xresnet(depth, 10), fastai_xresnet(depth)
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    assert num_parameters(theirs) == NUM_PARAMETERS[depth]


@pytest.mark.parametrize("depth", [18, 50])
def test_initial_weights(depth: int) -> None:
    torch.manual_seed(0)
    model = xresnet(depth, 10)
    for layer in layers_with_weights(model):
        weight = layer.weight.detach()
        # Standard errors of a mean and of a standard deviation over n normal numbers.
        std, count = math.sqrt(2 / fan_in(layer)), weight.numel()
        assert weight.mean().abs() < 5 * std / math.sqrt(count)
        assert abs(weight.std() / std - 1) < 5 / math.sqrt(2 * count)

    blocks = [each for each in model.modules() if isinstance(each, ResidualBlock)]
    last_of_block = {id(list(block.residual.modules())[-1]) for block in blocks}
    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    assert len(last_of_block & {id(norm) for norm in norms}) == len(blocks)
    for norm in norms:
        assert torch.all(norm.weight == (0.0 if id(norm) in last_of_block else 1.0))
    biases = [each for name, each in model.named_parameters() if name.endswith("bias")]
    assert len(biases) == len(norms) + 1
    assert all(torch.all(bias == 0.0) for bias in biases)


@pytest.mark.peers
@pytest.mark.parametrize("depth", [18, 50])
def test_initial_weights_are_distributed_as_in_fastai(depth: int, fastai_xresnet) -> None:
    torch.manual_seed(0)
    ours, theirs = xresnet(depth, 10), fastai_xresnet(depth)
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    for mine, other in pairs:
        if mine.dim() == 1:  # biases and γ are set, not drawn
            assert torch.equal(mine, other)
        else:
            assert abs(mine.std() / other.std() - 1) < 5 / math.sqrt(mine.numel())


@torch.no_grad()
def test_a_fresh_block_is_its_identity_path() -> None:
    block = ResidualBlock(8, 8, stride=1, bottleneck=True)
    features = torch.rand(2, 8, 5, 5)
    assert torch.equal(block(features), features)
    randomise_norms(block)
    assert not torch.equal(block(features), features)


@pytest.mark.peers
@pytest.mark.parametrize("depth", DEPTHS)
def test_function_equals_fastai(depth: int, fastai_xresnet) -> None:
    torch.manual_seed(0)
    ours, theirs = xresnet(depth, 10), fastai_xresnet(depth)
    randomise_norms(theirs)
    copy_in_order(theirs, ours)
    sizes = [(64, 64), (135, 97), (33, 40)] if depth in (18, 50) else [(47, 47)]
    for height, width in sizes:
        assert largest_difference(ours, theirs, height, width) == 0.0


@pytest.mark.parametrize(("depth", "name"), [(18, "resnet18d"), (50, "resnet50d")])
def test_function_equals_timm(depth: int, name: str) -> None:
    torch.manual_seed(0)
    ours, theirs = xresnet(depth, 10), timm.create_model(name, num_classes=10)
    randomise_norms(theirs)
    copy_in_order(theirs, ours)
    for height, width in [(64, 64), (135, 97), (33, 40)]:
        assert largest_difference(ours, theirs, height, width) == 0.0

    # Negative control: the comparison sees two weights of equal shape in each other's place.
    first = ours.stages[1][0].residual[-1].conv.weight
    second = ours.stages[1][1].residual[-1].conv.weight
    assert first.shape == second.shape
    with torch.no_grad():
        kept = first.clone()
        first.copy_(second)
        second.copy_(kept)
    assert largest_difference(ours, theirs, 64, 64) > 1e-3


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (33, 20)])
def test_any_size_and_number_of_channels(size: tuple[int, int]) -> None:
    model = xresnet(18, 7, in_channels=1).eval()
    assert model(torch.zeros(2, 1, *size)).shape == (2, 7)


def test_dropout_zeroes_features_while_training_only() -> None:
    torch.manual_seed(0)
    head = xresnet(18, 3, dropout=0.5).head
    features = torch.rand(2, 512, 1, 1)
    assert not torch.equal(head(features), head(features))
    head.eval()
    assert torch.equal(head(features), head(features))
    without = xresnet(18, 3).head
    assert torch.equal(without(features), without(features))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"depth": 20, "num_outputs": 10}, "18, 34, 50, 101, 152, not 20"),
        ({"depth": 18, "num_outputs": 0}, "not 0 and 3"),
        ({"depth": 18, "num_outputs": 10, "in_channels": 0}, "not 10 and 0"),
        ({"depth": 18, "num_outputs": 10, "dropout": 1.5}, "1.5"),
    ],
)
def test_refused_numbers(arguments: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        xresnet(**arguments)
