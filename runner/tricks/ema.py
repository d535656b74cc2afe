"""EMA: the average of the weights over time replaces the last weights.

After each update ``ema ← d · ema + (1 - d) · weights``, for the parameters and for the buffers of
floating point, so that the averaged weights have averaged BatchNorm statistics too; other buffers
are copied. The average is evaluated and shipped; the training never uses it. Polyak &
Juditsky (1992, SIAM J. Control Optim. 30) give all steps the same weight; timm's ``ModelEmaV3`` has
the exponential form with a warm-up.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from runner.config.ema import Ema
from runner.errors import ConfigError


def decay_at(ema: Ema, before: int, total: int) -> float:
    """Return the decay d of one step.

    With a fixed decay, the averaged part of training depends on the budget. So by default
    ``d = 1 - 1 / (span · total)``: the average covers the part ``span`` of any training. The
    warm-up ``d ≤ 1 - (1 + before)^(-2/3)`` keeps the initial weights out of the average.

    Args:
        ema: settings; ``span`` in (0, 1], or ``decay`` in [0, 1), which applies from the first
            step.
        before: number of updates before this update, ≥ 0.
        total: number of updates of the whole training.

    Returns:
        A value in [0, 1); 0 replaces the average by the current weights.
    """
    if ema.decay is not None:
        return ema.decay
    warm_up: float = 1 - (1 + before) ** (-2 / 3)
    return min(max(0.0, 1 - 1 / (ema.span * total)), warm_up)


def is_too_short(ema: Ema, total: int) -> bool:
    """Return whether the decay is 0 in all ``total`` updates: the average is the last weights."""
    return ema.is_on and decay_at(ema, total - 1, total) == 0


@torch.no_grad()
def average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the weights of ``averaged`` toward those of ``model`` by ``1 - decay``, in place.

    Args:
        averaged: the averaged network, of the same architecture as ``model``.
        model: the trained network.
        decay: the decay d, in [0, 1).
    """
    # Parameters and buffers are each listed once, though layers may share them.
    for weight, trained in zip(averaged.parameters(), model.parameters(), strict=True):
        weight.lerp_(trained, 1 - decay)
    saved = averaged.state_dict().keys()
    for (name, mean), value in zip(averaged.named_buffers(), model.buffers(), strict=True):
        if mean.is_floating_point() and name in saved:
            mean.lerp_(value, 1 - decay)
        else:  # a buffer that is not in a checkpoint is not averaged, either
            mean.copy_(value)


class AveragedWeights:
    """The running average of one training; see :class:`runner.training.averages.WeightsOverTime`.

    Args:
        model: the network with its initial weights, which are copied.
        ema: the settings of the average.
        total: number of updates of the whole training.

    Raises:
        ConfigError: the network cannot be copied.
    """

    def __init__(self, model: nn.Module, ema: Ema, total: int) -> None:
        try:
            self._network = copy.deepcopy(model).requires_grad_(False)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # from a layer that keeps results of its own computations
            raise ConfigError(
                "the network cannot be copied, so it cannot be averaged: "
                f"{str(error).partition('.')[0]}",
                where=f"ema.span={ema.span:g}",
                fix="ema=none, or layers that can be copied, such as those of "
                "torch.nn.utils.parametrizations",
            ) from error
        self._ema = ema
        self._total = total

    def after_step(self, model: nn.Module, before: int) -> None:
        """Add the weights of ``model`` to the average after update number ``before``, from 0."""
        average(self._network, model, decay_at(self._ema, before, self._total))

    def tensors(self) -> dict[str, Tensor]:
        """Return the state that a checkpoint must hold, by name."""
        state: dict[str, Tensor] = self._network.state_dict()
        return state

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from the state that :meth:`tensors` returned.

        Raises:
            RuntimeError: the state belongs to another network.
        """
        self._network.load_state_dict(tensors)

    def network(self, model: nn.Module) -> nn.Module:
        """Return the averaged network, whatever ``model`` is."""
        return self._network
