"""Weights over time: which of all the networks of a training is evaluated and shipped."""

from collections.abc import Mapping

from torch import Tensor, nn


class LastWeights:
    """The weights as the last update left them; what a trick such as EMA replaces."""

    def after_step(self, model: nn.Module, before: int) -> None:
        """Take in the weights of ``model``, which ``before`` updates and one more have made."""

    def tensors(self) -> dict[str, Tensor]:
        """The state that a checkpoint must hold, by name."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from the state that ``tensors`` returned.

        Raises:
            RuntimeError: it is of another network.
        """

    def network(self, model: nn.Module) -> nn.Module:
        """The network to evaluate and to ship while ``model`` is trained."""
        return model
