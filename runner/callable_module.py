"""Modules that can be called: ``runner.train`` is a module, and ``runner.train(...)`` trains."""

import importlib
import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    """A module whose call is that of the function of the same name in ``runner.api.functions``."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module("runner.api.functions"), name)(
            *arguments, **keywords
        )


def make_callable(module: str) -> None:
    """Let the module of this name be called."""
    sys.modules[module].__class__ = _CallableModule
