"""Convolutions for the CPU, because torch's are wrong or slow on very small maps.

*Wrong*, seen with torch 2.15 on CPUs with AVX-512 or AMX bfloat16: the weight gradient of a 3×3
convolution with stride 2, padding 1 and an input of 1×1 holds uninitialized memory at the eight
places that see only padding. Nothing reports the error if the memory happens to be finite. It
occurs in deep networks on small images (xresnet18 at 16 px). With stride 1 the output is the same
single pixel and the gradient is right.

*Slow*: if a batch has few output places, as in the last layers on small images, the bfloat16
kernels can be far slower than the matrix products that a convolution consists of: a half to a
quarter of their speed with 512 channels on 2×2 maps (torch 2.14 on an AMD EPYC with AVX-512;
``benchmarks/NOTES.md``). So matrix products compute such convolutions. They add in another order,
which changes the rounding in bfloat16. This happens only in training, so that predictions do not
depend on how many images are predicted at a time.

*Slow* too are the bfloat16 gradients of depthwise convolutions, so slow that networks with them
trained half as fast as in float32 (the same machine; ``python -m benchmarks.precision``). So these
convolutions compute in float32, in training, and round what they return.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

_FEW_PLACES = 1024  # in a batch; values up to 4,096 made no difference, 256 was slower
_Pair = tuple[int, ...]  # height and width


class CpuConv2d(nn.Conv2d):
    """A convolution that equals its parent's but avoids the faults described above."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name of the parent's argument
        """Convolve images (N, C, H, W) to (N, O, H', W')."""
        assert not isinstance(self.padding, str)
        is_point = input.shape[-2:] == (1, 1) and self._keeps_points(self.padding)
        stride = (1, 1) if is_point else self.stride
        trains_in_bfloat16 = self._trains_in_bfloat16()
        if trains_in_bfloat16 and self.groups == self.in_channels > 1:  # depthwise
            with torch.autocast("cpu", enabled=False):
                return F.conv2d(
                    input.float(), self.weight, self.bias, stride, self.padding, self.dilation,
                    self.groups,
                ).bfloat16()  # fmt: skip
        is_plain = self.groups == 1 and self.dilation == (1, 1) and self.bias is None
        if trains_in_bfloat16 and is_plain and _num_places(input, self, stride) <= _FEW_PLACES:
            outputs: Tensor = _Products.apply(
                input.bfloat16(), self.weight.bfloat16(), stride, self.padding
            )
            # Permuted outside the Function: torch forbids in-place changes of a view it returns.
            return outputs.permute(0, 3, 1, 2)
        return F.conv2d(
            input, self.weight, self.bias, stride, self.padding, self.dilation, self.groups
        )

    def _keeps_points(self, padding: _Pair) -> bool:
        """Return whether one pixel gives one pixel at any stride, because of the padding."""
        return all(
            2 * pad == dilation * (kernel - 1) and kernel > 1
            for pad, dilation, kernel in zip(padding, self.dilation, self.kernel_size, strict=True)
        )

    def _trains_in_bfloat16(self) -> bool:
        return (
            self.training
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
        )


class _Products(torch.autograd.Function):
    """A convolution without bias as a matrix product: places × taps, taps × channels.

    Maps (N, C, H, W) to (N, H', W', O).
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, stride: _Pair, padding: _Pair) -> Tensor:  # noqa: A002
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.padding = stride, padding
        windows = _windows(input, weight, stride, padding)
        return windows.flatten(3) @ _channels_last(weight).flatten(1).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        input, weight = ctx.saved_tensors  # noqa: A001
        of_input = of_weight = None
        if ctx.needs_input_grad[0]:
            of_outputs = gradient.permute(0, 3, 1, 2)
            of_input = _input_gradient(of_outputs, input.shape, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            windows = _windows(input, weight, ctx.stride, ctx.padding)
            product = gradient.flatten(0, 2).T @ windows.flatten(3).flatten(0, 2)
            of_weight = product.view(_channels_last(weight).shape).permute(0, 3, 1, 2)
        return of_input, of_weight, None, None


def _input_gradient(
    gradient: Tensor, shape: torch.Size, weight: Tensor, stride: _Pair, padding: _Pair
) -> Tensor:
    is_convolution = stride == (1, 1) and gradient.shape[-2:] == shape[-2:]
    if not is_convolution:
        found: Tensor = conv2d_input(shape, weight, gradient, stride, padding)  # type: ignore[no-untyped-call]
        return found
    taps = _channels_last(weight).flatten(1, 2).transpose(0, 1).flip(0).flatten(0, 1)
    product = _windows(gradient, weight, stride, padding).flatten(3) @ taps
    return product.permute(0, 3, 1, 2)


def _windows(input: Tensor, weight: Tensor, stride: _Pair, padding: _Pair) -> Tensor:  # noqa: A002
    """Return the input pixels that each output place sees: (N, H', W', KH, KW, C)."""
    padded = F.pad(_channels_last(input), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    height, width = weight.shape[-2:]
    seen = padded.unfold(1, height, stride[0]).unfold(2, width, stride[1])
    return seen.permute(0, 1, 2, 4, 5, 3)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1)


def _num_places(input: Tensor, convolution: nn.Conv2d, stride: _Pair) -> int:  # noqa: A002
    places = len(input)
    for axis, side in enumerate(input.shape[-2:]):
        reach = side + 2 * int(convolution.padding[axis]) - convolution.kernel_size[axis]
        places *= reach // stride[axis] + 1
    return places


def suit_convolutions(model: nn.Module) -> None:
    """Make the plain convolutions of ``model`` :class:`CpuConv2d` in place; weights stay."""
    for module in model.modules():
        is_plain = type(module) is nn.Conv2d and module.padding_mode == "zeros"
        if is_plain and not isinstance(module.padding, str):
            module.__class__ = CpuConv2d
