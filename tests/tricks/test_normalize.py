"""Normalization against a loop, and the statistics of a split against numpy over all its pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runner.data.statistics import channel_statistics
from runner.tricks.normalize import _on_gpu, normalize

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def random_images(seed: int, num_images: int) -> list[NDArray[np.uint8]]:
    """Images of different shapes, and of different brightness, so that weighting them matters."""
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, 20 * index + 2, (*rng.integers(1, 9, 2), 3), dtype=np.uint8)
        for index in range(num_images)
    ]


def test_against_a_loop() -> None:
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    normalized = normalize(images, *IMAGENET)
    for channel, (mean, std) in enumerate(zip(*IMAGENET, strict=True)):
        torch.testing.assert_close(normalized[:, channel], (images[:, channel] - mean) / std)
    assert normalized.dtype == images.dtype


def test_constants_of_a_gpu_are_made_once_and_serve_training_too() -> None:
    with torch.inference_mode():
        first = _on_gpu((0.1, 0.25), torch.float32, torch.device("cpu"))
    assert first.tolist() == pytest.approx([0.1, 0.25])
    assert not first.is_inference()
    assert _on_gpu((0.1, 0.25), torch.float32, torch.device("cpu")) is first
    assert _on_gpu((0.1, 0.5), torch.float32, torch.device("cpu")) is not first


def test_neutral_returns_the_images_themselves() -> None:
    images = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert normalize(images, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)) is images
    assert not torch.equal(normalize(images, (0.0, 0.0, 0.01), (1.0, 1.0, 1.0)), images)
    assert not torch.equal(normalize(images, (0.0, 0.0, 0.0), (1.0, 1.0, 0.99)), images)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), num_images=st.integers(1, 6))
def test_statistics_are_those_of_all_pixels(seed: int, num_images: int) -> None:
    images = random_images(seed, num_images)
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    mean, std = channel_statistics(iter(images))
    measured = pixels.std(axis=0)
    assert mean == pytest.approx(pixels.mean(axis=0), rel=1e-12)
    assert std == pytest.approx(np.where(measured > 1e-12, measured, 1.0), rel=1e-9)


def test_large_images_weigh_more() -> None:
    """Negative control: the mean of means is another number, and not ours."""
    images = [np.zeros((1, 1, 3), np.uint8), np.full((3, 1, 3), 200, np.uint8)]
    mean, std = channel_statistics(images)
    assert mean == pytest.approx([150 / 255] * 3)
    assert std == pytest.approx([np.sqrt(150 * 50) / 255] * 3)
    assert mean[0] != pytest.approx(np.mean([image.mean() for image in images]) / 255)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), order=st.permutations(range(6)))
def test_order_does_not_matter_in_any_bit(seed: int, order: list[int]) -> None:
    images = random_images(seed, 6)
    assert channel_statistics(images[index] for index in order) == channel_statistics(images)


def test_small_variance_on_a_bright_channel() -> None:
    image = np.full((100, 100, 3), 254, np.uint8)
    image[0, 0] = 255
    _, std = channel_statistics([image])
    assert std == pytest.approx([np.sqrt(1e-4 * (1 - 1e-4)) / 255] * 3, rel=1e-4)


def test_a_constant_channel_is_left_alone() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 1] = 77
    image[0, :, 2] = 255
    mean, std = channel_statistics([image, image[:1, :, [0, 1, 0]]])
    assert mean[:2] == (0.0, 77 / 255)
    assert std[:2] == (1.0, 1.0)
    assert 0 < std[2] < 1
    floats = torch.from_numpy(image).permute(2, 0, 1)[None].double() / 255
    assert normalize(floats, mean, std)[:, :2].abs().max() < 1e-15


def test_normalized_with_their_own_statistics() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    floats = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255
    normalized = normalize(floats, *channel_statistics(images))
    assert normalized.mean(dim=(0, 2, 3)).abs().max() < 1e-12
    assert (normalized.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-12


@pytest.mark.parametrize("images", [[], [np.zeros((0, 4, 3), np.uint8)]])
def test_no_pixels(images: list[NDArray[np.uint8]]) -> None:
    with pytest.raises(ValueError, match="no pixels"):
        channel_statistics(images)


def test_an_empty_image_among_others_changes_nothing() -> None:
    images = random_images(0, 2)
    empty = np.zeros((0, 4, 3), np.uint8)
    assert channel_statistics([empty, *images, empty]) == channel_statistics(images)
