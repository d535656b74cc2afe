"""What is recorded of a machine, and which of it is proposed as the cause of a difference."""

import pytest
import torch

from runner.machine import environment as environments
from runner.machine.environment import differences, environment
from runner.machine.processes import ALONE


@pytest.mark.parametrize("is_on", [False, True])
def test_the_determinism_of_cudnn_is_recorded_on_a_gpu_alone(
    monkeypatch: pytest.MonkeyPatch, is_on: bool
) -> None:
    monkeypatch.setattr(environments, "device_name", lambda device: device.type)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", is_on)
    on_gpu = environment(torch.device("cuda"), "fp32", ALONE)
    on_cpu = environment(torch.device("cpu"), "fp32", ALONE)
    assert on_gpu["cudnn_deterministic"] is is_on
    assert "cudnn_deterministic" not in on_cpu


def test_the_determinism_of_cudnn_is_a_difference_between_gpus_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environments, "device_name", lambda device: device.type)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    for kind, found in (("cpu", []), ("cuda", ["cudnn_deterministic True → False"])):
        now = environment(torch.device(kind), "fp32", ALONE)
        assert differences({**now, "cudnn_deterministic": True}, now) == found


def test_the_version_of_torchvision_is_its_own() -> None:
    import torchvision

    assert environment(torch.device("cpu"), "fp32", ALONE)["torchvision"] == torchvision.__version__
