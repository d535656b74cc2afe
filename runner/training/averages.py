"""Weights over time: the choice of the network that is evaluated and shipped."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from runner.config.schema import RunConfig
from runner.tricks.ema import AveragedWeights


class WeightsOverTime(Protocol):
    """An object that sees the weights after each update and returns the network to ship."""

    def after_step(self, model: nn.Module, before: int) -> None:
        """Use the weights of ``model`` after an update; ``before`` updates preceded it."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state that a checkpoint must hold, by name."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from the state that :meth:`tensors` returned.

        Raises:
            RuntimeError: the state belongs to another network.
        """

    def network(self, model: nn.Module) -> nn.Module:
        """Return the network to evaluate and to ship, of the training of ``model``."""


class LastWeights:
    """The weights after the last update; this object has no state."""

    def after_step(self, model: nn.Module, before: int) -> None:
        """See :class:`WeightsOverTime`."""

    def tensors(self) -> dict[str, Tensor]:
        """See :class:`WeightsOverTime`."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """See :class:`WeightsOverTime`."""

    def network(self, model: nn.Module) -> nn.Module:
        """See :class:`WeightsOverTime`."""
        return model


def weights_over_time(config: RunConfig, model: nn.Module, total: int) -> WeightsOverTime:
    """Return the kind of weights that ``config`` requests.

    Args:
        config: configuration of the run.
        model: the network with its initial weights.
        total: number of updates of the whole training.
    """
    return AveragedWeights(model, config.ema, total) if config.ema.is_on else LastWeights()
