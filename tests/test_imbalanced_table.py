"""The committed table of the example on imbalance follows its rule, and can be trained on."""

import csv
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runner.config.schema import Data
from runner.data.embedded import load_fashion
from runner.data.sources import list_images
from scripts import imbalanced_table


def test_the_committed_table_is_that_of_the_rule() -> None:
    assert imbalanced_table.COMMITTED.read_text() == imbalanced_table.table()
    with imbalanced_table.COMMITTED.open(newline="") as file:
        rows = list(csv.DictReader(file))
    data = load_fashion()
    sizes = Counter(row["label"] for row in rows if row["split"] == "train")
    assert [sizes[name] for name in data.classes] == imbalanced_table.class_sizes()
    assert max(sizes.values()) == 50 * min(sizes.values())
    assert Counter(row["label"] for row in rows if row["split"] == "val") == dict.fromkeys(
        data.classes, 150
    )
    # The ratio of neighbors is the same everywhere, but for rounding.
    ratios = [larger / smaller for larger, smaller in zip(
        imbalanced_table.class_sizes(), imbalanced_table.class_sizes()[1:], strict=False
    )]  # fmt: skip
    assert ratios == pytest.approx([50 ** (1 / 9)] * 9, rel=0.03)


def test_the_script_writes_what_the_table_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "imbalanced"
    monkeypatch.setattr(sys, "argv", ["imbalanced_table", str(folder)])
    imbalanced_table.main()
    data = Data(name="table", root=str(folder / "table.csv"), split_column="split")
    listing = list_images(data, tmp_path / "cache", 0, lambda *_: None)
    assert len(listing.labels) == 1_680 + 1_500
    assert np.bincount(listing.labels[~listing.is_val]).max() == 600
    embedded = load_fashion()
    number = 41
    with Image.open(folder / "val" / f"{number:04d}.png") as image:
        assert np.array_equal(np.asarray(image), embedded.val_images[number])
    (row,) = [line for line in imbalanced_table.table().splitlines() if f"val/{number:04d}" in line]
    assert row.split(",")[1] == embedded.classes[embedded.val_labels[number]]
