"""timm, with its parts combined as in its training script: a contestant; see ``protocol.py``.

    PYTHON timm_worker.py '{"data": "imagenette2-160"}'

The package on PyPI has no training script, so this is the loop of the script around the library's
own data set, loader, mixup, loss, optimizer and model, with the script's defaults: crops of 8 to
100 % of the area, flips, color jitter 0.4; no automatic augmentation and no random erasing, which
are off in the script, too. The options of the script would be ``--mixup 0.4 --smoothing 0.1 --opt
adamw``, and for the variant ``tuned`` also ``--amp --amp-dtype bfloat16 --channels-last``. The
script's prefetcher works with CUDA only, so it is off (``--no-prefetcher``).
"""

from typing import TYPE_CHECKING, Any

import timm
import timm.data
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from benchmarks.peers.plain import NUM_CLASSES, PlainContestant
    from benchmarks.peers.protocol import Settings, serve
else:  # a script in another environment, which has no package of ours
    from plain import NUM_CLASSES, PlainContestant
    from protocol import Settings, serve

# The script's own defaults of --workers and of --weight-decay.
NUM_WORKERS = 4
WEIGHT_DECAY = 2e-5


class Timm(PlainContestant):
    """timm's parts in `PlainContestant`'s loop."""

    name = f"timm {timm.__version__}"
    packages = ("timm", "torch", "torchvision", "numpy", "pillow")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        config = timm.data.resolve_data_config({"img_size": settings.size}, model=self.make_model())
        self.train_loader = self._loader("train", config)
        self.val_loader = self._loader("val", config)
        self.mixup = timm.data.Mixup(
            mixup_alpha=settings.mixup_alpha,
            label_smoothing=settings.smoothing,
            num_classes=NUM_CLASSES,
            mode="batch",
        )
        self.criterion = SoftTargetCrossEntropy()
        self.begin()

    def make_model(self) -> nn.Module:
        """Make the network that fastai calls xresnet18."""
        model: nn.Module = timm.create_model("resnet18d", num_classes=NUM_CLASSES)
        return model

    def make_optimizer(self, model: nn.Module, lr: float) -> Optimizer:
        """Make timm's AdamW."""
        optimizer: Optimizer = create_optimizer_v2(
            model, opt="adamw", lr=lr, weight_decay=WEIGHT_DECAY
        )
        return optimizer

    def mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Apply timm's mixup, which also smooths the labels; targets become probabilities."""
        mixed: tuple[Tensor, Tensor] = self.mixup(images, targets)
        return mixed

    def _loader(self, split: str, config: dict[str, Any]) -> DataLoader[Any]:
        training = split == "train"
        asked = self.settings.num_workers
        loader: DataLoader[Any] = timm.data.create_loader(
            timm.data.create_dataset(
                "", root=self.settings.data, split=split, is_training=training
            ),
            input_size=config["input_size"],
            batch_size=self.settings.batch_size,
            is_training=training,
            color_jitter=0.4,
            interpolation="random" if training else config["interpolation"],
            mean=config["mean"],
            std=config["std"],
            crop_pct=None if training else config["crop_pct"],
            num_workers=NUM_WORKERS if asked is None else asked,
            use_prefetcher=False,
        )
        return loader


if __name__ == "__main__":
    serve(Timm)
