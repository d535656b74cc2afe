"""One run from its checked configuration to its result on disk: assemble, fit, evaluate, record."""

import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from runner import __version__
from runner.bundle import bundle_files
from runner.data.dataset import Dataset
from runner.data.statistics import training_statistics
from runner.display import Display
from runner.engine import Learner, Predictions, Step, evaluate, fit
from runner.errors import ConfigError, TrainingError
from runner.hardware import cpu_name, device_kind, num_cores, used_precision
from runner.locks import locked
from runner.metrics import classification_metrics
from runner.models import build_model, guard_strided_convolutions, layer_groups
from runner.randomness import torch_seed
from runner.records import RunFolder
from runner.schedule import Stage, plan
from runner.schema import RunConfig, to_dict


def train_and_evaluate(
    config: RunConfig,
    dataset: Dataset,
    folder: RunFolder,
    overrides: list[str],
    run_identity: str,
    display: Display,
) -> dict[str, Any]:
    """Train, evaluate and write the run folder; returns the content of ``result.json``.

    Raises:
        BusyError: another process is at this run.
        TrainingError: training diverged or memory ran out; ``status.json`` says so too.
    """
    stages = plan(config, len(dataset.train))
    learner = build_learner(config, dataset)
    with locked(folder.path / "run.lock", wait=False):
        # Another process may have finished it while this one was starting.
        if not config.force and (finished := folder.result()) is not None:
            return finished
        folder.start(to_dict(config), overrides)
        try:
            result = _train(config, dataset, folder, stages, learner, display)
            result["identity"] = run_identity
            result["command"] = ["python", "-m", "runner.train", *overrides]
            folder.finish(result)
        except KeyboardInterrupt:
            folder.write_status("interrupted")
            raise
        except Exception as error:
            problem = _out_of_memory(config) if _is_out_of_memory(error) else error
            folder.write_status("failed", str(problem))
            if problem is error:
                raise
            raise problem from error
    return folder.result() or {}


def build_learner(config: RunConfig, dataset: Dataset) -> Learner:
    """The network with its initial weights, on its device, with its statistics."""
    device = _device(config.device)
    torch.set_num_threads(config.threads or num_cores())
    if config.normalize.source == "dataset":
        cache = Path(config.outputs).expanduser() / "cache"
        mean, std = training_statistics(dataset, cache)
    else:
        mean, std = config.normalize.mean, config.normalize.std
    num_outputs = config.model.num_outputs or len(dataset.classes)
    if num_outputs < len(dataset.classes):
        raise ConfigError(
            f"{num_outputs} outputs cannot tell {len(dataset.classes)} classes apart",
            where=f"model.num_outputs={num_outputs}",
            fix="model.num_outputs=null",
        )
    model = build_model(
        config.model.source,
        config.model.name,
        num_outputs,
        seed=torch_seed(config.seed, "weights"),
        dropout=config.model.dropout,
    )
    model = model.to(device).to(memory_format=torch.channels_last)
    groups = layer_groups(model) if config.optim.layer_groups == 3 else [list(model.parameters())]
    guard_strided_convolutions(model)
    precision = used_precision(config.precision, device.type, config.size)
    return Learner(model, groups, num_outputs, mean, std, device, precision)


def _is_out_of_memory(error: Exception) -> bool:
    # On the CPU torch raises a plain RuntimeError, which only its text tells from others.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _out_of_memory(config: RunConfig) -> TrainingError:
    return TrainingError(
        "out of memory",
        where=f"data.batch_size={config.data.batch_size} eval.batch_size={config.eval.batch_size}",
        fix=f"data.batch_size={max(1, config.data.batch_size // 2)} "
        f"eval.batch_size={max(1, config.eval.batch_size // 2)}",
    )


def _train(
    config: RunConfig,
    dataset: Dataset,
    folder: RunFolder,
    stages: tuple[Stage, ...],
    learner: Learner,
    display: Display,
) -> dict[str, Any]:
    folder.write_bytes("split.csv.gz", dataset.manifest_csv())
    environment = _environment(learner)  # now, before anyone can change the code behind it
    meter = _Meter(stages, display)
    started = time.perf_counter()
    predictions = None
    for step in fit(learner, dataset, stages, config):
        meter.step(step)
        if step.ends_epoch:
            is_last = step.done == step.total
            predictions = evaluate(
                learner, dataset, config, with_tta=is_last, progress=display.evaluation
            )
            row = meter.end_epoch(step, predictions, dataset.classes)
            folder.append_row(row)
            display.epoch(row, meter.num_epochs)
    assert predictions is not None
    metrics = _metrics(predictions, dataset.classes)
    folder.write_predictions(predictions.labels, predictions.plain, predictions.tta)
    bundle = bundle_files(
        learner.model,
        architecture={
            "source": config.model.source,
            "name": config.model.name,
            "num_outputs": learner.num_outputs,
        },
        classes=dataset.classes,
        preprocess={
            "presize": dataset.presize,
            "max_aspect": config.data.max_aspect,
            "crop": "centre square",
            "size": config.eval_size,
            "interpolation": "bilinear, antialiased",
            "mean": list(learner.mean),
            "std": list(learner.std),
            "color": "RGB, EXIF orientation applied, transparency over white",
        },
    )
    for name, content in bundle.items():
        folder.write_bytes(f"bundle/{name}", content)
    return {
        "tricks": config.tricks,
        "seed": config.seed,
        "data": _data_facts(dataset),
        "metrics": metrics,
        "budget": {
            "epochs": sum(stage.num_steps / stage.steps_per_epoch for stage in stages),
            "steps": meter.steps,
            "images": meter.images,
            "pixels": meter.pixels,
            "forward_passes_plain": predictions.passes_plain * len(dataset.val),
            "forward_passes_tta": predictions.passes_tta * len(dataset.val),
            "seconds": time.perf_counter() - started,
            "train_seconds": meter.seconds,
            "images_per_second": meter.images / meter.seconds,
        },
        "model": {
            "source": config.model.source,
            "name": config.model.name,
            "num_outputs": learner.num_outputs,
            "num_parameters": sum(p.numel() for p in learner.model.parameters()),
            "mean": list(learner.mean),
            "std": list(learner.std),
        },
        "config": to_dict(config),
        "environment": environment,
    }


class _Meter:
    """Adds up what training used, per epoch and in all."""

    def __init__(self, stages: tuple[Stage, ...], display: Display) -> None:
        self.num_epochs = sum(stage.num_epochs for stage in stages)
        self._stages = stages
        self._display = display
        self.steps, self.images, self.pixels, self.seconds = 0, 0, 0, 0.0
        self._accuracy = float("nan")
        self._reset()

    def _reset(self) -> None:
        self._losses: list[torch.Tensor] = []
        self._images, self._seconds = 0, 0.0

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

    def end_epoch(
        self, step: Step, predictions: Predictions, classes: tuple[str, ...]
    ) -> dict[str, Any]:
        """The row of the epoch that ends with ``step``; the validation loss is plain."""
        metrics = classification_metrics(predictions.plain, predictions.labels, classes)
        self._accuracy = metrics["accuracy"]
        row = {
            "epoch": step.epoch + 1,
            "step": step.done,
            "stage": self._stages[step.stage].name,
            "train_loss": float(torch.stack(self._losses).mean()),
            "val_loss": metrics["nll"],
            "val_accuracy": metrics["accuracy"],
            "val_brier": metrics["brier"],
            "val_ece": metrics["ece"],
            "size": step.size,
            "lr": step.lr,
            "images": self.images,
            "pixels": self.pixels,
            "images_per_second": self._images / self._seconds,
            "seconds": self._seconds,
            "eval_seconds": predictions.seconds,
        }
        self._reset()
        return row


def _metrics(predictions: Predictions, classes: tuple[str, ...]) -> dict[str, Any]:
    plain = classification_metrics(predictions.plain, predictions.labels, classes)
    tta = classification_metrics(predictions.tta, predictions.labels, classes)
    return {
        "plain": {**plain, "forward_passes": predictions.passes_plain},
        "tta": {**tta, "forward_passes": predictions.passes_tta},
    }


def _data_facts(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "num_train": len(dataset.train),
        "num_val": len(dataset.val),
        "classes": list(dataset.classes),
        "presize": dataset.presize,
        "skipped": len(dataset.skipped),
        "skipped_images": [{"image": name, "reason": why} for name, why in dataset.skipped],
        "converted": dataset.converted,
        "leaked": len(dataset.leaked),
        "ignored": dataset.num_ignored,
    }


def _device(name: str) -> torch.device:
    """The device of ``name``; ``auto`` is the GPU where there is one."""
    device = torch.device(device_kind(name) if name == "auto" else name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"this machine has {torch.cuda.device_count()} CUDA devices",
            where=f"device={name}",
            fix="device=cpu",
        )
    return device


def _environment(learner: Learner) -> dict[str, Any]:
    is_gpu = learner.device.type == "cuda"
    return {
        "runner": __version__,
        "revision": _revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(learner.device) if is_gpu else cpu_name(),
        "precision": learner.precision,
        "threads": torch.get_num_threads(),
        "cores": num_cores(),
    }


def _revision() -> str | None:
    """The git commit of this code where it runs from a checkout, with + for local changes."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(  # noqa: S603
            ["git", "-C", str(root), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
