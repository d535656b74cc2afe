"""What a run is made with: versions, code, machine; and what has changed when it goes on."""

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
    """The facts, as values for JSON."""
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
    """What differs that a result depends on in its last bits, as ``key before → now``."""
    return [
        f"{key} {before.get(key)} → {now[key]}" for key in _DECISIVE if before.get(key) != now[key]
    ]


def _revision() -> str | None:
    """The git commit of this code where it runs from a checkout, with + for local changes."""
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
