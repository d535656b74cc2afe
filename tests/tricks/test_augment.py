"""Geometry and light of the training images, against slices, closed forms, loops and fastai."""

import dataclasses
import math
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from runner.config.schema import Augment
from runner.tricks.augment import Draws, draw, homographies, light, resample

STANDARD = Augment(
    min_scale=0.75, flip=0.5, max_rotate=10.0, max_zoom=1.1, max_warp=0.2, max_lighting=0.2
)
INCEPTION = Augment(crop_from="rectangle", min_scale=0.08, max_ratio=4 / 3, flip=0.5)
WILD = Augment(min_scale=0.3, max_ratio=1.5, flip=0.5, max_rotate=180.0, max_zoom=2.0, max_warp=0.3)

Floats = NDArray[np.float64]
seeds = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def fastai_augment() -> ModuleType:
    pytest.importorskip("fastai")
    with warnings.catch_warnings():
        # fastai calls torch.jit.script while it is imported, which torch has deprecated.
        warnings.simplefilter("ignore")
        from fastai.vision import augment as theirs

    return theirs


def still(count: int = 1, **changes: Any) -> Draws:
    """Draws that change nothing, but for ``changes``, given for one image or for each."""
    neutral = {
        "place": np.full((count, 2), 0.5),
        "crop_scale": np.ones((count, 10)),
        "crop_ratio": np.ones((count, 10)),
        "crop_place": np.full((count, 2), 0.5),
        "flip": np.zeros(count, bool),
        "angle": np.zeros(count),
        "zoom": np.ones(count),
        "zoom_centre": np.full((count, 2), 0.5),
        "warp": np.zeros((count, 2)),
        "brightness": np.full(count, 0.5),
        "contrast": np.ones(count),
    }
    changed = {
        name: np.broadcast_to(np.asarray(value), neutral[name].shape)
        for name, value in changes.items()
    }
    return Draws(**(neutral | changed))


def extents_of(*regions: tuple[int, int]) -> NDArray[np.int64]:
    return np.array(regions, np.int64)


def maps_of(draws: Draws, *regions: tuple[int, int]) -> Floats:
    return homographies(draws, extents_of(*regions))


def show(images: Tensor, draws: Draws, size: int, *regions: tuple[int, int]) -> Tensor:
    """``images`` augmented; the regions are whole canvases where none are given."""
    regions = regions or ((images.shape[-2], images.shape[-1]),) * len(images)
    maps = torch.from_numpy(maps_of(draws, *regions)).to(images.dtype)
    return resample(images, maps, np.array(regions), size)


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mapped(maps: Floats, points: Floats) -> Floats:
    """Points (N, P, 2) through homographies (N, 3, 3)."""
    lifted = np.concatenate([points, np.ones((*points.shape[:2], 1))], axis=2)
    images = np.einsum("nij,npj->npi", maps, lifted)
    return images[..., :2] / images[..., 2:]


def grid_points(count: int, side: int = 5) -> Floats:
    axis = np.linspace(-1, 1, side)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    return np.tile(points, (count, 1, 1))


def checkerboard(side: int) -> Tensor:
    rows = torch.arange(side)
    return (rows[:, None] + rows).remainder(2).double()[None, None]


# Neutral values


@pytest.mark.parametrize(
    ("change", "samples"),
    [
        ({}, False),
        ({"max_lighting": 0.5}, False),
        ({"crop_from": "rectangle"}, True),
        ({"min_scale": 0.9}, True),
        ({"flip": 0.1}, True),
        ({"max_rotate": 1.0}, True),
        ({"max_zoom": 1.1}, True),
        ({"max_warp": 0.1}, True),
    ],
    ids=str,
)
def test_only_geometry_samples_the_image(change: dict[str, Any], samples: bool) -> None:
    assert Augment(**change).changes_geometry == samples


def test_neutral_settings_draw_neutral_parameters() -> None:
    draws = draw(Augment(), 50, 0, "augment", 0)
    expected = still(50, place=draws.place, crop_place=draws.crop_place)
    expected = dataclasses.replace(expected, zoom_centre=draws.zoom_centre)
    for item in dataclasses.fields(Draws):
        assert np.array_equal(getattr(draws, item.name), getattr(expected, item.name)), item.name
    maps = maps_of(draws, *[(9, 9)] * 50)
    assert np.array_equal(maps, np.tile(np.eye(3), (50, 1, 1)))
    other = maps_of(draw(STANDARD, 50, 0, "augment", 0), *[(9, 9)] * 50)
    assert (np.abs(other - np.eye(3)).max(axis=(1, 2)) > 1e-3).all()  # negative control


@pytest.mark.parametrize("size", [1, 7, 16])
def test_identity_reproduces_the_image(size: int) -> None:
    images = random_images(2, 3, size, size).float()
    torch.testing.assert_close(show(images, still(2), size), images, atol=1e-5, rtol=0)
    if size > 1:
        moved = show(images, still(2, zoom=1.01), size)
        assert (moved - images).abs().max() > 1e-3  # negative control


# Single parts


def test_flip() -> None:
    images = random_images(2, 3, 9, 9)
    shown = show(images, still(2, flip=[True, False]), 9)
    torch.testing.assert_close(shown[0], images[0].flip(-1))
    torch.testing.assert_close(shown[1], images[1])


@pytest.mark.parametrize(("angle", "turns"), [(90, -1), (-90, 1), (180, 2)])
def test_rotation_of_a_square(angle: float, turns: int) -> None:
    """A positive angle turns the picture clockwise, as in fastai."""
    images = random_images(1, 3, 9, 9)
    shown = show(images, still(angle=angle), 9)
    torch.testing.assert_close(shown, images.rot90(turns, dims=(-2, -1)))
    assert (shown - images.rot90(-turns + 1, dims=(-2, -1))).abs().max() > 0.1


@settings(deadline=None)
@given(st.floats(-180, 180), st.integers(1, 400), st.integers(1, 400))
def test_rotation_of_a_rectangle_keeps_distances(angle: float, height: int, width: int) -> None:
    points, pixels = grid_points(1), np.array([width, height]) / 2
    draws = still(angle=angle, crop_ratio=width / height)  # the whole of it
    turned = mapped(maps_of(draws, (height, width)), points) * pixels
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    expected = points * pixels @ np.array([[cosine, -sine], [sine, cosine]])
    np.testing.assert_allclose(turned, expected, atol=1e-9 * max(height, width))


@pytest.mark.parametrize("centre", [(0.0, 0.0), (1.0, 0.0), (0.3, 0.8)])
@pytest.mark.parametrize("zoom", [1.0, 1.1, 2.0])
def test_zoom_against_an_affine_grid(zoom: float, centre: tuple[float, float]) -> None:
    images = random_images(1, 2, 11, 11)
    free = 1 - 1 / zoom
    theta = [[1 / zoom, 0, free * (2 * centre[0] - 1)], [0, 1 / zoom, free * (2 * centre[1] - 1)]]
    grid = F.affine_grid(torch.tensor([theta]).double(), [1, 2, 11, 11], align_corners=False)
    expected = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    torch.testing.assert_close(show(images, still(zoom=zoom, zoom_centre=centre), 11), expected)


@pytest.mark.parametrize(
    ("place", "rows", "columns"),
    [
        ((0, 0), slice(0, 6), slice(0, 6)),
        ((1, 0), slice(0, 6), slice(6, 12)),
        ((0, 1), slice(6, 12), slice(0, 6)),
        ((0.5, 0.5), slice(3, 9), slice(3, 9)),
    ],
)
def test_crop_and_zoom_of_a_quarter_are_slices(
    place: tuple[float, float], rows: slice, columns: slice
) -> None:
    images = random_images(1, 3, 12, 12)
    cropped = show(images, still(crop_scale=0.25, crop_place=place), 6)
    torch.testing.assert_close(cropped, images[..., rows, columns])
    zoomed = show(images, still(zoom=2, zoom_centre=place), 6)
    torch.testing.assert_close(zoomed, cropped)


def test_crop_of_another_shape() -> None:
    """Half of the area at width / height = 2: the full width, half of the height."""
    images = random_images(1, 3, 8, 8)
    cropped = show(images, still(crop_scale=0.5, crop_ratio=2, crop_place=(0.5, 1)), 8)
    grid = F.affine_grid(
        torch.tensor([[[1, 0, 0], [0, 0.5, 0.5]]]).double(), [1, 3, 8, 8], align_corners=False
    )
    expected = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(cropped, expected)


@settings(deadline=None)
@given(st.floats(-0.4, 0.4), st.floats(-0.4, 0.4))
def test_warp_takes_the_shifted_corners_to_the_corners(x: float, y: float) -> None:
    corners = np.array([[[-1, -1], [-1, 1], [1, -1], [1, 1]]], np.float64)
    shifted = np.array([[[-1 - y, -1 - x], [-1 + y, 1 + x], [1 + y, -1 + x], [1 - y, 1 - x]]])
    warp = maps_of(still(warp=(x, y)), (9, 9))
    np.testing.assert_allclose(mapped(warp, shifted), corners, atol=1e-9)
    if max(abs(x), abs(y)) > 0.01:
        assert np.abs(mapped(warp, corners) - corners).max() > 1e-3  # negative control


def test_no_warp_is_the_identity() -> None:
    np.testing.assert_allclose(maps_of(still(), (9, 9)), np.eye(3)[None], atol=1e-12)


# All parts in one interpolation


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(4, 200), st.integers(4, 200))
def test_one_map_is_the_parts_in_order(seed: int, height: int, width: int) -> None:
    draws = draw(WILD, 4, seed, "augment", 0)
    crop = dataclasses.replace(
        still(4), crop_scale=draws.crop_scale, crop_ratio=draws.crop_ratio,
        crop_place=draws.crop_place,
    )  # fmt: skip
    whole = {"crop_scale": 1.0, "crop_ratio": width / height}
    parts = [
        crop,
        still(4, **whole, zoom=draws.zoom, zoom_centre=draws.zoom_centre),
        still(4, **whole, angle=draws.angle),
        still(4, **whole, flip=draws.flip),
        still(4, **whole, warp=draws.warp),
    ]
    regions = [(height, width)] * 4
    points = inside = 0.3 * grid_points(4)  # far from the horizon of the warp
    for part in parts:
        points = mapped(maps_of(part, *regions), points)
    np.testing.assert_allclose(mapped(maps_of(draws, *regions), inside), points, atol=1e-6)
    for part in parts[::-1]:  # negative control: the order matters
        inside = mapped(maps_of(part, *regions), inside)
    assert np.abs(inside - points).max() > 1e-3


@pytest.mark.peers
def test_points_equal_fastai(fastai_augment: ModuleType) -> None:
    draws, like = draw(STANDARD, 64, 0, "augment", 0), torch.zeros(64, 3, 16, 16)
    draws = dataclasses.replace(draws, crop_scale=np.ones((64, 10)))
    assert len(np.unique(draws.warp)) > 60  # all parts are there
    flip = fastai_augment.flip_mat(like, p=1.0, draw=draws.flip.astype(float).tolist())
    rotate = fastai_augment.rotate_mat(like, p=1.0, draw=draws.angle.tolist())
    centre_x, centre_y = draws.zoom_centre.T.tolist()
    zoom = fastai_augment.zoom_mat(
        like, p=1.0, draw=draws.zoom.tolist(), draw_x=centre_x, draw_y=centre_y
    )
    warp_x, warp_y = draws.warp.T.tolist()
    warp = fastai_augment._WarpCoord(p=1.0, draw_x=warp_x, draw_y=warp_y)
    warp.before_call(like)

    affine = (flip @ rotate @ zoom).as_subclass(Tensor)
    grid = F.affine_grid(affine[:, :2], [64, 3, 16, 16], align_corners=False)
    theirs = warp(grid).as_subclass(Tensor).reshape(64, -1, 2).numpy()
    points = F.affine_grid(torch.eye(2, 3)[None], [1, 3, 16, 16], align_corners=False)
    tiled = np.tile(points.reshape(1, -1, 2).numpy(), (64, 1, 1))
    ours = mapped(maps_of(draws, *[(16, 16)] * 64), tiled)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    # Negative control: turned the other way, it is not the same.
    mirrored = dataclasses.replace(draws, angle=-draws.angle)
    assert np.abs(mapped(maps_of(mirrored, *[(16, 16)] * 64), tiled) - theirs).max() > 0.1


# Sampling


@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(2, 9), st.integers(2, 9))
def test_mirrored_beyond_the_edge(seed: int, height: int, width: int) -> None:
    images, draws = random_images(3, 2, height, width, seed=seed), draw(WILD, 3, seed, "augment", 0)
    # Zoomed out, to show what lies around, and far from the horizon of the warp.
    draws = dataclasses.replace(draws, zoom=np.full(3, 0.5), warp=draws.warp / 10)
    maps = maps_of(draws, *[(height, width)] * 3)
    axis = (np.arange(6) + 0.5) / 3 - 1
    points = np.tile(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2), (3, 1, 1))
    grid = torch.from_numpy(mapped(maps, points).reshape(3, 6, 6, 2))
    assert grid.abs().max() > 1
    expected = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    torch.testing.assert_close(show(images, draws, 6), expected, atol=1e-9, rtol=0)
    other = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    assert (other - expected).abs().max() > 1e-3  # negative control


@settings(deadline=None, max_examples=60)
@given(
    regions=st.lists(st.tuples(st.integers(1, 24), st.integers(1, 24)), min_size=1, max_size=4),
    extra=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    size=st.integers(1, 12),
    seed=seeds,
)
def test_neither_padding_nor_other_images_leak(
    regions: list[tuple[int, int]], extra: tuple[int, int], size: int, seed: int
) -> None:
    height, width = np.max(regions, axis=0) + extra
    draws = draw(WILD, len(regions), seed, "augment", 0)
    canvas = torch.full((len(regions), 2, height, width), 1e3, dtype=torch.float64)
    for n, (rows, columns) in enumerate(regions):
        canvas[n, :, :rows, :columns] = random_images(2, rows, columns, seed=n)
    together = show(canvas, draws, size, *regions)
    for n, (rows, columns) in enumerate(regions):
        alone = show(canvas[n : n + 1, :, :rows, :columns], draws.rows(np.array([n])), size)
        torch.testing.assert_close(together[n : n + 1], alone, atol=1e-9, rtol=0)


def test_without_extents_the_padding_would_show() -> None:
    """Negative control of the test above."""
    canvas = torch.full((1, 1, 12, 12), 1e3, dtype=torch.float64)
    canvas[..., :8, :8] = 0.5
    assert show(canvas, still(angle=30), 8, (8, 8)).max() < 1
    assert show(canvas, still(angle=30), 8, (12, 12)).max() > 100


def test_padding_does_not_leak_in_single_precision() -> None:
    draws = draw(WILD, 32, 0, "augment", 0)
    canvas = torch.full((32, 1, 90, 60), 1.0)
    canvas[..., :50, :33] = 0.0
    for size in (8, 64):
        assert show(canvas, draws, size, *[(50, 33)] * 32).abs().max() < 1e-4


def test_shrinking_does_not_alias() -> None:
    board = checkerboard(63)
    assert (show(board, still(), 21) - 0.5).abs().max() < 0.01
    grid = F.affine_grid(torch.eye(3).double()[None, :2], [1, 1, 21, 21], align_corners=False)
    aliased = F.grid_sample(board, grid, align_corners=False)
    assert (aliased - 0.5).abs().min() > 0.49  # negative control: every pixel black or white


@pytest.mark.parametrize("size", [8, 16, 20])
def test_areas_are_averaged_beyond_a_half(size: int) -> None:
    """64 px to 8 is area averaging to 16, then bilinear; to a half or more it is bilinear alone."""
    images = random_images(1, 2, 64, 64)
    before = images.unflatten(2, (16, 4)).unflatten(4, (16, 4)).mean(dim=(3, 5))
    shown = show(images, still(), size)
    if size == 8:
        expected = before.unflatten(2, (8, 2)).unflatten(4, (8, 2)).mean(dim=(3, 5))
        torch.testing.assert_close(shown, expected)
    half = show(images[..., : 2 * size, : 2 * size], still(), size)
    grid = F.affine_grid(torch.eye(3).double()[None, :2], [1, 2, size, size], align_corners=False)
    source = images[..., : 2 * size, : 2 * size]
    torch.testing.assert_close(half, F.grid_sample(source, grid, align_corners=False))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), seeds)
def test_a_constant_image_stays_constant(height: int, width: int, size: int, seed: int) -> None:
    shown = show(torch.full((4, 1, height, width), 0.3), draw(WILD, 4, seed, "augment", 0), size)
    assert shown.shape == (4, 1, size, size)
    assert (shown - 0.3).abs().max() < 1e-5


def test_the_strongest_warp_is_finite() -> None:
    draws = still(4, warp=[[0.99, 0.99], [-0.99, 0.99], [0.99, -0.99], [-0.99, -0.99]])
    shown = show(random_images(4, 3, 16, 16).float(), draws, 16)
    assert torch.isfinite(shown).all()
    assert ((shown >= 0) & (shown <= 1)).all()


# Light


def test_neutral_light() -> None:
    images = torch.linspace(0, 1, 257).view(1, 1, 1, -1)
    neutral = light(images, torch.tensor([0.5]), torch.tensor([1.0]))
    torch.testing.assert_close(neutral, images, atol=1e-5, rtol=0)
    changed = light(images, torch.tensor([0.51]), torch.tensor([1.0]))
    assert (changed - images).abs().max() > 1e-3  # negative control


@settings(deadline=None)
@given(st.floats(0.001, 0.999), st.floats(0.05, 0.95), st.floats(0.2, 5), st.floats(0.001, 0.999))
def test_light_against_odds(pixel: float, brightness: float, contrast: float, other: float) -> None:
    """In odds, brightness is a factor and contrast a power."""
    images = torch.tensor([[[[pixel, other]]]], dtype=torch.float64)
    changed = light(images, *torch.tensor([[brightness], [contrast]], dtype=torch.float64))
    for before, after in zip((pixel, other), changed.flatten().tolist(), strict=True):
        odds = (before / (1 - before) * brightness / (1 - brightness)) ** contrast
        assert after == pytest.approx(odds / (1 + odds), rel=1e-6)
    first, second = changed.flatten().tolist()
    assert (first < second) == (pixel < other) or first == pytest.approx(second)


def test_light_is_per_image_and_stays_within_the_range() -> None:
    images = torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2), torch.full((3, 2, 2), 0.5)])
    for brightness, contrast in [(0.01, 5.0), (0.99, 5.0), (0.4, 0.8)]:
        changed = light(images, torch.full((3,), brightness), torch.full((3,), contrast))
        assert ((changed >= 0) & (changed <= 1)).all()
    per_image = light(images[[2, 2]], torch.tensor([0.4, 0.6]), torch.ones(2))
    torch.testing.assert_close(per_image[0], torch.full((3, 2, 2), 0.4))
    torch.testing.assert_close(per_image[1], torch.full((3, 2, 2), 0.6))


@pytest.mark.peers
def test_light_equals_fastai(fastai_augment: ModuleType) -> None:
    images = random_images(4, 3, 5, 5).float()
    draws = draw(STANDARD, 4, 1, "augment", 0)
    brightness, contrast = (
        torch.from_numpy(part).float() for part in (draws.brightness, draws.contrast)
    )
    assert (brightness != 0.5).any()
    assert (contrast != 1).any()
    theirs = fastai_augment.TensorImage(images.clone())
    theirs = theirs.brightness(draw=brightness.tolist(), p=1.0)
    theirs = theirs.contrast(draw=contrast.tolist(), p=1.0)
    ours = light(images, brightness, contrast)
    torch.testing.assert_close(ours, theirs.as_subclass(Tensor), atol=1e-5, rtol=0)


# Crops


def crop_by_loop(
    draws: Draws, row: int, height: int, width: int
) -> tuple[float, float, float, float]:
    """Left, top, width and height, px, of the crop of one image."""
    x, y = draws.crop_place[row]
    for scale, ratio in zip(draws.crop_scale[row], draws.crop_ratio[row], strict=True):
        crop_width = math.sqrt(scale * height * width * ratio)
        crop_height = math.sqrt(scale * height * width / ratio)
        if crop_width <= width * (1 + 1e-9) and crop_height <= height * (1 + 1e-9):
            return x * (width - crop_width), y * (height - crop_height), crop_width, crop_height
    limit = max(max(ratio, 1 / ratio) for ratio in draws.crop_ratio[row])
    crop_width, crop_height = min(width, height * limit), min(height, width * limit)
    return (width - crop_width) / 2, (height - crop_height) / 2, crop_width, crop_height


@settings(deadline=None)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    min_scale=st.floats(0.01, 1),
    max_ratio=st.floats(1, 3),
    seed=seeds,
)
def test_crops_against_a_loop(
    height: int, width: int, min_scale: float, max_ratio: float, seed: int
) -> None:
    augment = Augment(crop_from="rectangle", min_scale=min_scale, max_ratio=max_ratio)
    draws = draw(augment, 20, seed, "augment", 0)
    maps = maps_of(draws, *[(height, width)] * 20)
    corners = mapped(maps, np.tile([[[-1.0, -1.0], [1.0, 1.0]]], (20, 1, 1)))
    assert np.abs(corners).max() <= 1 + 1e-8  # always inside the image
    pixels = (corners + 1) / 2 * [width, height]
    tolerance = 1e-8 * max(height, width)
    for row, ((left, top), (right, bottom)) in enumerate(pixels):
        expected = crop_by_loop(draws, row, height, width)
        found = (left, top, right - left, bottom - top)
        assert found == pytest.approx(expected, rel=1e-7, abs=tolerance)
        ratio = (right - left) / (bottom - top)
        assert 1 / max_ratio - 1e-6 <= ratio <= max_ratio + 1e-6
        area = (right - left) * (bottom - top) / (height * width)
        is_fallback = min(right - left - width, bottom - top - height, key=abs)
        assert min_scale - 1e-6 <= area <= 1 + 1e-6 or abs(is_fallback) <= tolerance


def test_scale_and_ratio_of_crops_are_spread_over_their_ranges() -> None:
    draws = draw(INCEPTION, 2000, 0, "augment", 0)
    scale, ratio = draws.crop_scale.ravel(), np.log(draws.crop_ratio.ravel())
    limit = np.log(4 / 3)
    assert stats.kstest(scale, stats.uniform(0.08, 0.92).cdf).pvalue > 0.01
    assert stats.kstest(ratio, stats.uniform(-limit, 2 * limit).cdf).pvalue > 0.01


def test_the_first_attempt_that_fits_is_taken() -> None:
    # In a region of height 100 and width 50, an attempt at ratio 2 fits only if it is small.
    scale, ratio = np.full((1, 10), 0.9), np.full((1, 10), 2.0)
    scale[0, [3, 5]] = 0.16, 0.04
    maps = maps_of(still(crop_scale=scale, crop_ratio=ratio), (100, 50))
    assert np.diag(maps[0])[:2] * [50, 100] == pytest.approx([40, 20])
    assert maps[0, :2, 2] == pytest.approx([0, 0])


@pytest.mark.parametrize("region", [(30, 90), (90, 30)])
@pytest.mark.parametrize("ratio", [1.0, 4 / 3])
def test_fallback_is_the_largest_box_in_the_middle(region: tuple[int, int], ratio: float) -> None:
    scale = still(crop_scale=1.0, crop_ratio=ratio, crop_place=(0.0, 1.0))  # fits nowhere
    long, short = max(region), min(region)
    extent = {long: short * ratio, short: short}
    maps = maps_of(scale, region)
    expected = [extent[region[1]] / region[1], extent[region[0]] / region[0]]
    assert np.diag(maps[0])[:2] == pytest.approx(expected)
    assert maps[0, :2, 2] == pytest.approx([0, 0])


def test_one_crop_for_the_batch_is_that_of_its_first_image() -> None:
    extents = extents_of(*[(40, 60)] * 8)
    draws = draw(INCEPTION, 8, 0, "augment", 0)
    unflipped = dataclasses.replace(draws, flip=np.zeros(8, bool))
    per_image, shared = (
        homographies(unflipped, extents),
        homographies(unflipped.with_one_crop(), extents),
    )
    assert np.array_equal(shared, np.tile(per_image[0], (8, 1, 1)))
    assert len(np.unique(per_image[:, 0, 0])) == 8
    flips = homographies(draws.with_one_crop(), extents)[:, 0, 0] < 0
    assert np.array_equal(flips, draws.flip)  # everything else stays per image
    assert 0 < flips.sum() < 8


# Draws


@settings(deadline=None, max_examples=20)
@given(seeds, st.integers(0, 20), st.integers(20, 40))
def test_an_image_keeps_its_draws_whatever_the_count(seed: int, short: int, long: int) -> None:
    few, many = draw(WILD, short, seed, "augment", 3), draw(WILD, long, seed, "augment", 3)
    for item in dataclasses.fields(Draws):
        assert np.array_equal(getattr(few, item.name), getattr(many, item.name)[:short])


def test_rows_are_those_of_the_images_asked_for() -> None:
    draws, indices = draw(STANDARD, 10, 0, "augment", 0), np.array([7, 0, 7])
    for item in dataclasses.fields(Draws):
        expected = [getattr(draws, item.name)[index] for index in indices]
        assert np.array_equal(getattr(draws.rows(indices), item.name), expected)


@pytest.mark.parametrize("key", [(1, "augment", 0), (0, "tta", 0), (0, "augment", 1)])
def test_another_key_draws_all_anew(key: tuple[int, str, int]) -> None:
    first, other = draw(WILD, 64, 0, "augment", 0), draw(WILD, 64, *key)
    again = draw(WILD, 64, 0, "augment", 0)
    for item in dataclasses.fields(Draws):
        if item.name not in ("brightness", "contrast"):  # WILD leaves the light alone
            assert not np.array_equal(getattr(first, item.name), getattr(other, item.name))
        assert np.array_equal(getattr(first, item.name), getattr(again, item.name))


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"max_rotate": 0.0}, {"angle"}),
        ({"flip": 0.0}, {"flip"}),
        ({"max_zoom": 1.0}, {"zoom"}),
        ({"max_warp": 0.0}, {"warp"}),
        ({"max_lighting": 0.0}, {"brightness", "contrast"}),
        ({"min_scale": 1.0}, {"crop_scale"}),
        ({"max_ratio": 2.0}, {"crop_ratio"}),
        ({"affine_probability": 0.2}, {"angle", "zoom", "warp"}),
        ({"lighting_probability": 0.2}, {"brightness", "contrast"}),
        ({"crop_from": "rectangle", "crop_per": "batch"}, set()),
    ],
    ids=lambda value: str(sorted(value)),
)
def test_a_setting_leaves_the_draws_of_others(change: dict[str, Any], changed: set[str]) -> None:
    base = draw(STANDARD, 64, 0, "augment", 0)
    other = draw(dataclasses.replace(STANDARD, **change), 64, 0, "augment", 0)
    different = {
        item.name
        for item in dataclasses.fields(Draws)
        if not np.array_equal(getattr(base, item.name), getattr(other, item.name))
    }
    assert different == changed


def test_probabilities_and_ranges() -> None:
    draws = draw(STANDARD, 10_000, 0, "augment", 0)
    happened = {
        "angle": draws.angle != 0,
        "zoom": draws.zoom != 1,
        "warp x": draws.warp[:, 0] != 0,
        "warp y": draws.warp[:, 1] != 0,
        "brightness": draws.brightness != 0.5,
        "contrast": draws.contrast != 1,
    }
    for name, happens in happened.items():
        assert happens.mean() == pytest.approx(0.75, abs=0.02), name
    assert draws.flip.mean() == pytest.approx(0.5, abs=0.02)
    # Independent of one another: the correlation of any two is no more than chance.
    table = np.array([*happened.values(), draws.flip], float)
    assert np.abs(np.corrcoef(table) - np.eye(len(table))).max() < 0.04

    uniform = {
        "angle": (draws.angle[happened["angle"]], -10, 10),
        "zoom": (draws.zoom[happened["zoom"]], 1, 1.1),
        "warp x": (draws.warp[happened["warp x"], 0], -0.2, 0.2),
        "warp y": (draws.warp[happened["warp y"], 1], -0.2, 0.2),
        "brightness": (draws.brightness[happened["brightness"]], 0.4, 0.6),
        "contrast": (np.log(draws.contrast[happened["contrast"]]), np.log(0.8), -np.log(0.8)),
        "place": (draws.place.ravel(), 0, 1),
        "crop_place": (draws.crop_place.ravel(), 0, 1),
        "zoom_centre": (draws.zoom_centre.ravel(), 0, 1),
    }
    for name, (values, low, high) in uniform.items():
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 0.001, name


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_never_and_always(probability: float) -> None:
    augment = dataclasses.replace(
        STANDARD, flip=probability, affine_probability=probability,
        lighting_probability=probability,
    )  # fmt: skip
    draws = draw(augment, 200, 0, "augment", 0)
    happened = [
        draws.flip, draws.angle != 0, draws.zoom != 1, draws.warp[:, 0] != 0,
        draws.brightness != 0.5, draws.contrast != 1,
    ]  # fmt: skip
    assert all((happens == bool(probability)).all() for happens in happened)
