"""The pictures of a configuration show the very pixels that its training and evaluation see."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import Command, small_config, small_dataset, small_learner, small_network

from runner.config.schema import (
    AutoAugment,
    Erasing,
    Mixup,
    Normalize,
    Resize,
    RunConfig,
    Smoothing,
    Tta,
)
from runner.data.views import View
from runner.look.__main__ import _configs, parser
from runner.look.batch import as_pixels, first_batch, originals, sizes
from runner.look.sheets import (
    Prepared,
    _look_caption,
    batch_column,
    normalization_line,
    views_column,
)
from runner.pictures.sheet import Cell, Column, Row, sheet
from runner.training.loop import Training
from runner.training.predicting import evaluate, images_of_looks
from runner.training.schedule import plan
from runner.tricks.tta import looks

MIXED = Mixup(probability=1.0)
KINDS = {
    "plain": {},
    "mixup": {"mixup": MIXED},
    "cutmix": {"mixup": replace(MIXED, cutmix=1.0)},
    "erasing": {"erasing": Erasing(probability=1.0)},
    "trivial": {"auto_augment": AutoAugment(policy="trivial")},
    "all": {"mixup": MIXED, "erasing": Erasing(probability=1.0), "smoothing": Smoothing(0.1)},
}


def seen_in_training(config: RunConfig) -> torch.Tensor:
    """What the network gets in the first step of the training itself."""
    model, dataset = small_network(), small_dataset()
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    training = Training(small_learner(model), dataset, plan(config, len(dataset.train)), config)
    next(iter(training))
    return seen[0]


@pytest.mark.parametrize("groups", KINDS.values(), ids=KINDS.keys())
def test_the_sheet_shows_what_the_first_step_trains_on(groups: dict[str, Any]) -> None:
    config = small_config(**groups)
    (stage,) = first_batch(small_learner(small_network()), small_dataset(), config, 8)
    assert np.array_equal(stage.mixed, as_pixels(seen_in_training(config)))
    other = seen_in_training(replace(config, seed=1))
    assert not np.array_equal(stage.mixed, as_pixels(other)), "the test cannot fail"
    assert (stage.partners is None) == (config.mixup.probability == 0)
    if stage.partners is None:
        assert np.array_equal(stage.mixed, stage.augmented)
    else:
        assert not np.array_equal(stage.mixed, stage.augmented)


def test_captions_say_labels_and_shares_of_the_pixels() -> None:
    images = [np.full((20, 20, 3), 60 * label, np.uint8) for label in range(3)] * 16
    config = small_config(mixup=MIXED)
    dataset = small_dataset(images=images)
    (stage,) = first_batch(small_learner(small_network()), dataset, config, 8)
    assert stage.partners is not None
    assert stage.shares is not None
    expected = 60 * (stage.shares * stage.labels + (1 - stage.shares) * stage.partners)
    assert np.allclose(stage.mixed[:, 8, 8, 0], expected, atol=1)
    for number, image in enumerate(originals(dataset, config, 8)):
        assert (image == 60 * stage.labels[number]).all()


def test_each_size_of_the_schedule_is_shown_with_the_same_crops() -> None:
    config = small_config(resize=Resize(schedule="progressive", size=16))
    found = first_batch(small_learner(small_network()), small_dataset(), config, 4)
    stages = plan(config, 33)
    assert (found[0].size, found[-1].size) == (stages[0].size(0.0), 16)
    assert [stage.from_progress for stage in found] == sorted(
        stage.from_progress for stage in found
    )
    means = [stage.mixed.mean(axis=(1, 2, 3)) for stage in found]
    assert np.allclose(means[0], means[-1], atol=12)


def test_of_many_sizes_three_are_shown() -> None:
    def size(progress: float) -> int:
        return 16 + int(16 * progress)

    stage: Any = SimpleNamespace(
        num_steps=10**6, steps_per_epoch=1000, size=size, lr=float, momentum=float, num_epochs=1000
    )
    found = sizes([stage])
    assert [size for size, _ in found][::2] == [16, 31]
    assert len(found) == 3


TTAS = {"views": Tta(flip=True, crops=3), "corners": Tta(corners=True), "random": Tta(passes=3)}


@pytest.mark.parametrize("tta", TTAS.values(), ids=TTAS.keys())
def test_the_views_are_those_of_the_evaluation(tta: Tta) -> None:
    model, dataset = small_network(), small_dataset()
    learner, config = small_learner(model), small_config(tta=tta)
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    evaluate(learner, dataset, config, with_tta=True)
    wanted = looks(tta)
    shown = images_of_looks(learner, dataset, config, np.array([2, 9]), wanted)
    for look in wanted:
        assert any(torch.equal(shown[look], images[[2, 9]]) for images in seen), look
        assert not any(torch.equal(shown[look], images[[3, 9]]) for images in seen)


def test_a_corner_and_an_end_are_called_what_they_are() -> None:
    corner = View(0.0, 1.0, 0.8)
    assert _look_caption(corner, 1.0) == ("bottom left", "")
    assert _look_caption(View(1.0, 1.0, flip=True), 1.0) == ("right or low", "mirrored")
    assert _look_caption(View(scale=1.5), 1.0) == ("center", "", "1.5 × size")
    assert _look_caption(2, 1.0) == ("random 3",)


def test_the_statistics_are_said() -> None:
    learner = small_learner(small_network())
    assert "without normalization" in normalization_line(small_config(), learner)
    with_statistics = replace(
        learner, preprocess=replace(learner.preprocess, mean=(0.5, 0.4, 0.3), std=(0.2,) * 3)
    )
    line = normalization_line(
        small_config(normalize=Normalize(mean=(0.5, 0.4, 0.3))), with_statistics
    )
    assert "[0.500, 0.400, 0.300]" in line


def test_random_passes_are_shown_with_the_plain_view_that_is_combined_with_them() -> None:
    for tta, number in ((Tta(passes=2, beta=0.4), 3), (Tta(passes=2), 2), (Tta(), 1)):
        config = small_config(tta=tta)
        prepared = Prepared("run", config, small_dataset(), small_learner(small_network()))
        (row,) = views_column(prepared, "", 1).rows
        assert len(row.cells) == number
        assert (row.cells[0].caption[0] == "center") == (number != 2)


def test_a_target_is_said_where_the_share_does_not_say_it() -> None:
    dataset, learner = small_dataset(), small_learner(small_network())
    for epsilon in (0.0, 0.3):
        config = small_config(
            mixup=Mixup(probability=1.0, alpha=0.4), smoothing=Smoothing(epsilon=epsilon)
        )
        column = batch_column(Prepared("run", config, dataset, learner), "", 4)
        assert column.rows[2].heading == "mixed, 16 px"
        for cell in column.rows[2].cells:
            assert cell.caption[-1].startswith("target") == (epsilon > 0)


def test_a_long_title_is_broken_within_its_column() -> None:
    cell = Cell(np.zeros((4, 4, 3), np.uint8))
    columns = [Column(title, [Row("", [cell])]) for title in ("short", "+trick=" + 60 * "a")]
    figure = sheet(columns, num_across=4)
    texts = [text.get_text() for text in figure.texts]
    assert "short" in texts
    assert max(len(line) for text in texts for line in text.split("\n")) < 35
    tall, low = (sheet(part, num_across=4).get_size_inches()[1] for part in (columns, columns[:1]))
    assert tall > low


def test_a_comparison_adds_its_overlay_to_those_of_the_words() -> None:
    arguments = parser().parse_intermixed_args(
        ["+trick=tta", "seed=3", "--compare", "+trick=mixup seed=4"]
    )
    (first, one), (second, other) = _configs(arguments)
    assert (first, second) == ("+trick=tta seed=3", "+trick=mixup seed=4")
    assert ([*one.tricks], [*other.tricks]) == (["tta"], ["mixup", "tta"])
    assert (one.seed, other.seed) == (3, 4)


WORDS = (
    "data.batch_size=16", "resize.size=16", "model=timm", "model.name=test_resnet", "threads=1",
)  # fmt: skip


def test_the_command_prints_where_the_pictures_are(
    command: Command, tiny_folder: Path, tmp_path: Path
) -> None:
    words = ("data=folder", f"data.root={tiny_folder}", *WORDS, f"outputs={tmp_path}")
    ended = command(*words, "--compare", "+trick=mixup tta=flip", module="runner.look")
    assert ended.returncode == 0, ended.stderr
    paths = [Path(line) for line in ended.stdout.splitlines() if line.endswith(".png")]
    assert [path.name for path in paths] == ["batch.png", "views.png"]
    assert "-vs-" in paths[0].parent.name
    for path in paths:
        with Image.open(path) as picture:
            assert picture.size[0] == pytest.approx(5.2 * 150, abs=1)


WRONG = {
    "two comparisons": (("--compare", "a=1", "--compare", "b=2"), "two configurations"),
    "unknown key": (("mixup.alpah=1",), "mixup.alpha"),
    "more than a batch": (("--images", "17"), "--images 16"),
    "an option of words": (("outputs/none", "--images", "2"), "--images"),
    "an option of a run": (("--threads", "2"), "threads=2"),
    "no run": (("outputs/none",), "outputs/none"),
}


@pytest.mark.parametrize(("words", "said"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_explained(
    words: tuple[str, ...], said: str, command: Command, tiny_folder: Path, tmp_path: Path
) -> None:
    own = ("data=folder", f"data.root={tiny_folder}", *WORDS, f"outputs={tmp_path / 'o'}")
    ended = command(*words, *(() if words[0].startswith("outputs") else own), module="runner.look")
    assert ended.returncode in (2, 3)
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.rglob("*.png"))
