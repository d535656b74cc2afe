"""Trick-runner as a contestant, and the limit it is compared with; see ``benchmarks.measure``.

    python -m benchmarks.own_worker '{"words": ["+recipe=small", …], "role": "run"}'

The role ``run`` trains with the loop of every run. The role ``limit`` trains with the same network,
precision, batch size, loss and optimizer on one fixed random batch: no data, no augmentation, no
checks. The role ``run without kept`` is ``run``, but each evaluation resizes the images anew.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from runner.config import compose
from runner.config.schema import RunConfig
from runner.data.dataset import Dataset, load_dataset
from runner.data.kept import MOST_BYTES
from runner.data.resident import resident
from runner.terminal.display import Display
from runner.training.learners import build_learner
from runner.training.loop import Training
from runner.training.meter import Meter
from runner.training.optim import build_optimizer, set_rates
from runner.training.predicting import evaluate, images_per_pass
from runner.training.schedule import plan
from runner.training.step import Learner

Steps = Iterator[Tensor]


class OwnTraining:
    """One network of ours in training, or the limit that it is compared with."""

    def __init__(self, words: list[str], role: str) -> None:
        compose.register()
        self.config: RunConfig = compose.config_of(words)
        cache = Path(self.config.outputs) / "cache"
        with Display(quiet=True) as display:
            dataset = load_dataset(self.config.data, self.config.largest_size, cache, display.work)
        self.learner: Learner = build_learner(self.config, dataset)[0]
        self.dataset: Dataset = resident(dataset, self.learner.device)
        self.role = role
        self._steps: Steps = self._limit() if role == "limit" else self._run()

    def train(self, steps: int) -> dict[str, Any]:
        """Continue the training by ``steps``, over as many epochs as that takes."""
        self._synchronize()
        started = time.perf_counter()
        for _ in range(steps):
            loss = next(self._steps)
        self._synchronize()
        seconds = time.perf_counter() - started
        images = steps * self.config.data.batch_size
        return {"seconds": seconds, "images": images, "loss": float(loss)}

    def _run(self) -> Steps:
        endless = replace(self.config, budget=replace(self.config.budget, epochs=100_000))
        stages = plan(endless, len(self.dataset.train))
        meter = Meter(stages)
        for step in Training(self.learner, self.dataset, stages, endless):
            meter.step(step)
            yield step.loss

    def _limit(self) -> Steps:
        learner, config = self.learner, self.config
        (stage, *_) = plan(config, len(self.dataset.train))
        optimizer = build_optimizer(learner.groups, config.optim, stage.lr_factors)
        set_rates(optimizer, 1e-4, config.optim.momentum)
        random = torch.Generator().manual_seed(0)
        shape = (config.data.batch_size, 3, config.size, config.size)
        images = torch.randn(shape, generator=random).to(learner.device)
        images = images.contiguous(memory_format=torch.channels_last)
        targets = torch.rand(len(images), learner.num_outputs, generator=random)
        targets = (targets / targets.sum(1, keepdim=True)).to(learner.device)
        learner.model.train()
        while True:
            with learner.autocast():
                outputs = learner.model(images)
            loss = F.cross_entropy(outputs.float(), targets)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            yield loss.detach()

    def validate(self) -> dict[str, Any]:
        """Evaluate the validation split, plain; the limit forwards as many random images."""
        return self._evaluated(with_tta=False)

    def tta(self) -> dict[str, Any]:
        """Evaluate the validation split, plain and with the configured TTA, in one pass."""
        return self._evaluated(with_tta=True)

    def _evaluated(self, *, with_tta: bool) -> dict[str, Any]:
        images = len(self.dataset.val)
        self._synchronize()
        started = time.perf_counter()
        if self.role == "limit":
            self._forward_only(images)
            return {"seconds": time.perf_counter() - started, "images": images}
        most_kept = 0 if self.role == "run without kept" else MOST_BYTES
        found = evaluate(
            self.learner, self.dataset, self.config, with_tta=with_tta, most_kept=most_kept
        )
        seconds = time.perf_counter() - started
        accuracy = float((found.tta.argmax(1) == found.labels).mean())
        return {"seconds": seconds, "images": images, "accuracy": accuracy}

    def _forward_only(self, images: int) -> None:
        learner, config = self.learner, self.config
        size, most = config.eval_size, images_per_pass(config, learner)
        batch = torch.randn(most, 3, size, size, device=learner.device)
        batch = batch.contiguous(memory_format=torch.channels_last)
        learner.model.eval()
        with torch.inference_mode(), learner.autocast():
            for start in range(0, images, most):
                learner.model(batch[: min(most, images - start)])
        self._synchronize()

    def _synchronize(self) -> None:
        if self.learner.device.type == "cuda":
            torch.cuda.synchronize(self.learner.device)


def main() -> None:
    """Answer commands from standard input until it ends."""
    settings = json.loads(sys.argv[1])
    out = sys.stdout
    with redirect_stdout(sys.stderr):
        contestant = OwnTraining(settings["words"], settings.get("role", "run"))
        parameters = sum(p.numel() for p in contestant.learner.model.parameters())
        name = "limit" if contestant.role == "limit" else "trick-runner"
        facts = {
            "ready": True,
            "name": name,
            "num_parameters": parameters,
            "precision": contestant.learner.precision,
            "threads": torch.get_num_threads(),
        }
        print(json.dumps(facts), file=out, flush=True)
        commands: dict[str, Callable[..., dict[str, Any]]] = {
            "train": contestant.train,
            "validate": contestant.validate,
            "tta": contestant.tta,
        }
        for line in sys.stdin:
            asked = json.loads(line)
            answer = commands[asked.pop("command")](**asked)
            print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
