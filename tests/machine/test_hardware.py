"""What ``auto`` means, with and without torch's help."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.errors import ConfigError
from runner.machine import control_groups, files, hardware


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/cpuinfo")
def test_bf16_on_the_cpu_as_torch_sees_it() -> None:
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert (hardware.fastest_precision("cpu") == "bf16") == native


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 fsrm", "bf16"),
        ("flags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile", "bf16"),
        ("flags\t\t: fpu amx_bf16 amx_tile", "bf16"),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", "fp32"),
        ("flags\t\t: fpu avx2 avx_ne_convert", "fp32"),
        ("flags\t\t: fpu not_avx512_bf16", "fp32"),
        ("Features\t: fp asimd bf16 svebf16", "fp32"),  # Arm
        ("", "fp32"),
    ],
)
def test_precision_by_the_flags_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, processor: str, expected: str
) -> None:
    text = f"processor\t: 0\n{processor}\n\nprocessor\t: 1\nflags\t\t: amx_bf16\n"
    monkeypatch.setattr(hardware, "_cpu_info", hardware._cpu_info.__wrapped__)  # not cached
    monkeypatch.setattr(Path, "read_text", lambda _: text)
    assert hardware.fastest_precision("cpu") == expected


def test_a_machine_without_a_list_of_its_processors_trains_in_fp32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(_: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(hardware, "_cpu_info", hardware._cpu_info.__wrapped__)
    monkeypatch.setattr(Path, "read_text", missing)
    assert hardware.fastest_precision("cpu") == "fp32"


def give_gpus(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int]) -> list[str]:
    """Let torch find these GPUs; return what this process asks torch about them from now on."""
    asked: list[str] = []

    def answer(name: str, found: Any) -> Any:
        asked.append(name)
        return found

    for name, find in {
        "is_available": lambda: bool(capabilities),
        "device_count": lambda: len(capabilities),
        "get_device_capability": lambda index: capabilities[index],
        "_is_in_bad_fork": lambda: False,  # even if a test has asked CUDA
    }.items():
        monkeypatch.setattr(
            torch.cuda, name, lambda *index, name=name, find=find: answer(name, find(*index))
        )
    monkeypatch.setattr(hardware, "_asked_gpus", hardware._asked_gpus.__wrapped__)  # not cached
    return asked


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_this_process_asks_cuda_nothing_so_that_its_children_can_use_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ask_all() -> None:
        hardware.device_kind.cache_clear()
        assert hardware.device_kind("auto") == "cuda"
        assert hardware.fastest_precision("cuda") == "bf16"
        hardware.require_device("cuda:1")
        with pytest.raises(ConfigError, match="torch finds 2 GPUs here"):
            hardware.require_device("cuda:2")
        hardware.device_kind.cache_clear()

    asked = give_gpus(monkeypatch, (9, 0), (7, 5))
    monkeypatch.setattr(hardware, "_has_gpu_file", lambda: True)
    ask_all()
    assert asked == []
    monkeypatch.setattr(hardware, "can_fork", lambda: False)  # negative control
    ask_all()
    assert set(asked) == {"is_available", "device_count", "get_device_capability"}


@pytest.mark.parametrize("first", ["torch.cuda.is_available()", ""])
def test_a_process_that_has_asked_cuda_before_finds_its_gpus(first: str) -> None:
    """In a process of its own, because CUDA cannot forget."""
    code = f"""
import os, torch
{first}
asked_by = []

def capability(index):
    if torch.cuda._is_in_bad_fork():
        torch.cuda.init()  # raises, as the real function does
    asked_by.append(os.getpid())
    return (9, 0)

torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_capability = capability
from runner.machine import hardware
hardware.require_device("cuda")
print(hardware.fastest_precision("cuda"), len(asked_by))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    asks_itself = sys.platform != "linux" or (first and torch.version.cuda)
    assert (done.stdout, done.stderr) == (f"bf16 {int(bool(asks_itself))}\n", "")


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_precision_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    give_gpus(monkeypatch, capability)
    assert hardware.fastest_precision("cuda") == expected


def test_precision_of_the_gpu_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    give_gpus(monkeypatch, (9, 0), (7, 5))
    hardware.device_kind.cache_clear()
    monkeypatch.setattr(hardware, "_has_gpu_file", lambda: True)
    found = {
        device: hardware.used_precision("auto", device)
        for device in ("auto", "cuda", "cuda:0", "cuda:1", "cuda:2", str(torch.device("cuda", 1)))
    }
    hardware.device_kind.cache_clear()
    assert [*found.values()] == ["bf16", "bf16", "bf16", "fp32", "fp32"]
    assert hardware.used_precision("bf16", "cuda:1") == "bf16"


@pytest.mark.parametrize(
    ("has_file", "has_cuda", "kind"),
    [(False, True, "cpu"), (True, True, "cuda"), (True, False, "cpu")],
)
def test_auto_is_the_gpu_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, has_file: bool, has_cuda: bool, kind: str
) -> None:
    hardware.device_kind.cache_clear()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(hardware, "_has_gpu_file", lambda: has_file)
    give_gpus(monkeypatch, *[(8, 0)] * has_cuda)
    assert hardware.device_kind("auto") == kind
    hardware.device_kind.cache_clear()


def test_named_devices() -> None:
    assert hardware.device_kind("cpu") == "cpu"
    assert hardware.device_kind("cuda:1") == "cuda"


def test_freed_memory_is_kept_where_the_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Library:
        def mallopt(self, name: int, value: int) -> int:
            asked.append((name, value))
            return 1

    monkeypatch.setattr("ctypes.CDLL", lambda name: Library())
    hardware.keep_freed_memory()
    assert asked == [(-4, 0), (-1, 2**31 - 1)]  # M_MMAP_MAX, M_TRIM_THRESHOLD

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", missing)
    hardware.keep_freed_memory()  # another C library: nothing, and no error


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of that C library")
def test_memory_that_is_free_can_be_given_back() -> None:
    code = """
import os, sys
import numpy as np
from runner.machine import hardware

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

hardware.keep_freed_memory()
blocks = [np.ones(2**20) for _ in range(20)]  # 8 MiB each
kept = blocks[10]
del blocks
print(resident())
hardware.give_back_freed_memory()
print(resident(), kept.sum() == 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after, is_whole = done.stdout.split()
    assert float(before) - float(after) > 100  # of the 160 that were kept until then
    assert is_whole == "True"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Control groups, in this folder, of a machine of 64 cores without limits."""
    for variable in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(control_groups, "_GROUPS", tmp_path)
    monkeypatch.setattr(hardware, "_limit", None)
    return tmp_path


# What a Slurm 22.05 with TaskPlugin=task/none was seen to set.
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ("", 64),
        ("CPUS_ON_NODE=4 CPUS_PER_TASK=4 TASKS_PER_NODE=1", 4),  # the script of sbatch -c 4
        ("CPUS_ON_NODE=8 CPUS_PER_TASK=2 NTASKS=4 TASKS_PER_NODE=4", 8),  # of sbatch -n 4 -c 2
        ("CPUS_ON_NODE=4 CPUS_PER_TASK=4 STEP_ID=0 STEP_TASKS_PER_NODE=1", 4),
        ("CPUS_ON_NODE=8 CPUS_PER_TASK=2 STEP_ID=0 STEP_TASKS_PER_NODE=4", 2),
        ("CPUS_ON_NODE=4 STEP_ID=0 STEP_TASKS_PER_NODE=4", 1),
        ("CPUS_ON_NODE=6 CPUS_PER_GPU=3 STEP_ID=0 STEP_TASKS_PER_NODE=2", 3),
        ("CPUS_ON_NODE=6 CPUS_PER_GPU=3 STEP_ID=0 STEP_TASKS_PER_NODE=1 TASKS_PER_NODE=6", 6),
        ("CPUS_ON_NODE=4 CPUS_PER_TASK=16 STEP_ID=0 STEP_TASKS_PER_NODE=1", 4),  # inherited
        ("CPUS_ON_NODE=6 STEP_ID=0 STEP_TASKS_PER_NODE=2(x3),1 NODEID=0", 3),
        ("CPUS_ON_NODE=6 STEP_ID=0 STEP_TASKS_PER_NODE=2(x3),1 NODEID=3", 6),
        ("CPUS_ON_NODE=2 STEP_ID=0 STEP_TASKS_PER_NODE=4", 1),
        ("JOB_ID=7 CPUS_PER_TASK=4", 64),  # a shell of salloc, on another machine
        ("CPUS_ON_NODE=many", 64),
        ("CPUS_ON_NODE=128", 64),
    ],
)
def test_cores_that_slurm_has_given(
    machine: Path, monkeypatch: pytest.MonkeyPatch, variables: str, expected: int
) -> None:
    for variable in variables.split():
        name, _, value = variable.partition("=")
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert hardware.num_cores() == expected


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/cgroup")
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu.max": "200000 100000"}, 2),  # docker run --cpus=2
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "20000 100000"}, 1),
        ({"cpu.max": "damaged"}, 64),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),  # version 1
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_cores_that_control_groups_allow(
    machine: Path, files: dict[str, str], expected: int
) -> None:
    for name, content in files.items():
        (machine / name).parent.mkdir(exist_ok=True)
        (machine / name).write_text(content + "\n")
    assert hardware.num_cores() == expected


def test_the_closest_control_group_and_those_above_it_count(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = machine / "a.slice" / "b.scope"
    own.mkdir(parents=True)
    real = Path.read_text

    def read(path: Path, *more: Any) -> str:
        at_self = str(path) == "/proc/self/cgroup"
        return "1:cpu:/\n0::/a.slice/b.scope\n" if at_self else real(path, *more)

    monkeypatch.setattr(Path, "read_text", read)
    (own / "cpu.max").write_text("800000 100000\n")
    assert hardware.num_cores() == 8
    (own.parent / "cpu.max").write_text("400000 100000\n")
    assert hardware.num_cores() == 4


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/cgroup")
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("memory.max", "max", 2**34),
        ("memory.max", str(2**31), 2**31),  # docker run --memory=2g
        ("memory.max", str(2**40), 2**34),  # more than the machine has
        ("memory.max", "damaged", 2**34),
        ("memory/memory.limit_in_bytes", str(2**31), 2**31),  # version 1
        ("memory/memory.limit_in_bytes", str(2**63 - 4096), 2**34),  # its way to write no limit
    ],
)
def test_memory_that_control_groups_allow(
    machine: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, expected: int
) -> None:
    pages = {"SC_PAGE_SIZE": 2**12, "SC_PHYS_PAGES": 2**22}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert files.memory() == 2**34
    (machine / name).parent.mkdir(exist_ok=True)
    (machine / name).write_text(f"{content}\n")
    assert files.memory() == expected


def test_a_launcher_limits_the_cores_of_its_jobs(machine: Path) -> None:
    assert hardware.num_cores() == 64
    hardware.limit_cores(3)
    assert hardware.num_cores() == 3
    hardware.limit_cores(None)
    assert hardware.num_cores() == 64


@pytest.mark.parametrize(
    ("num_gpus", "num_tasks", "expected"), [(2, 1, 1), (2, 2, 1), (1, 2, 0), (1, 1, None)]
)
def test_each_process_of_a_run_has_a_gpu_of_its_own(
    machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_gpus: int,
    num_tasks: int,
    expected: int | None,
) -> None:
    """One GPU and two tasks: Slurm shows each task another one."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", str(num_tasks))
    if expected is not None:
        assert hardware.own_gpu(2, 1) == expected
        return
    for local_rank in (0, 1):
        with pytest.raises(ConfigError, match="2 processes of the run need a GPU each"):
            hardware.own_gpu(2, local_rank)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (None, ("0", "1", "2")),
        ("", ()),
        ("2,0", ("2", "0")),
        (" 1 , 3 ", ("1", "3")),
        ("1,-1,2", ("1",)),  # CUDA ends the list there
        ("-1", ()),
        ("NoDevFiles", ()),  # of Slurm, for a job without GPUs
        ("GPU-8932f937-d72c,GPU-46e6", ("GPU-8932f937-d72c", "GPU-46e6")),
        ("MIG-5c89/1/0", ("MIG-5c89/1/0",)),
        ("1,1", ("1",)),
    ],
)
def test_gpus_that_this_process_may_use(
    monkeypatch: pytest.MonkeyPatch, named: str | None, expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(hardware, "num_gpus", lambda: 3)
    if named is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert hardware.visible_gpus() == expected


@pytest.mark.parametrize(
    ("device", "place", "num_bytes", "is_pinned"),
    [
        ("cuda", "cpu", 2**16 + 1, True),
        ("cuda", "cpu", 2**16, False),  # CUDA stages it
        ("cuda", "cuda", 2**20, False),
        ("cpu", "cpu", 2**20, False),
    ],
)
def test_only_what_would_wait_for_a_gpu_is_pinned(
    device: str, place: str, num_bytes: int, is_pinned: bool
) -> None:
    calls: list[object] = []

    class Recorded:
        nbytes = num_bytes
        device = torch.device(place)

        def pin_memory(self) -> "Recorded":
            calls.append("pinned")
            return self

        def to(self, device: torch.device, *, non_blocking: bool) -> "Recorded":
            calls.append((device.type, non_blocking))
            return self

    hardware.on_device(Recorded(), torch.device(device))  # type: ignore[arg-type]
    assert calls == [*(["pinned"] if is_pinned else []), (device, True)]


def test_a_cpu_keeps_its_tensors() -> None:
    tensor = torch.zeros(3)
    assert hardware.on_device(tensor, torch.device("cpu")) is tensor


@pytest.mark.parametrize(
    ("is_built", "is_available", "reason"),
    [
        (True, True, None),
        (True, False, "macOS is too old, or this is no Mac with Apple silicon"),
        (False, False, "this build of torch has no part for it"),
    ],
)
def test_an_apple_gpu_is_accepted_where_torch_finds_one(
    monkeypatch: pytest.MonkeyPatch, is_built: bool, is_available: bool, reason: str | None
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: is_built)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: is_available)
    if reason is None:
        hardware.require_device("mps")
        return
    with pytest.raises(ConfigError, match=reason) as caught:
        hardware.require_device("mps")
    assert (caught.value.where, caught.value.fix) == ("device=mps", "device=auto")


@pytest.mark.parametrize(
    ("device", "system", "machine", "note"),
    [
        ("mps", "darwin", "arm64", "Apple GPUs are not tested"),
        ("auto", "darwin", "arm64", "the network runs on the CPU; device=mps"),
        ("cpu", "darwin", "arm64", None),
        ("auto", "darwin", "x86_64", None),
        ("auto", "linux", "aarch64", None),
    ],
)
def test_a_note_says_that_apple_gpus_are_not_tested(
    monkeypatch: pytest.MonkeyPatch, device: str, system: str, machine: str, note: str | None
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("", "", "", "", machine)))
    found = hardware.device_note(device)
    assert (found is None) == (note is None)
    assert found is None or found.startswith(note or "")


def test_auto_is_the_cpu_on_a_mac_with_an_apple_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware.device_kind.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(hardware, "_gpus", lambda: ())
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert hardware.device_kind("auto") == "cpu"
    assert hardware.device_kind("mps") == "mps"
    hardware.device_kind.cache_clear()


def test_an_apple_gpu_computes_in_fp32_unless_bf16_is_requested() -> None:
    assert hardware.used_precision("auto", "mps") == "fp32"
    assert hardware.used_precision("bf16", "mps") == "bf16"


def test_pixels_are_prepared_on_the_cpu_for_an_apple_gpu() -> None:
    places = {
        name: hardware.pixel_device(torch.device(name)).type for name in ("mps", "cuda", "cpu")
    }
    assert places == {"mps": "cpu", "cuda": "cuda", "cpu": "cpu"}


@pytest.mark.parametrize(("device", "is_blocking"), [("mps", True), ("meta", False)])
def test_copies_to_an_apple_gpu_wait(device: str, is_blocking: bool) -> None:
    asked = []

    class Spy:
        device, nbytes = torch.device("cpu"), 4

        def to(self, device: torch.device, *, non_blocking: bool) -> None:
            asked.append(non_blocking)

    hardware.on_device(Spy(), torch.device(device))  # type: ignore[arg-type]
    assert asked == [not is_blocking]


def test_a_gpu_and_a_processor_have_different_names(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware._name_of_macos.cache_clear()
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(subprocess, "check_output", lambda *words, **options: "Apple M2\n")
    monkeypatch.setattr(hardware, "_cpu_info", dict)
    assert hardware.device_name(torch.device("cpu")) == "Apple M2"
    assert hardware.device_name(torch.device("mps")) == "GPU of Apple M2"
    hardware._name_of_macos.cache_clear()
