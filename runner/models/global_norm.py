"""BatchNorm over the whole batch if several processes share the batch.

With statistics per process, two processes would train another network than one process does.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from runner.errors import ConfigError


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """The equivalent of torch's SyncBatchNorm for processes on CPUs; torch's supports only GPUs.

    Mean and variance are computed in float32 in two passes over the images of all processes, which
    may have different numbers of images.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's own name
        """Normalize images (N, C, H, W) per channel."""
        if not self.training:
            return super().forward(input)
        values = input.float()
        axes, shape = (0, 2, 3), (1, -1, 1, 1)
        count = values.new_tensor(values.numel() / values.shape[1])
        torch.distributed.all_reduce(count)
        mean: Tensor = _Sum.apply(values.sum(axes)) / count
        centred = values - mean.view(shape)
        variance: Tensor = _Sum.apply((centred * centred).sum(axes)) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return (centred * scale.view(shape) + self.bias.view(shape)).to(input.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes; gradients flow back to each process."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        torch.distributed.all_reduce(total)
        return total


def share_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Let the BatchNorms of ``model`` use statistics over all processes.

    Parameters and buffers stay the same objects.

    Raises:
        ConfigError: the model has a kind of BatchNorm that cannot be shared on this device.
    """
    if device.type == "cuda":
        return _synchronized(model)
    for name, module in list(model.named_modules()):
        if not isinstance(module, _BatchNorm):
            continue
        is_plain = type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats
        if not is_plain or module.momentum is None:
            raise ConfigError(
                f"{type(module).__name__} ({name}) cannot share its statistics between processes "
                "on the CPU",
                where="model.name",
                fix="one process, or model=xresnet18",
            )
        module.__class__ = GlobalBatchNorm2d
    return model


def _synchronized(model: nn.Module) -> nn.Module:
    try:
        from timm.layers import convert_sync_batchnorm as convert  # also knows timm's own kinds
    except ImportError:
        convert = nn.SyncBatchNorm.convert_sync_batchnorm
    converted: nn.Module = convert(model)
    return converted
