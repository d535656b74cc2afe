"""Files of the cache and tables with bytes changed by chance.

A damaged cache gives the result of an untouched one, or an error of ours; a damaged table gives a
listing or an error of ours. Neither ever meets another exception. ``-s`` prints the counts.
"""

import itertools
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from runner.config.schema import Data
from runner.data import sealed
from runner.data.dataset import load_dataset
from runner.data.sources import list_images
from runner.data.statistics import training_statistics
from runner.errors import RunnerError

PIECES = [
    b"", b"\0", b"\xff", b"[" * 50_000, b'{"a":', b"1e999", b"-1", b"null", b"NaN", b"\n", b"\r",
    b",", b";", b'"', b"\t", b"\xff\xfe", b"\xef\xbb\xbf", b"../", b"\\", b"train", b"test", b" ",
    "é".encode(), "e\u0301".encode(), b"path", b"/dev/zero", b"x" * 300,
]  # fmt: skip


def changed(content: bytes, chance: random.Random) -> bytes:
    """``content`` after one to three changes: bits, cuts, pieces put in, parts moved."""
    for _ in range(chance.randint(1, 3)):
        first, last = sorted(chance.choices(range(len(content) + 1), k=2))
        kind = chance.randrange(6)
        if kind == 0 and content:
            place = chance.randrange(len(content))
            flipped = bytes([content[place] ^ 1 << chance.randrange(8)])
            content = content[:place] + flipped + content[place + 1 :]
        elif kind == 1:
            content = content[:first]
        elif kind == 2:
            content = content[:first] + chance.choice(PIECES) + content[last:]
        elif kind == 3:
            content = content[:first] + chance.choice(PIECES) + content[first:]
        elif kind == 4:
            content = content[last:] + content[:first]
        else:
            content = content[:last] + content[first:]
    return content


def damage_cache(folder: Path, seconds: float) -> Counter[str]:
    """Change one to three files at a time, load, and compare; count how it ended."""
    from small import COLOURS, write_images

    for seed, (name, colour) in enumerate(COLOURS.items()):
        write_images(folder / "set" / "train" / name, 3, colour, seed)
        write_images(folder / "set" / "val" / name, 2, colour, 100 + seed)
    cache = folder / "cache"

    def load(cache_gb: float) -> object:
        data = Data(name="folder", root=str(folder / "set"), cache_gb=cache_gb)
        dataset = load_dataset(data, 8, cache, lambda *_: None)
        pixels = [dataset.store.rectangle(index).tobytes() for index in range(15)]
        return pixels, dataset.manifest, dataset.skipped, training_statistics(dataset, cache)

    wholes = {cache_gb: load(cache_gb) for cache_gb in (1.0, 0.0)}
    files = sorted(path for path in cache.rglob("*") if path.suffix in (".json", ".npy", ".u8"))
    assert len(files) >= 9
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    for seed in itertools.takewhile(lambda _: time.monotonic() < end, itertools.count()):
        chance = random.Random(seed)  # noqa: S311
        for path in chance.sample(files, chance.randint(1, 3)):
            content = path.read_bytes()
            other = chance.choice(files).read_bytes() if chance.random() < 0.1 else None
            path.write_bytes(changed(content, chance) if other is None else other)
        cache_gb = chance.choice([1.0, 0.0])
        try:
            assert load(cache_gb) == wholes[cache_gb], f"seed {seed}: another result"
            counts["equal"] += 1
        except RunnerError as error:
            counts[type(error).__name__] += 1
        load(1.0 - cache_gb)  # mends the files that this way does not read
    return counts


def damage_tables(folder: Path, seconds: float) -> Counter[str]:
    """Change the bytes of a table, list it, and count how it ended."""
    from small import COLOURS, write_images

    write_images(folder / "images", 8, COLOURS["red"], 0)
    rows = [
        f"images/{n:03d}.png,{'ab'[n % 2]},{('train', 'val', 'test')[n // 3]}" for n in range(8)
    ]
    text = "path,label,split\n" + "\n".join(rows) + "\n"
    starts = [
        content.replace(",", separator).encode(encoding)
        for content in (text, text.replace("/", "\\"), text.replace(".png", ""))
        for separator in ",;\t"
        for encoding in ("utf-8", "utf-8-sig", "utf-16", "latin-1")
    ]
    table = folder / "labels.csv"
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    for seed in itertools.takewhile(lambda _: time.monotonic() < end, itertools.count()):
        chance = random.Random(seed)  # noqa: S311
        table.write_bytes(changed(chance.choice(starts), chance))
        split = chance.choice(["split", None])
        data = Data(name="table", root=str(table), split_column=split)
        try:
            listing = list_images(data, folder / "cache", 0, lambda *_: None)
        except RunnerError as error:
            if not (error.where and error.fix):
                raise AssertionError(f"seed {seed}: no place or no fix") from error
            counts[type(error).__name__] += 1
        else:
            listing.images.stamp()
            assert len(listing.labels) == len(listing.images) == len(listing.is_val) > 0
            assert set(listing.labels.tolist()) == set(range(len(listing.classes)))
            counts["listed"] += 1
    return counts


FUZZES = {"cache": damage_cache, "tables": damage_tables}


@pytest.mark.parametrize(
    "seconds",
    [pytest.param(5.0, marks=pytest.mark.whole), pytest.param(240.0, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("fuzz", FUZZES.values(), ids=FUZZES)
def test_nothing_but_an_equal_result_or_an_error_of_ours(fuzz, seconds, tmp_path, capsys):
    counts = fuzz(tmp_path, seconds)

    with capsys.disabled():
        print(f"\n{fuzz.__name__}: {dict(counts)}")
    assert counts.total() > seconds


@pytest.mark.whole
def test_a_cache_that_is_not_checked_is_caught(tmp_path, monkeypatch):
    """The fuzz can fail."""
    monkeypatch.setattr(sealed, "_crc", lambda file: 0)
    with pytest.raises(Exception):  # noqa: B017, PT011  another result, or whatever is raised
        damage_cache(tmp_path, 20.0)
