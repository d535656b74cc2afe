"""Which part of an image speaks for a class: Grad-CAM, by the package ``grad-cam``.

Selvaraju et al. (2017), "Grad-CAM: visual explanations from deep networks via gradient-based
localization", https://arxiv.org/abs/1610.02391.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from runner.errors import ConfigError, first_line
from runner.training.step import Learner
from runner.tricks.resize import to_size

_LEAST_PLACES = 4  # a map with a shorter side says too little about where
_MOST_PREFIX = 8  # tokens of a transformer before those of places: class, distillation, registers
_FIRST_NORMS = ("norm1", "ln_1")  # of a block of a transformer, in timm and in torchvision


@dataclass(frozen=True)
class Layer:
    """A layer whose output is a map of places.

    Attributes:
        name: name of the module in the network.
        side: places along each side of the map.
        layout: ``NCHW``, ``NHWC``, or ``tokens`` (N, T, C).
    """

    name: str
    side: int
    layout: str


class _Network(nn.Module):
    """A network with its normalization and everything else that its logits depend on."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.model = learner.model
        self._learner = learner

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W), float in 0..1, to logits (N, K)."""
        return self._learner.logits(images)


def missing() -> str:
    """Say how to get the package ``grad-cam``; empty if it is there."""
    try:
        import pytorch_grad_cam  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name == "pytorch_grad_cam":
            return "pip install 'trick-runner[gradcam]'"
        return f"{error}: pip install --force-reinstall 'trick-runner[gradcam]'"
    except ImportError as error:  # opencv-python wants the libraries of a display
        return (
            f"{error}; on a machine without a display: pip uninstall -y opencv-python "
            "opencv-python-headless && pip install opencv-python-headless"
        )
    return ""


def network_input(squares: Sequence[NDArray[np.uint8]], learner: Learner) -> Tensor:
    """Return what the network sees of squares (S, S, 3): (N, 3, size, size), float in 0..1."""
    preprocess = learner.preprocess
    images = [
        to_size(
            torch.from_numpy(square.copy()).permute(2, 0, 1)[None].float().div_(255),
            preprocess.size,
            preprocess.interpolation,
        )
        for square in squares
    ]
    return torch.cat(images).to(learner.device)


def heat_maps(
    learner: Learner, images: Tensor, outputs: Sequence[int]
) -> tuple[NDArray[np.float32], Layer]:
    """Return where each image speaks for an output.

    Args:
        learner: the trained network, which computes in fp32.
        images: (N, 3, S, S), float in 0..1.
        outputs: an output for each image.

    Returns:
        (N, S, S) heat in 0..1, and the layer that it was taken from.

    Raises:
        ConfigError: the network has no layer whose output is a map of places, or does things that
            Grad-CAM cannot follow.
    """
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    learner.model.eval()
    network = _Network(learner)
    targets = [ClassifierOutputTarget(output) for output in outputs]
    try:
        layer = find_layer(learner.model, lambda: network(images[:1]))
        if layer is None:
            raise _impossible("no layer of the network has a map of places as its output")
        module = learner.model.get_submodule(layer.name)
        with GradCAM(network, [module], lambda found: _as_nchw(found, layer)) as cam:
            heat = cam(images, targets)
    except (RuntimeError, IndexError, ValueError, AttributeError) as error:
        # Hooks and gradients fail in as many ways as there are networks.
        raise _impossible(
            f"the network cannot be followed: {first_line(error) or type(error).__name__}"
        ) from error
    return np.asarray(heat, dtype=np.float32), layer


def find_layer(model: nn.Module, forward: Any) -> Layer | None:
    """Return the layer for Grad-CAM: late, but with a map that still has places.

    Of convolutional networks that is the last map of at least four by four places (or the finest
    that there is), as a whole stage returns it. Of transformers that is the first norm of the last
    block: behind its attention, the gradient of all tokens but the class token is zero.

    Args:
        model: the network.
        forward: a function that runs the network on one square image.
    """
    seen: list[Layer] = []

    def note(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and (layer := _layer(name, output)) is not None:
            seen.append(layer)

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: note(name, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        return None
    if seen[-1].layout == "tokens":
        return seen[-1]
    maps = [layer for layer in seen if layer.layout != "tokens"]
    fine = [layer for layer in maps if layer.side >= _LEAST_PLACES]
    side = min(layer.side for layer in fine) if fine else max(layer.side for layer in maps)
    same = [layer for layer in maps if layer.side == side]
    depth = min(layer.name.count(".") for layer in same)
    return [layer for layer in same if layer.name.count(".") == depth][-1]


def _layer(name: str, output: Tensor) -> Layer | None:
    """The layer with this output for one square image; None if it is no map of places."""
    shape = tuple(output.shape)
    if len(shape) == 4 and shape[2] == shape[3] > 1:
        return Layer(name, shape[2], "NCHW")
    if len(shape) == 4 and shape[1] == shape[2] > 1:
        return Layer(name, shape[1], "NHWC")
    if len(shape) == 3 and name.rpartition(".")[2] in _FIRST_NORMS:
        side = isqrt(shape[1])
        if side > 1 and shape[1] - side**2 <= _MOST_PREFIX:
            return Layer(name, side, "tokens")
    return None


def _as_nchw(found: Tensor, layer: Layer) -> Tensor:
    if layer.layout == "NHWC":
        return found.permute(0, 3, 1, 2)
    if layer.layout == "tokens":
        places = found[:, found.shape[1] - layer.side**2 :]
        return places.transpose(1, 2).reshape(len(found), -1, layer.side, layer.side)
    return found


def _impossible(reason: str) -> ConfigError:
    return ConfigError(
        f"Grad-CAM is not possible: {reason}",
        where="gradcam",
        fix="look at the other figures, which need no map",
    )
