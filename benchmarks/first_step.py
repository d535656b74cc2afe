"""Train until the first step has been made, then end at once; ``benchmarks.startup`` times it.

python -m benchmarks.first_step WORDS
"""

import os
from typing import NoReturn
from unittest.mock import patch

import torch

from runner import train
from runner.config.schema import RunConfig
from runner.training import loop, step


def make_and_end(
    learner: step.Learner, optimizer: torch.optim.Optimizer, batch: step.Batch, config: RunConfig
) -> NoReturn:
    """Make a step in place of the loop's own, and end the process."""
    step.train_step(learner, optimizer, batch, config)
    os._exit(0)


if __name__ == "__main__":
    with patch.object(loop, "train_step", make_and_end):
        train.main()
