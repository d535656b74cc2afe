"""Tables as spreadsheets and other programs write them: read with a note, or refused with a fix."""

import codecs
import shlex
import subprocess

import pytest

from runner.config.schema import Data
from runner.data.decoding import BrokenImageError
from runner.data.sources import list_images
from runner.errors import DataError


@pytest.fixture
def listed(make_images, tmp_path):
    """A function that writes a table next to six images, and lists it."""
    make_images(tmp_path / "my set", {"images": 6, "images/deep": ["x.png", "twin.png"]})
    (tmp_path / "my set" / "images" / "twin.png").write_bytes(b"")
    (tmp_path / "my set" / "images" / "twin.jpg").write_bytes(b"")

    def list_it(content, name="labels.csv", **keys):
        path = tmp_path / "my set" / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        data = Data(name="table", root=str(path), **keys)
        return list_images(data, tmp_path / "cache", 0, lambda *_: None)

    return list_it


def lines(labels, head="path,label", path="images/{}.png"):
    return (
        "\n".join([head, *(f"{path.format(n)},{label}" for n, label in enumerate(labels))]) + "\n"
    )


PLAIN = lines("ababab")


@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_separators_encodings_and_line_ends(separator, encoding, end, listed):
    plain = listed(PLAIN)
    text = PLAIN.replace(",", separator).replace("\n", end)

    listing = listed(text.encode(encoding))

    assert listing.images.paths == plain.images.paths
    assert listing.labels.tolist() == plain.labels.tolist()
    assert listing.notes == ()


def test_big_endian_and_names_of_columns_with_spaces(listed):
    text = PLAIN.replace("path,label", " path , label ")
    listing = listed(codecs.BOM_UTF16_BE + text.encode("utf-16-be"))
    assert listing.classes == ("a", "b")


NOTED = {
    "spaces": (["cat", "cat ", " dog", "dog", "dog", "cat"], ("cat", "dog"), "'cat '"),
    "case": (["cat", "Cat"] * 3, ("Cat", "cat"), "'Cat' and 'cat'"),
    "zeros": (["0", "0.0"] * 3, ("0", "0.0"), "'0' and '0.0'"),
    "numbers": (["1", "01", "1e0"] * 2, ("01", "1", "1e0"), "'01' and '1' and '1e0'"),
    "missing": (["nan", "cat"] * 3, ("cat", "nan"), "'nan' is a class of 3 images"),
    "unicode": (["é", "e\u0301"] * 3, ("e\u0301", "é"), r"'e\u0301' and '\xe9'"),
    "inner spaces": (["a b", "a  b"] * 3, ("a  b", "a b"), "'a  b' and 'a b'"),
}


@pytest.mark.parametrize(("labels", "classes", "said"), NOTED.values(), ids=NOTED)
def test_labels_that_a_person_takes_for_one_are_pointed_out(labels, classes, said, listed):
    listing = listed(lines(labels))

    assert listing.classes == classes
    (note,) = listing.notes
    assert said in note


PATHS = {
    "without suffix": ("images/{}", "have no suffix"),
    "backslashes": ("images\\{}.png", "have backslashes"),
    "backslashes, without suffix": (".\\images\\{}", "have backslashes"),
    "spaces": (" images/{}.png ", "have spaces around them"),
}


@pytest.mark.parametrize(("path", "how"), PATHS.values(), ids=PATHS)
def test_paths_of_other_programs(path, how, listed):
    listing = listed(lines("ababab", path=path))

    assert [listing.images.open(index).size for index in range(6)] == [(16, 12)] * 6
    (note,) = listing.notes
    assert note.startswith(f"6 paths {how}: ")


SPLITS = {
    "val and test": (["train", "train", "val", "val", "test", "test"], 2, 2, "2 test images (rows"),
    "test alone": (["train", "Train", "train", "training", "test", "TEST"], 2, 2, "is drawn from"),
    "other names": (["train", "train", "valid", "dev", "validation", "Val"], 4, 0, None),
}  # fmt: skip


@pytest.mark.parametrize(("splits", "num_val", "num_test", "said"), SPLITS.values(), ids=SPLITS)
def test_test_rows_do_not_join_validation(splits, num_val, num_test, said, listed):
    labels = [f"{'ab'[n % 2]},{split}" for n, split in enumerate(splits)]

    listing = listed(lines(labels, head="path,label,split"), split_column="split")

    assert listing.is_val.sum() == num_val
    if not num_test:
        assert listing.is_test is None
        assert listing.notes == ()
    else:
        assert listing.is_test.tolist() == [False] * 4 + [True] * 2
        assert not (listing.is_val & listing.is_test).any()
        assert any(said in note for note in listing.notes)


def test_test_rows_without_labels_of_training_are_left_out_and_some_of_them_are_an_error(listed):
    rows = ["a,train", "b,train", "a,val", "b,val", "unknown,test", "unknown,test"]

    listing = listed(lines(rows, head="path,label,split"), split_column="split")

    assert (listing.classes, len(listing.images), listing.is_test) == (("a", "b"), 4, None)
    assert listing.notes == (
        "2 rows of the split test are left out: none has the label of a training image",
    )
    with pytest.raises(DataError, match="in test but not in training: unknown"):
        listed(lines([*rows[:5], "a,test"], head="path,label,split"), split_column="split")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_column_of_splits_that_splits_nothing(split, listed):
    with pytest.raises(DataError, match=f"all rows of the table are {split}") as caught:
        listed(
            lines([f"{name},{split}" for name in "abab"], head="path,label,split"),
            split_column="split",
        )

    assert "data.split_column=null" in caught.value.fix


REFUSED = {
    "twice": (PLAIN + "images/0.png,a\n", "listed twice", "lines 2 and 8"),
    "twice by other spelling": (PLAIN + "./images/0.png,b\n", "under the labels a, b", "lines 2"),
    "twice through a folder": (PLAIN + "images/deep/../0.png,a\n", "also as images/0.png", ""),
    "twice without suffix": (PLAIN + "images/0,a\n", "also as images/0.png", "lines 2 and 8"),
    "twice with backslashes": (PLAIN + "images\\0.png,a\n", "also as images/0.png", ""),
    "two columns of one name": (lines("ab", head="path,label,label"), "several columns", "label"),
    "too many cells": (PLAIN + "images/deep/a, b.png,a\n", "3 cells in a table of 2", "line 8"),
    "an ambiguous name": (PLAIN + "images/twin,a\n", "twin.jpg or twin.png", "images"),
    "no path exists": (lines("abab", path="C:\\me\\{}.png"), "no image of the table", "my set"),
    "blank label": (PLAIN + "images/deep/x.png,  \n", "empty cell", "line 8"),
    "latin-1": ("path,label\nimages/0.png,café\n".encode("latin-1"), "not UTF-8", "labels.csv"),
    "utf-16 without a mark": (PLAIN.encode("utf-16-le"), "zero bytes", "labels.csv"),
    "missing labels": (
        lines(["a", "", "b", " ", "a"]),
        "an empty cell in 2 rows of the table, in the columns label",
        "labels.csv, lines 3, 5",
    ),
    "a missing path": (PLAIN + ",a\n", "an empty cell in the table, in the column path", "line 8"),
    "a quoted line break before": (
        PLAIN + '"images/deep/x.png","c\nd"\n"images/0\n.png"\n',
        "empty cell",
        "line 10",
    ),
    "zero byte": (PLAIN + "images/\0.png,a\n", "zero bytes", "labels.csv"),
}


@pytest.mark.parametrize(("content", "message", "where"), REFUSED.values(), ids=REFUSED)
def test_tables_that_are_refused(content, message, where, listed):
    with pytest.raises(DataError, match=message) as caught:
        listed(content)

    assert where in caught.value.where
    assert caught.value.fix


def test_line_breaks_in_quotes_absolute_paths_and_one_row_without_its_file(listed, tmp_path):
    absolute = tmp_path / "my set" / "images" / "1.png"
    text = f'path,label\nimages/0.png,"a\nb"\n"{absolute}","a\nb"\nimages/2.png,c\nnone.png,c\n'

    listing = listed(text)

    assert listing.classes == ("a\nb", "c")
    assert [listing.images.open(index).size for index in range(3)] == [(16, 12)] * 3
    with pytest.raises(BrokenImageError, match="No such file"):  # a broken image, by its name
        listing.images.open(3)


@pytest.mark.parametrize("name", ["it's.csv", "a b,c.csv", "é.csv"])
@pytest.mark.parametrize(
    "content", ["path,label\n{},café\n{},b\n".encode("latin-1"), PLAIN.encode("utf-16-le")]
)
def test_the_fix_of_a_table_in_another_encoding_can_be_pasted(
    name, content, listed, tmp_path, composed
):
    content = content.replace(b"{}", b"images/0.png", 1).replace(b"{}", b"images/1.png", 1)
    with pytest.raises(DataError) as caught:
        listed(content, name)
    convert, _, word = caught.value.fix.removeprefix("if it is a table: ").partition(", and then ")

    subprocess.run(["sh", "-c", convert], check=True)

    root = composed("data=table", *shlex.split(word)).data.root
    data = Data(name="table", root=root)
    found = list_images(data, tmp_path / "cache", 0, lambda *_: None)
    assert found.classes[0] in ("a", "b")


@pytest.mark.parametrize("column", ["my label", "it's", "a,b", "x=y", "Größe", "1.0", "null", ""])
def test_the_fix_of_a_missing_column_can_be_pasted(column, listed, composed):
    quoted = '"' + column + '"'
    with pytest.raises(DataError) as caught:
        listed(PLAIN.replace("path,label", f"path,{quoted}"))
    for word in caught.value.fix.split(" or "):
        chosen = composed("data=table", "data.root=x", *shlex.split(word)).data.label_column
        assert chosen in ("path", column)
    assert (chosen == column) == (column != "")
