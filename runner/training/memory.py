"""Recognize torch's errors of exhausted memory, and advise which key to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from runner.config.idea import blamed
from runner.data.batches import worker_died
from runner.errors import ProcessError

# Errors of a CPU, of a GPU without memory for even a program, of NVIDIA's libraries, and of Apple's
# GPUs. They are plain RuntimeErrors, which differ from others only in their text.
_WORDS = (
    "can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)  # fmt: skip


def ran_out(error: Exception) -> bool:
    """Return whether ``error`` means that this process needs less memory.

    A ``MemoryError`` in the user's own code, such as an array of the wrong shape, is an error of
    that code. A failed allocation of torch's there mostly depends on the batch, as in the user's
    network.
    """
    if isinstance(error, MemoryError):
        return blamed(error) is None
    is_torchs = isinstance(error, torch.OutOfMemoryError)
    return is_torchs or any(words in str(error) for words in _WORDS)


@contextmanager
def advise_smaller_batch(key: str, batch_size: int) -> Iterator[None]:
    """Advise the user to halve ``key`` if memory runs out, or a reader dies, in the block.

    Args:
        key: a key or an option with what precedes its value, such as ``data.batch_size=``.
        batch_size: its value.

    Raises:
        ProcessError: memory ran out, or a process that reads images died.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if (died := worker_died(error)) is not None:
            raise died from error
        if not ran_out(error):
            raise
        raise ProcessError(
            "out of memory",
            where=f"{key}{batch_size}",
            fix=f"{key}{batch_size // 2}" if batch_size > 1 else "a machine with more memory",
        ) from error
