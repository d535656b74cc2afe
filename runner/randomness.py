"""Keyed randomness: every draw is a function of (seed, purpose, position) and of nothing else.

A generator is made where it is needed and then dropped. So no random state has to be saved, the
number of workers cannot change a result, and a trick that is turned on does not shift the draws of
another: baseline and trick share initial weights, order and crops of the same seed.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray


def _key(seed: int, purpose: str, position: tuple[int, ...]) -> int:
    text = "/".join([str(seed), purpose, *map(str, position)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(seed: int, purpose: str, *position: int) -> np.random.Generator:
    """Return a fresh generator for one purpose at one position (epoch, step …)."""
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose, position)))


def uniforms(count: int, seed: int, purpose: str, *position: int) -> NDArray[np.float64]:
    """One draw from U[0, 1) per sample; entry i belongs to sample i whatever ``count`` is.

    Returns:
        Array of shape (count,).
    """
    return generator(seed, purpose, *position).random(count)


def torch_seed(seed: int, purpose: str, *position: int) -> int:
    """Return a seed for ``torch.manual_seed`` in [0, 2**63)."""
    return _key(seed, purpose, position) % 2**63
