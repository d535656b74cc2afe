import numpy as np
import pytest
from pictures import encoded

from runner.config.schema import Data
from runner.data import statistics
from runner.data.dataset import load_dataset
from runner.data.statistics import training_statistics


@pytest.fixture
def root(make_images, tmp_path):
    return make_images(tmp_path / "pets", {f"{s}/{c}": 2 for s in ("train", "val") for c in "ab"})


@pytest.fixture
def load(root, tmp_path):
    def load_it(**keys):
        data = Data(name="folder", root=str(root), **keys)
        return load_dataset(data, 8, tmp_path / "cache", lambda *_: None)

    return load_it


def pixels_of(dataset, split):
    rectangles = [dataset.store.rectangle(int(index)) for index in split.indices]
    return np.concatenate([item.reshape(-1, 3) for item in rectangles]) / 255


def test_mean_and_std_are_those_of_numpy_over_training_pixels_alone(load, tmp_path):
    dataset = load()

    mean, std = training_statistics(dataset, tmp_path / "cache")

    pixels = pixels_of(dataset, dataset.train)
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=0), rtol=1e-9)
    other = pixels_of(dataset, dataset.val).mean(axis=0)
    assert not np.allclose(mean, other, rtol=1e-3)  # the comparison can fail


def test_validation_pixels_have_no_influence_and_training_pixels_do(load, root, tmp_path):
    before = training_statistics(load(), tmp_path / "cache")
    white = encoded(np.full((12, 16, 3), 255, np.uint8))

    (root / "val" / "a" / "0.png").write_bytes(white)
    assert training_statistics(load(), tmp_path / "cache") == before

    (root / "train" / "a" / "0.png").write_bytes(white)
    after = training_statistics(load(), tmp_path / "cache")
    assert all(new > old for new, old in zip(after[0], before[0], strict=True))


def test_they_are_measured_once(load, tmp_path, monkeypatch):
    dataset = load()
    first = training_statistics(dataset, tmp_path / "cache")

    def measured(_):
        raise AssertionError("measured again")

    monkeypatch.setattr(statistics, "channel_statistics", measured)
    assert training_statistics(dataset, tmp_path / "cache") == first
    with pytest.raises(AssertionError, match="measured again"):
        training_statistics(dataset, tmp_path / "elsewhere")


@pytest.mark.parametrize("keys", [{"presize": 5}, {"max_aspect": 1.0}])
def test_other_stored_pixels_are_measured_anew(keys, load, tmp_path):
    """A result must not depend on which run came first."""
    training_statistics(load(), tmp_path / "cache")

    found = training_statistics(load(**keys), tmp_path / "cache")

    assert found == training_statistics(load(**keys), tmp_path / "fresh")
