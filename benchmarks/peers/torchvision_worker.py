"""torchvision's usual recipe in a plain PyTorch loop: a contestant; see ``protocol.py``.

    PYTHON torchvision_worker.py '{"data": "imagenette2-160"}'

It consists of `ImageFolder`, ``DataLoader``, transforms of version 2 (random crops of 8 to 100 % of
the area and flips of the PIL image, the defaults of the reference script), `v2.MixUp` in the
collate function as in torchvision's documentation, cross entropy with label smoothing, and AdamW.
The model is timm's ``resnet18d``, as for the other contestants; without timm it is torchvision's
``resnet18``, which has another and cheaper stem: ``facts`` says which. The variant ``tuned`` adds
bfloat16 and channels last.
"""

from typing import TYPE_CHECKING, Any

import torch
import torchvision
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader, default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

if TYPE_CHECKING:
    from benchmarks.peers.plain import NUM_CLASSES, PlainContestant, num_cores
    from benchmarks.peers.protocol import Settings, serve
else:  # a script in another environment, which has no package of ours
    from plain import NUM_CLASSES, PlainContestant, num_cores
    from protocol import Settings, serve

try:
    import timm
except ImportError:
    timm = None

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The reference script's --val-resize-size 256 and --val-crop-size 224.
RESIZE_OVER_CROP = 256 / 224


class MixedBatch:
    """A collate function with mixup; a class, because loading processes may unpickle it."""

    def __init__(self, alpha: float) -> None:
        self.mixup = v2.MixUp(alpha=alpha, num_classes=NUM_CLASSES)

    def __call__(self, samples: list[Any]) -> tuple[Tensor, Tensor]:
        """Return a batch of images, and of labels as probabilities."""
        mixed: tuple[Tensor, Tensor] = self.mixup(*default_collate(samples))
        return mixed


class Torchvision(PlainContestant):
    """torchvision's parts in `PlainContestant`'s loop."""

    name = f"torchvision {torchvision.__version__.partition('+')[0]}"
    packages = ("torchvision", "torch", "numpy", "pillow")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        asked = settings.num_workers
        num_workers = num_cores() if asked is None else asked
        to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        crop = v2.RandomResizedCrop(settings.size)
        center = [v2.Resize(round(settings.size * RESIZE_OVER_CROP)), v2.CenterCrop(settings.size)]
        self.train_loader = DataLoader(
            ImageFolder(
                f"{settings.data}/train", v2.Compose([crop, v2.RandomHorizontalFlip(), *to_tensor])
            ),
            settings.batch_size,
            shuffle=True,
            num_workers=num_workers,
            collate_fn=MixedBatch(settings.mixup_alpha),
        )
        self.val_loader = DataLoader(
            ImageFolder(f"{settings.data}/val", v2.Compose([*center, *to_tensor])),
            settings.batch_size,
            num_workers=num_workers,
        )
        self.criterion = nn.CrossEntropyLoss(label_smoothing=settings.smoothing)
        self.begin()

    def facts(self) -> dict[str, object]:
        """Variant, precision, transforms and model of this contestant."""
        return {**super().facts(), "model": "timm resnet18d" if timm else "torchvision resnet18"}

    def make_model(self) -> nn.Module:
        """Make the model of the other contestants if timm is installed."""
        model: nn.Module
        if timm is None:
            model = torchvision.models.resnet18(num_classes=NUM_CLASSES)
        else:
            model = timm.create_model("resnet18d", num_classes=NUM_CLASSES)
        return model

    def make_optimizer(self, model: nn.Module, lr: float) -> Optimizer:
        """Make torch's AdamW."""
        return AdamW(model.parameters(), lr=lr)


if __name__ == "__main__":
    serve(Torchvision)
