import gzip
import os
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, random_pixels
from torchvision.datasets import FashionMNIST, Imagenette

from runner.config.schema import Data
from runner.data import places, published
from runner.data.listing import stratified_split
from runner.data.sources import list_images
from runner.errors import ArtefactError, DataError, StorageError

WNIDS = [
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
    "n03394916", "n03417042", "n03425413", "n03445777", "n03888257",
]  # fmt: skip
FULL_FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def listed(tmp_path):
    """A function that lists a data set with its cache in the test's folder."""

    def list_it(name, root=None, *, cache=None, seed=0, **keys):
        data = Data(name=name, root=None if root is None else str(root), **keys)
        return list_images(data, cache or tmp_path / "cache", seed, lambda *_: None)

    return list_it


def names(listing, *, val):
    return [
        (listing.images.name(index), listing.classes[listing.labels[index]])
        for index in np.flatnonzero(listing.is_val == val)
    ]


def packed(folder, archive, top=""):
    """Write ``folder`` as an archive, its content below the folder ``top``."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as opened:
            for path in sorted(folder.rglob("*")):
                opened.write(path, Path(top) / path.relative_to(folder))
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix in (".tgz", ".gz") else "w") as opened:
            opened.add(folder, top or ".")
    return archive


# One folder per class ---------------------------------------------------------------------------


def test_train_and_val_folders(make_images, listed, tmp_path):
    root = make_images(tmp_path / "pets", {"train/cat": 3, "train/dog": 2, "val/cat": 1})
    make_images(root, {"val/dog": 2, "test/ignored": 1})

    listing = listed("folder", root)

    assert listing.classes == ("cat", "dog")
    assert names(listing, val=False) == [
        ("train/cat/0.png", "cat"),
        ("train/cat/1.png", "cat"),
        ("train/cat/2.png", "cat"),
        ("train/dog/0.png", "dog"),
        ("train/dog/1.png", "dog"),
    ]
    assert names(listing, val=True) == [
        ("val/cat/0.png", "cat"),
        ("val/dog/0.png", "dog"),
        ("val/dog/1.png", "dog"),
    ]
    assert listing.labels.dtype == np.int64
    assert listing.num_ignored == 0
    assert listing.notes == (
        "the folder test is left out: it has no images of the classes of training",
    )


def test_labels_are_those_of_training_where_val_lacks_a_class(make_images, listed, tmp_path):
    root = make_images(
        tmp_path / "pets", {"train/a": 1, "train/b": 1, "train/c": 1, "val/a": 1, "val/c": 1}
    )

    listing = listed("folder", root)

    assert names(listing, val=True) == [("val/a/0.png", "a"), ("val/c/0.png", "c")]
    assert listing.labels[listing.is_val].tolist() == [0, 2]
    assert listing.notes == ("no validation images of b",)


def test_a_class_in_val_alone_is_refused_by_name(make_images, listed, tmp_path):
    root = make_images(tmp_path / "pets", {"train/a": 1, "val/a": 1, "val/new": 1})

    with pytest.raises(DataError, match="in validation but not in training: new") as caught:
        listed("folder", root)

    assert str(root / "train") in caught.value.where
    assert str(root / "val") in caught.value.where
    make_images(root, {"train/new": 1})
    assert listed("folder", root).classes == ("a", "new")


def test_a_drawn_split_is_stratified_and_the_same_each_time(make_images, listed, tmp_path):
    counts = {"a": 20, "b": 10, "c": 2, "d": 3}
    root = make_images(tmp_path / "pets", counts)

    listing = listed("folder", root, val_fraction=0.3)

    held = [int(listing.is_val[listing.labels == label].sum()) for label in range(4)]
    assert held == [6, 3, 1, 1]
    again = listed("folder", root, val_fraction=0.3)
    assert names(again, val=True) == names(listing, val=True)
    other = listed("folder", root, val_fraction=0.3, seed=1)
    assert names(other, val=True) != names(listing, val=True)


def test_the_split_does_not_depend_on_the_order_of_the_file_system(
    make_images, listed, tmp_path, monkeypatch
):
    root = make_images(tmp_path / "pets", {"a": 9, "b/deep": 9, "b/low": 3})
    listing = listed("folder", root)
    scandir, listdir = os.scandir, os.listdir

    class Reversed:
        def __init__(self, *arguments):
            with scandir(*arguments) as entries:
                self.entries = reversed(list(entries))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.entries)

        close = __exit__

    monkeypatch.setattr(os, "scandir", Reversed)
    monkeypatch.setattr(os, "listdir", lambda *arguments: listdir(*arguments)[::-1])
    again = listed("folder", root)

    assert again.images == listing.images
    np.testing.assert_array_equal(again.is_val, listing.is_val)


def test_a_class_of_one_image_stays_in_training_with_a_note(make_images, listed, tmp_path):
    listing = listed("folder", make_images(tmp_path / "pets", {"many": 5, "rare": 1, "odd": 1}))

    assert {label for _, label in names(listing, val=True)} == {"many"}
    assert ("rare/0.png", "rare") in names(listing, val=False)
    assert listing.notes == ("odd, rare: one image only, which stays in the training split",)


@given(
    labels=st.lists(st.integers(0, 4), max_size=60),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
)
@settings(max_examples=150, deadline=None)
def test_a_stratified_split_gives_each_class_its_part(labels, fraction, seed):
    labels = np.array(labels, np.int64)

    is_val = stratified_split(labels, fraction, seed)

    for label in np.unique(labels):
        members = int((labels == label).sum())
        held = int(is_val[labels == label].sum())
        if members == 1:
            assert held == 0
        else:
            assert 1 <= held < members
            assert abs(held - members * fraction) <= 1
    np.testing.assert_array_equal(is_val, stratified_split(labels, fraction, seed))


def test_another_class_does_not_shift_the_draw_of_the_first():
    few = stratified_split(np.repeat([0, 1], 20), 0.3, 0)
    many = stratified_split(np.repeat([0, 1, 2], 20), 0.3, 0)

    np.testing.assert_array_equal(many[:40], few)


def test_files_that_are_no_images_are_ignored_and_counted(make_images, listed, tmp_path):
    root = make_images(tmp_path / "pets", {"cat": 2, "dog": 2})
    for junk in (".DS_Store", "cat/.DS_Store", "cat/._0.jpg", "dog/Thumbs.db", "dog/notes.txt"):
        (root / junk).write_bytes(b"junk")
    make_images(root, {"__MACOSX/cat": 1, ".hidden": 1, "cat/.thumbnails": 1, "dog/__MACOSX": 1})

    listing = listed("folder", root)

    assert listing.classes == ("cat", "dog")
    assert len(listing.images) == 4
    assert listing.num_ignored == 9
    (note,) = listing.notes
    assert note.startswith("9 files and folders left out, which are no images: 4 folders, 2")


def test_suffixes_in_any_case_and_images_at_any_depth(make_images, listed, tmp_path):
    found = ["a.JPG", "b.webp", "c.Png", "d.jpeg", "e.gif", "f.BMP", "g.tif", "h.ppm"]
    root = make_images(tmp_path / "pets", {"x": found, "y/2024/may": ["a.png"], "y": ["z.png"]})

    listing = listed("folder", root)

    expected = [f"x/{name}" for name in found] + ["y/z.png", "y/2024/may/a.png"]
    assert list(listing.images.paths) == expected


def test_what_pillow_reads_is_listed_and_the_rest_is_said(make_images, listed, tmp_path):
    found = ["a.jfif", "b.avif", "c.jp2", "d.tga", "e.qoi", "f.pbm"]
    root = make_images(tmp_path / "pets", {"x": found, "y": 2})
    (root / "y" / "photo.heic").write_bytes(b"")  # listed, so that the advice is seen
    for name in ("y/a.txt", "y/b.txt", "x/video.mp4"):
        (root / name).touch()

    listing = listed("folder", root)

    expected = [f"x/{name}" for name in found] + ["y/0.png", "y/1.png", "y/photo.heic"]
    assert list(listing.images.paths) == expected
    assert listing.notes == (
        "3 files left out, which are no images: 2 .txt, 1 .mp4, such as x/video.mp4",
    )


def test_num_ignored_of_images_alone(make_images, listed, tmp_path):
    root = make_images(tmp_path / "pets", {"x": 2, "y": 2})

    listing = listed("folder", root)

    assert listing.notes == ()
    assert listing.num_ignored == 0


def test_links(make_images, listed, tmp_path):
    root = make_images(tmp_path / "pets", {"a": 2, "b": 2})
    elsewhere = make_images(tmp_path / "elsewhere", {"": 2})
    (root / "a" / "loop").symlink_to(root)  # not followed: it would take the images of b
    (root / "back").symlink_to(root)  # nor this
    (root / "b" / "folder").symlink_to(elsewhere)
    (root / "c").symlink_to(elsewhere)  # a class may be a link
    (root / "nowhere").symlink_to(tmp_path / "nothing")
    (root / "a" / "gone.png").symlink_to(tmp_path / "nothing")

    listing = listed("folder", root)

    assert listing.classes == ("a", "b", "c")
    paths = [f"{name}/{number}.png" for name in ("a", "b", "b/folder", "c") for number in range(2)]
    assert sorted(listing.images.paths) == sorted([*paths, "a/gone.png"])  # broken, not left out
    assert listing.num_ignored == 3
    assert any("2 folders, 1 without suffix" in note for note in listing.notes)


def test_a_loop_of_links_alone_ends(listed, tmp_path):
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "loop").symlink_to(tmp_path / "pets")

    with pytest.raises(DataError, match="no images found"):
        listed("folder", tmp_path / "pets")


def test_odd_class_names_and_roots(make_images, listed, tmp_path):
    classes = ["1", "10", "2", "a b", "a=b", "c#", "zażółć", "50%", "[x]", "🐱", "_target_", "-rf"]
    root = make_images(tmp_path / "żółw = [1] #🐢", dict.fromkeys(classes, 2))

    listing = listed("folder", root)

    assert listing.classes == tuple(sorted(classes))
    assert listing.classes[:1] == ("-rf",)
    assert listing.classes.index("10") < listing.classes.index("2")  # as text, as everywhere
    for index, name in enumerate(listing.images.paths):
        assert name.startswith(listing.classes[listing.labels[index]] + "/")


def test_a_class_name_that_is_not_unicode(listed, tmp_path):
    for name in (b"caf\xe9", b"tea"):
        folder = tmp_path / "pets" / os.fsdecode(name)
        folder.mkdir(parents=True)
        for number in range(2):
            (folder / f"{number}.png").write_bytes(encoded(random_pixels(1)))

    assert len(listed("folder", tmp_path / "pets").classes) == 2


def folder_of_nothing(root, make):
    root.mkdir()


def folder_of_files(root, make):
    make(root, {"": 2})


def folder_without_val(root, make):
    make(root, {"train/a": 2, "train/b": 2, "more/a": 2, "more/b": 2})


BAD_FOLDERS = {
    "missing": (lambda root, make: None, "no such file", "data.root="),
    "empty": (folder_of_nothing, "no images found", "data.root="),
    "images without classes": (folder_of_files, "no images found", "data.root="),
    "empty class": (
        lambda root, make: (make(root, {"a": 2, "b": 2}), (root / "hollow").mkdir()),
        "class folder without images",
        "hollow",
    ),
    "empty val": (
        lambda root, make: (make(root, {"train/a": 1, "train/b": 1}), (root / "val").mkdir()),
        "no images found",
        "val",
    ),
    "train without val": (folder_without_val, "no folder val", "data.root="),
    "a text file": (
        lambda root, make: root.write_text("hello"),
        "neither a folder nor",
        "data.root=",
    ),
}


@pytest.mark.parametrize(("build", "message", "where"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_a_folder_that_cannot_be_used(build, message, where, make_images, listed, tmp_path):
    root = tmp_path / "pets"
    build(root, make_images)

    with pytest.raises(DataError, match=message) as caught:
        listed("folder", root)

    assert where in caught.value.where
    assert str(root) in caught.value.where
    assert caught.value.fix


def test_a_class_may_be_called_train(make_images, listed, tmp_path):
    root = make_images(tmp_path / "vehicles", {"bus": 2, "train": 2})

    assert listed("folder", root).classes == ("bus", "train")


@pytest.mark.parametrize("root", ["x" * 5000, "~nobody-of-this-name/images", "a\0b"])
def test_a_path_that_cannot_exist(root, listed):
    with pytest.raises(DataError):
        listed("folder", root)


@pytest.mark.parametrize("denied", ["", "cat", "cat/deep"])
def test_a_folder_without_permission_is_not_left_out(denied, make_images, listed, unprivileged):
    root = make_images(unprivileged / "pets", {"cat": 1, "cat/deep": 1, "dog": 2})
    assert len(listed("folder", root, cache=unprivileged / "cache").images) == 4
    (root / denied).chmod(0)
    try:
        with pytest.raises(DataError, match="Permission denied") as caught:
            listed("folder", root, cache=unprivileged / "cache")
    finally:
        (root / denied).chmod(0o700)

    assert str(root / denied) in caught.value.where


@pytest.mark.parametrize("name", ["pets.tgz", "pets.tar.gz", "pets.tar", "pets.zip"])
@pytest.mark.parametrize("top", ["", "pets-v2", "a/b"])
def test_archives_with_and_without_a_wrapping_folder(name, top, make_images, listed, tmp_path):
    root = make_images(tmp_path / "pets", {"train/a": 1, "train/b": 1, "val/a": 1, "val/b": 1})
    archive = packed(root, tmp_path / name, top)

    listing = listed("folder", archive)

    assert listing.images.paths == listed("folder", root).images.paths
    for index in range(4):
        assert listing.images.content(index) == listed("folder", root).images.content(index)
    archive.write_bytes(b"")  # the content is the key
    with pytest.raises((ArtefactError, DataError)):
        listed("folder", archive)


def test_archives_of_equal_name_size_and_date_with_other_content(make_images, listed, tmp_path):
    counts = {"train/a": 1, "train/b": 1, "val/a": 1, "val/b": 1}
    archives = []
    for place in ("first", "second"):
        root = make_images(tmp_path / place / "pets", counts)
        archives.append(packed(root, tmp_path / place / "pets.tar"))
        os.utime(archives[-1], (0, 0))
    assert archives[0].stat().st_size == archives[1].stat().st_size

    first, second = (listed("folder", archive) for archive in archives)

    assert first.images.content(0) != second.images.content(0)
    copy = tmp_path / "third" / "pets.tar"
    copy.parent.mkdir()
    shutil.copyfile(archives[0], copy)
    assert listed("folder", copy).images.root == first.images.root  # the same content, unpacked
    shutil.copyfile(archives[1], archives[0])  # in place: the inode stays
    os.utime(archives[0], (0, 0))
    assert listed("folder", archives[0]).images.content(0) == second.images.content(0)


def test_unpacked_files_that_were_lost_are_unpacked_again(make_images, listed, tmp_path, capsys):
    root = make_images(tmp_path / "pets", {"train/a": 2, "train/b": 1, "val/a": 1, "val/b": 1})
    archive = packed(root, tmp_path / "pets.tar")
    whole = listed("folder", archive)
    contents = [whole.images.content(index) for index in range(5)]
    damages = (
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: (path.parent / "more.png").write_bytes(contents[0]),
    )
    for damage in damages:
        assert capsys.readouterr().err == ""
        damage(whole.images.root / "train" / "a" / "1.png")

        again = listed("folder", archive)

        assert "pets.tar is unpacked again" in capsys.readouterr().err
        assert again.images.paths == whole.images.paths
        assert [again.images.content(index) for index in range(5)] == contents
        assert listed("folder", archive).images == again.images


def test_an_archive_that_changes_while_it_is_unpacked(make_images, tmp_path):
    root = make_images(tmp_path / "pets", {"train/a": 1, "train/b": 1, "val/a": 1, "val/b": 1})
    archive = packed(root, tmp_path / "pets.tar")

    def changed(what, done, total):
        if what == "unpacking pets.tar" and done == total:
            os.utime(archive, (1, 1))

    with pytest.raises(DataError, match="changed while it was unpacked"):
        list_images(Data(name="folder", root=str(archive)), tmp_path / "cache", 0, changed)

    assert not [*(tmp_path / "cache" / "unpacked").glob("*/")]


BROKEN_ARCHIVES = {
    "empty": b"",
    "text": b"hello",
    "cut gzip": gzip.compress(b"hello", mtime=0)[:15],
    "cut zip": b"PK\3\4",
}


@pytest.mark.parametrize("content", BROKEN_ARCHIVES.values(), ids=BROKEN_ARCHIVES)
@pytest.mark.parametrize("suffix", [".tgz", ".zip", ".tar.gz"])
def test_a_broken_archive_is_refused(content, suffix, listed, tmp_path):
    archive = tmp_path / f"pets{suffix}"
    archive.write_bytes(content)

    with pytest.raises(ArtefactError) as caught:
        listed("folder", archive)

    assert str(archive) in caught.value.where


# A table ----------------------------------------------------------------------------------------


@pytest.fixture
def table(make_images, tmp_path):
    """A function that writes a table beside six images."""
    make_images(tmp_path / "set", {"images": 6})

    def write(text, **options):
        path = tmp_path / "set" / "labels.csv"
        path.write_text(text, **options)
        return path

    return write


SIX = "".join(f"images/{number}.png,{'ab'[number % 2]}\n" for number in range(6))


def test_a_table_with_a_drawn_split(table, listed):
    listing = listed("table", table("path,label\n" + SIX), val_fraction=0.34)

    assert listing.classes == ("a", "b")
    assert list(listing.images.paths) == [f"images/{number}.png" for number in range(6)]
    assert listing.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert [listing.is_val[label::2].sum() for label in range(2)] == [1, 1]
    assert listing.images.open(5).size == (16, 12)  # relative to the table, not to where we are


def test_a_table_with_a_split_and_columns_of_its_own(table, listed):
    text = "split,kind,more,file\n"
    splits = ["train", "Train ", "val", "valid", "validation", "test"]
    text += "".join(
        f"{split},{'ab'[number % 2]},x,images/{number}.png\n" for number, split in enumerate(splits)
    )

    listing = listed(
        "table", table(text), path_column="file", label_column="kind", split_column="split"
    )

    assert listing.is_val.tolist() == [False, False, True, True, True, False]
    assert listing.is_test.tolist() == [False] * 5 + [True]
    assert listing.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert listing.notes == (
        "1 test images (rows of the split test) stay apart: no training and no verdict uses them",
    )


def test_a_table_as_spreadsheets_write_it(table, listed):
    """Byte order mark, Windows line ends, quotes, a blank line, absolute paths."""
    path = table("")
    other = path.parent / "images" / "5.png"
    text = f'path,label\r\n"images/0.png","a, b"\r\n\r\n{other},ż\r\n'
    path.write_text(text, encoding="utf-8-sig", newline="")

    listing = listed("table", path)

    assert listing.classes == ("a, b", "ż")
    assert listing.images.open(1).size == (16, 12)
    assert listing.notes == ("a, b, ż: one image only, which stays in the training split",)


def test_a_table_whose_val_lacks_a_class_is_noted(table, listed):
    text = "path,label,split\nimages/0.png,a,train\nimages/1.png,b,train\nimages/2.png,a,val\n"

    listing = listed("table", table(text), split_column="split")

    assert listing.notes == ("no validation images of b",)


BAD_TABLES = {
    "empty": ("", {}, "no column path", "data.path_column=path"),
    "no rows": ("path,label\n", {}, "lists no images", "labels.csv"),
    "no label column": ("path,kind\n" + SIX, {}, "no column label", "data.label_column=label"),
    "no split column": (
        "path,label\n" + SIX,
        {"split_column": "split"},
        "no column split",
        "data.split_column=split",
    ),
    "empty cell": ("path,label\nimages/0.png,a\nimages/1.png,\n", {}, "empty cell", "line 3"),
    "short row": ("path,label\n\nimages/0.png\n", {}, "empty cell", "line 3"),
    "listed twice": ("path,label\n" + SIX + "images/3.png,a\n", {}, "images/3.png is listed", ""),
    "bad split": (
        "path,label,split\nimages/0.png,a,train\nimages/1.png,a,maybe\n",
        {"split_column": "split"},
        "not maybe",
        "data.split_column=split",
    ),
    "only val": (
        "path,label,split\nimages/0.png,a,train\nimages/1.png,b,val\n",
        {"split_column": "split"},
        "in validation but not in training: b",
        "labels.csv",
    ),
    "a quote without end": (
        'path,label\nimages/0.png,"a\n' + "x" * 200_000,
        {},
        "cannot read the table",
        "labels.csv",
    ),
}


@pytest.mark.parametrize(("text", "keys", "message", "where"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_table_that_cannot_be_used(text, keys, message, where, table, listed):
    with pytest.raises(DataError, match=message) as caught:
        listed("table", table(text), **keys)

    assert where in caught.value.where


def test_a_table_that_is_an_archive_or_a_folder(table, listed, tmp_path):
    archive = packed(tmp_path / "set", tmp_path / "set.tgz")
    with pytest.raises(DataError, match="cannot read the table"):
        listed("table", archive)
    with pytest.raises(DataError, match="not a file"):
        listed("table", tmp_path / "set")


# Imagenette -------------------------------------------------------------------------------------


@pytest.fixture
def imagenette(make_images, tmp_path):
    """A tiny copy of Imagenette: 4 training and 1 validation image of each class."""
    root = tmp_path / "imagenette2-160"
    make_images(root, {f"train/{wnid}": [f"{n}.JPEG" for n in range(4)] for wnid in WNIDS})
    make_images(root, {f"val/{wnid}": ["v.JPEG"] for wnid in WNIDS})
    rows = ["path,noisy_labels_0,noisy_labels_25,is_valid"]
    for place, wnid in enumerate(WNIDS):
        wrong = WNIDS[(place + 1) % 10]
        for number in range(4):
            noisy = wrong if number == 2 else wnid
            rows.append(f"train/{wnid}/{number}.JPEG,{wnid},{noisy},False")
        rows.append(f"val/{wnid}/v.JPEG,{wnid},{wrong},True")
    (root / "noisy_imagenette.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.mark.parametrize("form", ["folder", "tgz", "parent folder"])
def test_imagenette_in_every_form(form, imagenette, listed, tmp_path):
    root = {"folder": imagenette, "parent folder": imagenette.parent}.get(form)
    if form == "tgz":
        root = packed(imagenette, tmp_path / "imagenette2-160.tgz", "imagenette2-160")

    listing = listed("imagenette", root)

    assert listing.name == "imagenette"
    assert listing.classes[0] == "tench"
    assert listing.classes[-1] == "parachute"
    assert len(listing.classes) == 10
    assert (~listing.is_val).sum() == 40
    assert names(listing, val=True)[3] == ("val/n03000684/v.JPEG", "chain saw")


def test_label_noise_changes_training_labels_and_no_others(imagenette, listed):
    clean = listed("imagenette", imagenette)
    noisy = listed("imagenette", imagenette, label_noise=25)

    changed = clean.labels != noisy.labels
    assert changed.sum() == 10
    assert all("/2.JPEG" in noisy.images.name(index) for index in np.flatnonzero(changed))
    np.testing.assert_array_equal(noisy.labels[changed], (clean.labels[changed] + 1) % 10)
    assert not changed[clean.is_val].any()  # though the file has noise for those, too


def test_label_noise_without_its_column_row_or_file(imagenette, listed):
    path = imagenette / "noisy_imagenette.csv"
    with pytest.raises(DataError, match="noisy_labels_50") as caught:
        listed("imagenette", imagenette, label_noise=50)
    assert str(path) in caught.value.where

    whole = path.read_text()
    path.write_text(whole.replace("train/n02979186/1.JPEG,n02979186,n02979186", "train/x,n0,n0"))
    with pytest.raises(DataError, match=r"train/n02979186/1\.JPEG"):
        listed("imagenette", imagenette, label_noise=25)

    path.write_text(whole.replace("n01440764,n01440764,False", "n01440764,n99999999,False"))
    with pytest.raises(DataError, match=r"no valid noisy_labels_25 for train/n01440764/0\.JPEG"):
        listed("imagenette", imagenette, label_noise=25)

    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match="no noisy labels"):
        listed("imagenette", imagenette, label_noise=25)

    path.unlink()
    with pytest.raises(DataError, match="no noisy labels"):
        listed("imagenette", imagenette, label_noise=25)
    assert len(listed("imagenette", imagenette).images) == 50  # not needed without noise


def test_other_folders_are_not_imagenette(imagenette, make_images, listed, tmp_path):
    with pytest.raises(DataError, match="this is not Imagenette"):
        listed("imagenette", make_images(tmp_path / "pets", {"cat": 1, "dog": 1}))

    make_images(imagenette, {"train/cat": 1})
    with pytest.raises(DataError, match="unexpected class folders cat") as caught:
        listed("imagenette", imagenette)
    assert "data=folder" in caught.value.fix


def test_imagenette_notes_a_class_without_validation(imagenette, listed):
    (imagenette / "val" / WNIDS[4] / "v.JPEG").unlink()
    (imagenette / "val" / WNIDS[4]).rmdir()

    assert listed("imagenette", imagenette).notes == (f"no validation images of {WNIDS[4]}",)


@pytest.mark.skipif("RUNNER_IMAGENETTE" not in os.environ, reason="RUNNER_IMAGENETTE is not set")
def test_the_real_imagenette(listed):
    root = os.environ["RUNNER_IMAGENETTE"]

    clean = listed("imagenette", root)
    train = ~clean.is_val
    assert (train.sum(), clean.is_val.sum()) == (9469, 3925)
    assert len(clean.classes) == 10
    assert (clean.num_ignored, clean.notes) == (0, ())
    for percent in (1, 5, 25, 50):
        noisy = listed("imagenette", root, label_noise=percent)
        changed = noisy.labels != clean.labels
        assert not changed[clean.is_val].any()
        assert 100 * changed[train].mean() == pytest.approx(percent, rel=0.05)


# Data sets of arrays ----------------------------------------------------------------------------


def idx_bytes(array):
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    ) + array.tobytes()


@pytest.fixture
def tiny_fashion(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 6), ("t10k", 4)):
        arrays[f"{part}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = np.arange(count, dtype=np.uint8)
    folder = tmp_path / "fashion"
    folder.mkdir()
    for name, array in arrays.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
    return folder, arrays


@pytest.mark.parametrize("form", ["gzipped", "plain"])
def test_fashion_mnist_from_a_folder(form, tiny_fashion, listed):
    folder, arrays = tiny_fashion
    if form == "plain":
        for path in list(folder.iterdir()):
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()

    listing = listed("fashion_mnist", folder)

    assert listing.labels.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert listing.is_val.tolist() == [False] * 6 + [True] * 4
    assert listing.classes[1] == "Trouser"
    for index, source in ((5, ("train", 5)), (6, ("t10k", 0))):
        np.testing.assert_array_equal(
            np.asarray(listing.images.open(index)),
            arrays[f"{source[0]}-images-idx3-ubyte"][source[1]],
        )


def test_fashion_mnist_with_a_file_missing_or_cut(tiny_fashion, listed):
    folder, arrays = tiny_fashion
    path = folder / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx_bytes(arrays["t10k-labels-idx1-ubyte"])[:-1]))
    with pytest.raises(DataError, match="truncated"):
        listed("fashion_mnist", folder)

    path.write_bytes(gzip.compress(idx_bytes(arrays["t10k-labels-idx1-ubyte"][:3])))
    with pytest.raises(DataError, match="10 images but 9 labels"):
        listed("fashion_mnist", folder)

    path.unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz is missing") as caught:
        listed("fashion_mnist", folder)
    assert str(folder) in caught.value.where


@pytest.mark.skipif(not FULL_FASHION.is_dir(), reason=f"no {FULL_FASHION}")
def test_the_full_fashion_mnist_holds_the_embedded_one(listed):
    full = listed("fashion_mnist", FULL_FASHION)
    assert (~full.is_val).sum() == 60_000
    assert full.is_val.sum() == 10_000
    assert np.bincount(full.labels).tolist() == [7000] * 10

    embedded = listed("fashion")
    assert embedded.classes == full.classes
    for is_val in (False, True):
        label_of = {
            full.images.content(index): full.labels[index]
            for index in np.flatnonzero(full.is_val == is_val)
        }
        for index in np.flatnonzero(embedded.is_val == is_val):
            assert label_of[embedded.images.content(index)] == embedded.labels[index]


@pytest.fixture
def tiny_cifar(tmp_path):
    """Five batches of two images, and one of three for validation."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    parts = {f"data_batch_{number}.bin": 2 for number in range(1, 6)} | {"test_batch.bin": 3}
    for name, count in parts.items():
        rows = rng.integers(0, 256, (count, 3073), dtype=np.uint8)
        rows[:, 0] = range(count)
        (folder / name).write_bytes(rows.tobytes())
    return folder


@pytest.mark.parametrize("form", ["folder", "parent folder", "archive"])
def test_cifar10_in_every_form(form, tiny_cifar, listed, tmp_path):
    root = {"folder": tiny_cifar, "parent folder": tiny_cifar.parent}.get(form)
    if form == "archive":
        root = packed(tiny_cifar, tmp_path / "cifar-10-binary.tar.gz", "cifar-10-batches-bin")

    listing = listed("cifar10", root)

    assert listing.labels.tolist() == [0, 1] * 5 + [0, 1, 2]
    assert listing.is_val.sum() == 3
    assert listing.classes[2] == "bird"
    row = np.frombuffer((tiny_cifar / "data_batch_2.bin").read_bytes(), np.uint8)[3073 + 1 : 6146]
    pixels = np.asarray(listing.images.open(3))
    for channel in range(3):  # stored plane by plane, row by row
        plane = row[1024 * channel : 1024 * (channel + 1)].reshape(32, 32)
        np.testing.assert_array_equal(pixels[..., channel], plane)


def test_cifar10_truncated_or_missing(tiny_cifar, listed):
    path = tiny_cifar / "data_batch_3.bin"
    content = path.read_bytes()
    for cut in (content[:-1], b""):
        path.write_bytes(cut)
        with pytest.raises(DataError, match=r"data_batch_3\.bin is truncated") as caught:
            listed("cifar10", tiny_cifar)
        assert str(path) in caught.value.where

    path.unlink()
    with pytest.raises(DataError, match=r"cannot read data_batch_3\.bin"):
        listed("cifar10", tiny_cifar)


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_labels_without_a_class_are_refused(name, tiny_cifar, tiny_fashion, listed):
    path = tiny_cifar / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    labels = np.array([0, 1, 2, 10], np.uint8)
    (tiny_fashion[0] / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))

    with pytest.raises(DataError, match="label 10"):
        listed(name, tiny_cifar if name == "cifar10" else tiny_fashion[0])


# Downloads --------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """What would be downloaded, as (address, file, checksum); the first download fails."""
    found = []

    def fetch(url, destination, *, checksum, progress=None):
        found.append((url, destination, checksum))
        raise StorageError("no network in tests")

    for module in (places, published):
        monkeypatch.setattr(module, "fetch", fetch)
    return found


DOWNLOADS = {
    ("imagenette", "full"): ("imagenette2.tgz", "fe2fc210e6bb7c5664d602c3cd71e612"),
    ("imagenette", "320"): ("imagenette2-320.tgz", "3df6f0d01a2c9592104656642f5e78a3"),
    ("imagenette", "160"): ("imagenette2-160.tgz", "e793b78cc4c9e9a4ccc0c1155377a412"),
    ("cifar10", "160"): ("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    ("fashion_mnist", "160"): (
        "train-images-idx3-ubyte.gz",
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    ),
}


@pytest.mark.parametrize(("key", "expected"), DOWNLOADS.items(), ids="-".join)
def test_without_a_root_the_published_file_is_fetched(key, expected, asked, listed, tmp_path):
    name, variant = key
    with pytest.raises(StorageError, match="no network in tests"):
        listed(name, variant=variant)

    ((url, destination, checksum),) = asked
    assert url.rpartition("/")[2] == destination.name == expected[0]
    assert checksum == f"md5:{expected[1]}"
    assert tmp_path / "cache" / "downloads" in destination.parents


def test_with_a_root_nothing_is_fetched(asked, imagenette, tiny_cifar, tiny_fashion, listed):
    for name, root in (
        ("imagenette", imagenette),
        ("cifar10", tiny_cifar),
        ("fashion_mnist", tiny_fashion[0]),
        ("fashion", None),
    ):
        listed(name, root)

    assert asked == []


def test_the_checksums_are_those_of_torchvision():
    resources = dict(FashionMNIST.resources)
    assert {f"{name}.gz": md5 for name, md5 in published._FASHION_FILES.items()} == resources
    for variant, (stem, md5) in published._IMAGENETTE.items():
        name = {"full": "full", "320": "320px", "160": "160px"}[variant]
        assert (published._IMAGENETTE_URL.format(stem), md5) == Imagenette._ARCHIVES[name]
