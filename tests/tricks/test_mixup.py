"""Mixup and CutMix against loops over pixels, and their draws against the distributions meant."""

import dataclasses
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from runner.config.schema import Mixup
from runner.randomness import generator
from runner.tricks.mixup import Mix, draw, mix_images, mix_targets
from runner.tricks.normalize import normalize
from runner.tricks.smoothing import one_hot, smooth

BETA = Mixup(probability=1.0)
UNIFORM = Mixup(probability=1.0, distribution="uniform")
CUTMIX = Mixup(probability=1.0, cutmix=1.0)
SWITCH = Mixup(probability=1.0, cutmix=0.5)
SETTINGS = {
    "beta": BETA,
    "uniform": UNIFORM,
    "cutmix": CUTMIX,
    "switch": SWITCH,
    "per batch": Mixup(probability=1.0, per="batch", cutmix=0.5),
    "not folded": Mixup(probability=1.0, fold=False),
    "sometimes": Mixup(probability=0.5, cutmix=0.5),
}
NEUTRAL = {
    "probability": Mixup(probability=0.0, cutmix=0.5),
    "alpha": Mixup(probability=1.0, alpha=0.0),
    "cutmix_alpha": Mixup(probability=1.0, cutmix=1.0, cutmix_alpha=0.0),
    "both": Mixup(probability=1.0, cutmix=0.5, alpha=0.0, cutmix_alpha=0.0),
}

any_settings = st.sampled_from(list(SETTINGS.values()))
seeds = st.integers(0, 2**32)


def drawn(mixup: Mixup, num_images: int, height: int = 8, width: int = 8, seed: int = 0) -> Mix:
    return draw(generator(seed, "mixup", 0, 0), mixup, num_images, height, width)


def as_double(mix: Mix) -> Mix:
    return Mix(mix.partner, mix.weight.double(), mix.boxes, mix.share.double())


def random_images(seed: int, num_images: int, height: int, width: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(num_images, 3, height, width, generator=rng, dtype=torch.float64)


def random_targets(seed: int, num_images: int, num_classes: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return one_hot(torch.randint(num_classes, (num_images,), generator=rng), num_classes).double()


def has_box(mix: Mix) -> Tensor:
    top, bottom, left, right = mix.boxes.unbind(1)
    return (bottom > top) & (right > left)


def folded_beta(alpha: float, value: np.ndarray) -> np.ndarray:
    """P(max(λ, 1-λ) ≤ value) for λ ~ Beta(alpha, alpha)."""
    return np.where(value < 0.5, 0.0, 2 * stats.beta(alpha, alpha).cdf(value) - 1)


@settings(deadline=None, max_examples=30)
@given(any_settings, st.integers(1, 5), seeds)
def test_pixels_and_targets_against_a_loop(mixup: Mixup, num_images: int, seed: int) -> None:
    height, width = 5, 4
    mix = as_double(drawn(mixup, num_images, height, width, seed))
    images = random_images(seed, num_images, height, width)
    targets = random_targets(seed, num_images, 4)
    mixed, mixed_targets = mix_images(images, mix), mix_targets(targets, mix)
    assert sorted(mix.partner.tolist()) == list(range(num_images))

    for n in range(num_images):
        other, weight = int(mix.partner[n]), float(mix.weight[n])
        top, bottom, left, right = mix.boxes[n].tolist()
        own_share = 0.0
        for y in range(height):
            for x in range(width):
                pasted = top <= y < bottom and left <= x < right
                own = 0.0 if pasted else weight
                own_share += own / (height * width)
                expected = own * images[n, :, y, x] + (1 - own) * images[other, :, y, x]
                torch.testing.assert_close(mixed[n, :, y, x], expected)
        # The label's weight is the part of the pixels that are the image's own.
        assert float(mix.share[n]) == pytest.approx(own_share, abs=1e-6)
        expected = own_share * targets[n] + (1 - own_share) * targets[other]
        torch.testing.assert_close(mixed_targets[n], expected, atol=1e-6, rtol=0)


def test_by_hand() -> None:
    mix = Mix(
        torch.tensor([1, 0]), torch.tensor([0.75, 1.0]),
        torch.tensor([[0, 0, 0, 0], [0, 1, 1, 2]]), torch.tensor([0.75, 0.75]),
    )  # fmt: skip
    images = torch.tensor([[[[0.0, 4.0], [8.0, 12.0]]], [[[4.0, 8.0], [0.0, 4.0]]]])
    assert mix_images(images, mix).tolist() == [
        [[[1.0, 5.0], [6.0, 10.0]]],
        [[[4.0, 4.0], [0.0, 4.0]]],
    ]
    assert mix_targets(torch.eye(2), mix).tolist() == [[0.75, 0.25], [0.25, 0.75]]


@pytest.mark.parametrize("mixup", NEUTRAL.values(), ids=NEUTRAL)
def test_neutral_settings_change_no_bit(mixup: Mixup) -> None:
    mix, images = drawn(mixup, 32), random_images(0, 32, 8, 8).float()
    targets = one_hot(torch.arange(32), 32)
    assert torch.equal(mix_images(images, mix), images)
    assert torch.equal(mix_targets(targets, mix), targets)


@pytest.mark.parametrize("mixup", SETTINGS.values(), ids=SETTINGS)
def test_other_settings_change_much(mixup: Mixup) -> None:
    """Negative control of the test above."""
    mix, images = drawn(mixup, 32, seed=1), random_images(0, 32, 8, 8).float()
    changed = (mix_images(images, mix) != images).flatten(1).any(dim=1)
    assert changed.sum() >= 8
    targets = one_hot(torch.arange(32), 32)
    assert torch.equal((mix_targets(targets, mix) != targets).any(dim=1), changed)


@pytest.mark.parametrize("mixup", SETTINGS.values(), ids=SETTINGS)
def test_one_image_is_mixed_with_itself(mixup: Mixup) -> None:
    images, targets = random_images(0, 1, 8, 8).float(), torch.tensor([[0.25, 0.75]])
    for seed in range(20):
        mix = drawn(mixup, 1, seed=seed)
        torch.testing.assert_close(mix_images(images, mix), images)
        torch.testing.assert_close(mix_targets(targets, mix), targets)


def test_weight_is_uniform_or_the_equal_folded_beta() -> None:
    same = Mixup(probability=1.0, alpha=1.0)
    for mixup in (UNIFORM, same):
        weight = drawn(mixup, 10_000).weight.double().numpy()
        assert stats.kstest(weight, stats.uniform(0.5, 0.5).cdf).pvalue > 0.01
        assert weight.mean() == pytest.approx(0.75, abs=0.005)
    # Negative control: the test can tell another Beta apart.
    weight = drawn(BETA, 10_000).weight.double().numpy()
    assert stats.kstest(weight, stats.uniform(0.5, 0.5).cdf).pvalue < 1e-6


@pytest.mark.parametrize("alpha", [0.4, 1.0, 2.0])
def test_weight_is_beta(alpha: float) -> None:
    mixup = Mixup(probability=1.0, alpha=alpha)
    weight = drawn(mixup, 10_000).weight.double().numpy()
    assert stats.kstest(weight, lambda value: folded_beta(alpha, value)).pvalue > 0.01
    weight = drawn(dataclasses.replace(mixup, fold=False), 10_000).weight.double().numpy()
    assert stats.kstest(weight, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    assert weight.min() < 0.5 < weight.max()


@settings(deadline=None, max_examples=60)
@given(any_settings, st.lists(st.integers(0, 3), min_size=1, max_size=12), seeds)
def test_parts_of_a_batch_are_mixed_as_the_whole(mixup: Mixup, parts: list[int], seed: int) -> None:
    """Image i goes to part ``parts[i]``; each is mixed without the rows it does not need."""
    num_images = len(parts)
    mix = drawn(mixup, num_images, seed=seed)
    images = random_images(seed, num_images, 8, 8).float()
    targets = random_targets(seed, num_images, 4).float()
    mixed, mixed_targets = mix_images(images, mix), mix_targets(targets, mix)
    for number in set(parts):
        mine = np.flatnonzero(np.array(parts) == number)
        part, needed = mix.part(mine)
        assert needed[: len(mine)].tolist() == mine.tolist()
        assert sorted(needed) == sorted({*mine, *mix.partner.numpy()[mine]})
        assert torch.equal(mix_images(images[needed], part), mixed[mine])
        assert torch.equal(mix_targets(targets[needed], part), mixed_targets[mine])


def test_a_part_in_any_order_and_the_whole_as_a_part() -> None:
    mix, images = drawn(SWITCH, 9), random_images(0, 9, 8, 8).float()
    for mine in (np.arange(9), np.array([5, 0, 7]), np.array([3])):
        part, needed = mix.part(mine)
        assert torch.equal(mix_images(images[needed], part), mix_images(images, mix)[mine])
    whole, needed = mix.part(np.arange(9))
    assert needed.tolist() == list(range(9))
    assert torch.equal(whole.partner, mix.partner)


@pytest.mark.parametrize("mixup", [BETA, CUTMIX], ids=["blend", "paste"])
def test_parts_that_draw_partners_of_their_own_differ(mixup: Mixup) -> None:
    """Negative control: each part mixed within itself, as if it were the batch."""
    mix, images = drawn(mixup, 12), random_images(0, 12, 8, 8).float()
    mixed, mine = mix_images(images, mix), np.arange(0, 12, 2)
    part, needed = mix.part(mine)
    assert len(needed) > len(mine)  # some partners are elsewhere
    within = dataclasses.replace(part, partner=part.partner % len(mine))
    assert not torch.equal(mix_images(images[mine], within), mixed[mine])
    assert not torch.equal(mix_images(images[needed], part), mixed[: len(mine)])


def test_mean_of_the_default() -> None:
    assert BETA.alpha == 0.4
    assert float(drawn(BETA, 20_000).weight.mean()) == pytest.approx(0.845, abs=0.005)


def test_one_draw_per_image_or_per_batch() -> None:
    per_image = drawn(SWITCH, 16)
    assert per_image.share.unique().numel() > 8
    per_batch = drawn(dataclasses.replace(SWITCH, per="batch"), 16)
    for part in (per_batch.weight, per_batch.share):
        assert part.shape == (16,)
        assert part.unique().numel() == 1
    assert per_batch.boxes.unique(dim=0).shape == (1, 4)
    assert per_batch.partner.unique().numel() == 16


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_probability_is_of_images_or_batches(probability: float) -> None:
    mixup = dataclasses.replace(UNIFORM, probability=probability)
    mixed = (drawn(mixup, 10_000).weight < 1).float().mean()
    assert float(mixed) == pytest.approx(probability, abs=0.02)
    weight = drawn(mixup, 10_000).weight.double().numpy()  # whether and how much: independent
    assert stats.kstest(weight[weight < 1], stats.uniform(0.5, 0.5).cdf).pvalue > 0.01
    mixup = dataclasses.replace(mixup, per="batch")
    batches = [drawn(mixup, 2, seed=seed).weight < 1 for seed in range(1000)]
    assert np.mean([bool(batch.all()) for batch in batches]) == pytest.approx(probability, abs=0.05)
    assert all(batch.all() or not batch.any() for batch in batches)


@pytest.mark.parametrize("part", [0.0, 0.25, 0.5, 1.0])
def test_switch_blends_or_pastes_but_never_both(part: float) -> None:
    mix = drawn(dataclasses.replace(UNIFORM, cutmix=part), 10_000, 64, 64)
    blended, pasted = mix.weight < 1, has_box(mix)
    assert not (blended & pasted).any()
    assert float(blended.float().mean()) == pytest.approx(1 - part, abs=0.02)
    assert float(pasted.float().mean()) == pytest.approx(part, abs=0.02)


def test_partners_are_permutations_and_differ_between_batches() -> None:
    partners = [tuple(drawn(BETA, 8, seed=seed).partner.tolist()) for seed in range(50)]
    assert all(sorted(partner) == list(range(8)) for partner in partners)
    assert len(set(partners)) > 45


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.1, 10), seeds)
def test_share_is_the_area_left_uncovered(height: int, width: int, alpha: float, seed: int) -> None:
    mix = drawn(dataclasses.replace(CUTMIX, cutmix_alpha=alpha), 6, height, width, seed)
    images = random_images(seed, 6, height, width)
    mixed = mix_images(images, mix)
    is_own, is_partners = mixed == images, mixed == images[mix.partner]
    assert (is_own | is_partners).all()  # every pixel is the one's or the other's, none a blend
    others = mix.partner != torch.arange(6)
    own = is_own.double().mean(dim=(1, 2, 3))
    torch.testing.assert_close(own[others], mix.share.double()[others], atol=1e-6, rtol=0)


def test_box_has_the_area_and_shape_asked_for_where_it_is_not_clipped() -> None:
    # Beta(1e6, 1e6) is as good as the constant 1/2.
    mix = drawn(dataclasses.replace(CUTMIX, cutmix_alpha=1e6), 400, 200, 100)
    top, bottom, left, right = mix.boxes.unbind(1)
    free = (top > 0) & (bottom < 200) & (left > 0) & (right < 100)
    assert 10 < free.sum() < 400
    assert ((bottom - top)[free] - 200 * 0.5**0.5).abs().max() <= 1
    assert ((right - left)[free] - 100 * 0.5**0.5).abs().max() <= 1
    assert mix.share[free].numpy() == pytest.approx(0.5, abs=0.02)
    assert (mix.share[~free] > 0.5 - 0.02).all()  # a clipped box leaves more of the image


def test_share_is_distributed_as_in_the_paper() -> None:
    rng = np.random.default_rng(0)
    size, reference = 64, []
    for _ in range(4000):  # the pseudo-code of Yun et al. 2019, appendix A
        side = size * np.sqrt(1 - rng.uniform())
        x, y = rng.uniform(0, size, 2)
        spans = [min(at + side / 2, size) - max(at - side / 2, 0) for at in (x, y)]
        reference.append(1 - spans[0] * spans[1] / size**2)
    share = drawn(CUTMIX, 4000, size, size).share.numpy()
    assert share.mean() == pytest.approx(np.mean(reference), abs=0.02)
    assert stats.ks_2samp(share, reference).pvalue > 0.01
    other = drawn(dataclasses.replace(CUTMIX, cutmix_alpha=3.0), 4000, size, size).share.numpy()
    assert stats.ks_2samp(other, reference).pvalue < 1e-6  # negative control


@pytest.mark.parametrize(
    "change",
    [
        {"cutmix": 0.0}, {"cutmix": 0.9}, {"cutmix_alpha": 0.0}, {"cutmix_alpha": 0.3},
        {"alpha": 0.0}, {"alpha": 2.0}, {"fold": False}, {"distribution": "uniform"},
        {"probability": 0.4}, {"per": "batch"}, {"until": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_settings_do_not_shift_the_draws_of_others(change: dict[str, object]) -> None:
    base, mix = drawn(SWITCH, 64, 50, 50), drawn(dataclasses.replace(SWITCH, **change), 64, 50, 50)
    assert torch.equal(mix.partner, base.partner)
    if "per" in change:
        assert (mix.boxes == base.boxes[0]).all()
        assert (mix.weight == base.weight[0]).all()
        return
    blended_in_both = (mix.weight < 1) & (base.weight < 1)
    if not {"alpha", "fold", "distribution"} & change.keys():
        assert torch.equal(mix.weight[blended_in_both], base.weight[blended_in_both])
        assert blended_in_both.sum() > (0 if change == {"cutmix": 0.9} else 8)
    pasted_in_both = has_box(mix) & has_box(base)
    if "cutmix_alpha" not in change:
        assert torch.equal(mix.boxes[pasted_in_both], base.boxes[pasted_in_both])
        assert pasted_in_both.sum() > 8 or change == {"cutmix": 0.0}
    elif change["cutmix_alpha"]:
        # Another size of box, but around the same centre wherever neither is clipped.
        edges = torch.cat([mix.boxes, base.boxes], dim=1)[pasted_in_both]
        edges = edges[((edges > 0) & (edges < 50)).all(dim=1)].view(-1, 2, 2, 2).sum(dim=3)
        assert len(edges) > 2
        assert (edges[:, 0] - edges[:, 1]).abs().max() <= 2


def test_unfolded_is_the_same_draw() -> None:
    folded = drawn(BETA, 64).weight
    unfolded = drawn(dataclasses.replace(BETA, fold=False), 64).weight
    torch.testing.assert_close(torch.maximum(unfolded, 1 - unfolded), folded)
    assert not torch.equal(unfolded, folded)


@settings(deadline=None, max_examples=50)
@given(any_settings, st.floats(0, 1), seeds)
def test_mixing_and_smoothing_commute(mixup: Mixup, epsilon: float, seed: int) -> None:
    mix, targets = as_double(drawn(mixup, 6, seed=seed)), random_targets(seed, 6, 5)
    mixed_first = smooth(mix_targets(targets, mix), epsilon)
    smoothed_first = mix_targets(smooth(targets, epsilon), mix)
    torch.testing.assert_close(mixed_first, smoothed_first, atol=1e-12, rtol=0)
    torch.testing.assert_close(mixed_first.sum(dim=1), torch.ones(6).double())


def test_smoothing_one_half_does_not_commute() -> None:
    """Negative control: Composer's fault, the partner's labels left hard."""
    mix, targets = as_double(drawn(UNIFORM, 6)), random_targets(0, 6, 5)
    weight = mix.share[:, None]
    one_half = weight * smooth(targets, 0.1) + (1 - weight) * targets[mix.partner]
    assert (one_half - smooth(mix_targets(targets, mix), 0.1)).abs().max() > 1e-3


@settings(deadline=None, max_examples=50)
@given(any_settings, seeds, st.lists(st.floats(-1, 2), min_size=3, max_size=3))
def test_mixing_and_normalizing_commute(mixup: Mixup, seed: int, mean: list[float]) -> None:
    mix, images = as_double(drawn(mixup, 4, seed=seed)), random_images(seed, 4, 8, 8)
    std = (0.2, 0.5, 1.5)
    mixed_first = normalize(mix_images(images, mix), mean, std)
    normalized_first = mix_images(normalize(images, mean, std), mix)
    torch.testing.assert_close(mixed_first, normalized_first, atol=1e-12, rtol=1e-12)


def test_mixing_and_squaring_do_not_commute() -> None:
    """Negative control: only an affine map may trade places with the mix."""
    mix, images = as_double(drawn(UNIFORM, 4)), random_images(0, 4, 8, 8)
    assert (mix_images(images, mix) ** 2 - mix_images(images**2, mix)).abs().max() > 1e-2


@pytest.mark.peers
def test_equal_to_fastai() -> None:
    pytest.importorskip("fastai")
    with warnings.catch_warnings():
        # fastai calls torch.jit.script while it is imported, which torch has deprecated.
        warnings.simplefilter("ignore")
        from fastai.callback.mixup import MixUp

    images, targets = random_images(0, 8, 5, 5).float(), torch.eye(8)
    theirs = MixUp(alpha=0.4)
    theirs.stack_y = False  # targets are dense
    theirs.learn = SimpleNamespace(x=images, y=targets, xb=(images,), yb=(targets,))
    torch.manual_seed(0)
    theirs.before_batch()
    (partners,) = theirs.yb1  # rows of the unit matrix say who was drawn
    mix = Mix(partners.argmax(dim=1), theirs.lam, torch.zeros(8, 4, dtype=torch.int64), theirs.lam)
    assert 0.5 <= mix.weight.min() < mix.weight.max() <= 1
    torch.testing.assert_close(mix_images(images, mix), theirs.learn.xb[0])
    torch.testing.assert_close(mix_targets(targets, mix), theirs.learn.yb[0])


@pytest.mark.parametrize("cutmix", [0.0, 0.05, 1.0])
def test_whether_there_are_boxes_is_known(cutmix: float) -> None:
    mixup = Mixup(probability=1.0, cutmix=cutmix)
    for seed in range(20):
        mix = draw(np.random.default_rng(seed), mixup, 4, 16, 16)
        top, bottom, left, right = mix.boxes.unbind(1)
        assert mix.has_boxes == bool(((bottom > top) & (right > left)).any())
