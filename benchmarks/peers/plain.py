"""The usual training loop around PyTorch's own parts, for timm and torchvision.

It follows the training scripts of both projects: one step after the other, mixup on the batch,
autocast around the model and the loss if requested. Whole trainings use AdamW and a one-cycle
schedule, as fastai does by default, so that accuracies after the same epochs can be compared.
"""

import os
import random
from abc import abstractmethod
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from benchmarks.peers.protocol import Contestant, Settings
else:  # a script in another environment, which has no package of ours
    from protocol import Contestant, Settings

NUM_CLASSES = 10
# The learning rate of the steps that are only timed; whole trainings are given theirs.
STEP_LR = 3e-3


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


class PlainContestant(Contestant):
    """A loop around the parts that a subclass makes.

    A subclass sets ``train_loader``, ``val_loader`` and ``criterion`` before it calls `begin`.
    """

    train_loader: DataLoader[Any]
    val_loader: DataLoader[Any]
    criterion: nn.Module

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        self.settings = settings
        self.tuned = settings.variant == "tuned"

    @abstractmethod
    def make_model(self) -> nn.Module:
        """Make a model with fresh weights."""

    @abstractmethod
    def make_optimizer(self, model: nn.Module, lr: float) -> Optimizer:
        """Make the optimizer for ``model``."""

    def mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Apply mixup to a batch; by default unchanged, because the loader has mixed it."""
        return images, targets

    def begin(self) -> None:
        """Make the model and the endless batches, and count parameters and processes."""
        self._start(self.settings.seed, STEP_LR)
        self.batches = self._endless()
        self.num_parameters = sum(weight.numel() for weight in self.model.parameters())
        self.num_workers = self.train_loader.num_workers
        self.batches_ahead = self.num_workers * (self.train_loader.prefetch_factor or 0)

    def facts(self) -> dict[str, object]:
        """Variant, precision and transforms of this contestant."""
        return {
            "variant": self.settings.variant,
            "precision": "bfloat16 autocast" if self.tuned else "float32",
            "channels_last": self.tuned,
            "train_transform": _transform(self.train_loader),
            "val_transform": _transform(self.val_loader),
        }

    def train(self, steps: int) -> tuple[int, float]:
        """See `Contestant`."""
        self.model.train()
        images = 0
        for _ in range(steps):
            batch = next(self.batches)
            images += len(batch[0])
            loss = self._step(*batch)
        return images, loss.item()

    def epochs(self, epochs: int, lr: float, seed: int, done: Callable[[float], None]) -> None:
        """See `Contestant`."""
        # Ends the loading processes of the epoch that was timed only up to some step.
        self.batches.close()
        self._start(seed, lr)
        schedule = OneCycleLR(
            self.optimizer, lr, epochs=epochs, steps_per_epoch=len(self.train_loader)
        )
        for _ in range(epochs):
            self.model.train()
            for batch in self.train_loader:
                self._step(*batch)
                schedule.step()
            done(self.validate()[1])
        self.batches = self._endless()

    def validate(self) -> tuple[int, float]:
        """See `Contestant`."""
        self.model.eval()
        total = right = 0
        with torch.inference_mode(), self._autocast():
            for images, targets in self.val_loader:
                outputs = self.model(self._formatted(images))
                right += (outputs.argmax(1) == targets).sum().item()
                total += len(targets)
        return total, right / total

    def _start(self, seed: int, lr: float) -> None:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002, timm draws from it
        torch.manual_seed(seed)
        self.model = self.make_model()
        if self.tuned:
            self.model.to(memory_format=torch.channels_last)
        self.optimizer = self.make_optimizer(self.model, lr)

    def _endless(self) -> Generator[tuple[Tensor, Tensor], None, None]:
        while True:
            yield from self.train_loader

    def _step(self, images: Tensor, targets: Tensor) -> Tensor:
        images, targets = self.mix(images, targets)
        with self._autocast():
            loss: Tensor = self.criterion(self.model(self._formatted(images)), targets)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        return loss

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.tuned)

    def _formatted(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.tuned else images


def _transform(loader: DataLoader[Any]) -> str:
    """Return what a folder of images does to each, in words."""
    return str(loader.dataset.transform)  # type: ignore[attr-defined]
