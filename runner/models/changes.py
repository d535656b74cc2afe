"""Changes of a network, applied by name after it is built; a bundle records them.

A trick that changes the network has a group of the configuration, a line in :data:`_TRICKS` and a
function below. The change has the name and the values of the group.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from torch import nn

from runner.config.checks import from_dict
from runner.config.schema import RunConfig
from runner.errors import ArtefactError, ConfigError
from runner.models.xresnet import ResidualBlock
from runner.randomness import torch_seed
from runner.records.bundle import BCE, CODE, Change
from runner.tricks.blurpool import MIN_CHANNELS, add_blurs
from runner.tricks.idea import Idea
from runner.tricks.stochastic_depth import StochasticDepth, rates


def changes_of(config: RunConfig, idea: Idea) -> tuple[Change, ...]:
    """Return the changes without which a trained network cannot be used, in the order they apply.

    The function ``predictions`` of an idea does not change the network itself, but without it the
    network predicts something else. The same is true of binary cross entropy. Code comes first: it
    receives the same network with any tricks.
    """
    changes = []
    functions = [name for name in ("model", "predictions") if name in idea.functions]
    if functions:
        assert idea.file is not None
        values = {"file": idea.file.name, "sha256": idea.file.sha256, "functions": functions}
        changes.append(Change(CODE, values))
    for name in _TRICKS:
        group = config.groups[name]
        if any(group.turns_on(config)):
            changes.append(Change(name, asdict(group)))
    if config.loss.kind == "bce":
        changes.append(Change(BCE, {}))
    return tuple(changes)


def settings_of(changes: Sequence[Change]) -> RunConfig:
    """Return a configuration with the values of the tricks in ``changes``; all else is default.

    Raises:
        ArtefactError: a value is not valid in a configuration.
    """
    try:
        return from_dict({each.name: each.values for each in changes if each.name in _TRICKS})
    except ConfigError as error:
        raise ArtefactError(
            f"the values of a change are not those of any run: {error.what}",
            where=_listed(changes),
            fix="a whole copy of the bundle",
        ) from error


def changed(
    model: nn.Module, changes: Sequence[Change], idea: Idea, seed: int, owner: str
) -> nn.Module:
    """Apply ``changes`` to ``model``; each draws fresh weights from ``seed`` and its own name.

    Args:
        model: the network; changed in place.
        changes: what :func:`changes_of` returned for it.
        idea: the user's functions.
        seed: seed of fresh weights.
        owner: the words that name the network, for errors.

    Raises:
        ArtefactError: a change is not known, or its values are not valid.
        CodeError: the function of ``idea`` does not return a network.
        ConfigError: a trick cannot be applied to the network.
    """
    settings = settings_of(changes)
    for change in changes:
        torch.default_generator.manual_seed(torch_seed(seed, f"change {change.name}"))
        if change.name == CODE:
            model = idea.model(model)
        elif change.name in _TRICKS:
            model = _TRICKS[change.name](model, settings, owner)
        elif change.name != BCE:  # which acts on the outputs
            raise ArtefactError(
                f"the network was changed by {change.name}, which this program does not know",
                where=_listed(changes),
                fix="the version of trick-runner that trained it",
            )
    return model


def _listed(changes: Sequence[Change]) -> str:
    return f"changes: {', '.join(each.name for each in changes)}"


def _with_stochastic_depth(model: nn.Module, settings: RunConfig, owner: str) -> nn.Module:
    """Let ``model`` drop residual branches, whichever library it comes from."""
    import torchvision  # takes longer than torch, so only where it is needed

    probability = settings.stochastic_depth.probability
    blocks = [block for block in model.modules() if isinstance(block, ResidualBlock)]
    for block, rate in zip(blocks, rates(probability, len(blocks)), strict=True):
        if rate > 0:
            block.residual.append(StochasticDepth(rate))
    theirs = [
        module for module in model.modules() if isinstance(module, torchvision.ops.StochasticDepth)
    ]
    for module, rate in zip(theirs, rates(probability, len(theirs)), strict=True):
        module.p = rate
    # timm's networks get theirs when they are built; see `_build_timm`.
    if blocks or theirs or _has_drop_path(model):
        return model
    raise ConfigError(
        f"{owner} has no residual branches that stochastic depth could drop",
        where=f"stochastic_depth.probability={probability:g}",
        fix="stochastic_depth=none, or a network that has them, such as model=xresnet18, or "
        "model=timm model.name=resnet18",
    )


def _has_drop_path(model: nn.Module) -> bool:
    try:
        from timm.layers import DropPath
    except ImportError:
        return False
    return any(
        isinstance(module, DropPath) and (module.drop_prob or 0) > 0 for module in model.modules()
    )


def _with_blurpool(model: nn.Module, settings: RunConfig, owner: str) -> nn.Module:
    """Let the layers of ``model`` blur before they make their maps smaller."""
    layers = settings.blurpool.layers
    if add_blurs(model, layers) or layers == "none":
        return model
    lacks = "no max pooling with a stride (torch.nn.MaxPool2d)"
    fix = "blurpool=none, or a network that has some, such as model=xresnet18"
    if layers == "all":
        lacks += f" and no convolution with a stride and {MIN_CHANNELS} or more input channels"
    else:
        fix = f"blurpool=all, which blurs the inputs of strided convolutions too; or {fix}"
    raise ConfigError(f"{owner} has {lacks}", where=f"blurpool.layers={layers}", fix=fix)


_TRICKS: dict[str, Callable[[nn.Module, RunConfig, str], nn.Module]] = {
    "stochastic_depth": _with_stochastic_depth,
    "blurpool": _with_blurpool,
}
