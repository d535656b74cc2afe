"""fastai, trained as in chapter 7 of its book: a contestant; see ``protocol.py``.

    PYTHON fastai_worker.py '{"data": "imagenette2-160"}'

It has the chapter's data block (``Resize`` of each item, ``aug_transforms`` and ImageNet's
statistics on the batch), xresnet, label smoothing and mixup, fastai's Adam and ``fit_one_cycle``,
in float32. Items are resized to twice the size, but not beyond the 160 pixels of the images.

The variant ``tuned`` adds fastai's ``ChannelsLast`` and bfloat16. fastai's own switch for bfloat16
(``to_bf16``) names CUDA and changes nothing on a CPU, so this worker adds the CPU's autocast, which
the library does not provide.

Steps are timed in fastai's own `Learner.fit`, which a callback stops between two steps: it runs in
a thread of its own, which sleeps until more steps are requested.
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
# The learning rate of the steps that are only timed; whole trainings are given theirs.
STEP_LR = 3e-3
# More epochs than are ever requested; fastai needs a number at the start.
ENDLESS_EPOCHS = 10**6


class CpuBfloat16(MixedPrecision):  # type: ignore[misc]
    """fastai's bfloat16 for a CPU."""

    def __init__(self) -> None:
        super().__init__(amp_mode=AMPMode.BF16)

    def before_fit(self) -> None:
        """Replace the autocast for CUDA."""
        super().before_fit()
        self.autocast = torch.autocast("cpu", dtype=torch.bfloat16)


class Held(FastaiCallback):  # type: ignore[misc]
    """Stops a training between two steps until more steps are requested."""

    order = 1000  # after all other callbacks have done their part of the step
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
        """From another thread: end the training after the current step."""
        self.ends = True
        self.asked.release()

    def before_fit(self) -> None:
        """Wait until the first steps are requested."""
        self.asked.acquire()

    def after_batch(self) -> None:
        """Count the step. After the last requested step, answer, and wait for the next request.

        Raises:
            CancelFitException: :meth:`end` was called.
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
        """Skip the validation; steps are timed without it.

        Raises:
            CancelValidException: always.
        """
        raise CancelValidException


class AfterEpochs(FastaiCallback):  # type: ignore[misc]
    """Reports the accuracy after every epoch."""

    order = 1000  # after the recorder

    def __init__(self, done: Callable[[float], None]) -> None:
        self.done = done

    def after_epoch(self) -> None:
        """Report the last value of the recorder, which belongs to the only metric."""
        self.done(self.recorder.values[-1][-1])


class Fastai(Contestant):
    """A contestant that runs the code of the chapter."""

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
        """Variant, precision and transforms of this contestant."""
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
        # A training that waits between two steps must continue in training mode.
        self.learner.model.train()
        return len(self.data.valid_ds), right

    def tta(self) -> tuple[int, float]:
        """TTA of the chapter: the mean of four augmented views, and the plain view with 1/4."""
        predictions, targets = self._evaluator().tta(n=4, beta=0.25)
        self.learner.model.train()
        return len(targets), accuracy(predictions, targets).item()

    def _data(self) -> DataLoaders:
        # By default, fastai takes one process per core, 16 at most.
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
        """Return the same model in another learner, so that a waiting training keeps its state."""
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
        # Some of the libraries below torch have a number of threads per calling thread.
        torch.set_num_threads(self.settings.threads)
        try:
            self.learner.fit(ENDLESS_EPOCHS, STEP_LR, cbs=self.held)
        except BaseException:
            # Another thread waits for an answer that will not come.
            traceback.print_exc()
            os._exit(1)


if __name__ == "__main__":
    serve(Fastai)
