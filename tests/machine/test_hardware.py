"""What ``auto`` means, with and without torch's help."""

import platform
import subprocess
import sys

import pytest
import torch

from runner.machine import hardware


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/cpuinfo")
def test_bf16_on_the_cpu_as_torch_sees_it() -> None:
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert (hardware.fastest_precision("cpu", 64) == "bf16") == native


@pytest.mark.parametrize(
    ("flags", "size", "expected"),
    [
        ("fpu avx512_bf16", 64, "bf16"),
        ("fpu amx_bf16 amx_tile", 32, "bf16"),
        ("fpu avx512_bf16", 28, "fp32"),
        ("fpu avx2", 64, "fp32"),
        ("", 64, "fp32"),
    ],
)
def test_precision_by_processor_and_size(
    monkeypatch: pytest.MonkeyPatch, flags: str, size: int, expected: str
) -> None:
    monkeypatch.setattr(hardware, "_cpu_info", lambda: {"flags": flags} if flags else {})
    assert hardware.fastest_precision("cpu", size) == expected


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_precision_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert hardware.fastest_precision("cuda", 28) == expected


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
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
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


def test_cores_are_those_of_this_process() -> None:
    assert hardware.num_cores() >= 1


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
