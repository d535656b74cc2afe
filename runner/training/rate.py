"""How fast a network trains on the CPU of this machine, without data."""

import time

import torch
import torch.nn.functional as F

from runner.config.schema import RunConfig
from runner.machine.children import Barrier
from runner.machine.hardware import keep_freed_memory, used_precision
from runner.models import build_model, suit_convolutions
from runner.training.optim import build_optimizer

_OUTPUTS = 10  # if the configuration leaves their number to the data


def training_rate(
    config: RunConfig, threads: int, begin: Barrier, end: Barrier, seconds: float
) -> float:
    """Measure the images per second at which a network trains on noise.

    The network is that of ``config`` without changes by tricks or the user's code. It trains before
    and after the measurement as well, while other processes are not as far, so that each of several
    processes is measured with the load of all.

    Args:
        config: sets network, size, micro-batch, precision and optimizer.
        threads: number of threads.
        begin: reached after the first step, with all memory allocated.
        end: reached once this process has measured.
        seconds: how long to measure, at least for a step.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    num_outputs = config.model.num_outputs or _OUTPUTS
    model = build_model(config.model.source, config.model.name, num_outputs, seed=0)
    suit_convolutions(model)
    model.train().to(memory_format=torch.channels_last)
    optimizer = build_optimizer([list(model.parameters())], config.optim, (1.0,))
    num_images = config.data.batch_size // config.accumulate.steps  # of a micro-batch
    images = torch.rand(num_images, 3, config.size, config.size)
    images = images.contiguous(memory_format=torch.channels_last)
    targets = torch.full((len(images), num_outputs), 1 / num_outputs)
    is_mixed = used_precision(config.precision, "cpu") == "bf16"

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_mixed):
            outputs = model(images)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(F.cross_entropy(outputs.float(), targets))
        optimizer.step()

    step()
    begin.arrive()
    while not begin.have_all_arrived:
        step()
    started, steps = time.monotonic(), 0
    while steps == 0 or time.monotonic() < started + seconds:
        step()
        steps += 1
    rate = steps * len(images) / (time.monotonic() - started)
    end.arrive()
    while not end.have_all_arrived:
        step()
    return rate
