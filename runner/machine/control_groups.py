"""What the control groups of this process allow, such as those of a container: cores and memory."""

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def allowed_cores() -> int | None:
    """Return the number of cores whose time this process may use; None without a limit.

    Rounded up: half a core is worth using.
    """
    found = list[float]()
    files = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")
    for quota, period in _values("cpu.max", files):
        if quota > 0:  # version 1 has -1 for no limit
            found.append(quota / period)
    return max(1, math.ceil(min(found))) if found else None


def allowed_memory() -> int | None:
    """Return the bytes of memory that this process and its group may use; None without a limit."""
    found = [size for (size,) in _values("memory.max", ("memory/memory.limit_in_bytes",))]
    return min(found, default=None)


def _values(name: str, files_of_version_1: tuple[str, ...]) -> Iterator[list[int]]:
    """Yield the numbers of a limit of each control group of this process that has the limit."""
    for files in _files(name, files_of_version_1):
        with suppress(OSError, ValueError):  # "max" is no limit
            yield [*map(int, " ".join(file.read_text() for file in files).split())]


def _files(name: str, files_of_version_1: tuple[str, ...]) -> Iterator[tuple[Path, ...]]:
    """Yield the files that hold a limit of each control group of this process."""
    yield tuple(_GROUPS / file for file in files_of_version_1)
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::/"):  # version 2
                own = _GROUPS / line.removeprefix("0::/")
                for group in (own, *own.parents):
                    if group.is_relative_to(_GROUPS):
                        yield (group / name,)
