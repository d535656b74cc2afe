"""The architectures of jobs, looked up in their libraries before the first job begins.

timm and torchvision know the names of their architectures only after an import that takes seconds
and imports torch.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial

from runner.config.model import Model
from runner.errors import ConfigError
from runner.machine.children import answer_of_child, can_fork


def is_of_library(model: Model) -> bool:
    """Return whether only a library knows the name of this architecture.

    The names of our own are checked with the configuration.
    """
    return model.source in ("timm", "torchvision")


def unknown_architectures(models: Iterable[Model]) -> dict[tuple[str, str], ConfigError]:
    """Return the error of each architecture that its library does not have, by source and name.

    The errors are those that the jobs would end with. The libraries are imported in a child,
    because this process may fork jobs afterwards; nothing is imported if no model is of a library.
    An architecture that cannot be looked up, as where memory runs out, is left to its job.
    """
    named = [(model.source, model.name) for model in models if is_of_library(model)]
    if not named:
        return {}
    ask = partial(_refused, tuple(dict.fromkeys(named)))
    answer = "[]"
    with suppress(RuntimeError):
        answer = answer_of_child(ask) if can_fork() else ask()
    return {
        (source, name): ConfigError(what, where=where, fix=fix)
        for source, name, what, where, fix in json.loads(answer)
    }


def _refused(named: Sequence[tuple[str, str]]) -> str:
    """Return source, name and the parts of the error of each unknown architecture, as JSON."""
    from runner.models.build import require_architecture

    found = []
    for source, name in named:
        try:
            require_architecture(source, name)
        except ConfigError as error:
            found.append((source, name, error.what, error.where, error.fix))
    return json.dumps(found)
