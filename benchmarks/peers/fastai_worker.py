"""fastai, as chapter 7 of its book trains: a contestant; see ``protocol.py``.

    PYTHON fastai_worker.py '{"data": "imagenette2-160"}'

The chapter's data block (``Resize`` of each item, ``aug_transforms`` and ImageNet's statistics on
the batch), its xresnet, label smoothing and mixup, fastai's Adam and ``fit_one_cycle``, in float32.
Items are resized to twice the size, but not beyond the 160 pixels that the images have.

The variant ``tuned`` adds fastai's ``ChannelsLast`` and bfloat16. Its own switch for that
(``to_bf16``) names CUDA and changes nothing on a CPU, so it is given the CPU's autocast here, more
than comes with the library.

Steps are timed in fastai's own `Learner.fit`, held between two steps by a callback: it runs in a
thread of its own, which sleeps while nobody asks for more.
"""

import os
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

import fastai
import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.fp16 import AMPMode, MixedPrecision
from fastai.callback.mixup import MixUp
from fastai.callback.schedule import fit_one_cycle  # noqa: F401, it becomes a method of Learner
from fastai.learner import Learner
from fastai.losses import LabelSmoothingCrossEntropy
from fastai.metrics import accuracy
from fastai.vision.all import (
    Callback as FastaiCallback,
)
from fastai.vision.all import (
    CancelFitException,
    CancelValidException,
    CategoryBlock,
    DataBlock,
    DataLoaders,
    GrandparentSplitter,
    ImageBlock,
    Normalize,
    Resize,
    aug_transforms,
    default_device,
    get_image_files,
    imagenet_stats,
    parent_label,
    set_seed,
)
from fastai.vision.models.xresnet import xresnet18

if TYPE_CHECKING:
    from benchmarks.peers.protocol import Contestant, Settings, serve
else:  # a script in another environment, which has no package of ours
    from protocol import Contestant, Settings, serve

NUM_CLASSES = 10
IMAGE_SIDE = 160
# Of the steps that are only timed; whole trainings are told theirs.
STEP_LR = 3e-3
# More than are ever asked for; fastai wants to know at the start.
ENDLESS_EPOCHS = 10**6


class CpuBfloat16(MixedPrecision):  # type: ignore[misc]
    """fastai's bfloat16 for a CPU."""

    def __init__(self) -> None:
        super().__init__(amp_mode=AMPMode.BF16)

    def before_fit(self) -> None:
        """Replace the autocast, which is CUDA's."""
        super().before_fit()
        self.autocast = torch.autocast("cpu", dtype=torch.bfloat16)


class Held(FastaiCallback):  # type: ignore[misc]
    """Lets a training go on only by as many steps as are asked for."""

    order = 1000  # after all others have done their part of the step
    run_valid = False

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.answered = threading.Semaphore(0)
        self.steps_left = self.images = 0
        self.loss_value = float("nan")
        self.ends = False

    def go_on(self, steps: int) -> tuple[int, float]:
        """From another thread: train ``steps``; return the number of images and the last loss."""
        self.steps_left, self.images = steps, 0
        self.asked.release()
        self.answered.acquire()
        return self.images, self.loss_value

    def end(self) -> None:
        """From another thread: let the training end where it is."""
        self.ends = True
        self.asked.release()

    def before_fit(self) -> None:
        """Wait for the first steps to be asked for."""
        self.asked.acquire()

    def after_batch(self) -> None:
        """Count; when all that was asked for is done, tell, and wait before the next batch is made.

        Raises:
            CancelFitException: no more is wanted.
        """
        self.images += len(self.x)
        self.steps_left -= 1
        if self.steps_left == 0:
            self.loss_value = self.learn.loss.item()
            self.answered.release()
            self.asked.acquire()
            if self.ends:
                raise CancelFitException

    def before_validate(self) -> None:
        """Skip it; steps are timed without.

        Raises:
            CancelValidException: always.
        """
        raise CancelValidException


class AfterEpochs(FastaiCallback):  # type: ignore[misc]
    """Tells the accuracy after every epoch."""

    order = 1000  # after the recorder

    def __init__(self, done: Callable[[float], None]) -> None:
        self.done = done

    def after_epoch(self) -> None:
        """The last value that the recorder has written is that of the only metric."""
        self.done(self.recorder.values[-1][-1])


class Fastai(Contestant):
    """The chapter's code."""

    name = f"fastai {fastai.__version__}"
    packages = ("fastai", "fastcore", "torch", "torchvision", "numpy", "pillow")

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        default_device(use=False)
        self.settings = settings
        self.presize = min(2 * settings.size, IMAGE_SIDE)
        set_seed(settings.seed)
        self.data = self._data()
        self.held: Held | None = None
        self.learner = self._learner()
        self.num_parameters = sum(weight.numel() for weight in self.learner.model.parameters())
        self.num_workers = self.data.train.fake_l.num_workers
        self.batches_ahead = self.num_workers * self.data.train.fake_l.prefetch_factor

    def facts(self) -> dict[str, object]:
        """How it was set up."""
        tuned = self.settings.variant == "tuned"
        return {
            "variant": self.settings.variant,
            "precision": "bfloat16 autocast" if tuned else "float32",
            "channels_last": tuned,
            "presize": self.presize,
            "item_transform": str(self.data.train.after_item),
            "batch_transform": str(self.data.train.after_batch),
        }

    def train(self, steps: int) -> tuple[int, float]:
        """See `Contestant`."""
        if self.held is None:
            self.held = Held()
            self.thread = threading.Thread(target=self._fit_held, daemon=True)
            self.thread.start()
        return self.held.go_on(steps)

    def epochs(self, epochs: int, lr: float, seed: int, done: Callable[[float], None]) -> None:
        """See `Contestant`."""
        if self.held is not None:
            self.held.end()
            self.thread.join()
            self.held = None
        set_seed(seed)
        self.learner = self._learner()
        self.learner.fit_one_cycle(epochs, lr, cbs=AfterEpochs(done))

    def validate(self) -> tuple[int, float]:
        """See `Contestant`."""
        _, right = self._evaluator().validate()
        # A training that is held between two steps goes on in the mode that it was in.
        self.learner.model.train()
        return len(self.data.valid_ds), right

    def tta(self) -> tuple[int, float]:
        """The chapter's: four augmented views, averaged, and the plain one with a weight of 1/4."""
        predictions, targets = self._evaluator().tta(n=4, beta=0.25)
        self.learner.model.train()
        return len(targets), accuracy(predictions, targets).item()

    def _data(self) -> DataLoaders:
        # Asked for nothing, fastai takes one process per core, 16 at most.
        asked = self.settings.num_workers
        workers = {} if asked is None else {"num_workers": asked}
        block = DataBlock(
            blocks=(ImageBlock, CategoryBlock),
            get_items=get_image_files,
            splitter=GrandparentSplitter(train_name="train", valid_name="val"),
            get_y=parent_label,
            item_tfms=Resize(self.presize),
            batch_tfms=[
                *aug_transforms(size=self.settings.size, min_scale=0.75),
                Normalize.from_stats(*imagenet_stats),
            ],
        )
        return block.dataloaders(self.settings.data, bs=self.settings.batch_size, **workers)

    def _learner(self) -> Learner:
        return Learner(
            self.data,
            xresnet18(n_out=NUM_CLASSES),
            loss_func=LabelSmoothingCrossEntropy(eps=self.settings.smoothing),
            metrics=accuracy,
            cbs=[*self._mixing(), *self._precision()],
        )

    def _evaluator(self) -> Learner:
        """The same model in a learner of its own, so that a held training keeps its state."""
        return Learner(
            self.data,
            self.learner.model,
            loss_func=LabelSmoothingCrossEntropy(eps=self.settings.smoothing),
            metrics=accuracy,
            cbs=self._precision(),
        )

    def _mixing(self) -> list[FastaiCallback]:
        alpha = self.settings.mixup_alpha
        return [MixUp(alpha)] if alpha > 0 else []

    def _precision(self) -> list[FastaiCallback]:
        return [ChannelsLast(), CpuBfloat16()] if self.settings.variant == "tuned" else []

    def _fit_held(self) -> None:
        # The number of threads is each thread's own for some of the libraries below torch.
        torch.set_num_threads(self.settings.threads)
        try:
            self.learner.fit(ENDLESS_EPOCHS, STEP_LR, cbs=self.held)
        except BaseException:
            # Somebody waits for an answer that will not come.
            traceback.print_exc()
            os._exit(1)


if __name__ == "__main__":
    serve(Fastai)
