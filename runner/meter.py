"""What a run has used and reached so far, a row per evaluation, over every attempt at it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from runner.display import Display
from runner.engine import Step
from runner.evaluation import Predictions
from runner.metrics import classification_metrics
from runner.schedule import Stage, moment


class Meter:
    """Adds up what training used, per row and in all, over every attempt at the run."""

    _KEPT = ("steps", "images", "pixels", "seconds", "eval_seconds", "_images", "_seconds")

    def __init__(self, stages: tuple[Stage, ...], display: Display, every: int = 1) -> None:
        """A row is of ``every`` epochs; the last one may be of fewer."""
        self.num_epochs = sum(stage.num_epochs for stage in stages)
        self._stages, self._every = stages, every
        self._display = display
        self.steps, self.images, self.pixels = 0, 0, 0
        self.seconds, self.eval_seconds = 0.0, 0.0
        self._accuracy = float("nan")
        self._begin_row()

    def _begin_row(self) -> None:
        self._losses: list[torch.Tensor] = []
        self._images, self._seconds = 0, 0.0

    def state(self) -> dict[str, Any]:
        """Everything, as values for JSON."""
        return {
            "losses": self._losses_on_cpu().tolist() if self._losses else [],
            **{name: getattr(self, name) for name in self._KEPT},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Stand where a meter stood whose ``state`` this is."""
        self._losses = list(torch.tensor(state["losses"], dtype=torch.float32))
        for name in self._KEPT:
            setattr(self, name, state[name])

    def _losses_on_cpu(self) -> torch.Tensor:
        # Losses of before an interruption came back from a file to the CPU, later ones may be on a
        # GPU.
        return torch.stack([loss.cpu() for loss in self._losses])

    @property
    def is_epoch_over(self) -> bool:
        """Whether the last step was the last of an epoch."""
        return self.steps > 0 and moment(self._stages, self.steps - 1).ends_epoch

    @property
    def is_row_over(self) -> bool:
        """Whether all steps of a row were made, which has not been evaluated."""
        if not self._losses:
            return False
        last = moment(self._stages, self.steps - 1)
        epochs = last.epoch + 1
        return last.ends_epoch and (epochs % self._every == 0 or epochs == self.num_epochs)

    def step(self, step: Step) -> None:
        """Count a step, and show it when the display is due."""
        self._losses.append(step.loss)
        self._images += step.num_images
        self._seconds += step.seconds
        self.steps += 1
        self.images += step.num_images
        self.pixels += step.num_images * step.size**2
        self.seconds += step.seconds
        if self._display.is_due():
            rate = self._images / max(self._seconds, 1e-9)
            note = f"size {step.size}  loss {float(step.loss):.3f}  {rate:,.0f} images/s"
            if np.isfinite(self._accuracy):
                note += f"  accuracy {self._accuracy:.2%}"
            name = self._stages[step.stage].name
            self._display.step(
                f"{name}, epoch {step.epoch + 1}/{self.num_epochs}", step.done, step.total, note
            )

    def end_row(
        self, predictions: Predictions, classes: tuple[str, ...]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The rows of the epochs just evaluated: what they came to, and the time they took.

        The validation loss is plain, whatever the training loss.
        """
        metrics = classification_metrics(predictions.plain, predictions.labels, classes)
        self._accuracy = metrics["accuracy"]
        self.eval_seconds += predictions.seconds
        last = moment(self._stages, self.steps - 1)
        row = {
            "epoch": last.epoch + 1,
            "step": self.steps,
            "stage": self._stages[last.stage].name,
            "train_loss": float(self._losses_on_cpu().mean()),
            "val_loss": metrics["nll"],
            "val_accuracy": metrics["accuracy"],
            "val_brier": metrics["brier"],
            "val_ece": metrics["ece"],
            "size": last.size,
            "lr": last.lr,
            "images": self.images,
            "pixels": self.pixels,
        }
        timing = {
            "epoch": last.epoch + 1,
            "seconds": self._seconds,
            "eval_seconds": predictions.seconds,
            "total_seconds": self.seconds + self.eval_seconds,
            "images_per_second": self._images / self._seconds,
        }
        self._begin_row()
        return row, timing
