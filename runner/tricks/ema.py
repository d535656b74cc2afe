"""EMA: the average of the weights over time, in place of the last ones.

After each update ``ema ← d · ema + (1 - d) · weights``, for the parameters and for the buffers of
floating point, so that the averaged weights have averaged BatchNorm statistics too; buffers of
integers are copied. The average is evaluated and shipped; the training goes on without it. Polyak
& Juditsky (1992, SIAM J. Control Optim. 30) average all steps alike; the exponential form with a
warm-up is that of timm's ``ModelEmaV3``.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from runner.config.ema import Ema


def decay_at(ema: Ema, before: int, total: int) -> float:
    """The decay d of one step.

    A fixed decay is another average at each budget. So by default ``d = 1 - 1 / (span · total)``:
    the average reaches back over the part ``span`` of training, whatever its length. The warm-up
    ``d ≤ 1 - (1 + before)^(-2/3)`` keeps the initial weights out of it.

    Args:
        ema: with ``span`` in (0, 1], or with ``decay`` in [0, 1), which counts from the first step.
        before: updates before this one, from 0.
        total: updates of the whole training.

    Returns:
        A value in [0, 1); 0 takes over the weights as they are.
    """
    if ema.decay is not None:
        return ema.decay
    warm_up: float = 1 - (1 + before) ** (-2 / 3)
    return min(max(0.0, 1 - 1 / (ema.span * total)), warm_up)


@torch.no_grad()
def average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move ``averaged`` towards ``model`` by ``1 - decay``, in place.

    Args:
        averaged: a network of the same architecture.
        model: the trained network.
        decay: in [0, 1).
    """
    for mean, value in zip(
        averaged.state_dict().values(), model.state_dict().values(), strict=True
    ):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


class AveragedWeights:
    """The running average of one training; see :class:`runner.training.averages.WeightsOverTime`.

    Args:
        model: the network with its initial weights; copied.
        ema: how it is averaged.
        total: updates of the whole training.
    """

    def __init__(self, model: nn.Module, ema: Ema, total: int) -> None:
        self._network = copy.deepcopy(model).requires_grad_(False)
        self._ema = ema
        self._total = total

    def after_step(self, model: nn.Module, before: int) -> None:
        """Take in the weights of ``model`` after an update; ``before`` updates came before it."""
        average(self._network, model, decay_at(self._ema, before, self._total))

    def tensors(self) -> dict[str, Tensor]:
        """The state that a checkpoint must hold, by name."""
        state: dict[str, Tensor] = self._network.state_dict()
        return state

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from the state that ``tensors`` returned.

        Raises:
            RuntimeError: it is of another network.
        """
        self._network.load_state_dict(tensors)

    def network(self, model: nn.Module) -> nn.Module:
        """The averaged network."""
        return self._network
