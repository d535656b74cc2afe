"""The operating systems on which the program runs; imported before anything else of it."""

import os
import sys
from pathlib import PurePath

from runner.errors import ConfigError

_REFUSED = {"win32": "Windows"}
SPINS = "5000"
"""Rounds of a waiting thread before it sleeps."""


def require_system() -> None:
    """Refuse a system that lacks the file locks, signals and processes of POSIX.

    The module ``fcntl`` is missing there, so nothing else of the program can be imported.

    Raises:
        ImportError: the program was imported there; its message is that of the commands.
        SystemExit: a command was started there. The error is printed; the exit code is 2.
    """
    name = _REFUSED.get(sys.platform)
    if name is None:
        return
    error = ConfigError(
        f"trick-runner runs on Linux and macOS, and {name} lacks the file locks and signals that "
        "they have. WSL, the Linux inside Windows, runs it",
        where=f"{name}, sys.platform={sys.platform}",
        fix="wsl --install, and then the commands of the README in the terminal of WSL",
    )
    if not _is_command():
        raise ImportError(str(error))
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)


def _is_command() -> bool:
    """Return whether this process was started as ``python -m …`` or by the console script."""
    return sys.argv[:1] == ["-m"] or PurePath(sys.argv[0]).stem == "trick-runner"


def prepare_apple_gpu() -> None:
    """Let torch compute on the CPU what it cannot compute on an Apple GPU; before torch's import.

    Torch reads the variable only once, when it is imported.
    """
    if sys.platform == "darwin":
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")


def limit_spinning() -> None:
    """Let threads of torch that wait for each other give their cores away; before torch's import.

    GNU's OpenMP, which torch has on Linux, reads the variables once, when it is loaded. By default
    a thread turns 300,000 rounds before it sleeps, milliseconds that are lost to whatever else
    runs on its core. What was measured is in ``benchmarks/NOTES.md``.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS
