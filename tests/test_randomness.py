"""Every draw is a function of seed, purpose and position, and of nothing else."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from runner.randomness import generator, torch_seed, uniforms

Key = tuple[int, str, tuple[int, ...]]

seeds = st.integers(0, 2**63 - 1)
purposes = st.text("abcdefghijklmnopqrstuvwxyz._?", max_size=12)
positions = st.lists(st.integers(0, 10**6), max_size=3).map(tuple)
keys = st.tuples(seeds, purposes, positions)


def numbers(key: Key) -> list[float]:
    seed, purpose, position = key
    return generator(seed, purpose, *position).random(4).tolist()


@settings(deadline=None)
@given(keys)
def test_same_key_same_draws(key: Key) -> None:
    seed, purpose, position = key
    assert numbers(key) == numbers(key)
    assert uniforms(4, seed, purpose, *position).tolist() == numbers(key)
    assert torch_seed(seed, purpose, *position) == torch_seed(seed, purpose, *position)


@settings(deadline=None)
@given(keys, keys)
def test_other_key_other_draws(first: Key, second: Key) -> None:
    assert (numbers(first) == numbers(second)) == (first == second)
    seed, purpose, position = first
    other_seed, other_purpose, other_position = second
    same = torch_seed(seed, purpose, *position) == torch_seed(
        other_seed, other_purpose, *other_position
    )
    assert same == (first == second)


@pytest.mark.parametrize(
    "other",
    [
        (2, "a", (1, 23)),
        (1, "b", (1, 23)),
        (1, "a", (2, 23)),
        (1, "a", (1, 24)),
        (1, "a", (12, 3)),
        (1, "a", (123,)),
        (1, "a", (1, 2, 3)),
        (1, "a", (23, 1)),
        (1, "a", (1, 23, 0)),
        (11, "a", (23,)),
        (1, "a1", (23,)),
    ],
)
def test_neighbouring_keys_differ(other: Key) -> None:
    key = (1, "a", (1, 23))
    assert set(numbers(key)).isdisjoint(numbers(other))
    assert torch_seed(1, "a", 1, 23) != torch_seed(other[0], other[1], *other[2])


def test_integers_of_numpy_are_the_same_key() -> None:
    assert numbers((1, "a", (np.int64(3),))) == numbers((1, "a", (3,)))


@settings(deadline=None)
@given(key=keys, short=st.integers(0, 40), long=st.integers(40, 80))
def test_a_sample_keeps_its_draw_whatever_the_count(key: Key, short: int, long: int) -> None:
    seed, purpose, position = key
    longer = uniforms(long, seed, purpose, *position)
    assert longer.shape == (long,)
    assert np.array_equal(uniforms(short, seed, purpose, *position), longer[:short])


def test_uniforms_are_uniform_within_a_key_and_across_keys() -> None:
    assert stats.kstest(uniforms(10_000, 0, "test"), "uniform").pvalue > 0.01
    across = [uniforms(1, 0, "test", position)[0] for position in range(2000)]
    assert stats.kstest(across, "uniform").pvalue > 0.01
    assert stats.kstest(np.square(across), "uniform").pvalue < 1e-6  # negative control


@settings(deadline=None)
@given(keys)
def test_torch_seed_is_one(key: Key) -> None:
    seed, purpose, position = key
    drawn = torch_seed(seed, purpose, *position)
    assert 0 <= drawn < 2**63
    assert torch.Generator().manual_seed(drawn).initial_seed() == drawn


def test_torch_seeds_use_the_whole_range() -> None:
    drawn = [torch_seed(0, "test", position) for position in range(2000)]
    assert len(set(drawn)) == len(drawn)
    assert stats.kstest(np.array(drawn) / 2**63, "uniform").pvalue > 0.01


@pytest.mark.parametrize(
    "use",
    [
        lambda: generator(0, "test").random(8),
        lambda: uniforms(8, 0, "test"),
        lambda: torch_seed(0, "test"),
    ],
    ids=["generator", "uniforms", "torch_seed"],
)
def test_global_state_is_neither_read_nor_written(use: Callable[[], object]) -> None:
    def states() -> tuple[object, ...]:
        algorithm, words, *rest = np.random.get_state()  # noqa: NPY002  it is what we watch
        return random.getstate(), torch.get_rng_state().tolist(), algorithm, words.tolist(), *rest

    before = states()
    first = use()
    assert states() == before
    torch.rand(3)
    np.random.random(3)  # noqa: NPY002  as above
    random.random()  # noqa: S311  as above
    assert states() != before  # negative control: a draw from them would have been seen
    assert np.array_equal(use(), first)
