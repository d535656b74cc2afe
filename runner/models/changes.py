"""Changes of a network, applied by name after it is built; a bundle records them.

A trick that changes the network has a line in :func:`changes_of` and one in :func:`changed`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from runner.config.schema import RunConfig
from runner.errors import ArtefactError
from runner.randomness import torch_seed
from runner.records.bundle import BCE, CODE, Change
from runner.tricks.idea import Idea


def changes_of(config: RunConfig, idea: Idea) -> tuple[Change, ...]:
    """The changes that using a trained network needs to know of, in the order of their work.

    The function ``predictions`` of an idea is no change of the network itself, but without it the
    network predicts something else. The same is true of binary cross entropy.
    """
    changes = []
    functions = [name for name in ("model", "predictions") if name in idea.functions]
    if functions:
        assert idea.file is not None
        values = {"file": idea.file.name, "sha256": idea.file.sha256, "functions": functions}
        changes.append(Change(CODE, values))
    if config.loss.kind == "bce":
        changes.append(Change(BCE, {}))
    return tuple(changes)


def changed(model: nn.Module, changes: Sequence[Change], idea: Idea, seed: int) -> nn.Module:
    """``model`` with ``changes``; each draws its fresh weights from ``seed`` and its own name.

    Raises:
        ArtefactError: a change is not known.
        CodeError: the function of ``idea`` returns no network.
    """
    functions: dict[str, Callable[..., nn.Module]] = {
        CODE: lambda model, **_: idea.model(model),
        BCE: lambda model, **_: model,
    }
    for change in changes:
        if change.name not in functions:
            raise ArtefactError(
                f"the network was changed by {change.name}, which this program does not know",
                where=f"changes: {', '.join(each.name for each in changes)}",
                fix="the version of trick-runner that trained it",
            )
        torch.default_generator.manual_seed(torch_seed(seed, f"change {change.name}"))
        model = functions[change.name](model, **change.values)
    return model
