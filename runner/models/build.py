"""Classifiers by source and name (ours, torchvision's, timm's), and their layer groups.

    >>> model = build_model("xresnet", "xresnet18", num_outputs=10, seed=0)
    >>> early, late, head = layer_groups(model)

Weights are fresh here and nothing is downloaded; ``runner.models.pretrained`` loads other weights.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from runner.errors import ConfigError
from runner.models.changes import changed, settings_of
from runner.models.xresnet import DEPTHS, xresnet
from runner.randomness import torch_seed
from runner.records.bundle import Change
from runner.tricks.idea import NO_IDEA, Idea

# The weights of a head are a hundredth of those that `nn.Linear` draws. Features have a root mean
# square of about 1, in some networks several, and those of a small batch may all point the same
# way. As `nn.Linear` draws them, the first loss of two classes exceeds ln 2 by an eighth even at 1.
# They are not 0, because a ReLU follows SqueezeNet's head and would never let a gradient through.
_HEAD_BOUND = 0.01

_XRESNETS = {f"xresnet{depth}": depth for depth in DEPTHS}

# Without auxiliary classifiers, these models return plain logits in training too. `init_weights`
# has its default value, passed because torchvision warns that the default will change.
_TORCHVISION_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def build_model(
    source: str,
    name: str,
    num_outputs: int,
    *,
    seed: int,
    dropout: float = 0.0,
    head_bias: float = 0.0,
    changes: Sequence[Change] = (),
    idea: Idea = NO_IDEA,
) -> nn.Module:
    """Build a classifier from normalized images (B, 3, H, W) to logits (B, num_outputs).

    Weights are drawn on the CPU from ``seed`` alone: equal arguments give equal weights, and no
    generator of the process advances. Some architectures take only one image size, mostly 224.

    The last layer, from features to logits, is drawn by :func:`draw_head`, whatever the
    architecture draws.

    Args:
        source: ``xresnet`` (ours), ``torchvision`` or ``timm``.
        name: ``xresnet18`` to ``xresnet152``, or the library's name for the network, without a tag
            for pretrained weights.
        num_outputs: number of logits, 1 or more.
        seed: seed of the weights, from 0 to 2⁶⁴ - 1.
        dropout: probability in [0, 1). Our models and timm's zero features before the classifier;
            torchvision's zero them where their constructor puts dropout. The value
            replaces the architecture's own default (0.5 in torchvision's VGG), so 0 means none.
        head_bias: initial bias of the last layer, if the layer has a bias.
        changes: changes of the network, in the order in which they are applied; they do not change
            the weights that are drawn without them.
        idea: the user's functions, for a change by the user's own code.

    Raises:
        ArtefactError: a change is not known, or has values that no run has.
        CodeError: the function of ``idea`` does not return a network.
        ConfigError: source or name is unknown, timm is not installed, the architecture has no
            classifier or does not support dropout that is requested, or a change
            cannot be applied to it. ``runner.config.schema`` checks the ranges.
    """
    drop_path = settings_of(changes).stochastic_depth.probability
    builders: dict[str, Callable[[str, int, float], nn.Module]] = {
        "xresnet": _build_xresnet,
        "torchvision": _build_torchvision,
        "timm": partial(_build_timm, drop_path=drop_path),
    }
    require_known(source, list(builders), key="model.source", owner="this package", thing="source")
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reseed the accelerators, whose state is not restored.
        torch.default_generator.manual_seed(seed)
        model = builders[source](name, num_outputs, dropout)
        if not _last_layers(model, num_outputs):
            raise ConfigError(
                f"the architecture {name} computes features and has no classifier",
                where=f"model.name={name}",
                fix="another model.name",
            )
        if head_bias != 0 and _ends_with_relu(model, num_outputs):
            raise ConfigError(
                f"the architecture {name} ends with a ReLU, so no output can be below 0, i.e. no",
                where=f"loss.kind=bce model.name={name}",
                fix="loss.kind=cross_entropy, or another model.name",
            )
        draw_head(model, num_outputs, seed, head_bias)
        return changed(model, changes, idea, seed, f"model.source={source} model.name={name}")


def draw_head(model: nn.Module, num_outputs: int, seed: int, bias: float = 0.0) -> None:
    """Draw the last layers of a network anew: small weights, and a constant bias.

    Libraries draw the head of some architectures from ±1/√K for K classes, which is large if K is
    small: the first logits are then far from 0, and a short training does no more than undo that.
    Here weights are uniform within ±0.01/√fan_in, a hundredth of the bound in ``nn.Linear``, so
    that all classes are about equally probable at first and the first loss is near ln K.

    Args:
        model: network whose last layers have ``num_outputs`` outputs.
        num_outputs: K, the number of logits.
        seed: seed of the draw, from 0 to 2⁶⁴ - 1; no generator of the process advances.
        bias: the bias of every output, for layers that have one.
    """
    generator = torch.Generator().manual_seed(torch_seed(seed, "head"))
    with torch.no_grad():
        for layer in _last_layers(model, num_outputs):
            bound = _HEAD_BOUND / layer.weight[0].numel() ** 0.5
            layer.weight.uniform_(-bound, bound, generator=generator)
            if layer.bias is not None:
                layer.bias.fill_(bias)


def layer_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return all parameters as [early body, late body, head], to freeze or to grade their rates.

    Every parameter, trainable or not, is in exactly one group; the order within a group is that
    of ``model.parameters()``. The rule is about modules in the order of their registration,
    which is from input to output in the models of :func:`build_model`:

    - The head is what timm's ``get_classifier()`` names, or else the last child with parameters.
    - The rest is the body. Sizes are counted in modules that hold parameters themselves.
    - The body is cut between two modules, as close as possible to half of its size; of two equally
      close cuts, the later is taken. Only a module that holds more than half of the body is cut
      inside, so that stages and blocks stay whole if possible.

    In ResNets of 18, 34 and 50 layers, the groups are stem with stages 1 and 2, stages 3 and 4, and
    the head, as fastai groups torchvision's. A model with a single layer has an empty body.
    """
    head = {id(parameter) for module in head_of(model) for parameter in module.parameters()}

    def own_parameters(module: nn.Module) -> list[nn.Parameter]:
        return [p for p in module.parameters(recurse=False) if id(p) not in head]

    def size(module: nn.Module) -> int:
        return sum(bool(own_parameters(each)) for each in module.modules())

    half = size(model) / 2

    def pieces(module: nn.Module) -> Iterator[tuple[int, list[nn.Parameter]]]:
        """Size and parameters of each piece, from input to output."""
        if size(module) > half:
            own = own_parameters(module)
            yield bool(own), own
            for child in module.children():
                yield from pieces(child)
        else:
            yield size(module), list(module.parameters())

    body = list(pieces(model))
    sizes = [piece_size for piece_size, _ in body]
    cut = min(range(len(body) + 1), key=lambda i: (abs(sum(sizes[:i]) - half), -i))
    early = {id(parameter) for _, parameters in body[:cut] for parameter in parameters} - head

    groups: list[list[nn.Parameter]] = [[], [], []]
    for parameter in model.parameters():
        groups[2 if id(parameter) in head else 0 if id(parameter) in early else 1].append(parameter)
    return groups


def _build_xresnet(name: str, num_outputs: int, dropout: float) -> nn.Module:
    require_architecture("xresnet", name)
    return xresnet(_XRESNETS[name], num_outputs, dropout=dropout)


def _build_torchvision(name: str, num_outputs: int, dropout: float) -> nn.Module:
    import torchvision  # takes longer than torch, so only where it is needed

    require_architecture("torchvision", name)

    def build(**arguments: float) -> nn.Module:
        model: nn.Module = torchvision.models.get_model(
            name,
            weights=None,
            num_classes=num_outputs,
            **_TORCHVISION_ARGUMENTS.get(name, {}),
            **arguments,
        )
        return model

    return _with_dropout(build, name, dropout, spellings=("dropout", "drop_rate"))


def own_drop_rate(source: str, name: str) -> float:
    """Return the largest probability with which a network of torchvision drops a branch by itself.

    0 if it drops none, and for other sources.

    Raises:
        ConfigError: torchvision has no network of that name.
    """
    if source != "torchvision":
        return 0.0
    import torchvision

    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # without weights
        model = _build_torchvision(name, 2, 0.0)
    layers = [each for each in model.modules() if isinstance(each, torchvision.ops.StochasticDepth)]
    return max((layer.p for layer in layers), default=0.0)


def _build_timm(name: str, num_outputs: int, dropout: float, *, drop_path: float) -> nn.Module:
    timm = import_timm()
    # The check also keeps names such as `hf-hub:...` out, which timm would download.
    require_architecture("timm", name)

    # Passed only if it is requested: some architectures have a default rate of their own.
    rate = {"drop_path_rate": drop_path} if drop_path > 0 else {}

    def build(**arguments: float) -> nn.Module:
        model: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=num_outputs, **rate, **arguments
        )
        return model

    try:
        return _with_dropout(build, name, dropout, spellings=("drop_rate",))
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        rate.clear()  # then `changed` reports that the architecture has no stochastic depth
        return _with_dropout(build, name, dropout, spellings=("drop_rate",))


def _with_dropout(
    build: Callable[..., nn.Module], name: str, dropout: float, spellings: Sequence[str]
) -> nn.Module:
    """Build with the first of ``spellings`` that the constructor accepts.

    The signature does not help: the libraries' functions pass ``**kwargs`` on to classes that they
    do not name.
    """
    for spelling in spellings:
        try:
            return build(**{spelling: dropout})
        except TypeError as error:
            if f"unexpected keyword argument '{spelling}'" not in str(error):
                raise
    if dropout == 0.0:
        return build()
    raise ConfigError(
        f"the architecture {name} has no dropout",
        where=f"model.dropout={dropout}",
        fix="model.dropout=0.0",
    )


def require_architecture(source: str, name: str) -> None:
    """Raise unless the library has an architecture of this name; imports the library.

    Args:
        source: ``xresnet``, ``torchvision`` or ``timm``.
        name: the name, as in :func:`build_model`.

    Raises:
        ConfigError: the library does not have it; the error names the nearest that it has. Or timm
            is not installed.
    """
    if source == "timm":
        known, owner, thing = import_timm().list_models(), "timm", "model"
    elif source == "torchvision":
        known, owner, thing = torchvision_names(), "torchvision", "classifier"
    else:
        known, owner, thing = list(_XRESNETS), "this package", "xresnet"
    require_known(name, known, key="model.name", owner=owner, thing=thing)


def torchvision_names() -> list[str]:
    """Return the names of torchvision's classifiers."""
    import torchvision

    # With `module`, the list leaves out detection, segmentation, video and quantized models.
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def import_timm() -> Any:
    """Import timm, which is optional and takes seconds to import.

    Raises:
        ConfigError: timm is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            "models of timm need the package timm, which is not installed",
            where="model.source=timm",
            fix="pip install timm",
        ) from error
    return timm


def require_known(value: str, known: Sequence[str], *, key: str, owner: str, thing: str) -> None:
    """Raise unless ``owner`` has ``value``.

    Raises:
        ConfigError: ``value`` is not among ``known``; the error names the nearest known values.
    """
    if value in known:
        return
    # Users paste names with the tag of pretrained weights, as in `resnet50.a1_in1k`.
    close = difflib.get_close_matches(value.partition(".")[0], known, n=3)
    choices = " or ".join(f"{key}={choice}" for choice in close)
    raise ConfigError(
        f"{owner} has no {thing} called {value!r}",
        where=f"{key}={value}",
        fix=f"did you mean {choices}?" if close else f"for example {key}={known[0]}",
    )


def head_of(model: nn.Module) -> list[nn.Module]:
    """Return the modules of the head, as :func:`layer_groups` finds them."""
    get_classifier = getattr(model, "get_classifier", None)
    if callable(get_classifier):
        classifier = get_classifier()
        # A tuple if a model has two heads, as the distilled transformers do.
        found = list(classifier) if isinstance(classifier, tuple) else [classifier]
        # VOLO's second head, for single patches, which its `get_classifier()` does not name.
        if isinstance(second := getattr(model, "aux_head", None), nn.Module):
            found.append(second)
        if any(_has_parameters(module) for module in found):
            return found
    return [child for child in model.children() if _has_parameters(child)][-1:]


def _last_layers(model: nn.Module, num_outputs: int) -> list[nn.Linear | nn.Conv2d]:
    """Return the layers from features to logits: mostly one, one per head of several, or none."""

    def last(head: nn.Module) -> Iterator[nn.Linear | nn.Conv2d]:
        if isinstance(head, nn.ModuleList):  # parallel heads, whose logits are averaged
            for each in head:
                yield from last(each)
            return
        found = [
            module
            for module in head.modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and len(module.weight) == num_outputs
        ]
        # Parallel layers, as in RepViT; or hidden layers that happen to have as many outputs,
        # and the last takes them as its inputs.
        is_chain = any(layer.weight.shape[1] == num_outputs for layer in found)
        yield from found[-1:] if is_chain else found

    return [layer for head in head_of(model) for layer in last(head)]


def _ends_with_relu(model: nn.Module, num_outputs: int) -> bool:
    """Return whether a ReLU follows the last layer, as in SqueezeNet."""
    last = {id(layer) for layer in _last_layers(model, num_outputs)}
    found = False
    for head in head_of(model):
        for module in head.modules():
            found = id(module) not in last and (found or isinstance(module, nn.ReLU))
    return found


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
