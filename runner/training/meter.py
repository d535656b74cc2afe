"""The steps, images and seconds of a run, over every attempt at it; a row per evaluation."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from runner.machine import fields
from runner.training.loop import Step
from runner.training.schedule import Stage, moment


class Meter:
    """Adds up the cost of training, per row and in total, over every attempt at the run.

    Attributes:
        num_epochs: epochs that the plan begins; the last epoch of a stage may be a partial one.
        steps: number of steps made.
        images: number of images trained on, over all processes.
        pixels: number of pixels trained on.
        seconds: time spent on the steps.
        eval_seconds: time spent on evaluations.
    """

    _KEPT = ("steps", "images", "pixels", "seconds", "eval_seconds", "_images", "_seconds")

    def __init__(self, stages: tuple[Stage, ...], every: int = 1) -> None:
        """Begin at zero; a row covers ``every`` epochs, the last row perhaps fewer."""
        self.num_epochs = sum(stage.num_epochs for stage in stages)
        self._stages, self._every = stages, every
        self.steps, self.images, self.pixels = 0, 0, 0
        self.seconds, self.eval_seconds = 0.0, 0.0
        self._accuracy = float("nan")
        self._clipped_before = 0  # in earlier rows
        self._clipped: torch.Tensor | None = None  # number of steps, on the device; if any clips
        self._begin_row()

    def _begin_row(self) -> None:
        self._losses: list[torch.Tensor] = []
        self._images, self._seconds = 0, 0.0
        if self._clipped is not None:
            self._clipped = torch.zeros_like(self._clipped)

    def state(self) -> dict[str, Any]:
        """Everything that a checkpoint keeps, as values for JSON."""
        return {
            "losses": self._losses_on_cpu().tolist() if self._losses else [],
            **self._clipping(),
            **{name: getattr(self, name) for name in self._KEPT},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the ``state`` of another meter.

        Raises:
            ValueError: ``state`` does not hold the values of a meter.
        """
        for name in self._KEPT:
            is_time = name.endswith("seconds")
            kept = (fields.number if is_time else fields.whole)(state, name, at_least=0)
            setattr(self, name, kept)
        losses = fields.numbers(state, "losses", count=len(fields.value(state, "losses")))
        self._losses = list(torch.tensor(losses, dtype=torch.float32))
        if "clipped" in state:
            most = self.steps - len(losses)
            self._clipped_before = fields.whole(state, "clipped_before", at_most=most)
            self._clipped = torch.tensor(fields.whole(state, "clipped", at_most=len(losses)))

    def _clipping(self) -> dict[str, int]:
        """Return the part of :meth:`state` about clipped gradients; empty without clipping."""
        if self._clipped is None:
            return {}
        return {"clipped": int(self._clipped), "clipped_before": self._clipped_before}

    def _losses_on_cpu(self) -> torch.Tensor:
        # Losses restored from a checkpoint are on the CPU; later losses may be on a GPU.
        return torch.stack([loss.cpu() for loss in self._losses])

    @property
    def clipped(self) -> float | None:
        """The part of all steps whose gradient was clipped; None without clipping."""
        if self._clipped is None:
            return None
        return (self._clipped_before + int(self._clipped)) / max(self.steps, 1)

    @property
    def is_epoch_over(self) -> bool:
        """Whether the last step was the last of an epoch."""
        return self.steps > 0 and moment(self._stages, self.steps - 1).ends_epoch

    @property
    def is_row_over(self) -> bool:
        """Whether all steps of a row were made and the row has not been evaluated."""
        if not self._losses:
            return False
        last = moment(self._stages, self.steps - 1)
        epochs = last.epoch + 1
        return last.ends_epoch and (epochs % self._every == 0 or epochs == self.num_epochs)

    @property
    def epochs(self) -> float:
        """Epochs of the plan; parts of an epoch count as parts."""
        return sum(stage.num_steps / stage.steps_per_epoch for stage in self._stages)

    def step(self, step: Step) -> None:
        """Count a step."""
        self._losses.append(step.loss)
        if step.clipped is not None:
            clipped = step.clipped.long()
            self._clipped = clipped if self._clipped is None else clipped + self._clipped
        self._images += step.num_images
        self._seconds += step.seconds
        self.steps += 1
        self.images += step.num_images
        self.pixels += step.num_images * step.moment.size**2
        self.seconds += step.seconds

    def note(self, step: Step) -> tuple[str, str]:
        """Describe the place and the measures of ``step``. Synchronizes with a GPU."""
        now = step.moment
        rate = self._images / max(self._seconds, 1e-9)
        note = f"size {now.size}  loss {float(step.loss):.3f}  {rate:,.0f} images/s"
        if math.isfinite(self._accuracy):
            note += f"  accuracy {self._accuracy:.2%}"
        if self._clipped is not None:
            note += f"  clipped {int(self._clipped) / len(self._losses):.0%}"
        name = self._stages[now.stage].name
        return f"{name}, epoch {now.epoch + 1}/{self.num_epochs}", note

    def end_row(
        self, plain: Mapping[str, Any], eval_seconds: float
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Finish a row: return the metrics of its epochs, and the seconds that the epochs took.

        Args:
            plain: metrics of the plain predictions; the validation loss is plain cross entropy,
                whatever the training loss is.
            eval_seconds: time that the evaluation took.
        """
        self._accuracy = plain["accuracy"]
        self.eval_seconds += eval_seconds
        last = moment(self._stages, self.steps - 1)
        row = {
            "epoch": last.epoch + 1,
            "step": self.steps,
            "stage": self._stages[last.stage].name,
            "train_loss": float(self._losses_on_cpu().mean()),
            "val_loss": plain["log_loss"],
            "val_accuracy": plain["accuracy"],
            "val_balanced_accuracy": plain["balanced_accuracy"],
            "val_brier": plain["brier"],
            "val_macro_f1": plain["macro_f1"],
            "val_auroc": plain["auroc"],
            "val_ece": plain["ece"],
            "size": last.size,
            "lr": last.lr,
            "images": self.images,
            "pixels": self.pixels,
        }
        if self._clipped is not None:
            count = int(self._clipped)
            row["clipped"] = count / len(self._losses)
            self._clipped_before += count
        timing = {
            "epoch": last.epoch + 1,
            "seconds": self._seconds,
            "eval_seconds": eval_seconds,
            "total_seconds": self.seconds + self.eval_seconds,
            "images_per_second": self._images / self._seconds,
        }
        self._begin_row()
        return row, timing
