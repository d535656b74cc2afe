"""The cores, the device and the fastest precision of this machine.

Torch is imported only if it is needed, so that a finished run is reported immediately.
"""

import ctypes
import json
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from runner.errors import ConfigError
from runner.machine.children import answer_of_child, can_fork
from runner.machine.control_groups import allowed_cores

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16"]

# Instructions with which bf16 was measured to train faster than fp32: `benchmarks.precision`, table
# in docs/speed.md. Without them bf16 is emulated. Others, such as Arm's, were not measured.
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
_MOST_STAGED = 2**16  # bytes; from CUDA's documentation of its synchronization
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def num_cores() -> int:
    """Return the number of cores that this process may use, at least 1.

    The smallest number that the kernel, a container's control groups, Slurm and the launcher of a
    sweep allow. Slurm binds processes to cores only where its administrator has chosen so, and
    control groups of containers limit the time of all cores together: the kernel shows every core
    of the machine in both cases. The processes of torchrun on one machine share these cores.
    """
    if hasattr(os, "sched_getaffinity"):
        found = len(os.sched_getaffinity(0))
    else:
        found = os.cpu_count() or 1
    limits = (allowed_cores(), _cores_of_slurm(), _limit)
    return max(1, min([found, *(limit for limit in limits if limit is not None)]))


_limit: int | None = None


def limit_cores(count: int | None) -> None:
    """Let :func:`num_cores` return at most ``count`` from now on; None for no limit.

    For jobs that share a machine.
    """
    global _limit
    _limit = count


def tasks_on_node() -> int:
    """Return the number of tasks of this step of Slurm on this node; 1 outside a step."""
    if "SLURM_STEP_ID" not in os.environ:
        return 1
    counts = list[int]()
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", os.environ.get("SLURM_TASKS_PER_NODE", ""))
    for count, repeated in re.findall(r"([0-9]+)(?:\(x([0-9]+)\))?", tasks):  # such as 2(x3),1
        counts += [int(count)] * int(repeated or 1)
    node = _whole_number("SLURM_NODEID") or 0
    return max(1, counts[node]) if node < len(counts) else 1


def num_gpus() -> int:
    """Return the number of NVIDIA GPUs of this machine; 0 if it has none or does not run Linux."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them.

    Indices, or names such as ``GPU-8932f937-…`` or ``MIG-…``. Like CUDA, the function ignores what
    follows an index below 0. Windows' Linux does not show GPUs as files, so there are none
    unless the variable names some.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return tuple(str(index) for index in range(num_gpus()))
    found = list[str]()
    for name in (part.strip() for part in named.split(",")):
        if not re.fullmatch(r"[0-9]+|(GPU|MIG)-.+", name):
            break
        found.append(name)
    return tuple(dict.fromkeys(found))


def own_gpu(processes_here: int, local_rank: int) -> int:
    """Return the index of the GPU for one of a run's processes on this machine.

    Slurm may show each task only one GPU, as with ``gpus_per_task``.

    Args:
        processes_here: how many processes of the run this machine has.
        local_rank: number of the process among them.

    Raises:
        ConfigError: there are fewer GPUs than processes.
    """
    import torch

    count = torch.cuda.device_count()
    if count == 1 and tasks_on_node() > 1:
        return 0
    if processes_here > count:  # every process raises, so that none waits for the others
        raise ConfigError(
            f"{processes_here} processes of the run need a GPU each, and torch finds {count} here",
            where=f"LOCAL_WORLD_SIZE={processes_here}",
            fix=f"{count} processes for each machine; or device=cpu",
        )
    return local_rank


def require_device(device: str) -> None:
    """Raise if this machine lacks the GPU that the ``device`` of a configuration names.

    Raises:
        ConfigError: naming the device.
    """
    kind, _, index = device.partition(":")
    if kind not in ("cuda", "mps"):
        return
    import torch

    if kind == "mps":
        if torch.backends.mps.is_available():
            return
        build = "this build of torch has no part for it"
        system = "macOS is too old, or this is no Mac with Apple silicon"
        reason = system if torch.backends.mps.is_built() else build
        raise ConfigError(
            f"torch finds no Apple GPU here: {reason}", where=f"device={device}", fix="device=auto"
        )
    count = len(_gpus())
    if int(index or 0) >= count:
        has = f"{count} GPUs" if count else "no GPU"
        build = "" if torch.version.cuda else ": it is a build without CUDA"
        raise ConfigError(
            f"torch finds {has} here{build}", where=f"device={device}", fix="device=auto"
        )


@cache
def device_kind(device: str) -> str:
    """Return ``cpu``, ``cuda`` or ``mps`` for the ``device`` of a configuration.

    ``auto`` is an NVIDIA GPU if there is one, and otherwise the CPU. It is never an Apple GPU, on
    which nothing has been tested, and where known faults of torch change results in silence.
    """
    if device != "auto":
        return device.partition(":")[0]
    if sys.platform == "linux" and not _has_gpu_file():
        return "cpu"
    return "cuda" if _gpus() else "cpu"


def _gpus() -> tuple[tuple[int, int], ...]:
    """Return the compute capability of each GPU of NVIDIA that torch sees."""
    return _asked_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))


@cache
def _asked_gpus(visible: str | None) -> tuple[tuple[int, int], ...]:
    """Return :func:`_gpus` for a value of the variable that names the visible GPUs.

    A child asks: CUDA, once it has been asked anything in a process, does not work in the children
    that the process forks, such as the jobs of a sweep or a comparison. If this process has asked
    CUDA before, as a notebook may have, the child cannot, and this process asks again.
    """
    import torch

    def ask() -> list[tuple[int, int]]:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return [torch.cuda.get_device_capability(index) for index in range(count)]

    def ask_in_child() -> str:
        return json.dumps(None if torch.cuda._is_in_bad_fork() else ask())

    found: list[tuple[int, int]] | None = None
    if can_fork() and not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found = json.loads(answer_of_child(ask_in_child))
    if found is None:
        found = ask()
    return tuple((major, minor) for major, minor in found)


def used_precision(asked: Literal["auto", "fp32", "bf16"], device: str) -> Precision:
    """Return the precision in which a run trains; the identity of the run uses the same value.

    Args:
        asked: the ``precision`` of the configuration.
        device: as in the configuration, or as torch spells it. The GPUs of a machine may differ.
    """
    return fastest_precision(device) if asked == "auto" else asked


def fastest_precision(device: str) -> Precision:
    """Return ``bf16`` if the hardware multiplies it natively.

    For a CPU, the answer is equal on equal processors, and needs neither torch nor a measurement,
    because the identity of a run depends on it.
    """
    kind = device_kind(device)
    if kind == "cuda":
        found, index = precisions_of_gpus(), int(device.partition(":")[2] or 0)
        return found[index] if index < len(found) else "fp32"
    if kind == "mps":  # bf16 was never measured there
        return "fp32"
    return "bf16" if _BF16_FLAGS & cpu_flags() else "fp32"


def precisions_of_gpus() -> tuple[Precision, ...]:
    """Return :func:`fastest_precision` of each GPU of NVIDIA, in the order of their indices."""
    return tuple("bf16" if capability >= (8, 0) else "fp32" for capability in _gpus())


def on_device(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """Copy ``tensor`` to ``device``, without waiting for the work that a GPU of NVIDIA has queued.

    CUDA stages small copies. Larger ones wait unless their memory is pinned. On an Apple GPU, the
    copy must wait: it would read memory that may be freed before (pytorch/pytorch#189690).
    """
    is_upload = tensor.device.type == "cpu" and device.type not in ("cpu", "mps")
    if is_upload and tensor.nbytes > _MOST_STAGED:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking="mps" not in (device.type, tensor.device.type))


def device_note(device: str) -> str | None:
    """Return what the user should know about the ``device`` of a configuration; None if nothing."""
    if device == "mps":
        return (
            "Apple GPUs are not tested: compare the results of a short run with those of device=cpu"
        )
    if device == "auto" and sys.platform == "darwin" and os.uname().machine == "arm64":
        return "the network runs on the CPU; device=mps is the GPU of this Mac, which is not tested"
    return None


def pixel_device(device: "torch.device") -> "torch.device":
    """Return where images are resized and augmented for a network on ``device``.

    It is ``device`` itself, but the CPU for an Apple GPU, where versions of torch lack some of the
    operations: borders of ``grid_sample``, means over areas of unequal sizes, sums of int64, and
    float64. Both share the memory of the Mac, so the copy is cheap.
    """
    import torch

    return torch.device("cpu") if device.type == "mps" else device


def device_name(device: "torch.device") -> str:
    """Return the name of the GPU, or of the processor."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"GPU of {cpu_name()}" if device.type == "mps" else cpu_name()


def keep_freed_memory() -> None:
    """Let the allocator of the C library keep the memory of freed tensors for new tensors.

    By default the allocator returns every large block to the system, which provides it again page
    by page, filled with zeros, at every training step. This has no effect if the library is not
    glibc.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Return the memory that is free now to the system; for a process that was just forked.

    The process shares this memory with its parent until the parent writes to it. From then on, the
    process would keep a copy.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def cpu_name() -> str:
    """Return the model name of the processor, or its architecture if its name is not known."""
    return _cpu_info().get("model name") or _name_of_macos() or os.uname().machine


def cpu_flags() -> frozenset[str]:
    """Return the instructions that the processor has, as Linux names them; empty elsewhere."""
    return frozenset(_cpu_info().get("flags", "").split())


def _has_gpu_file() -> bool:
    return num_gpus() > 0 or Path("/dev/dxg").exists()


def _cores_of_slurm() -> int | None:
    """Return the cores that Slurm has given to this process; None outside a job of Slurm."""
    on_node = _whole_number("SLURM_CPUS_ON_NODE")
    if on_node is None:  # also true in a shell of salloc, which is on another machine
        return None
    if "SLURM_STEP_ID" not in os.environ:  # the script of a job has all its cores
        return on_node
    # The environment in which sbatch was called may have left a larger number here.
    per_task = _whole_number("SLURM_CPUS_PER_TASK") or on_node
    return min(per_task, max(1, on_node // tasks_on_node()))


def _whole_number(variable: str) -> int | None:
    text = os.environ.get(variable, "")
    return int(text) if re.fullmatch("[0-9]+", text) else None


@cache
def _name_of_macos() -> str:
    """Return the name of a Mac's processor, such as Apple M2; empty elsewhere."""
    if platform.system() != "Darwin":
        return ""
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.check_output(command, text=True, timeout=5).strip()  # noqa: S603
    return ""


@cache
def _cpu_info() -> dict[str, str]:
    """Return the first processor of /proc/cpuinfo; empty on systems that have no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
