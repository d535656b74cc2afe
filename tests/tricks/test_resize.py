"""The image size over training, its budget, and the interpolation."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from runner.config.schema import Budget, Data, Resize, RunConfig
from runner.training.schedule import plan
from runner.tricks.resize import relative_pixels, size_at, to_size

PROGRESSIVE = Resize(schedule="progressive")

parts = st.floats(0, 1)


@st.composite
def schedules(draw: st.DrawFn) -> tuple[int, Resize]:
    """A final size and a progressive schedule that the configuration allows."""
    multiple = draw(st.integers(1, 32))
    size = multiple * draw(st.integers(1, 20))
    delay, finish = draw(parts), draw(parts)
    assume(delay + finish <= 1)
    scale = draw(st.floats(0.01, 1))
    return size, Resize("progressive", None, scale, delay, finish, multiple)


@pytest.mark.parametrize(
    ("progress", "size"),
    [(0.0, 64), (0.49, 64), (0.5, 64), (0.65, 96), (0.799, 128), (0.8, 128), (1.0, 128)],
)
def test_half_a_ramp_and_a_fifth_at_full_size(progress: float, size: int) -> None:
    assert size_at(progress, 128, PROGRESSIVE) == size


@pytest.mark.parametrize("multiple", [1, 4, 32])
def test_rounded_to_the_nearest_multiple(multiple: int) -> None:
    resize = Resize("progressive", initial_scale=0.5, delay=0.0, finish=0.0, multiple=multiple)
    sizes = [size_at(step / 100, 224, resize) for step in range(101)]
    for step, size in enumerate(sizes):
        assert size % multiple == 0
        assert abs(size - (112 + 112 * step / 100)) <= multiple / 2 + 1e-9
    assert (sizes[0], sizes[-1]) == (128 if multiple == 32 else 112, 224)


@settings(deadline=None)
@given(schedules(), parts, parts)
def test_grows_in_multiples_to_the_full_size(
    schedule: tuple[int, Resize], first: float, second: float
) -> None:
    size, resize = schedule
    early, late = sorted((first, second))
    at_early, at_late = size_at(early, size, resize), size_at(late, size, resize)
    assert resize.multiple <= at_early <= at_late <= size
    assert at_early % resize.multiple == 0
    assert size_at(1.0, size, resize) == size
    if late >= 1 - resize.finish:
        assert at_late == size


@settings(deadline=None)
@given(schedules(), parts)
def test_held_at_the_first_size(schedule: tuple[int, Resize], progress: float) -> None:
    size, resize = schedule
    assume(progress <= resize.delay and progress < 1 - resize.finish)
    first = size_at(progress, size, resize)
    assert abs(first - max(size * resize.initial_scale, resize.multiple)) <= resize.multiple / 2


@pytest.mark.parametrize(
    "neutral",
    [
        Resize(),
        Resize(schedule="fixed", initial_scale=0.1),
        Resize(schedule="progressive", initial_scale=1.0),
        Resize(schedule="progressive", delay=0.0, finish=1.0),
    ],
)
def test_neutral_schedules_have_one_size(neutral: Resize) -> None:
    progresses = [step / 37 for step in range(38)]
    assert {size_at(progress, 224, neutral) for progress in progresses} == {224}
    assert relative_pixels(37, 224, neutral) == 1.0
    assert len({size_at(progress, 224, PROGRESSIVE) for progress in progresses}) > 5


@settings(deadline=None, max_examples=50)
@given(schedules(), st.integers(1, 60))
def test_relative_pixels_against_a_loop(schedule: tuple[int, Resize], num_steps: int) -> None:
    size, resize = schedule
    pixels = 0
    for step in range(num_steps):
        pixels += size_at(step / num_steps, size, resize) ** 2
    assert relative_pixels(num_steps, size, resize) == pytest.approx(pixels / num_steps / size**2)


def test_relative_pixels_of_the_default() -> None:
    """Half at a quarter of the pixels, a fifth at all, the mean square of the ramp between."""
    between = 0.3 * (1 - 0.5**3) / 3 / 0.5
    resize = Resize("progressive", multiple=1)
    expected = 0.5 * 0.25 + between + 0.2
    assert relative_pixels(10_000, 1000, resize) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("epochs", [1, 5, 40])
@pytest.mark.parametrize("size", [28, 128, 224])
@pytest.mark.parametrize("initial_scale", [0.25, 0.5, 1.0])
def test_matched_compute(epochs: int, size: int, initial_scale: float) -> None:
    def planned(resize: Resize) -> tuple[int, int]:
        """Steps, and pixels per image of a batch, of the plan for 640 images."""
        config = RunConfig(resize=resize, budget=Budget(epochs), data=Data(default_size=size))
        (stage,) = plan(config, num_train=640)
        steps = range(stage.num_steps)
        return stage.num_steps, sum(stage.size(step / stage.num_steps) ** 2 for step in steps)

    progressive = partial(Resize, schedule="progressive", initial_scale=initial_scale)
    fixed_steps, fixed = planned(Resize())
    assert fixed == fixed_steps * size**2
    matched_steps, matched = planned(progressive(match="compute"))
    assert abs(matched - fixed) <= size**2  # one step at the full size
    equal_steps, cheaper = planned(progressive(match="epochs"))
    assert equal_steps == fixed_steps
    if initial_scale < 1:  # negative control: without matching, the budgets are far apart
        assert matched_steps > fixed_steps
        assert fixed - cheaper > 3 * size**2


def test_images_of_the_size_are_returned_themselves() -> None:
    images = torch.rand(2, 3, 8, 8)
    assert to_size(images, 8) is images
    assert to_size(images[..., :7], 8).shape == (2, 3, 8, 8)


@settings(deadline=None, max_examples=30)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.integers(1, 40),
    value=st.floats(0, 1, width=32),
)
def test_a_constant_image_stays_constant(height: int, width: int, size: int, value: float) -> None:
    resized = to_size(torch.full((1, 2, height, width), value), size)
    assert resized.shape == (1, 2, size, size)
    assert (resized - value).abs().max() < 1e-6


def test_shrinking_does_not_alias() -> None:
    board = (torch.arange(63)[:, None] + torch.arange(63)).remainder(2).float()[None, None]
    assert (to_size(board, 21) - 0.5).abs().max() < 0.1
    plain = F.interpolate(board, (21, 21), mode="bilinear")
    assert (plain - 0.5).abs().min() > 0.4  # negative control: every pixel black or white
