"""Train image classifiers and learn, with evidence, whether a training trick helps on your data.

In Python and notebooks: ``runner.train``, ``runner.compare``, ``runner.load_runs`` and
``runner.load_model``; see :mod:`runner.api.functions`. Nothing heavy is imported before it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from runner.machine.system import limit_spinning, prepare_apple_gpu, require_system

if TYPE_CHECKING:
    from runner.api.functions import load_model, load_runs
    from runner.api.objects import Comparison, Run, Runs

__version__ = "0.1.0"
__all__ = ["Comparison", "Run", "Runs", "compare", "load_model", "load_runs", "train"]

require_system()  # first of all, because the other modules cannot be imported on every system
prepare_apple_gpu()
limit_spinning()


def __getattr__(name: str) -> Any:
    if name in ("train", "compare"):  # modules that can be called
        return importlib.import_module(f"runner.{name}")
    if name in __all__:
        return getattr(importlib.import_module("runner.api.functions"), name)
    raise AttributeError(f"module 'runner' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
