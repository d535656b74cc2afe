"""The optimizer: torch's own, with the usual rules for weight decay and frozen parameters."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from runner.config.schema import Optim
from runner.errors import CodeError
from runner.training.schedule import Moment
from runner.tricks.idea import NO_IDEA, Idea


def build_optimizer(
    groups: Sequence[Sequence[nn.Parameter]],
    optim: Optim,
    lr_factors: Sequence[float],
    idea: Idea = NO_IDEA,
) -> torch.optim.Optimizer:
    """Build an optimizer with fresh state.

    Args:
        groups: parameters per layer group, from input to output.
        optim: the ``optim`` group of the configuration.
        lr_factors: learning rate of each layer group, relative to the head's.
        idea: the user's functions, which may include an optimizer.

    Raises:
        CodeError: the object that ``idea`` returns is not an optimizer.
    """
    parameter_groups = []
    for parameters, factor in zip(groups, lr_factors, strict=True):
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        # Weights of convolutions and linear layers have two or more dimensions. Normalization
        # layers and biases have one; decaying them only changes a scale or an offset.
        decayed = [parameter for parameter in trained if parameter.ndim > 1]
        others = [parameter for parameter in trained if parameter.ndim <= 1]
        for members, decay in ((decayed, optim.weight_decay), (others, 0.0)):
            if members:
                parameter_groups.append(
                    {"params": members, "weight_decay": decay, "lr_factor": factor}
                )
    if (own := idea.optimizer(parameter_groups, optim.lr)) is not None:
        return own
    # On an Apple GPU, this is torch's own default, which has been used there for longest.
    fused = all(each.device.type != "mps" for members in groups for each in members)
    if optim.name == "sgd":
        return torch.optim.SGD(
            parameter_groups, lr=0.0, momentum=0.9, nesterov=optim.nesterov, fused=fused
        )
    return _AdamW(parameter_groups, lr=0.0, betas=(0.9, optim.beta2), eps=optim.eps, fused=fused)


class _AdamW(torch.optim.AdamW):
    """Torch's AdamW without the copies that its CPU kernel makes of channels-last gradients.

    The kernel reads memory in order, whatever the shape, so it gets the tensors of a parameter
    with their dimensions in the order of memory.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> bool:
        has_complex: bool = super()._init_group(group, *lists)  # type: ignore[no-untyped-call]
        shaped = lists[:4]  # parameters, gradients and both averages; the others are single numbers
        for row, tensors in enumerate(zip(*shaped, strict=True)):
            if all(map(_is_channels_last_on_cpu, tensors)):
                for each, tensor in zip(shaped, tensors, strict=True):
                    each[row] = tensor.permute(0, 2, 3, 1)
        return has_complex


def _is_channels_last_on_cpu(tensor: Tensor) -> bool:
    return (
        tensor.ndim == 4
        and tensor.device.type == "cpu"
        and tensor.is_contiguous(memory_format=torch.channels_last)
    )


def set_rates(optimizer: torch.optim.Optimizer, lr: float, momentum: float) -> None:
    """Set the learning rate (of the head) and the momentum of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
        if "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        elif optimizer.defaults.get("momentum"):  # an optimizer without momentum stays without
            group["momentum"] = momentum


def skip_unless(optimizer: torch.optim.Optimizer, is_finite: Tensor) -> None:
    """Let the next step change nothing unless ``is_finite``, a bool scalar on the device."""
    # Fused optimizers change nothing if this is 1, as after an overflow of mixed precision.
    optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state by ``PARAMETER_NUMBER.NAME``, for :func:`restore_optimizer`."""
    return {
        f"{number}.{name}": value
        for number, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the state of another optimizer into a fresh optimizer of the same parameters.

    Raises:
        LookupError: the state belongs to other parameters.
    """
    parameters = _parameters(optimizer)
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        parameter = parameters[int(number)]
        # Fused kernels ignore strides, so the state needs the memory format of the parameter.
        like = None
        if value.shape == parameter.shape:
            like = torch.empty_like(parameter, dtype=value.dtype)
        restored = value.clone() if like is None else like.copy_(value)
        optimizer.state[parameter][name] = restored.to(parameter.device)


@contextmanager
def require_restorable(optimizer: torch.optim.Optimizer, now: Moment) -> Iterator[None]:
    """Check, at the first step of a stage, that a checkpoint can hold the optimizer's state.

    Raises:
        CodeError: the optimizer has state other than tensors by parameter.
    """
    if not now.starts_stage:
        yield
        return
    before = _settings(optimizer)
    yield
    changed = [name for name, value in _settings(optimizer).items() if before.get(name) != value]
    states = (optimizer.state.get(parameter, {}) for parameter in _parameters(optimizer))
    others = {
        name: type(value).__name__
        for state in states
        for name, value in state.items()
        if not isinstance(value, Tensor | None)
    }
    kept = [
        *(f"state {name} ({kind})" for name, kind in others.items()),
        *(f"group value {name}" for name in dict.fromkeys(name for _, name in changed)),
    ]
    if kept:
        raise CodeError(
            f"the optimizer has state that a checkpoint does not hold: {', '.join(kept)}",
            where=type(optimizer).__name__,
            fix="keep the state as tensors in optimizer.state[parameter]",
        )


def _settings(optimizer: torch.optim.Optimizer) -> dict[tuple[int, str], str]:
    """Return the values of each group other than its parameters."""
    return {
        (number, name): repr(value)
        for number, group in enumerate(optimizer.param_groups)
        for name, value in group.items()
        if name != "params"
    }


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def freeze_body(
    model: nn.Module, groups: Sequence[Sequence[nn.Parameter]], *, frozen: bool
) -> None:
    """Stop or resume the training of all layer groups except the last; BatchNorms always train."""
    for parameters in groups[:-1]:
        for parameter in parameters:
            parameter.requires_grad_(not frozen)
            parameter.grad = None
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(True)
