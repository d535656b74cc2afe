"""Folders as people have them: splits by other names, splits inside classes, folders of no data."""

import unicodedata

import numpy as np
import pytest

from runner.config.schema import Data
from runner.data.layout import part_of
from runner.data.sources import list_images
from runner.errors import DataError

PAIR = {"cat": 2, "dog": 3}


def below(**parts):
    """``{"train/cat": 2, ...}`` for every part and class."""
    return {f"{part}/{name}": count for part in parts for name, count in parts[part].items()}


@pytest.fixture
def listed(make_images, tmp_path):
    """A function that makes images and lists them."""

    def list_it(counts, root=tmp_path / "pets", outputs=tmp_path / "outputs"):
        make_images(root, counts)
        data = Data(name="folder", root=str(root))
        return list_images(data, outputs / "cache", 0, lambda *_: None)

    return list_it


def held(listing):
    return [listing.images.name(index) for index in np.flatnonzero(listing.is_val)]


NAMES = {
    "train": ["train", "Train", "TRAINING", "training_set", "train-images", "train set", "trainset",
              "Training Data", "data.train", "train_split"],
    "val": ["val", "Val", "valid", "validation", "validation_set", "dev", "images_val", "valset"],
    "test": ["test", "Test", "testing", "test_set", "testset", "holdout"],
    None: ["bus", "pregnancy test", "steam train", "tests of strength", "images", "set", "trainer",
           "valley", "1", "", "развитие"],
}  # fmt: skip


@pytest.mark.parametrize("part", NAMES, ids=str)
def test_the_names_of_splits(part):
    assert {name: part_of(name) for name in NAMES[part]} == dict.fromkeys(NAMES[part], part)


@pytest.mark.parametrize(
    ("train", "val"),
    [("training_set", "val-set"), ("Train", "Val"), ("train", "valid"), ("train", "validation"),
     ("TRAINING", "Validation")],
)  # fmt: skip
def test_splits_by_other_names_are_splits_with_a_line(train, val, listed):
    listing = listed(below(**{train: PAIR, val: PAIR}))

    assert listing.classes == ("cat", "dog")
    assert {name.split("/")[0] for name in held(listing)} == {val}
    assert len(held(listing)) == 5
    assert listing.notes == (f"training on the folder {train}, validation on the folder {val}",)


def apart(listing):
    return [listing.images.name(index) for index in np.flatnonzero(listing.is_test)]


@pytest.mark.parametrize("test", ["test", "Testing", "TEST", "test_set"])
def test_a_test_part_next_to_val_stays_apart(test, listed):
    listing = listed(below(train=PAIR, valid=PAIR, **{test: PAIR}))

    assert {name.split("/")[0] for name in held(listing)} == {"valid"}
    assert {name.split("/")[0] for name in apart(listing)} == {test}
    assert len(apart(listing)) == 5
    assert listing.notes[-1] == (
        f"5 test images (the folder {test}) stay apart: no training and no verdict uses them"
    )


@pytest.mark.parametrize(
    ("train", "test"), [("train", "test"), ("TRAIN", "Testing"), ("training_set", "test_set")]
)
def test_without_val_validation_is_drawn_from_train_and_that_is_said(train, test, listed):
    alone = listed({"cat": 10, "dog": 5})

    listing = listed(
        below(**{train: {"cat": 10, "dog": 5}, test: PAIR}), root=alone.images.root / "x"
    )

    assert [name.split("/", 1)[1] for name in held(listing)] == held(alone)
    assert {name.split("/")[0] for name in held(listing)} == {train}
    assert len(apart(listing)) == 5
    assert listing.notes == (
        f"5 test images (the folder {test}) stay apart: no training and no verdict uses them",
        "there is no validation part, so it is drawn from the training part",
    )


def test_a_test_part_inside_classes(listed):
    counts = {"cat/train": 4, "cat/test": 1, "dog/train": 4, "dog/test": 2}
    listing = listed(counts)

    assert apart(listing) == ["cat/test/0.png", "dog/test/0.png", "dog/test/1.png"]
    assert len(held(listing)) == 2
    assert all("/train/" in name for name in held(listing))
    with_val = listed({**counts, "cat/val": 1, "dog/val": 1})
    assert held(with_val) == ["cat/val/0.png", "dog/val/0.png"]
    assert apart(with_val) == apart(listing)


def test_a_test_part_without_labels_is_left_out_and_half_of_them_is_an_error(listed):
    listing = listed({**below(train=PAIR, val=PAIR), "test": 3})
    assert listing.notes == ("the folder test is left out: it has no class folders",)
    assert (listing.is_test, len(listing.images)) == (None, 10)

    listing = listed({"test/images": 1})
    assert listing.notes[0] == (
        "the folder test is left out: it has no images of the classes of training"
    )
    with pytest.raises(DataError, match="in test but not in training: images"):
        listed({"test/cat": 1})


REFUSED = {
    "two for training": (below(train=PAIR, Train=PAIR, val=PAIR), "several folders for one split"),
    "two for validation": (below(train=PAIR, val=PAIR, valid=PAIR), "several folders"),
    "parts that are no splits": (below(fold1=PAIR, fold2=PAIR), "folders of the same names"),
    "one more": (below(mine=PAIR, hers=PAIR, his={"cow": 2}), "folders of the same names"),
    "no classes in them": ({"training": 2, "testing": 2}, "look like splits"),
    "test alone": (below(test=PAIR, val=PAIR), "look like splits"),
    "splits in one class of two": ({"cat/train": 2, "cat/val": 2, "dog": 2}, "some classes have"),
    "splits and images": (
        {"cat/train": 2, "cat/val": 2, "cat": 2, "dog/train": 2, "dog/val": 2}, "some classes have",
    ),
    "splits and a hollow class": (
        {"cat/train": 2, "cat/val": 2, "dog/train": 2, "dog/val": 2, "owl": 0}, "owl has nothing",
    ),
    "a hollow training class": ({"train/cat": 2, "train/dog": 0, "val/cat": 1}, "without images"),
    "validation is hollow": ({"train/cat": 2, "train/dog": 1, "val/cat": 0}, "no images found"),
}  # fmt: skip


@pytest.mark.parametrize(("counts", "message"), REFUSED.values(), ids=REFUSED)
def test_what_may_be_splits_is_refused(counts, message, listed):
    with pytest.raises(DataError, match=message) as caught:
        listed(counts)

    assert caught.value.where
    assert caught.value.fix
    assert "remove" not in caught.value.fix


def test_splits_inside_classes_are_splits(listed):
    listing = listed({"cat/train": 2, "cat/val": 1, "dog/train": 3, "dog/val": 2, "cow/train": 1})

    assert listing.classes == ("cat", "cow", "dog")
    assert held(listing) == ["cat/val/0.png", "dog/val/0.png", "dog/val/1.png"]
    assert listing.notes == (
        "training on the folders CLASS/train, validation on CLASS/val",
        "no validation images of cow",
    )


@pytest.mark.parametrize(
    "counts",
    [{"bus": 2, "train": 2, "test": 2}, {"cat/2023": 2, "dog/2024": 2}, {"cat/new": 2, "dog": 2},
     {"cat/a": 1, "cat/b": 1, "dog/a": 1, "dog/c": 1}, {"cat/train": 2, "dog/train": 2}],
    ids=str,
)  # fmt: skip
def test_classes_that_are_not_splits(counts, listed):
    listing = listed(counts)

    assert set(listing.classes) == {name.split("/")[0] for name in counts}
    assert listing.notes == () or "one image only" in listing.notes[0]


def test_an_empty_class_folder_in_val_is_a_missing_class(listed):
    listing = listed({"train/a": 1, "train/b": 1, "val/a": 1, "val/b": 0})

    assert listing.classes == ("a", "b")
    assert listing.notes == ("no validation images of b",)


@pytest.mark.parametrize(
    "junk", ["@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information",
             ".ipynb_checkpoints", "__MACOSX", "#recycle"],
)  # fmt: skip
def test_folders_of_other_programs_are_no_data(junk, listed):
    everywhere = {junk: 1, f"cat/{junk}": 2, f"cat/deep/{junk}": 1, f"{junk}/cat": 1}
    assert listed({"cat": 2, "dog": 2, **everywhere}).classes == ("cat", "dog")


def test_junk_inside_splits_and_classes(listed):
    listing = listed({**below(train=PAIR, val=PAIR), "train/@eaDir": 1, "val/cat/@eaDir": 4})

    assert (len(listing.images), len(held(listing))) == (10, 5)


@pytest.mark.parametrize("place", ["outputs", "mine/results", "cat/outputs"])
@pytest.mark.parametrize("is_split", [True, False])
def test_what_this_program_writes_is_no_data(place, is_split, listed, make_images, tmp_path):
    root = tmp_path / "pets"
    outputs = root / place
    counts = below(train=PAIR, val=PAIR) if is_split else PAIR
    (outputs / "sweeps" / "one").mkdir(parents=True)  # as a sweep, before its first job
    first = listed(counts, root, outputs)
    make_images(outputs / "cache" / "unpacked" / "set", {"x": 2, "y": 2})
    make_images(outputs / "run", {"plots": 1})
    (outputs / "run" / "run.json").write_text("{}")

    second = listed({}, root, outputs)

    assert second.classes == ("cat", "dog")
    assert second.images.paths == first.images.paths
    # Also for a command that writes elsewhere.
    other = listed({}, root, tmp_path / "elsewhere")
    assert other.images.paths == first.images.paths


def test_classes_whose_names_look_alike_are_told(listed):
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    listing = listed({"Cat": 2, "cat": 2, composed: 2, decomposed: 2, "dog": 2, "0": 2, "0.0": 2})

    (note,) = listing.notes
    assert "'Cat' and 'cat'" in note
    assert r"'e\u0301' and '\xe9'" in note
    assert "'0' and '0.0'" in note
    assert "dog" not in note


@pytest.mark.slow
def test_commands_in_the_folder_of_the_data_with_a_cache_that_is_cut(process, tmp_path, tiny_words):
    """The same result each time, with a line, from ``data.root=.`` and from ``outputs`` in it."""
    from small import COLOURS, write_images

    for seed, (name, colour) in enumerate(COLOURS.items()):
        write_images(tmp_path / name, 12, colour, seed)
    words = [word for word in tiny_words if not word.startswith("data.root=")]
    words += ["data.root=.", "normalize=dataset", "force=true"]

    def accuracy(done):
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if line.startswith(" accuracy")]

    first = process(*words)
    assert "left out, which are no images" not in first.stdout
    for pattern in ("decoded/*/*.*", "digests/*.json", "statistics/*.json"):
        for path in sorted((tmp_path / "outputs" / "cache").glob(pattern)):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            again = process(*words)
            assert accuracy(again) == accuracy(first) != []
            assert "again: " in again.stderr, path
            assert "which are no images" not in again.stdout
