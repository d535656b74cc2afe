import hashlib
import importlib.util
import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from runner.data import embedded
from runner.errors import ArtefactError

FOLDER = Path(embedded.__file__).parent
SOURCE = Path("/usr/share/datasets/fashion-mnist")
SCRIPT = Path(__file__).parents[2] / "scripts" / "build_fashion_subset.py"


def test_shapes_types_and_counts():
    subset = embedded.load_fashion()

    assert subset.train_images.shape == (6000, 28, 28)
    assert subset.val_images.shape == (1500, 28, 28)
    assert np.bincount(subset.train_labels).tolist() == [600] * 10
    assert np.bincount(subset.val_labels).tolist() == [150] * 10
    for array in (
        subset.train_images,
        subset.train_labels,
        subset.val_images,
        subset.val_labels,
    ):
        assert array.dtype == np.uint8
        assert array.flags.writeable  # torch.from_numpy warns about arrays that are not
    assert subset.classes == embedded.FASHION_CLASSES
    assert len(set(subset.classes)) == 10


def test_rows_are_in_their_original_order_and_mixed():
    with np.load(FOLDER / "fashion.npz", allow_pickle=False) as arrays:
        for split, original in (("train", 60_000), ("val", 10_000)):
            index = arrays[f"{split}_index"]
            assert index.dtype == np.int32
            assert np.all(np.diff(index) > 0)
            assert index[0] >= 0
            assert index[-1] < original
            assert len(set(arrays[f"{split}_labels"][:100].tolist())) == 10


def test_no_image_is_in_both_splits():
    subset = embedded.load_fashion()
    train = {image.tobytes() for image in subset.train_images}
    val = {image.tobytes() for image in subset.val_images}

    assert not train & val


def test_checksum_file_has_the_format_of_sha256sum():
    digest = hashlib.sha256((FOLDER / "fashion.npz").read_bytes()).hexdigest()

    assert (FOLDER / "fashion.sha256").read_text() == f"{digest}  fashion.npz\n"
    assert "Zalando SE" in (FOLDER / "FASHION-MNIST-LICENSE").read_text()


@pytest.fixture
def own_copy(tmp_path, monkeypatch):
    for name in ("fashion.npz", "fashion.sha256"):
        shutil.copy(FOLDER / name, tmp_path / name)
    monkeypatch.setattr(embedded, "_FOLDER", tmp_path)
    return tmp_path


def flip_bit(folder):
    content = bytearray((folder / "fashion.npz").read_bytes())
    content[1_000_000] ^= 1
    (folder / "fashion.npz").write_bytes(content)


def cut(folder):
    content = (folder / "fashion.npz").read_bytes()
    (folder / "fashion.npz").write_bytes(content[:-100])


DAMAGES = {
    "flipped bit": flip_bit,
    "cut": cut,
    "npz missing": lambda folder: (folder / "fashion.npz").unlink(),
    "checksum missing": lambda folder: (folder / "fashion.sha256").unlink(),
    "checksum empty": lambda folder: (folder / "fashion.sha256").write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_copy_is_refused(own_copy, damage):
    embedded.load_fashion()  # the copy was good
    damage(own_copy)

    with pytest.raises(ArtefactError) as caught:
        embedded.load_fashion()

    assert str(own_copy / "fashion.npz") in caught.value.where
    assert "reinstall trick-runner" in caught.value.fix


@pytest.fixture(scope="module")
def builder():
    spec = importlib.util.spec_from_file_location("build_fashion_subset", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not SOURCE.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_builder_reproduces_the_file(builder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [str(SCRIPT), str(SOURCE), "--output", str(tmp_path)])
    builder.main()

    assert "fashion.npz" in capsys.readouterr().out
    with (
        np.load(tmp_path / "fashion.npz", allow_pickle=False) as built,
        np.load(FOLDER / "fashion.npz", allow_pickle=False) as shipped,
    ):
        assert built.files == shipped.files
        for name in built.files:
            np.testing.assert_array_equal(built[name], shipped[name])
            assert built[name].dtype == shipped[name].dtype
    if "ng" not in zlib.ZLIB_RUNTIME_VERSION:  # zlib-ng packs the same arrays differently
        for name in ("fashion.npz", "fashion.sha256"):
            assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name


def test_packing_does_not_depend_on_the_clock(builder, tmp_path):
    arrays = {"numbers": np.arange(10)}
    path = tmp_path / "numbers.npz"
    path.write_bytes(builder.npz_bytes(arrays))

    with zipfile.ZipFile(path) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    with np.load(path, allow_pickle=False) as loaded:
        np.testing.assert_array_equal(loaded["numbers"], np.arange(10))


def test_chosen_rows_depend_on_split_and_class(builder):
    labels = np.tile(np.arange(10, dtype=np.uint8), 50)

    train = builder.chosen_rows(labels, "train", 5)
    val = builder.chosen_rows(labels, "val", 5)

    assert np.bincount(labels[train]).tolist() == [5] * 10
    assert np.bincount(labels[val]).tolist() == [5] * 10
    assert not np.array_equal(train, val)
    places = {tuple(train[labels[train] == label] // 10) for label in range(10)}
    assert len(places) > 1  # each class draws for itself


def test_builder_names_a_missing_file(builder, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", [str(SCRIPT), str(tmp_path), "--output", str(tmp_path)])

    with pytest.raises(SystemExit, match=r"train-images-idx3-ubyte\.gz"):
        builder.main()

    assert not list(tmp_path.iterdir())
