"""What a run adds up, over interruptions."""

from types import SimpleNamespace

import torch
from small import small_config

from runner.display import Display
from runner.engine import Step
from runner.meter import Meter
from runner.schedule import plan


def test_losses_from_a_file_and_from_a_gpu_are_of_one_epoch() -> None:
    """They lie in different places, and torch stacks none that do."""
    config = small_config()
    meter = Meter(plan(config, 33), Display(quiet=True))
    meter.restore({"losses": [1.0, 2.0], **dict.fromkeys(Meter._KEPT, 2)})
    on_a_gpu = SimpleNamespace(cpu=lambda: torch.tensor(6.0))
    meter.step(Step(0, 0, 3, 8, 16, 8, on_a_gpu, 0.1, False, 0.5))  # type: ignore[arg-type]
    assert meter.state()["losses"] == [1.0, 2.0, 6.0]
