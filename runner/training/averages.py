"""Weights over time: which of all the networks of a training is evaluated and shipped."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from runner.config.schema import RunConfig
from runner.tricks.ema import AveragedWeights


class WeightsOverTime(Protocol):
    """What follows the weights through a training."""

    def after_step(self, model: nn.Module, before: int) -> None:
        """Take in the weights of ``model`` after an update; ``before`` updates came before it."""

    def tensors(self) -> dict[str, Tensor]:
        """The state that a checkpoint must hold, by name."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from the state that ``tensors`` returned.

        Raises:
            RuntimeError: it is of another network.
        """

    def network(self, model: nn.Module) -> nn.Module:
        """The network to evaluate and to ship while ``model`` is trained."""


class LastWeights:
    """The weights as the last update left them; has no state."""

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
    """What ``config`` asks for.

    Args:
        config: of the run.
        model: the network with its initial weights.
        total: updates of the whole training.
    """
    return AveragedWeights(model, config.ema, total) if config.ema.is_on else LastWeights()
