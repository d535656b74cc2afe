"""Gradient accumulation: compute a batch in micro-batches, and add up their gradients.

The gradient is that of the mean loss over the whole batch, whatever the sizes of the micro-batches.
Only a network whose layers look at several images at once, as BatchNorms do, trains differently.
"""

from itertools import pairwise

import numpy as np

from runner.machine.processes import ALONE, Processes


def micro_batches(num_images: int, steps: int, processes: Processes = ALONE) -> list[slice]:
    """Divide a batch into consecutive micro-batches whose sizes differ by one at most.

    Args:
        num_images: number of images in the batch, over all processes.
        steps: number of micro-batches; each has at least one image for each process if
            ``num_images // steps`` is at least their number.
        processes: the processes that share the batch; a micro-batch holds the same images however
            many there are.

    Returns:
        The rows of each micro-batch among the images of this process.
    """
    ends = [number * num_images // steps for number in range(steps + 1)]
    rows = np.searchsorted(processes.share(num_images), ends).tolist()
    return [slice(start, end) for start, end in pairwise(rows)]
