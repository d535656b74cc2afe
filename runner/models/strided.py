"""Keep strided convolutions off inputs of one pixel, where a fast CPU kernel goes wrong.

Seen with torch 2.15 on CPUs with AVX-512 or AMX bfloat16: the weight gradient of a 3×3 convolution
with stride 2, padding 1 and an input of 1×1 holds uninitialized memory at the eight places that see
only padding. It is silent where it happens to be finite. Deep networks meet it on small images
(xresnet18 at 16 px). With stride 1 the output is the same single pixel and the gradient is right.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class _PointSafeConv2d(nn.Conv2d):
    """A convolution that takes an input of one pixel with stride 1."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name of the parent's argument
        if input.shape[-2:] != (1, 1):
            return super().forward(input)
        return F.conv2d(input, self.weight, self.bias, 1, self.padding, self.dilation, self.groups)


def guard_strided_convolutions(model: nn.Module) -> None:
    """Change ``model`` so that no strided convolution sees one pixel; no output changes by it."""
    for module in model.modules():
        if type(module) is not nn.Conv2d or max(module.stride) == 1:
            continue
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            continue
        # One pixel gives one pixel, whatever the stride, where the padding just makes up for the
        # kernel's width.
        if all(
            2 * padding == dilation * (kernel - 1) and kernel > 1
            for padding, dilation, kernel in zip(
                module.padding, module.dilation, module.kernel_size, strict=True
            )
        ):
            module.__class__ = _PointSafeConv2d
