"""Random erasing: boxes and fills against those of torchvision, and how boxes are distributed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from small import small_config, small_dataset, small_preprocess
from torchvision.transforms.v2 import RandomErasing
from torchvision.transforms.v2 import functional as theirs

from runner.config.erasing import Erasing
from runner.config.schema import Normalize, RunConfig
from runner.training import learners
from runner.tricks.erasing import draw, erase, fill_of
from runner.tricks.normalize import normalize

STANDARD = Erasing(probability=0.25)
ALWAYS = Erasing(probability=1.0)
MEAN = (0.5, 0.4, 0.3)
CPU = torch.device("cpu")


def images_of(count: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def fill(kind: str, size: int = 16, seed: int = 0) -> torch.Tensor:
    return fill_of(Erasing(1.0, fill=kind), MEAN, size, seed, CPU)


# ── The pixels ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["mean", "zero", "noise"])
def test_a_box_is_erased_as_torchvision_does(kind: str) -> None:
    images, boxes = images_of(40), draw(ALWAYS, 40, 16, 16, 0, 0, 0)
    ours = erase(images, boxes, lambda: fill(kind))
    for image, (top, bottom, left, right), found in zip(images, boxes, ours, strict=True):
        value = fill(kind).expand(3, 16, 16)[:, top:bottom, left:right]
        height, width = bottom - top, right - left
        assert torch.equal(found, theirs.erase(image, top, left, height, width, value))
    shifted = erase(images, boxes + 1, lambda: fill(kind))
    assert not torch.equal(shifted, ours)  # negative control


def test_the_mean_is_zero_for_a_network_that_subtracts_it() -> None:
    """torchvision and timm erase after normalizing, with zeros."""
    images, boxes = images_of(10), draw(ALWAYS, 10, 16, 16, 0, 0, 0)
    erased_first = normalize(erase(images, boxes, lambda: fill("mean")), MEAN, (0.2, 0.3, 0.4))
    zero = torch.zeros(3, 1, 1)
    erased_last = erase(normalize(images, MEAN, (0.2, 0.3, 0.4)), boxes, lambda: zero)
    torch.testing.assert_close(erased_first, erased_last)


def test_noise_is_uniform_and_keyed_by_its_seed() -> None:
    noise = fill("noise", size=64)
    assert noise.shape == (3, 64, 64)
    assert stats.kstest(noise.flatten().numpy(), "uniform").pvalue > 1e-3
    assert torch.equal(noise, fill("noise", size=64))
    assert not torch.equal(noise, fill("noise", size=64, seed=1))


def test_nothing_erased_is_the_very_same_images() -> None:
    images, boxes = images_of(5), draw(Erasing(), 5, 16, 16, 0, 0, 0)

    def never() -> torch.Tensor:
        raise AssertionError

    assert erase(images, boxes, never) is images
    before = images.clone()
    assert not torch.equal(
        erase(images, draw(ALWAYS, 5, 16, 16, 0, 0), lambda: fill("zero")), before
    )
    assert torch.equal(images, before)  # the argument stays


# ── The boxes ──────────────────────────────────────────────────────────────────────────────────


def boxes_of_torchvision(count: int, size: int) -> np.ndarray:
    torch.manual_seed(0)
    theirs, image = RandomErasing(p=1, scale=(0.02, 0.33), ratio=(1 / 3.3, 3.3)), images_of(1, size)
    drawn = [theirs.make_params([image]) for _ in range(count)]
    return np.array([(p["i"], p["i"] + p["h"], p["j"], p["j"] + p["w"]) for p in drawn])


def test_boxes_are_distributed_as_those_of_torchvision() -> None:
    ours, expected = draw(ALWAYS, 4000, 96, 96, 0, 0, 0), boxes_of_torchvision(4000, 96)

    def measures(boxes: np.ndarray) -> list[np.ndarray]:
        height, width = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
        return [height * width, height / width, boxes[:, 0], boxes[:, 3]]

    for one, other in zip(measures(ours), measures(expected), strict=True):
        assert stats.ks_2samp(one, other).pvalue > 1e-3
    smaller = draw(Erasing(1.0, max_area=0.2), 4000, 96, 96, 0, 0, 0)
    assert stats.ks_2samp(measures(smaller)[0], measures(expected)[0]).pvalue < 1e-9


def test_as_many_images_as_the_probability_says() -> None:
    boxes = draw(STANDARD, 20_000, 64, 64, 0, 0, 0)
    assert abs(boxes.any(1).mean() - 0.25) < 0.01
    # The same image keeps its box when others get one too.
    always = draw(ALWAYS, 20_000, 64, 64, 0, 0, 0)
    assert np.array_equal(boxes[boxes.any(1)], always[boxes.any(1)])


@settings(deadline=None, max_examples=60)
@given(
    areas=st.tuples(st.floats(1e-3, 1), st.floats(1e-3, 1)).map(sorted),
    ratio=st.floats(1, 20),
    size=st.integers(1, 300),
    seed=st.integers(0, 2**32),
)
def test_a_box_keeps_to_its_limits(areas: list[float], ratio: float, size: int, seed: int) -> None:
    boxes = draw(Erasing(1.0, areas[0], areas[1], ratio), 200, size, size, seed, 0, 0)
    top, bottom, left, right = boxes[boxes.any(1)].T
    assert (top >= 0).all()
    assert (left >= 0).all()
    # Smaller than the image in both directions, at a place inside of it.
    assert (bottom <= size).all()
    assert (right <= size).all()
    height, width = bottom - top, right - left
    assert (height < size).all()
    assert (width < size).all()
    # Sides are rounded to whole pixels, so each is off by up to half a pixel.
    assert ((height - 0.5) * (width - 0.5) <= areas[1] * size**2 * (1 + 1e-9)).all()
    assert ((height + 0.5) * (width + 0.5) >= areas[0] * size**2 * (1 - 1e-9)).all()
    assert ((height - 0.5) <= ratio * (width + 0.5) * (1 + 1e-9)).all()
    assert ((width - 0.5) <= ratio * (height + 0.5) * (1 + 1e-9)).all()


def test_boxes_are_keyed_by_seed_epoch_and_step() -> None:
    same = draw(STANDARD, 50, 32, 32, 0, 1, 2)
    assert np.array_equal(same, draw(STANDARD, 50, 32, 32, 0, 1, 2))
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert not np.array_equal(same, draw(STANDARD, 50, 32, 32, *other))


# ── The configuration and the network ──────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("group", "tricks", "ignored"),
    [
        (Erasing(), [], {"min_area", "max_area", "max_ratio", "fill"}),
        (STANDARD, ["random_erasing"], set()),
    ],
)
def test_what_is_on_and_what_is_ignored(
    group: Erasing, tricks: list[str], ignored: set[str]
) -> None:
    config = RunConfig(erasing=group)
    assert config.tricks == tricks
    assert set(group.ignores(config)) == ignored


def test_areas_in_the_wrong_order_contradict() -> None:
    (problem,) = Erasing(0.5, min_area=0.4, max_area=0.3).contradictions(RunConfig())
    assert "erasing.min_area=0.4" in problem.what
    assert problem.fix == "erasing.min_area=0.3"


@pytest.mark.parametrize("normalization", [Normalize(), Normalize(mean=MEAN, std=(0.2,) * 3)])
def test_the_mean_is_that_of_the_training_images(tmp_path, normalization: Normalize) -> None:
    dataset = small_dataset()
    changes = {"normalize": normalization, "outputs": str(tmp_path)}

    def mean_of(erasing: Erasing) -> tuple[float, ...]:
        config = small_config(erasing=erasing, **changes)
        return learners.build_learner(config, dataset)[0].mean

    pixels = np.concatenate(
        [dataset.store.images[index].reshape(-1, 3) for index in dataset.train.indices]
    )
    assert mean_of(STANDARD) == pytest.approx((pixels / 255).mean(axis=0))
    for unread in (Erasing(), Erasing(0.5, fill="zero")):
        assert mean_of(unread) == (0, 0, 0)
    assert small_preprocess().mean == (0, 0, 0)
