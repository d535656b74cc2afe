"""The ResNet with the tweaks of "Bag of Tricks", called xresnet: the project's own default model.

Source: He et al. 2018, "Bag of Tricks for Image Classification with Convolutional Neural
Networks", arXiv:1812.01187: ResNet-D (section 4.2) and zero γ (section 3.1). Structure, order of
the parameters and initial distribution equal those of fastai's ``xresnet*``, so that numbers
published for fastai's networks apply here; timm calls the same networks ``resnet*d``.

Shape letters: B images, C channels, H height and W width in pixels, K outputs.

    >>> model = xresnet(18, num_outputs=10)
    >>> model(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 10])
"""

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class _Plan:
    num_blocks: tuple[int, int, int, int]  # per stage
    bottleneck: bool


# He et al. 2015, "Deep Residual Learning", arXiv:1512.03385, table 1.
_PLANS = {
    18: _Plan((2, 2, 2, 2), bottleneck=False),
    34: _Plan((3, 4, 6, 3), bottleneck=False),
    50: _Plan((3, 4, 6, 3), bottleneck=True),
    101: _Plan((3, 4, 23, 3), bottleneck=True),
    152: _Plan((3, 8, 36, 3), bottleneck=True),
}
_STEM_WIDTHS = (32, 32, 64)
_STAGE_WIDTHS = (64, 128, 256, 512)
_BOTTLENECK_EXPANSION = 4

DEPTHS = tuple(_PLANS)
"""The depths that :func:`xresnet` can build."""


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm and, if ``activation`` is set, ReLU.

    Maps (B, C, H, W) to (B, ``out_channels``, ⌈H / ``stride``⌉, ⌈W / ``stride``⌉) for an odd
    ``kernel_size``.
    """

    norm: nn.BatchNorm2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        activation: bool = True,
    ) -> None:
        layers = OrderedDict[str, nn.Module](
            # The norm subtracts the mean of each channel, so a bias would have no effect.
            conv=nn.Conv2d(
                in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False
            ),
            norm=nn.BatchNorm2d(out_channels),
        )
        if activation:
            layers["act"] = nn.ReLU(inplace=True)
        super().__init__(layers)


class ResidualBlock(nn.Module):
    """relu(residual(x) + identity(x)), (B, C, H, W) to (B, ``out_channels``, ⌈H/s⌉, ⌈W/s⌉).

    s is ``stride``. The residual path is two 3×3 convolutions, or with ``bottleneck`` 1×1, 3×3,
    1×1 with a quarter of the channels in the middle.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, bottleneck: bool
    ) -> None:
        super().__init__()
        if bottleneck:
            width = out_channels // _BOTTLENECK_EXPANSION
            last = ConvNorm(width, out_channels, 1, activation=False)
            self.residual = nn.Sequential(
                ConvNorm(in_channels, width, 1),
                # The 3×3 has the stride. The 1×1 before it would skip three quarters of its input
                # with a stride of 2 (arXiv:1812.01187, ResNet-B).
                ConvNorm(width, width, 3, stride=stride),
                last,
            )
        else:
            last = ConvNorm(out_channels, out_channels, 3, activation=False)
            self.residual = nn.Sequential(
                ConvNorm(in_channels, out_channels, 3, stride=stride), last
            )
        # Every block starts as its identity path: a network that is shallow at first trains more
        # easily (arXiv:1812.01187, section 3.1).
        nn.init.zeros_(last.norm.weight)
        self.identity = nn.Sequential()
        if stride != 1:
            # Averaging first, for the same reason (ResNet-D). Rounded up, because a 3×3 with
            # padding 1 rounds up too: the paths then agree on odd sizes.
            self.identity.append(nn.AvgPool2d(stride, ceil_mode=True))
        if in_channels != out_channels:
            self.identity.append(ConvNorm(in_channels, out_channels, 1, activation=False))
        self.act = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, ``out_channels``, ⌈H/s⌉, ⌈W/s⌉)."""
        activations: Tensor = self.act(self.residual(images) + self.identity(images))
        return activations


class XResNet(nn.Module):
    """``stem``, four ``stages`` of residual blocks, and ``head``; build it with :func:`xresnet`."""

    def __init__(self, plan: _Plan, num_outputs: int, in_channels: int, dropout: float) -> None:
        super().__init__()
        # Three 3×3 convolutions replace one 7×7 (ResNet-C).
        stem_in = (in_channels, *_STEM_WIDTHS)
        self.stem = nn.Sequential(
            ConvNorm(stem_in[0], stem_in[1], 3, stride=2),
            ConvNorm(stem_in[1], stem_in[2], 3),
            ConvNorm(stem_in[2], stem_in[3], 3),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.stages = nn.Sequential()
        channels = _STEM_WIDTHS[-1]
        for stage, (width, num_blocks) in enumerate(
            zip(_STAGE_WIDTHS, plan.num_blocks, strict=True)
        ):
            blocks = nn.Sequential()
            out_channels = width * (_BOTTLENECK_EXPANSION if plan.bottleneck else 1)
            for block in range(num_blocks):
                # The max pool has halved the size just before the first stage.
                stride = 2 if block == 0 and stage > 0 else 1
                blocks.append(
                    ResidualBlock(channels, out_channels, stride=stride, bottleneck=plan.bottleneck)
                )
                channels = out_channels
            self.stages.append(blocks)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(channels, num_outputs),
        )
        _draw_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images (B, C, H, W), with H and W ≥ 1, to logits (B, K)."""
        logits: Tensor = self.head(self.stages(self.stem(images)))
        return logits


def xresnet(depth: int, num_outputs: int, *, in_channels: int = 3, dropout: float = 0.0) -> XResNet:
    """Build an xresnet whose initial weights are drawn from torch's global generator.

    Args:
        depth: layers with weights on the longest path: 18, 34, 50, 101 or 152.
        num_outputs: K, the number of logits, 1 or more. Usually the number of classes; a larger
            number only spreads label smoothing over classes that do not exist.
        in_channels: C of the images, 1 or more.
        dropout: probability in [0, 1] of zeroing a pooled feature while training.

    Raises:
        ValueError: ``depth`` is not one of these, or another number is out of its range.

    Source: He et al. 2018, arXiv:1812.01187; fastai, ``fastai.vision.models.xresnet``.
    """
    if depth not in _PLANS:
        raise ValueError(f"depth must be one of {', '.join(map(str, DEPTHS))}, not {depth}")
    if num_outputs < 1 or in_channels < 1:
        raise ValueError(
            f"num_outputs and in_channels must be 1 or more, not {num_outputs} and {in_channels}"
        )
    return XResNet(_PLANS[depth], num_outputs, in_channels, dropout)


def _draw_weights(model: nn.Module) -> None:
    """Draw convolutions and linear layers from N(0, 2/fan_in); set their biases to 0.

    Batch norms keep their values. As in fastai, the linear layer also has the gain of a ReLU,
    although no ReLU follows it.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            # He et al. 2015, "Delving Deep into Rectifiers", arXiv:1502.01852, equation 10.
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
