"""TrivialAugment and RandAugment: each operation against torchvision's, the draws, a training."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from small import INCEPTION, STANDARD, small_config, small_dataset, small_learner, small_network
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandAugment, TrivialAugmentWide

from runner.config.auto_augment import AutoAugment
from runner.config.erasing import Erasing
from runner.config.schema import Augment, RunConfig, Tta
from runner.training.loop import Training, training_batches
from runner.training.predicting import evaluate
from runner.training.schedule import plan
from runner.tricks.auto_augment import NUM_LEVELS, OPERATIONS, Chosen, apply, draw, magnitude

TRIVIAL, RAND = AutoAugment(policy="trivial"), AutoAugment(policy="rand")
POLICIES = {"trivial": TrivialAugmentWide(), "rand": RandAugment()}

# torchvision's names of our operations.
THEIRS = {
    name: {"autocontrast": "AutoContrast"}.get(name, name.title().replace("_", ""))
    for name in OPERATIONS
}


def random_images(count: int, size: int, seed: int = 0) -> Tensor:
    """Smooth noise of low contrast in floats, so that no operation is close to another."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, 3, size, size, generator=generator)
    return 0.15 + 0.6 * noise + 0.1 * torch.linspace(0, 1, size)


def one(operation: str, strength: float, count: int = 1) -> Chosen:
    """The same operation for each of ``count`` images."""
    return Chosen(
        np.full((count, 1), OPERATIONS.index(operation)), np.full((count, 1), float(strength))
    )


def torchvision_result(image: Tensor, operation: str, strength: float) -> Tensor:
    """One image, of floats or bytes, after torchvision's own operation."""
    if operation == "posterize" and strength == 8:
        return image  # torchvision rounds floats of 8 bits down; its bytes of 8 bits stay
    policy = POLICIES["trivial"]
    return policy._apply_image_or_video_transform(
        image, THEIRS[operation], strength, InterpolationMode.BILINEAR, policy._fill
    )


def table_of_torchvision(policy: str, size: int) -> dict[str, tuple[Tensor, bool]]:
    """The magnitude of each level by torchvision's name, and whether it has a sign."""
    space = {
        name: (magnitudes(NUM_LEVELS, size, size), is_signed)
        for name, (magnitudes, is_signed) in POLICIES[policy]._AUGMENTATION_SPACE.items()
    }
    zeros = torch.zeros(NUM_LEVELS)
    return {
        name: (zeros if found is None else found, sign) for name, (found, sign) in space.items()
    }


# ── The operations ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("policy", ["trivial", "rand"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_equals_that_of_torchvision(operation: str, policy: str, size: int) -> None:
    """In floats, to 2e-5: both sum float32 in other orders, and sample at points that round."""
    images = random_images(2, size)
    signs = (-1, 1) if table_of_torchvision(policy, size)[THEIRS[operation]][1] else (1,)
    for level in (0, 1, 9, 17, 30):
        for sign in signs:
            strength = sign * magnitude(policy, operation, level, size)
            ours = apply(images, one(operation, strength, 2))
            expected = torch.stack([torchvision_result(i, operation, strength) for i in images])
            torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)
            assert ours.min() >= 0
            assert ours.max() <= 1
    strong = apply(images, one(operation, magnitude(policy, operation, 30, size), 2))
    assert torch.equal(strong, images) == (operation == "identity")
    if len(signs) == 2:  # negative control
        assert (strong - torchvision_result(images, operation, -strength)).abs().max() > 0.05


@pytest.mark.parametrize("operation", OPERATIONS)
def test_bytes_of_torchvision_differ_by_their_rounding_alone(operation: str) -> None:
    """Images of 8 bits, which torchvision rounds once or twice, by up to 1.5 levels."""
    pixels = (random_images(1, 32) * 255).round().to(torch.uint8)
    strength = magnitude("trivial", operation, 20, 32)
    expected = torchvision_result(pixels, operation, strength)
    ours = apply(pixels / 255, one(operation, strength)) * 255
    limit = {"posterize": 8.0}.get(operation, 1.5)  # levels of 2^b in floats lie elsewhere
    assert (ours - expected.float()).abs().max() <= limit


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_magnitudes_are_those_of_torchvision(policy: str) -> None:
    for size in (224, 331, 128) if policy == "rand" else (224,):
        for operation in OPERATIONS:
            expected = table_of_torchvision(policy, size)[THEIRS[operation]][0]
            expected = expected.double()
            if operation.startswith("translate"):
                expected = (expected + 1e-4).trunc()  # the operation takes int(magnitude)
            found = [magnitude(policy, operation, level, size) for level in range(NUM_LEVELS)]
            np.testing.assert_allclose(found, expected, atol=1e-6)
    assert magnitude("trivial", "rotate", 30, 224) != magnitude("rand", "rotate", 30, 224)


def test_a_translation_is_a_part_of_the_side() -> None:
    for size, expected in ((224, 32), (112, 16), (28, 4), (448, 64)):
        assert magnitude("trivial", "translate_x", 30, size) == expected
    images = random_images(1, 28)
    shifted = apply(images, one("translate_x", 4))
    torch.testing.assert_close(shifted[..., 4:], images[..., :-4], atol=1e-5, rtol=0)
    assert shifted[..., :3].abs().max() < 1e-5  # black comes in


@pytest.mark.parametrize("operation", OPERATIONS)
def test_level_zero_of_what_has_a_strength_is_the_identity(operation: str) -> None:
    images = random_images(1, 16)
    unchanged = apply(images, one(operation, magnitude("trivial", operation, 0, 16)))
    if operation in ("autocontrast", "equalize"):  # they have no strength
        assert not torch.allclose(unchanged, images, atol=1e-2)
    else:
        torch.testing.assert_close(unchanged, images, atol=1e-6, rtol=0)


def test_flat_and_tiny_images_stay_finite() -> None:
    for images in (torch.full((1, 3, 8, 8), 0.4), random_images(1, 1), random_images(1, 2)):
        for operation in OPERATIONS:
            for level in (0, 30):
                strength = magnitude("trivial", operation, level, images.shape[-1])
                changed = apply(images, one(operation, strength))
                assert torch.isfinite(changed).all()
                assert changed.shape == images.shape


# ── Images of a batch ──────────────────────────────────────────────────────────────────────────


def test_a_batch_is_its_images_one_by_one() -> None:
    images = random_images(60, 16).to(memory_format=torch.channels_last)
    chosen = draw(RAND, 60, 16, 0, 0, 0)
    alone = torch.cat(
        [apply(images[[row]], chosen.rows(np.array([row]))) for row in range(len(images))]
    )
    torch.testing.assert_close(apply(images, chosen), alone, atol=1e-6, rtol=0)
    other = apply(images, chosen.rows(np.roll(np.arange(60), 1)))
    assert (other - alone).abs().max() > 0.1  # negative control


def test_two_operations_come_one_after_the_other() -> None:
    images = random_images(2, 16)
    operations = np.array([[OPERATIONS.index("brightness"), OPERATIONS.index("rotate")]] * 2)
    both = apply(images, Chosen(operations, np.array([[0.8, 30.0]] * 2)))
    one_by_one = apply(apply(images, one("brightness", 0.8, 2)), one("rotate", 30, 2))
    assert torch.equal(both, one_by_one)
    equalized = apply(apply(images, one("rotate", 30, 2)), one("equalize", 0, 2))
    swapped = apply(apply(images, one("equalize", 0, 2)), one("rotate", 30, 2))
    assert not torch.allclose(equalized, swapped, atol=1e-2)


def test_nothing_drawn_is_the_very_same_images() -> None:
    images = random_images(3, 8)
    for neutral in (AutoAugment(), AutoAugment(policy="rand", num_operations=0)):
        assert apply(images, draw(neutral, 3, 8, 0, 0, 0)) is images
    before = images.clone()
    changed = apply(images, draw(TRIVIAL, 3, 8, 3, 0, 0))
    assert not torch.equal(changed, images)
    assert torch.equal(images, before)  # the argument stays


# ── Draws ──────────────────────────────────────────────────────────────────────────────────────


def test_operations_levels_and_signs_are_drawn_evenly() -> None:
    chosen = draw(TRIVIAL, 60_000, 224, 1, 2, 3)
    assert chosen.operations.shape == (60_000, 1)
    counts = np.bincount(chosen.operations[:, 0], minlength=len(OPERATIONS))
    assert stats.chisquare(counts).pvalue > 1e-3
    turned = chosen.magnitudes[chosen.operations == OPERATIONS.index("rotate")]
    levels = np.round(turned / 135 * 30).astype(int)
    found = np.bincount(levels + 30, minlength=61)
    found[30] /= 2  # 0 has no sign
    assert stats.chisquare(found, np.full(61, found.sum() / 61)).pvalue > 1e-3
    bits = chosen.magnitudes[chosen.operations == OPERATIONS.index("posterize")]
    assert set(bits) == {2, 3, 4, 5, 6, 7, 8}


def test_one_magnitude_of_rand_augment_with_either_sign() -> None:
    chosen = draw(AutoAugment("rand", 3, 15), 5000, 331, 0, 0, 0)
    assert chosen.operations.shape == (5000, 3)
    shifts = chosen.magnitudes[chosen.operations == OPERATIONS.index("translate_y")]
    assert set(shifts) == {-75, 75}
    assert abs((shifts > 0).mean() - 0.5) < 0.06
    rows = [set(row) for row in chosen.operations]
    assert {len(row) for row in rows} == {1, 2, 3}  # with replacement, as in torchvision


def test_draws_are_keyed_by_seed_step_and_turn() -> None:
    same, other = draw(RAND, 40, 32, 0, 1, 2), draw(RAND, 40, 32, 0, 1, 3)
    assert np.array_equal(same.operations, draw(RAND, 40, 32, 0, 1, 2).operations)
    assert not np.array_equal(same.operations, other.operations)
    assert not np.array_equal(same.operations[:, 0], same.operations[:, 1])
    # Neither the number of operations nor their magnitude changes which ones are drawn.
    more = draw(AutoAugment("rand", 4, 20), 40, 32, 0, 1, 2)
    assert np.array_equal(same.operations, more.operations[:, :2])
    assert np.array_equal(same.operations[:, :1], draw(TRIVIAL, 40, 32, 0, 1, 2).operations)


# ── In a training ──────────────────────────────────────────────────────────────────────────────


def first_batch(**groups: AutoAugment):
    config, dataset = small_config(**groups), small_dataset()
    training = Training(
        small_learner(small_network()), dataset, plan(config, len(dataset.train)), config
    )
    moments = list(training._rest_of_epoch())
    return next(training_batches(dataset, 8, moments, config))


def test_a_trick_shifts_no_other_draws() -> None:
    plain, trick = first_batch(), first_batch(auto_augment=RAND)
    assert np.array_equal(plain.draws.angle, trick.draws.angle)
    assert torch.equal(plain.labels, trick.labels)
    assert plain.chosen.operations.shape == (8, 0)
    assert trick.chosen.operations.shape == (8, 2)


@pytest.mark.parametrize(
    ("group", "tricks", "ignored"),
    [
        (AutoAugment(), [], {"num_operations", "magnitude"}),
        (TRIVIAL, ["trivial_augment"], {"num_operations", "magnitude"}),
        (RAND, ["rand_augment"], set()),
        (
            AutoAugment("rand", num_operations=0),
            [],
            {"policy", "num_operations", "magnitude"},
        ),
        (AutoAugment("rand", magnitude=0), ["rand_augment"], set()),  # it equalizes all the same
    ],
)
def test_what_is_on_and_what_is_ignored(
    group: AutoAugment, tricks: list[str], ignored: set[str]
) -> None:
    config = RunConfig(auto_augment=group)
    assert config.tricks == tricks
    assert set(group.ignores(config)) == ignored


def test_an_evaluation_with_random_views_does_not_use_them() -> None:
    def evaluated(augment: Augment, **groups: AutoAugment | Erasing) -> NDArray[np.float32]:
        config = small_config(augment=augment, tta=Tta(passes=2, beta=0.25), **groups)
        learner = small_learner(small_network())
        return evaluate(learner, small_dataset(), config, with_tta=True).tta

    plain = evaluated(STANDARD)
    assert np.array_equal(evaluated(STANDARD, auto_augment=RAND, erasing=Erasing(1.0)), plain)
    assert not np.array_equal(evaluated(INCEPTION), plain)  # negative control
