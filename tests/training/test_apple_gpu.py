"""What a training does for an Apple GPU, without one: the tensors stay on the CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from runner.config.augment import Augment
from runner.config.auto_augment import AutoAugment
from runner.config.erasing import Erasing
from runner.config.mixup import Mixup
from runner.training import step as stepping
from runner.training.loop import Training
from runner.training.schedule import plan
from runner.tricks import augment, auto_augment, erasing, mixup
from tests.small import small_config, small_dataset, small_learner, small_network

WORDS = {
    "augment": Augment(max_rotate=10.0, max_lighting=0.2),
    "auto_augment": AutoAugment(policy="trivial"),
    "erasing": Erasing(probability=1.0),
    "mixup": Mixup(probability=1.0, cutmix=0.5),
}


@pytest.fixture
def copied(monkeypatch):
    """The type and device of each tensor that is copied to the GPU; it stays where it is.

    Erasing copies to the device of the images, which is the GPU's by then: the device is "images".
    """
    found = []

    def stays(tensor, device):
        found.append((tensor.dtype, device.type))
        return tensor

    def stays_with_images(tensor, device):
        found.append((tensor.dtype, "images"))
        return tensor

    for module in (stepping, augment, auto_augment, mixup):
        monkeypatch.setattr(module, "on_device", stays)
    monkeypatch.setattr(erasing, "on_device", stays_with_images)
    monkeypatch.setattr(torch.mps, "manual_seed", lambda seed: found.append(("seed", seed)))
    return found


def losses(device):
    config, dataset = small_config(**WORDS), small_dataset()
    learner = replace(small_learner(small_network()), device=torch.device(device))
    training = Training(learner, dataset, plan(config, len(dataset.train)), config)
    steps = iter(training)
    found = []
    for _ in range(3):
        next(steps)
        found.append(float(training._unseen[1].value() if training._unseen else torch.nan))
    return found


def test_no_float64_is_copied_and_the_pixels_are_prepared_on_the_cpu(copied):
    on_cpu = losses("cpu")
    others = [kind for kind, _ in copied].count("seed")  # torch.manual_seed, for the network
    del copied[:]
    assert losses("mps") == pytest.approx(on_cpu, rel=1e-4)
    assert [device for _, device in copied].count("images") == 2 * 3  # boxes and fill of each step
    kinds = copied_types(copied)
    assert {torch.float32, torch.int64} <= kinds
    assert torch.float64 not in kinds
    assert [kind for kind, _ in copied].count("seed") == others + 3  # once in each step


def copied_types(copied):
    return {dtype for dtype, device in copied if device in ("mps", "images") and dtype != "seed"}


def test_float64_of_erasing_would_be_seen(copied, monkeypatch):
    erase = erasing.erase
    monkeypatch.setattr(
        erasing, "erase", lambda images, boxes, fill: erase(images, boxes.astype(np.float64), fill)
    )
    losses("mps")
    assert torch.float64 in copied_types(copied)


def test_inputs_are_not_in_channels_last_memory():
    learner = small_learner(small_network())
    seen = []
    learner.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(2, 3, 12, 12).to(memory_format=torch.channels_last)
    for device in ("cpu", "mps"):
        replace(learner, device=torch.device(device)).logits(images)
    assert [inputs.is_contiguous() for inputs in seen] == [False, True]
