"""Versions, code and machine of a run, and what has changed when the run resumes."""

import os
import platform
import re
import subprocess
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner import __version__
from runner.machine.files import read_whole
from runner.machine.hardware import device_name, num_cores
from runner.machine.processes import Processes

if TYPE_CHECKING:
    import torch

_DECISIVE = (
    "torch",
    "torch_build",
    "device",
    "precision",
    "threads",
    "processes",
    "cpu_capability",
    "onednn",
    "cudnn",
    "cudnn_deterministic",
)
# What the libraries under torch read, and what changes the order in which they add.
_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_DYNAMIC",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_DYNAMIC",
    "OMP_NUM_THREADS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)


def environment(device: "torch.device", precision: str, processes: Processes) -> dict[str, Any]:
    """Describe versions, code revision, machine and all else that decides the last bits, for JSON.

    ``variables`` are the environment variables of the libraries under torch that are set.

    Args:
        device: the device of the run.
        precision: the precision in which the run trains.
        processes: the processes that share the run.
    """
    import numpy as np
    import torch

    on_gpu = device.type == "cuda"
    return {
        "runner": __version__,
        "revision": revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_build": torch.version.git_version,
        "torchvision": _torchvision_version(),
        "numpy": np.__version__,
        "system": platform.platform(),
        "device": device_name(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "cores": num_cores(),
        "processes": processes.count,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": bool(torch.backends.mkldnn.enabled),
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,  # type: ignore[no-untyped-call]
        **({"cudnn_deterministic": torch.backends.cudnn.deterministic} if on_gpu else {}),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """List the differences that may change the last bits of a result, as ``key before → now``.

    A key that one of them lacks is not a difference: an earlier version wrote ``before``, or the
    key has no effect on the device.
    """
    found = [
        f"{key} {before[key]} → {now[key]}"
        for key in _DECISIVE
        if key in before and key in now and before[key] != now[key]
    ]
    old, new = before.get("variables"), now["variables"]
    if isinstance(old, dict):
        found += [
            f"{name} {old.get(name, 'unset')} → {new.get(name, 'unset')}"
            for name in _VARIABLES
            if old.get(name) != new.get(name)
        ]
    return found


@cache
def revision() -> str | None:
    """Return the git commit of this code if it runs from a checkout, with + for local changes.

    As of the first call: the modules that a process has imported do not change afterwards.
    """
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


def _torchvision_version() -> str:
    """Return the version and build of torchvision without importing it, which takes seconds."""
    spec = find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    text = read_whole(Path(spec.origin).with_name("version.py"), at_most=2**16)
    found = re.search(rb"^__version__ = ['\"](.+?)['\"]", text, re.MULTILINE)
    return found[1].decode() if found else version("torchvision")
