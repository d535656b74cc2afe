"""Mean and standard deviation of a training split, measured once per data set."""

import json
from pathlib import Path

from runner.data.dataset import Dataset
from runner.data.store import write_whole
from runner.tricks.normalize import channel_statistics


def training_statistics(
    dataset: Dataset, cache: Path
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel over every stored pixel of the training split, and only that.

    Remembered below ``cache`` by the data's fingerprint and the shape of the stored images.
    """
    stored = f"{dataset.presize}px-{dataset.max_aspect:g}-{dataset.interpolation}"
    path = cache / "statistics" / f"{dataset.fingerprint[:32]}-{stored}.json"
    if path.exists():
        remembered = json.loads(path.read_text())
        return tuple(remembered["mean"]), tuple(remembered["std"])
    mean, std = channel_statistics(
        dataset.store.rectangle(int(index)) for index in dataset.train.indices
    )
    write_whole(path, json.dumps({"mean": mean, "std": std}))
    return mean, std
