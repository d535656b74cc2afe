"""Small data sets, in memory and on disk, and a network that trains in milliseconds."""

import itertools
import json
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from runner.config import checks
from runner.config.options import CONF_DIR
from runner.config.overlays import chosen_options
from runner.config.schema import Augment, AutoAugment, Budget, Data, Erasing, Optim, RunConfig
from runner.data.batches import Pixels
from runner.data.dataset import Dataset, Split
from runner.data.embedded import load_fashion
from runner.data.preprocess import Preprocess
from runner.models import build_model
from runner.records import evaluations, tensor_files
from runner.records.bundle import Architecture, Bundle, EvaluationSettings
from runner.records.identity import evaluation_identity
from runner.records.run_folder import RunFolder
from runner.training.loop import Training
from runner.training.schedule import Moment, plan
from runner.training.step import Batch, Learner
from runner.tricks import augment as augmentation
from runner.tricks import auto_augment, erasing
from runner.tricks.normalize import normalize


def go_together(*names: str) -> bool:
    """Whether no two overlays choose different options of a group, as two policies are."""
    chosen = [chosen_options("trick", name) for name in names]
    return all(
        one.get(group, option) == option
        for one, other in itertools.combinations(chosen, 2)
        for group, option in other.items()
    )


def _every_trick() -> list[str]:
    found: list[str] = []
    for name in sorted(path.stem for path in (CONF_DIR / "trick").iterdir()):
        found += [name] if go_together(*found, name) else []
    return found


EVERY_TRICK = f"+trick=[{','.join(_every_trick())}]"
"""The word that turns on every trick there is, together; of tricks that exclude each other one."""
KINDS_OF_STEPS = {
    "pixels": ["+trick=[rand_augment,random_erasing]"],
    "noise": ["+trick=trivial_augment", "erasing=random", "erasing.fill=noise"],
    "losses": ["+trick=[bce,class_weights]", "sampling=balanced"],
    "update": ["+trick=[sam,clip,accumulate,ema]"],
    "network": ["+trick=[stochastic_depth,blurpool]", "blurpool=all"],
    "cutmix": ["mixup=cutmix", "optim=sgd"],
    "rectangles": ["augment=inception"],
    "sizes": ["+trick=progressive_resizing"],
    "frozen": ["optim=fine_tune"],
}
"""Words of trainings whose steps take different paths, by what differs."""
CLASSES = ("blue", "green", "red")
Command = Callable[..., "subprocess.CompletedProcess[str]"]
"""Runs a command of ours with the given words."""

STANDARD = Augment(
    min_scale=0.75, flip=0.5, max_rotate=10, max_zoom=1.1, max_warp=0.2, max_lighting=0.2
)
INCEPTION = Augment(crop_from="rectangle", min_scale=0.08, max_ratio=4 / 3, flip=0.5)

COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 70), "red": (200, 50, 40)}


def add_test_part(root: Path) -> None:
    """Add a part ``test`` of five images per class to a copy of the tiny folder."""
    for seed, (name, colour) in enumerate(COLOURS.items()):
        write_images(root / "test" / name, 5, colour, 200 + seed)


def write_images(folder: Path, count: int, colour: tuple[int, int, int], seed: int) -> None:
    """Noisy images of one colour, 32 × 24 px: easy to tell apart, none equal to another."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        noise = rng.normal(0, 60, (24, 32, 3))
        pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")


class MemoryStore:
    """Images in a list, and how often each was read."""

    def __init__(self, images: list[np.ndarray]) -> None:
        self.images = images
        self.reads: Counter[int] = Counter()

    def rectangle(self, index: int) -> np.ndarray:
        self.reads[index] += 1
        return self.images[index]


def noise_images(count: int, *, seed: int = 0) -> list[np.ndarray]:
    """Squares, wide and tall images of short side 16; image i is brighter in channel i % 3."""
    random = np.random.default_rng(seed)
    images = []
    for index in range(count):
        height, width = ((16, 16), (16, 24), (24, 16))[random.integers(3)]
        pixels = random.integers(0, 160, (height, width, 3))
        pixels[..., index % 3] += 80
        images.append(pixels.astype(np.uint8))
    return images


def small_dataset(
    num_train: int = 33, num_val: int = 15, *, images: list[np.ndarray] | None = None
) -> Dataset:
    """Three classes; the training images come first in the store."""
    labels = np.arange(num_train + num_val) % len(CLASSES)
    train, val = np.arange(num_train), np.arange(num_train, num_train + num_val)
    splits = ["train"] * num_train + ["val"] * num_val
    return Dataset(
        name="small",
        classes=CLASSES,
        store=MemoryStore(noise_images(num_train + num_val) if images is None else images),
        train=Split(train, labels[train]),
        val=Split(val, labels[val]),
        presize=16,
        fingerprint="f" * 64,
        manifest=tuple(
            (split, f"{index}.png", CLASSES[labels[index]], f"{index:064x}")
            for index, split in enumerate(splits)
        ),
        skipped=(("broken.png", "cut short"),),
        converted={},
        leaked=(),
        num_ignored=0,
        notes=(),
    )


def small_network(num_outputs: int = len(CLASSES), *, seed: int = 0) -> nn.Sequential:
    """Without padding: a constant image gives the same features at every size."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
            nn.Sequential(nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_outputs)),
        )
    return network.to(memory_format=torch.channels_last)  # as every network is placed


def generators_asked_for(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of which of two pretended GPUs the generator is read from now on, which initializes CUDA."""
    asked: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", asked.append)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    return asked


def small_preprocess(**changes: Any) -> Preprocess:
    """The whole centre square at 16 px, without normalization."""
    neutral = Preprocess(16, 2.0, 1.0, 16, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return replace(neutral, **changes)


def a_batch(*, size: int = 12, count: int = 6, seed: int = 0) -> Batch:
    """A batch of random squares of three classes in turn, neither augmented nor mixed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)
    canvas = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    draws = augmentation.draw(Augment(), count, 0, "augment", 0)
    now = Moment(stage=0, epoch=0, step=0, starts_stage=True, ends_epoch=False, before=0,
                 progress=0.0, size=size, lr=0.01, momentum=0.9)  # fmt: skip
    return Batch(
        moment=now,
        pixels=Pixels(canvas, np.full((count, 2), size)),
        labels=torch.arange(count) % len(CLASSES),
        draws=draws,
        chosen=auto_augment.draw(AutoAugment(), count, size, 0, 0, 0),
        boxes=erasing.draw(Erasing(), count, size, size, 0, 0, 0),
        mix=None,
        num_images=count,
    )


def small_learner(model: nn.Sequential, *, layer_groups: int = 1, **changes: Any) -> Learner:
    """On the CPU in fp32, without normalization unless ``changes`` say otherwise."""
    groups = [list(part.parameters()) for part in model]
    if layer_groups == 1:
        groups = [list(model.parameters())]
    learner = Learner(
        model=model,
        groups=groups,
        num_outputs=model[-1][-1].out_features,
        preprocess=small_preprocess(),
        device=torch.device("cpu"),
        precision="fp32",
    )
    return replace(learner, **changes)


def small_config(**groups: Any) -> RunConfig:
    """Two epochs of four steps; ``groups`` replace whole groups or single top-level keys."""
    config = RunConfig(
        data=Data(batch_size=8, default_size=16),
        optim=Optim(lr=1e-2),
        budget=Budget(epochs=2),
        device="cpu",
        precision="fp32",
        threads=1,
    )
    return replace(config, **groups)


def trained(
    config: RunConfig,
    *,
    dataset: Dataset | None = None,
    layer_groups: int = 1,
    each: Callable[[Any], object] = lambda step: None,
    seed: int = 0,
) -> nn.Sequential:
    """A network after the whole training that ``config`` asks for."""
    dataset = dataset or small_dataset()
    model = small_network(seed=seed)
    learner = small_learner(model, layer_groups=layer_groups)
    for step in Training(learner, dataset, plan(config, len(dataset.train)), config):
        each(step)
    return model


def weights(model: nn.Module) -> torch.Tensor:
    """Everything that training changes, as one vector."""
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


OWN = small_preprocess(presize=20, size=16, crop=0.8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
"""Preprocessing of weights that have statistics, sizes and a crop of their own."""


def trained_tensors(num_outputs: int = len(CLASSES)) -> dict[str, torch.Tensor]:
    return small_network(num_outputs, seed=1).state_dict()


def with_metadata(path: Path, tensors: dict[str, torch.Tensor], how: Preprocess = OWN) -> Path:
    """Write a file of weights that says how its network sees an image."""
    description = json.dumps({"preprocess": how.to_dict()})
    path.write_bytes(tensor_files.to_bytes(tensors, {tensor_files.DESCRIPTION: description}))
    return path


def untrained_bundle(source: str, name: str, preprocess: Preprocess) -> Bundle:
    """Weights by chance that tell real images apart as trained ones do."""
    model = build_model(source, name, len(CLASSES), seed=3)
    pixels = torch.from_numpy(load_fashion().train_images[:64]).float().div(255)[:, None]
    images = nn.functional.interpolate(pixels, (preprocess.size,) * 2).expand(-1, 3, -1, -1)
    images = normalize(images, preprocess.mean, preprocess.std)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                module.momentum = None  # the plain mean
        model.train()(images)
        logits = model.eval()(images)
        head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        head.weight /= logits.std()  # neither sure of everything nor of nothing
        head.bias.sub_(logits.mean(0)).div_(logits.std())
    return Bundle(
        Path("untrained"),
        Architecture(source, name, len(CLASSES)),
        CLASSES,
        preprocess,
        EvaluationSettings("fp32", 8, 0, Augment()),
        model.state_dict(),
    )


def whole_result(folder: Path) -> dict[str, Any]:
    """The result of a run with the tricks and metrics of the evaluation that its command named."""
    run = RunFolder(folder)
    result = run.result()
    assert result is not None
    name = _evaluation(result)
    return evaluations.joined(result, None if name is None else evaluations.read(run, name))


def all_predictions(folder: Path) -> dict[str, Any]:
    """The ``labels`` and ``plain`` of a run, and ``tta`` if its command named one."""
    run = RunFolder(folder)
    result = run.result()
    assert result is not None
    found, name = run.predictions(), _evaluation(result)
    return found if name is None else {**found, "tta": evaluations.probabilities(run, name)}


def _evaluation(result: Mapping[str, Any]) -> str | None:
    return evaluation_identity(checks.from_dict(result["config"]))
