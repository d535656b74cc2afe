"""Views of an image and the combination of their predictions, against loops."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from runner.config.checks import from_dict
from runner.config.schema import Tta
from runner.data.views import View, cut, plain_view
from runner.tricks.tta import combine, views

OPTIONS = Path(__file__).parents[2] / "conf" / "tta"
NUM_VIEWS = {"none": 1, "flip": 2, "crops": 6, "ten_crop": 10, "scales": 6, "book": 1}
REDUCTIONS = ("mean", "max", "logit_mean", "geometric")


def option(name: str) -> Tta:
    return from_dict({"tta": yaml.safe_load((OPTIONS / f"{name}.yaml").read_text())}).tta


def random_probabilities(seed: int, *shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(*shape, generator=rng, dtype=torch.float64)
    return torch.softmax(logits, dim=-1)


def coordinates(height: int, width: int) -> np.ndarray:
    """An image whose pixels say where they are: (H, W, 2), y and x."""
    return np.stack(np.mgrid[:height, :width], axis=-1).astype(np.uint8)


def test_every_option_is_in_the_table() -> None:
    assert {path.stem for path in OPTIONS.glob("*.yaml")} == set(NUM_VIEWS)


@pytest.mark.parametrize("name", NUM_VIEWS)
def test_views_of_every_option(name: str) -> None:
    shown = views(option(name))
    assert len(shown) == len(set(shown)) == NUM_VIEWS[name]
    assert plain_view() in shown


def test_nothing_asked_for_is_the_plain_view() -> None:
    assert views(Tta()) == [plain_view()]
    assert views(option("none")) == views(option("book")) == [plain_view()]
    assert views(Tta(flip=True)) == [plain_view(), View(flip=True)]


def test_an_even_number_of_crops_leaves_the_centre_out() -> None:
    assert views(Tta(crops=2)) == [View(0, 0), View(1, 1)]
    assert plain_view() in views(Tta(crops=5))


@settings(deadline=None)
@given(
    crops=st.integers(1, 9),
    corners=st.booleans(),
    flip=st.booleans(),
    scales=st.lists(st.sampled_from([0.75, 1.0, 1.25, 2.0]), min_size=1, max_size=4, unique=True),
)
def test_views_are_a_product(crops: int, corners: bool, flip: bool, scales: list[float]) -> None:
    tta = Tta(crops=crops, corners=corners, flip=flip, scales=tuple(scales))
    shown = views(tta)
    squares = tta.crops + 4 * tta.corners
    assert len(shown) == len(set(shown)) == squares * (1 + tta.flip) * len(tta.scales)
    assert len(shown) == (crops + 4 * corners) * (1 + flip) * len(scales)
    assert {view.scale for view in shown} == set(scales)
    unmirrored = [view for view in shown if not view.flip]
    assert len(unmirrored) * (1 + flip) == len(shown)
    assert (plain_view() in shown) == (crops % 2 == 1 and 1.0 in scales)


@pytest.mark.parametrize("is_tall", [False, True])
def test_three_crops_of_a_rectangle(is_tall: bool) -> None:
    image = coordinates(26, 10) if is_tall else coordinates(10, 26)
    squares = [cut(image, view) for view in views(Tta(crops=3))]
    starts = [tuple(square[0, 0]) for square in squares]
    expected = [(0, 0), (0, 8), (0, 16)]
    assert starts == ([(y, x) for x, y in expected] if is_tall else expected)
    assert all(square.shape == (10, 10, 2) for square in squares)
    assert np.array_equal(squares[1], cut(image, plain_view()))


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 7))
def test_crops_reach_both_ends(height: int, width: int, crops: int) -> None:
    image, side = coordinates(height, width), min(height, width)
    squares = [cut(image, view) for view in views(Tta(crops=crops))]
    assert all(square.shape[:2] == (side, side) for square in squares)
    assert squares[0][0, 0].tolist() == [0, 0]
    assert squares[-1][-1, -1].tolist() == [height - 1, width - 1]
    starts = np.array([square[0, 0] for square in squares]).max(axis=1)
    even = np.arange(crops) * (max(height, width) - side) / (crops - 1)
    assert np.abs(starts - even).max() <= 0.5


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.05, 1))
def test_corners(height: int, width: int, scale: float) -> None:
    image = coordinates(height, width)
    centre, *corners = (cut(image, view) for view in views(Tta(corners=True, corner_scale=scale)))
    assert np.array_equal(centre, cut(image, plain_view()))
    side = max(1, round(scale * min(height, width)))
    assert all(corner.shape[:2] == (side, side) for corner in corners)
    for end in [(0, 0), (0, -1), (-1, 0), (-1, -1)]:
        assert any(np.array_equal(corner[end], image[end]) for corner in corners)


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1))
def test_cut_lies_within(height: int, width: int, x: float, y: float, side: float) -> None:
    square = cut(coordinates(height, width), View(x, y, side))
    expected = max(1, round(side * min(height, width)))
    assert square.shape == (expected, expected, 2)
    top, left = square[0, 0].tolist()
    assert abs(top - y * (height - expected)) <= 0.5
    assert abs(left - x * (width - expected)) <= 0.5


@settings(deadline=None)
@given(st.sampled_from(REDUCTIONS), st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**32))
def test_reductions_against_loops(reduce: str, num_views: int, classes: int, seed: int) -> None:
    others = random_probabilities(seed, num_views, 3, classes)
    combined = combine(others[0], others, Tta(crops=num_views, reduce=reduce))
    for n in range(3):
        row = []
        for k in range(classes):
            column = [float(others[v, n, k]) for v in range(num_views)]
            if reduce == "mean":
                row.append(sum(column) / num_views)
            elif reduce == "max":
                row.append(max(column))
            else:
                row.append(float(np.prod(column)) ** (1 / num_views))
        expected = [value / sum(row) for value in row]
        assert combined[n].tolist() == pytest.approx(expected, rel=1e-9)


def test_reductions_are_different_things() -> None:
    """Negative control of the loops above; the two names of one reduction excepted."""
    others = random_probabilities(0, 3, 4, 5)
    mean, largest, logit_mean, geometric = (
        combine(others[0], others, Tta(crops=3, reduce=reduce)) for reduce in REDUCTIONS
    )
    assert torch.equal(logit_mean, geometric)
    for first, second in [(mean, largest), (mean, geometric), (largest, geometric)]:
        assert (first - second).abs().max() > 0.01


def test_geometric_is_the_softmax_of_the_mean_of_logits() -> None:
    logits = torch.randn(4, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probabilities = torch.softmax(logits, dim=-1)
    combined = combine(probabilities[0], probabilities, Tta(crops=4, reduce="logit_mean"))
    torch.testing.assert_close(combined, torch.softmax(logits.mean(dim=0), dim=-1))


@settings(deadline=None)
@given(
    tta=st.sampled_from(
        [Tta(flip=True, reduce=reduce) for reduce in REDUCTIONS]
        + [Tta(passes=3, reduce=reduce) for reduce in REDUCTIONS]
        + [Tta(passes=3, beta=0.25), Tta(passes=3, beta=0.0), Tta(passes=3, beta=1.0)]
    ),
    order=st.permutations(range(4)),
    seed=st.integers(0, 2**32),
)
def test_rows_sum_to_one_and_order_does_not_matter(tta: Tta, order: list[int], seed: int) -> None:
    plain, others = random_probabilities(seed, 3, 5), random_probabilities(seed + 1, 4, 3, 5)
    combined = combine(plain, others, tta)
    torch.testing.assert_close(combined.sum(dim=1), torch.ones(3, dtype=torch.float64))
    assert combined.min() >= 0
    torch.testing.assert_close(combine(plain, others[order], tta), combined)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_one_view_is_itself(reduce: str) -> None:
    plain = random_probabilities(0, 3, 5)
    combined = combine(plain, plain[None], Tta(reduce=reduce))
    torch.testing.assert_close(combined, plain)
    if reduce == "mean":
        assert torch.equal(combined, plain)
    with_another = combine(plain, torch.stack([plain, plain.roll(1)]), Tta(crops=2, reduce=reduce))
    assert (with_another - plain).abs().max() > 0.01  # negative control


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_certain_predictions_stay_finite(reduce: str) -> None:
    certain = torch.eye(3)[None]
    contrary = torch.eye(3).roll(1, dims=0)[None]
    for others in (certain, torch.cat([certain, contrary])):
        combined = combine(certain[0], others, Tta(crops=2, reduce=reduce))
        torch.testing.assert_close(combined.sum(dim=1), torch.ones(3))
    agreed = combine(certain[0], torch.cat([certain, certain]), Tta(crops=2, reduce=reduce))
    torch.testing.assert_close(agreed, certain[0])


def test_book_is_a_quarter_plain_and_the_rest_augmented() -> None:
    tta = option("book")
    assert (tta.passes, tta.beta, tta.reduce) == (4, 0.25, "mean")
    plain, others = random_probabilities(0, 3, 5), random_probabilities(1, 4, 3, 5)
    expected = 0.25 * plain + 0.75 * (others[0] + others[1] + others[2] + others[3]) / 4
    torch.testing.assert_close(combine(plain, others, tta), expected)
    # Negative control: an equal average over all five is something else.
    equal = (plain + others.sum(dim=0)) / 5
    assert (combine(plain, others, tta) - equal).abs().max() > 1e-3


def test_without_beta_the_augmented_mean_stands_alone() -> None:
    plain, others = random_probabilities(0, 3, 5), random_probabilities(1, 4, 3, 5)
    torch.testing.assert_close(combine(plain, others, Tta(passes=4)), others.mean(dim=0))
    torch.testing.assert_close(combine(plain, others, Tta(passes=4, beta=1.0)), plain)


def test_maximum_is_over_plain_and_passes() -> None:
    others = random_probabilities(1, 4, 3, 5)
    plain = torch.eye(5, dtype=torch.float64)[:3]  # certain, so that leaving it out shows
    largest = torch.maximum(plain, others.amax(dim=0))
    combined = combine(plain, others, Tta(passes=4, reduce="max"))
    torch.testing.assert_close(combined, largest / largest.sum(dim=1, keepdim=True))
    alone = combine(plain, others, Tta(crops=4, reduce="max"))  # deterministic: views as given
    assert (alone - combined).abs().max() > 0.01


@pytest.mark.parametrize("reduce", ["logit_mean", "geometric"])
def test_geometric_mean_includes_the_plain_view(reduce: str) -> None:
    plain, others = random_probabilities(0, 3, 5), random_probabilities(1, 4, 3, 5)
    together = torch.cat([plain[None], others]).prod(dim=0) ** (1 / 5)
    combined = combine(plain, others, Tta(passes=4, reduce=reduce))
    torch.testing.assert_close(combined, together / together.sum(dim=1, keepdim=True))
