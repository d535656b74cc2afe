"""Modules that can be called: ``runner.train`` is a module, and ``runner.train(...)`` trains."""

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    """A module whose call is that of the function of the same name in ``runner.api.functions``.

    ``help(module)`` and ``inspect.signature(module)`` describe the function.
    """

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return _function_of(self)(*arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        if name == "__signature__":
            return inspect.signature(_function_of(self))
        if name == "__all__":  # what the help lists: none of the command's own functions
            return []
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def _function_of(module: ModuleType) -> Callable[..., Any]:
    name = module.__name__.rpartition(".")[2]
    function: Callable[..., Any] = getattr(importlib.import_module("runner.api.functions"), name)
    return function


def _documentation(module: ModuleType) -> str:
    """Return what the function does, how it is called, and its parameters."""
    function = _function_of(module)
    summary, _, details = (inspect.getdoc(function) or "").partition("\n\n")
    signature = inspect.signature(function)
    parameters = "".join(f"    {parameter},\n" for parameter in signature.parameters.values())
    returned = inspect.formatannotation(signature.return_annotation)
    return f"{summary}\n\n{module.__name__}(\n{parameters}) -> {returned}\n\n{details}"


# Not in the body of the class, where it would be the docstring of the class.
_CallableModule.__doc__ = property(_documentation)  # type: ignore[assignment]


def make_callable(module: str) -> None:
    """Let the module of this name be called."""
    sys.modules[module].__class__ = _CallableModule
