"""BlurPool (Zhang 2019, arXiv:1904.11486): maps are blurred before they are made smaller.

A layer with stride 2 looks at every second place, so its input changes when the image moves
by one pixel. A blur before the layer removes the detail that the smaller map cannot hold. The blur
weighs a place and its neighbors by [1 2 1]⊗[1 2 1] / 16; maps are reflected at their border.

Max pooling with a stride becomes max pooling with a stride of 1, then a blur with the stride. A
convolution with a stride gets a blurred input. Both keep the sizes of all maps, and the names of
all weights.

Shape letters: N images, C channels, H height and W width of a map in places.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_CHANNELS = 16
"""The fewest input channels of a convolution whose input is blurred: images stay sharp."""

_Pair = tuple[int, int]  # height and width


def blur(maps: Tensor, stride: _Pair = (1, 1), size: _Pair | None = None) -> Tensor:
    """Blur maps (N, C, H, W), and keep the places at multiples of ``stride``.

    Args:
        maps: (N, C, H, W) floating point, H and W ≥ 1.
        stride: distance of the kept places in each axis, ≥ 1.
        size: number of the kept places in each axis; by default ⌈H / stride⌉ and ⌈W / stride⌉.

    Returns:
        (N, C, *size).
    """
    num, channels, height, width = maps.shape
    rows, columns = size or (-(-height // stride[0]), -(-width // stride[1]))
    # Blur, reflection and stride are one matrix for each axis. On CPUs, products with it take less
    # time than a convolution with a stride for small maps, and for backward passes in bfloat16; in
    # fp32, a convolution is faster from about 64 px on. On GPUs, products have gradients that are
    # equal from run to run, and those of torch's reflection are not.
    across = _matrix(width, columns, stride[1], maps)
    down = _matrix(height, rows, stride[0], maps)
    last = maps.permute(0, 2, 3, 1)  # without a copy, because maps are in channels-last memory
    narrow = across @ last.reshape(num * height, width, channels)
    small = down @ narrow.reshape(num, height, columns * channels)
    return small.reshape(num, rows, columns, channels).permute(0, 3, 1, 2)


def _matrix(length: int, count: int, stride: int, like: Tensor) -> Tensor:
    """Return the blur of an axis as (count, length) weights, whose rows sum to 1."""
    places = torch.arange(length, device=like.device)
    centers = torch.arange(count, device=like.device) * stride

    def at(offset: int) -> Tensor:
        reached = (centers + offset).abs()
        mirrored = torch.minimum(reached, 2 * (length - 1) - reached)
        # A map of one place has no neighbor to reflect; the place itself is used.
        return (mirrored.clamp_min(0)[:, None] == places).to(like.dtype)

    return at(0) / 2 + (at(-1) + at(1)) / 4


class BlurMaxPool2d(nn.Module):
    """Max pooling with stride 1, then a blur with the stride of ``pool``; same output sizes.

    Args:
        pool: the replaced layer.
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.kernel_size = _pair(pool.kernel_size)
        self.stride = _pair(pool.stride)
        self.padding = _pair(pool.padding)
        self.dilation = _pair(pool.dilation)
        self.ceil_mode = pool.ceil_mode

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H', W')."""
        maxima = F.max_pool2d(maps, self.kernel_size, 1, self.padding, self.dilation)
        rows, columns = (self._length(maps, maxima, axis) for axis in (0, 1))
        return blur(maxima, self.stride, (rows, columns))

    def _length(self, maps: Tensor, maxima: Tensor, axis: int) -> int:
        """Return the number of places of the replaced layer's output along ``axis``."""
        last, stride = maxima.shape[2 + axis] - 1, self.stride[axis]
        if not self.ceil_mode:
            return last // stride + 1
        count = -(-last // stride) + 1
        # torch leaves out a window that would begin in the padding after the map.
        is_outside = (count - 1) * stride >= maps.shape[2 + axis] + self.padding[axis]
        return count - 1 if is_outside else count

    def extra_repr(self) -> str:
        """Return the arguments of the replaced layer, for printing the network."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


def add_blurs(model: nn.Module, layers: Literal["none", "pooling", "all"]) -> int:
    """Add blurs to layers of ``model`` in place; return the number of these layers.

    Args:
        model: a network. Only ``torch.nn.MaxPool2d`` itself is replaced, not its subclasses, which
            compute something else; of convolutions, subclasses count too.
        layers: ``pooling``: max pooling with a stride. ``all``: also convolutions with a stride and
            :data:`MIN_CHANNELS` or more input channels. ``none``: none.
    """
    if layers == "none":
        return 0
    num_layers = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.MaxPool2d and max(_pair(child.stride)) > 1:
                setattr(parent, name, BlurMaxPool2d(child))
                num_layers += 1
    for module in model.modules() if layers == "all" else ():
        if not isinstance(module, nn.Conv2d) or module.in_channels < MIN_CHANNELS:
            continue
        if max(module.stride) > 1:
            # A hook, because a layer around the convolution would rename the weights.
            module.register_forward_pre_hook(_blur_input)
            num_layers += 1
    return num_layers


def _blur_input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    maps, *others = inputs
    return (blur(maps), *others)


def _pair(value: int | tuple[int, ...]) -> _Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
