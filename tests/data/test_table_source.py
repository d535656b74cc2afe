"""Tables as spreadsheets and other programs write them: read with a note, or refused with a fix."""

import codecs
import shlex
import subprocess

import pytest

from runner.config.schema import Data
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
    "val and test": (["train", "train", "val", "val", "test", "test"], 2, "2 rows of the split"),
    "test alone": (["train", "Train", "train", "training", "test", "TEST"], 2, "no split val"),
    "other names": (["train", "train", "valid", "dev", "validation", "Val"], 4, None),
}  # fmt: skip


@pytest.mark.parametrize(("splits", "num_val", "said"), SPLITS.values(), ids=SPLITS)
def test_test_rows_do_not_join_validation(splits, num_val, said, listed):
    labels = [f"{'ab'[n % 2]},{split}" for n, split in enumerate(splits)]

    listing = listed(lines(labels, head="path,label,split"), split_column="split")

    assert listing.is_val.sum() == num_val
    if said is None:
        assert listing.notes == ()
    else:
        assert said in listing.notes[0]


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
    "zero byte": (PLAIN + "images/\0.png,a\n", "zero bytes", "labels.csv"),
}


@pytest.mark.parametrize(("content", "message", "where"), REFUSED.values(), ids=REFUSED)
def test_tables_that_are_refused(content, message, where, listed):
    with pytest.raises(DataError, match=message) as caught:
        listed(content)

    assert where in caught.value.where
    assert caught.value.fix


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
