"""What a run adds up, over interruptions."""

from types import SimpleNamespace

import torch
from small import small_config

from runner.training.loop import Step
from runner.training.meter import Meter
from runner.training.schedule import moment, plan


def test_losses_from_a_file_and_from_a_gpu_are_of_one_epoch() -> None:
    """They lie in different places, and torch stacks none that do."""
    config = small_config()
    stages = plan(config, 33)
    meter = Meter(stages)
    meter.restore({"losses": [1.0, 2.0], **dict.fromkeys(Meter._KEPT, 2)})
    on_a_gpu = SimpleNamespace(cpu=lambda: torch.tensor(6.0))
    meter.step(Step(moment(stages, 2), 8, on_a_gpu, 0.5))  # type: ignore[arg-type]
    assert meter.state()["losses"] == [1.0, 2.0, 6.0]
