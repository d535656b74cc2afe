"""Near-duplicates: changed copies are found, other images are not, and all pairs are compared."""

import csv
import io
import sys

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from runner.config.schema import Data
from runner.data.dataset import load_dataset
from runner.data.duplicates import close_pairs, hash_function, near_duplicates, summary
from runner.errors import ConfigError


def scene(number, size=96):
    """A smooth picture that no other number gives."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "set"
    for part, first in (("train", 0), ("val", 20), ("test", 40)):
        for name, offset in (("cat", 0), ("dog", 6)):
            (root / part / name).mkdir(parents=True)
            for number in range(6):
                scene(first + offset + number).save(root / part / name / f"{number}.png")
    scene(0).resize((70, 70)).save(root / "val" / "cat" / "smaller.png")
    ImageEnhance.Brightness(scene(1)).enhance(0.8).save(root / "test" / "cat" / "darker.jpg")
    scene(20).save(root / "val" / "dog" / "same.png")
    for number in range(3):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(
            root / "train" / "dog" / f"flat{number}.png"
        )
    return root


def test_copies_are_found_across_and_within_parts_and_flat_images_are_left_out(root, tmp_path):
    data = Data(name="folder", root=str(root))
    dataset = load_dataset(data, 32, tmp_path / "cache", lambda *_: None, with_test=True)
    found = near_duplicates(dataset, 4, lambda *_: None)

    assert [(pair.first.name, pair.second.name, pair.is_identical) for pair in found.pairs] == [
        ("train/cat/0.png", "val/cat/smaller.png", False),
        ("train/cat/1.png", "test/cat/darker.jpg", False),
        ("val/cat/0.png", "val/dog/same.png", True),
    ]
    assert (found.num_images, found.num_flat) == (39, 3)
    assert summary(found) == [
        ("train and val", 1, 0, 0), ("train and test", 1, 0, 0), ("within val", 1, 1, 1),
    ]  # fmt: skip
    # The hash is that of the library.
    first = imagehash.phash(Image.fromarray(dataset.store.rectangle(0)).convert("L"))
    assert (
        f"{hash_function()(Image.fromarray(dataset.store.rectangle(0)).convert('L')):016x}"
        == str(first)
    )


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("distance", [0, 3, 12])
def test_every_pair_is_compared_once(distance, is_old, monkeypatch):
    if is_old:
        monkeypatch.delattr(np, "bitwise_count", raising=False)  # as in numpy 1
    random = np.random.default_rng(0)
    base = random.integers(0, 2**63, 300, dtype=np.uint64)
    flips = np.uint64(1) << random.integers(0, 64, 300, dtype=np.uint64)
    hashes = np.concatenate([base, base ^ flips, base[:10]])

    found = [*close_pairs(hashes, distance)]

    numbers = [int(value) for value in hashes]
    assert found == [
        (first, second, bits)
        for first in range(len(numbers))
        for second in range(first + 1, len(numbers))
        if (bits := (numbers[first] ^ numbers[second]).bit_count()) <= distance
    ]


@pytest.mark.whole
def test_the_command(root, command):
    words = ["duplicates", "data=folder", f"data.root={root}", "resize.size=32"]
    done = command(*words, module="runner.data")
    assert done.returncode == 0, done.stderr
    assert "folder: 3 pairs of 39 images differ in at most 4 of 64 bits" in done.stdout
    assert "train and val: 1, of which 0 are identical, and 0 have two classes" in done.stdout
    assert "left out: 3 images of nearly one color" in done.stdout

    table = command(*words, "--csv", "-", module="runner.data").stdout
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["bits"] for row in rows][-1] == "identical"
    wrong = command(*words, "--distance", "64", module="runner.data")
    assert (wrong.returncode, wrong.stdout) == (2, "")


def test_without_the_package_the_fix_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(ConfigError) as caught:
        hash_function()
    assert caught.value.fix == "pip install 'trick-runner[duplicates]'"
