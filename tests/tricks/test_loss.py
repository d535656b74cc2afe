"""The training loss against torch, scikit-learn and loops; its first bias, and what is refused."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import exp, log
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small import (
    CLASSES,
    Command,
    small_config,
    small_dataset,
    small_learner,
    small_network,
    small_preprocess,
    weights,
    with_metadata,
)
from torch import nn

from runner.config import checks
from runner.config.idea import idea_of
from runner.config.schema import Accumulate, Loss, Mixup, Model, RunConfig, Smoothing
from runner.data.dataset import Dataset, Split, load_dataset
from runner.data.images import ArrayImages
from runner.errors import ConfigError, DataError
from runner.export import programs
from runner.export.__main__ import export
from runner.machine.processes import ALONE, Processes
from runner.models import build_model
from runner.records.bundle import Change, open_bundle
from runner.records.run_folder import RunFolder
from runner.training.learners import build_learner, trained_learner
from runner.training.loop import Training
from runner.training.predicting import evaluate
from runner.training.schedule import plan
from runner.training.step import compute_gradients
from runner.tricks.loss import class_weights, mean_loss, probabilities, total_weight
from runner.tricks.smoothing import one_hot, smooth

BALANCED, EFFECTIVE = Loss(class_weights="balanced"), Loss(class_weights="effective")
WEIGHTED = (BALANCED, EFFECTIVE, Loss(kind="bce", class_weights="balanced"))


def some(num_images: int = 12, num_classes: int = 5, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Logits and labels, all classes among them, and the weights of the classes."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num_images, num_classes, generator=generator)
    labels = torch.randperm(num_images, generator=generator) % num_classes
    return logits, labels, 0.1 + torch.rand(num_classes, generator=generator)


def mixed(num_images: int = 12, num_classes: int = 5) -> torch.Tensor:
    """Smoothed targets of mixed images."""
    _, labels, _ = some(num_images, num_classes)
    share = torch.rand(num_images, 1, generator=torch.Generator().manual_seed(1))
    targets = one_hot(labels, num_classes)
    return smooth(torch.lerp(targets.flip(0), targets, share), 0.1)


# ── The losses ─────────────────────────────────────────────────────────────────────────────────


def test_without_weights_cross_entropy_is_torchs_to_the_bit() -> None:
    logits, targets = some()[0], mixed()
    assert torch.equal(mean_loss(logits, targets), F.cross_entropy(logits, targets))


def test_weighted_cross_entropy_of_labels_is_torchs() -> None:
    logits, labels, by_class = some()
    expected = F.cross_entropy(logits, labels, weight=by_class)
    targets = one_hot(labels, 5)
    torch.testing.assert_close(mean_loss(logits, targets, weights=by_class), expected)
    # Negative control: torch divides the loss of dense targets by the number of images.
    other = F.cross_entropy(logits, targets, weight=by_class)
    assert abs(float(other) - float(expected)) > 1e-3


@pytest.mark.parametrize("kind", ["cross_entropy", "bce"])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_mixed_targets_against_a_loop(kind: str, is_weighted: bool) -> None:
    logits, _, by_class = some()
    targets = mixed()

    def loss_of_class(row: list[float], label: int) -> float:
        """The loss of an image of one class."""
        if kind == "cross_entropy":
            return log(sum(exp(z) for z in row)) - row[label]
        answers = [1 / (1 + exp(-z)) for z in row]
        return -sum(log(p if k == label else 1 - p) for k, p in enumerate(answers))

    total = count = 0.0
    for row, parts in zip(logits.double().tolist(), targets.double().tolist(), strict=True):
        for label, part in enumerate(parts):
            weight = part * (float(by_class[label]) if is_weighted else 1)
            total, count = total + weight * loss_of_class(row, label), count + weight
    found = mean_loss(logits, targets, kind, by_class if is_weighted else None)
    assert float(found) == pytest.approx(total / count, rel=1e-5)
    plain = mean_loss(logits, targets, kind)
    assert (abs(float(plain) - total / count) > 1e-3) == is_weighted  # negative control


@pytest.mark.parametrize("kind", ["cross_entropy", "bce"])
def test_equal_weights_are_none(kind: str) -> None:
    logits, targets = some()[0], mixed()
    same = mean_loss(logits, targets, kind, torch.full((5,), 3.0))
    torch.testing.assert_close(same, mean_loss(logits, targets, kind))


def test_bce_is_timms_summed_over_the_classes() -> None:
    timm = pytest.importorskip("timm.loss")
    logits, labels, _ = some()
    theirs = timm.BinaryCrossEntropy(smoothing=0.0, sum_classes=True)(logits, labels)
    torch.testing.assert_close(mean_loss(logits, one_hot(labels, 5), "bce"), theirs)


def test_large_logits_stay_finite() -> None:
    logits = torch.tensor([[500.0, -500.0, 0.0], [-500.0, 500.0, 90.0]], requires_grad=True)
    for kind in ("cross_entropy", "bce"):
        loss = mean_loss(logits, one_hot(torch.tensor([1, 1]), 3), kind, torch.tensor([1.0, 2, 3]))
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 11), kind=st.sampled_from(["cross_entropy", "bce"]))
def test_parts_of_a_step_add_up_to_the_whole(cut: int, kind: str) -> None:
    """Micro-batches and processes weigh their means by what their images count."""
    logits, _, by_class = some()
    targets = mixed()
    for used in (None, by_class):
        whole = mean_loss(logits, targets, kind, used)
        parts = [slice(0, cut), slice(cut, None)]
        counts = [total_weight(targets[part], used) for part in parts]
        means = [mean_loss(logits[part], targets[part], kind, used) for part in parts]
        added = sum(mean * count for mean, count in zip(means, counts, strict=True)) / sum(counts)
        torch.testing.assert_close(added, whole)


# ── The weights ────────────────────────────────────────────────────────────────────────────────

COUNTS = st.lists(st.integers(1, 500), min_size=2, max_size=8)


def weights_for(loss: Loss, counts: list[int], num_outputs: int | None = None) -> list[float]:
    labels = np.repeat(np.arange(len(counts)), counts)
    names = [str(number) for number in range(len(counts))]
    found = class_weights(loss, labels, names, num_outputs or len(counts))
    assert found is not None
    return found.tolist()


@settings(max_examples=20, deadline=None)
@given(counts=COUNTS)
def test_balanced_weights_are_those_of_scikit_learn(counts: list[int]) -> None:
    sklearn = pytest.importorskip("sklearn.utils.class_weight")
    labels = np.repeat(np.arange(len(counts)), counts)
    expected = sklearn.compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    assert weights_for(BALANCED, counts) == pytest.approx(expected.tolist(), rel=1e-6)


def test_balanced_weights_in_numbers() -> None:
    assert weights_for(BALANCED, [1, 3, 4]) == pytest.approx([8 / 3, 8 / 9, 8 / 12])


@settings(max_examples=20, deadline=None)
@given(counts=COUNTS, beta=st.floats(0.5, 0.9999))
def test_effective_weights_are_inverse_geometric_sums(counts: list[int], beta: float) -> None:
    found = weights_for(Loss(class_weights="effective", beta=beta), counts)
    sums = [sum(beta**power for power in range(count)) for count in counts]
    ratios = [weight * number for weight, number in zip(found, sums, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * len(counts), rel=1e-5)
    mean = sum(weight * count for weight, count in zip(found, counts, strict=True)) / sum(counts)
    assert mean == pytest.approx(1, rel=1e-5)


def test_with_a_beta_near_one_effective_weights_are_balanced() -> None:
    near = weights_for(Loss(class_weights="effective", beta=1 - 1e-9), [3, 40, 500])
    assert near == pytest.approx(weights_for(BALANCED, [3, 40, 500]), rel=1e-4)


def test_outputs_that_are_no_class_have_the_mean_weight() -> None:
    assert weights_for(BALANCED, [1, 3], 4) == pytest.approx([2, 2 / 3, 1, 1])


@pytest.mark.parametrize(
    "loss", [Loss(), Loss(kind="bce"), Loss(class_weights="effective", beta=0)]
)
def test_no_weights(loss: Loss) -> None:
    assert class_weights(loss, np.array([0, 0, 1]), "ab", 2) is None
    assert not loss.is_weighted


# ── Its place in the training ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("loss", "expected"), [(BALANCED, [0.55, 1.375, 2.2]), (Loss(), None)], ids=["balanced", "none"]
)
def test_a_run_trains_with_the_weights_of_its_classes(
    loss: Loss, expected: list[float] | None, tmp_path: Path
) -> None:
    labels = np.repeat([0, 1, 2], [20, 8, 5])
    dataset = replace(small_dataset(), train=Split(np.arange(33), labels))
    model = Model(source="timm", name="test_resnet")
    config = small_config(loss=loss, model=model, outputs=str(tmp_path))
    found = build_learner(config, dataset)[0].class_weights
    assert (None if found is None else found.tolist()) == (
        None if expected is None else pytest.approx(expected)
    )


def uneven() -> Dataset:
    """The small data set, where the third class has few training images."""
    dataset = small_dataset(66, 15)
    kept = dataset.train.labels != 2
    kept[2:12:3] = True
    return replace(dataset, train=Split(dataset.train.indices[kept], dataset.train.labels[kept]))


def learner_of(config: RunConfig, dataset: Dataset):
    by_class = class_weights(config.loss, dataset.train.labels, dataset.classes, len(CLASSES))
    return small_learner(small_network(), class_weights=by_class, loss=config.loss.kind)


def trained_with(config: RunConfig) -> torch.Tensor:
    dataset = uneven()
    learner = learner_of(config, dataset)
    for _ in Training(learner, dataset, plan(config, len(dataset.train)), config):
        pass
    return weights(learner.model)


def test_neutral_settings_train_to_the_same_bits() -> None:
    plain = trained_with(small_config())
    assert torch.equal(plain, trained_with(small_config(loss=Loss(beta=0.5))))
    neutral = Loss(class_weights="effective", beta=0.0)
    assert torch.equal(plain, trained_with(small_config(loss=neutral)))
    for loss in (*WEIGHTED, Loss(kind="bce")):
        assert not torch.equal(plain, trained_with(small_config(loss=loss)))


def test_a_config_without_the_keys_is_neutral() -> None:
    assert replace(RunConfig(), loss=Loss()) == RunConfig()


@pytest.mark.parametrize("loss", WEIGHTED)
def test_a_stopped_training_goes_on_to_the_same_bits(loss: Loss) -> None:
    config = small_config(loss=loss, mixup=Mixup(probability=1.0), smoothing=Smoothing(0.1))
    dataset = uneven()
    stages = plan(config, len(dataset.train))
    first = Training(learner_of(config, dataset), dataset, stages, config)
    saved = {}
    for step in first:
        if step.done == 5:
            saved = {
                group: {name: value.clone() for name, value in members.items()}
                for group, members in first.tensors().items()
            }
    second = Training(learner_of(config, dataset), dataset, stages, config)
    second.restore(5, saved)
    for _ in second:
        pass
    assert torch.equal(weights(second.evaluated.model), weights(first.evaluated.model))


def without_batch_norm() -> nn.Sequential:
    """A network whose outputs for an image do not depend on the other images of the batch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.Flatten())
        return nn.Sequential(features, nn.Sequential(nn.Linear(64, 3)))


class TwoThreads(Processes):
    """Two processes as threads: their sums meet at a barrier."""

    def meet(self, barrier: Barrier, sums: dict[int, torch.Tensor]) -> "TwoThreads":
        object.__setattr__(self, "met", (barrier, sums))
        return self

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        barrier, sums = self.met
        sums[self.rank] = tensor.clone()
        barrier.wait(30)
        total = sums[0] + sums[1]
        barrier.wait(30)
        return total


def gradients_of(
    config: RunConfig,
    rows: slice,
    processes: Processes = ALONE,
    model: nn.Module | None = None,
) -> torch.Tensor:
    """All gradients of one step on some of ten images, as one vector."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(10, 3, 16, 16, generator=generator)
    targets = smooth(one_hot(torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1, 2]), 3), 0.1)
    model = model or without_batch_norm()
    by_class = class_weights(config.loss, np.array([0, 0, 0, 0, 0, 1, 2]), CLASSES, 3)
    learner = small_learner(
        model, class_weights=by_class, loss=config.loss.kind, processes=processes
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compute_gradients(learner, optimizer, images[rows], targets[rows], 10, config)
    found = [parameter.grad for parameter in model.parameters()]
    return torch.cat([each.flatten() for each in found if each is not None])


@pytest.mark.parametrize("loss", WEIGHTED)
def test_micro_batches_and_processes_make_the_gradient_of_the_whole_batch(loss: Loss) -> None:
    whole = gradients_of(small_config(loss=loss), slice(None))
    parts = gradients_of(small_config(loss=loss, accumulate=Accumulate(steps=5)), slice(None))
    torch.testing.assert_close(parts, whole)
    barrier, sums = Barrier(2), dict[int, torch.Tensor]()

    # Built before the threads begin: their weights are drawn from a generator that they share.
    models = [without_batch_norm() for _ in range(2)]

    def work(rank: int) -> torch.Tensor:
        processes = TwoThreads(rank, 2).meet(barrier, sums)
        return gradients_of(small_config(loss=loss), slice(rank, None, 2), processes, models[rank])

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, (0, 1))
    torch.testing.assert_close((first + second) / 2, whole)
    alone = [gradients_of(small_config(loss=loss), slice(rank, None, 2)) for rank in (0, 1)]
    assert (sum(alone) / 2 - whole).abs().max() > 1e-3  # negative control: weighed apart


# ── The first bias ─────────────────────────────────────────────────────────────────────────────


def test_the_first_bias_says_that_each_class_is_one_of_k() -> None:
    config = small_config(loss=Loss(kind="bce"))
    config = replace(config, model=replace(config.model, source="timm", name="test_resnet"))
    dataset = small_dataset()
    model = build_learner(config, dataset)[0].model
    assert model.fc.bias.tolist() == pytest.approx([-log(3)] * 3)
    plain = build_learner(replace(config, loss=Loss()), dataset)[0].model
    assert plain.fc.bias.tolist() == [0.0] * 3
    assert torch.equal(plain.fc.weight, model.fc.weight)
    # The first loss is near that of answering 1/K everywhere, which is what is known at first.
    with torch.no_grad():
        logits = model.eval()(torch.rand(8, 3, 16, 16))
    first = mean_loss(logits, one_hot(torch.arange(8) % 3, 3), "bce")
    assert float(first) == pytest.approx(log(4) + 2 * log(4 / 3), rel=0.05)


def test_a_pretrained_head_keeps_its_bias(
    command: Command, tmp_path: Path, tiny_words: tuple[str, ...]
) -> None:
    tensors = build_model("timm", "test_resnet", 3, seed=1).state_dict()
    tensors["fc.bias"] += torch.tensor([0.5, 0.25, -0.5])
    half = small_preprocess(mean=(0.5,) * 3, std=(0.5,) * 3)
    file = with_metadata(tmp_path / "own.safetensors", tensors, half)
    done = command(
        *tiny_words, "loss=bce", f"model.weights={file}", "normalize=pretrained", "optim.lr=1e-12",
        "optim.weight_decay=0", "run_dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "note: loss.kind=bce keeps the bias of the pretrained head" in done.stderr + done.stdout
    found = open_bundle(tmp_path / "run").tensors["fc.bias"]
    torch.testing.assert_close(found, tensors["fc.bias"])


def test_a_network_that_ends_with_a_relu_cannot_say_no() -> None:
    with pytest.raises(ConfigError, match="ends with a ReLU") as caught:
        build_model("torchvision", "squeezenet1_1", 3, seed=0, head_bias=-1.0)
    assert "loss.kind=bce" in caught.value.where
    build_model("torchvision", "squeezenet1_1", 3, seed=0)


# ── What the outputs mean ──────────────────────────────────────────────────────────────────────


def test_sigmoids_are_divided_by_their_sum() -> None:
    logits = some()[0]
    expected = logits.double().sigmoid() / logits.double().sigmoid().sum(dim=1, keepdim=True)
    torch.testing.assert_close(probabilities(logits, "bce").double(), expected)
    torch.testing.assert_close(probabilities(logits - 200, "bce").sum(dim=1), torch.ones(12))
    assert torch.equal(probabilities(logits, "cross_entropy"), logits.softmax(dim=1))


@pytest.fixture(scope="module")
def bce_run(finished_run: Callable[..., Path]) -> Path:
    return finished_run("loss=bce", "precision=fp32", "device=cpu")


def test_a_bundle_says_what_its_outputs_mean(bce_run: Path) -> None:
    bundle = open_bundle(bce_run)
    assert bundle.architecture.changes == (Change("bce", {}),)
    learner = trained_learner(bundle, device="cpu", precision="fp32", threads=1)
    content = json.loads((bce_run / "result.json").read_text())
    config = checks.from_dict(content["config"])
    dataset = load_dataset(config.data, 16, Path(config.outputs) / "cache", lambda *_: None)
    saved = RunFolder(bce_run).predictions()["plain"]
    found = evaluate(learner, dataset, config, with_tta=False).plain
    assert found == pytest.approx(saved, abs=1e-6)
    metrics = content["metrics"]["plain"]
    log_loss = -np.log(saved[np.arange(len(saved)), dataset.val.labels]).mean()
    assert metrics["log_loss"] == pytest.approx(log_loss, rel=1e-5)
    other = evaluate(replace(learner, loss="cross_entropy"), dataset, config, with_tta=False)
    assert np.abs(other.plain - saved).max() > 1e-3  # negative control


@pytest.mark.whole
def test_an_exported_program_has_the_sigmoids_inside(bce_run: Path) -> None:
    bundle = open_bundle(bce_run)
    pixels = np.random.default_rng(1).integers(0, 256, (9, 16, 16), np.uint8)
    found = export(bundle, "onnx", ArrayImages("noise", pixels), threads=1)
    run, _ = programs.from_onnx(found.content)
    learner = trained_learner(bundle, device="cpu", precision="fp32", threads=1)
    learner.model.eval()
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), np.uint8)
    with torch.no_grad():
        logits = learner.logits(torch.from_numpy(images).float() / 255)
    assert run(images) == pytest.approx(probabilities(logits, "bce").numpy(), abs=1e-5)


# ── What is refused ────────────────────────────────────────────────────────────────────────────


def test_a_class_without_training_images_has_no_weight() -> None:
    with pytest.raises(DataError, match="the training split has no image of green") as caught:
        class_weights(BALANCED, np.array([0, 2, 2]), CLASSES, 3)
    assert caught.value.where == "loss.class_weights=balanced"
    assert "loss.class_weights=none" in caught.value.fix


@pytest.mark.parametrize("module", ["runner.train", "runner.compare"])
def test_a_class_whose_images_are_all_broken_ends_the_command_before_it_writes(
    command: Command, tmp_path: Path, tiny_folder: Path, tiny_words: tuple[str, ...], module: str
) -> None:
    root = tmp_path / "photos"
    for path in tiny_folder.glob("*/*/00?.png"):
        copy = root / path.relative_to(tiny_folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (root / "train" / "void").mkdir()
    (root / "train" / "void" / "0.png").write_bytes(b"no image")
    words = [word for word in tiny_words if not word.startswith("data.root=")]
    tries = ["--seeds", "3", "--try"] if module == "runner.compare" else []
    done = command(
        *words, f"data.root={root}", "data.on_corrupt=skip", *tries, "loss.class_weights=balanced",
        module=module,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "the training split has no image of void" in done.stderr
    assert "fix: loss.class_weights=none" in done.stderr.replace("\n", " ")
    assert {path.name for path in (tmp_path / "outputs").iterdir()} <= {"cache"}


@pytest.mark.parametrize("loss", [Loss(kind="bce"), BALANCED])
def test_code_with_a_loss_of_its_own_takes_no_other_loss(loss: Loss, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("def loss(logits, targets):\n    return logits.sum()\n")
    other = tmp_path / "other.py"
    other.write_text("def images(images, generator, progress):\n    return images\n")
    with pytest.raises(ConfigError, match=r"would have no effect: the function loss of own\.py"):
        idea_of(small_config(loss=loss, code=str(own)))
    assert idea_of(small_config(loss=loss, code=str(other))) is not None
    assert idea_of(small_config(code=str(own))) is not None


@pytest.mark.parametrize(
    ("words", "exit_code", "said"),
    [
        (("loss.kind=hinge",), 2, "loss.kind=hinge"),
        (("loss=focal",), 2, "loss=focal"),
        (("loss.class_weights=inverse",), 2, "loss.class_weights=inverse"),
        (("loss.beta=1", "loss.class_weights=effective"), 2, "loss.beta=1"),
        (("loss=bce", "model=torchvision", "model.name=squeezenet1_1"), 2, "ends with a ReLU"),
    ],
)
def test_wrong_values_write_nothing(
    command: Command, tmp_path: Path, tiny_words: tuple[str, ...],
    words: tuple[str, ...], exit_code: int, said: str,
) -> None:  # fmt: skip
    done = command(*tiny_words, *words, f"run_dir={tmp_path / 'run'}")
    assert (done.returncode, said in done.stderr) == (exit_code, True), done.stderr
    assert not (tmp_path / "run").exists()
