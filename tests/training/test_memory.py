"""Memory that ran out: what is recognized, and what a command advises."""

import pytest
import torch
from torch import nn

from runner.config.idea import MODULE
from runner.errors import ProcessError
from runner.training.learners import _placed
from runner.training.memory import advise_smaller_batch, ran_out


def raised_by_the_users_code(error: Exception) -> Exception:
    names = {"__name__": f"{MODULE}x", "error": error}
    exec(compile("def loss():\n    raise error", "mine.py", "exec"), names)  # noqa: S102
    with pytest.raises(type(error)) as caught:
        names["loss"]()  # type: ignore[operator]
    return caught.value


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"), True),
        (RuntimeError("the sizes do not match"), False),
        (raised_by_the_users_code(MemoryError("of an array")), False),
        (raised_by_the_users_code(torch.OutOfMemoryError("CUDA out of memory")), True),
    ],
)
def test_what_means_that_memory_ran_out(error: Exception, is_memory: bool) -> None:
    assert ran_out(error) is is_memory


def test_the_key_to_halve_is_told() -> None:
    with pytest.raises(ProcessError) as caught, advise_smaller_batch("eval.batch_size=", 9):
        raise MemoryError
    assert (caught.value.where, caught.value.fix) == ("eval.batch_size=9", "eval.batch_size=4")
    with pytest.raises(ProcessError) as caught, advise_smaller_batch("--batch-size ", 1):
        raise MemoryError
    assert caught.value.fix == "a machine with more memory"
    with pytest.raises(RuntimeError, match="other"), advise_smaller_batch("--batch-size ", 1):
        raise RuntimeError("other")


class Full(nn.Module):
    """A network that its device has no memory for."""

    def to(self, *arguments: object, **more: object) -> nn.Module:
        raise RuntimeError("CUDA error: out of memory")


def test_a_device_that_other_programs_have_filled() -> None:
    with pytest.raises(ProcessError, match="not even for the network") as caught:
        _placed(Full(), torch.device("cuda:1"))
    assert caught.value.where == "device=cuda:1"
    assert "device=cpu" in str(caught.value.fix)
