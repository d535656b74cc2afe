"""Versions, code and machine of a run, and what has changed when the run resumes."""

import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner import __version__
from runner.machine.hardware import cpu_name, num_cores
from runner.machine.processes import Processes

if TYPE_CHECKING:
    import torch

_DECISIVE = ("torch", "device", "precision", "threads", "processes")


def environment(device: "torch.device", precision: str, processes: Processes) -> dict[str, Any]:
    """Describe versions, code revision and machine, as values for JSON.

    Args:
        device: the device of the run.
        precision: the precision in which the run trains.
        processes: the processes that share the run.
    """
    import numpy as np
    import torch
    import torchvision

    return {
        "runner": __version__,
        "revision": _revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "cores": num_cores(),
        "processes": processes.count,
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """List the differences that may change the last bits of a result, as ``key before → now``."""
    return [
        f"{key} {before.get(key)} → {now[key]}" for key in _DECISIVE if before.get(key) != now[key]
    ]


def _revision() -> str | None:
    """The git commit of this code if it runs from a checkout, with + for local changes."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(  # noqa: S603
            ["git", "-C", str(root), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
