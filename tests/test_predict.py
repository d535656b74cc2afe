"""Predicting files: the run's own numbers, whatever is named and however it is read."""

import csv
import hashlib
import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small import CLASSES, Command, all_predictions

from runner import evaluate, predict
from runner.config.schema import Data, Tta
from runner.data.dataset import load_dataset
from runner.data.depth import BITS
from runner.errors import ArtefactError, DataError, ProcessError
from runner.predict import Ranking, find_images, rank
from runner.records.bundle import Bundle, open_bundle

BOOK = Tta(passes=4, beta=0.25)


@pytest.fixture(scope="module")
def run(finished_run: Callable[..., Path]) -> Path:
    """A finished run with TTA and statistics of its own; 16 px of images of 24 × 32."""
    return finished_run(
        "eval.crop=0.9", "data.interpolation=bicubic", "normalize=dataset", "tta=book",
        "eval.batch_size=7", "seed=3",
    )  # fmt: skip


@pytest.fixture(scope="module")
def bundle(run: Path) -> Bundle:
    return open_bundle(run)


@pytest.fixture(scope="module")
def val(tiny_folder: Path) -> list[str]:
    return list(find_images([str(tiny_folder / "val")], iter).paths)


def matrix(rankings: list[Ranking]) -> np.ndarray[Any, Any]:
    """(n, K) probabilities in the order of the classes."""
    return np.array([[dict(ranking.top)[name] for name in CLASSES] for ranking in rankings])


def test_the_validation_folder_gives_the_saved_predictions(
    bundle: Bundle, run: Path, val: list[str]
) -> None:
    saved = all_predictions(run)
    plain = matrix(rank(bundle, val, top=3, threads=1))
    assert np.array_equal(plain, saved["plain"].astype(float))
    combined = matrix(rank(bundle, val, top=3, tta=BOOK, threads=1))
    assert np.array_equal(combined, saved["tta"].astype(float))
    # Negative control: the two differ, and so do the images.
    assert not np.array_equal(plain, combined)
    assert len(np.unique(plain, axis=0)) > len(plain) / 2


@pytest.mark.whole
def test_deep_images_are_predicted_as_they_were_evaluated(
    finished_run: Callable[..., Path], tiny_folder: Path, tmp_path: Path
) -> None:
    """12 bits in 16: black for a rule of 16 bits, and told apart by the rule of the data set."""
    for file in tiny_folder.rglob("*.png"):
        place = tmp_path / "deep" / file.relative_to(tiny_folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        gray = np.asarray(Image.open(file).convert("L")).astype(np.uint16)
        Image.fromarray(gray * 16).save(place)
    run = finished_run(f"data.root={tmp_path / 'deep'}")
    bundle = open_bundle(run)
    assert bundle.preprocess.depth.kinds == ("uint16",)
    images = find_images([str(tmp_path / "deep" / "val")], iter).paths
    predicted = matrix(rank(bundle, images, top=3, threads=1))
    assert np.array_equal(predicted, all_predictions(run)["plain"].astype(float))
    assert evaluate._stored_as(bundle.preprocess, Data()).window == bundle.preprocess.depth.window
    # Negative control: without the rule of the bundle, other predictions.
    how = replace(bundle.preprocess, depth=BITS)
    other = matrix(rank(replace(bundle, preprocess=how), images, top=3, threads=1))
    assert not np.array_equal(other, predicted)


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"batch_size": 64}, {"num_workers": 2}])
def test_batches_and_workers_change_nothing(
    bundle: Bundle, val: list[str], settings: dict[str, int]
) -> None:
    whole = matrix(rank(bundle, val, top=3, threads=1))
    again = matrix(rank(bundle, val, top=3, threads=1, **settings))
    np.testing.assert_allclose(again, whole, rtol=0, atol=1e-5)


def test_an_image_alone_is_predicted_as_among_others(bundle: Bundle, val: list[str]) -> None:
    whole = matrix(rank(bundle, val, top=3, threads=1))
    some = matrix(rank(bundle, val[::-5], top=3, threads=1))
    np.testing.assert_allclose(some, whole[::-5], rtol=0, atol=1e-5)


def test_broken_images_leave_the_others_as_they_are(
    bundle: Bundle, val: list[str], tmp_path: Path
) -> None:
    for name, content in (("empty.png", b""), ("text.jpg", b"no image"), ("cut.png", b"\x89PNG")):
        (tmp_path / name).write_bytes(content)
    Image.new("1", (1, 1)).save(tmp_path / "bomb.png")
    bomb = bytearray((tmp_path / "bomb.png").read_bytes())
    bomb[16:24] = struct.pack(">II", 20_000, 20_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    (tmp_path / "bomb.png").write_bytes(bomb)
    os.mkfifo(tmp_path / "pipe.png")
    bad = [
        str(tmp_path / name)
        for name in ("empty.png", "text.jpg", "cut.png", "pipe.png", "bomb.png", "no")
    ]
    mixed = [bad[0], *val[:5], *bad[1:3], *val[5:], *bad[3:]]
    found = rank(bundle, mixed, top=3, threads=1, num_workers=1)
    assert [ranking.image for ranking in found] == mixed
    assert {ranking.image for ranking in found if ranking.error} == set(bad)
    errors = {Path(ranking.image).name: ranking.error for ranking in found if ranking.error}
    assert errors["empty.png"] == "is empty"
    assert errors["text.jpg"] == "is not an image"
    assert "No such file" in errors["no"]
    assert "not a regular file" in errors["pipe.png"]
    assert "too large" in errors["bomb.png"]
    good = matrix([ranking for ranking in found if not ranking.error])
    np.testing.assert_allclose(good, matrix(rank(bundle, val, top=3, threads=1)), rtol=0, atol=1e-5)


def test_names_come_from_the_bundle_and_not_from_folders(
    bundle: Bundle, val: list[str], tmp_path: Path
) -> None:
    flat = []
    for number, path in enumerate(val):
        flat.append(str(tmp_path / f"{number}.png"))
        shutil.copy(path, flat[-1])
    named, unnamed = (matrix(rank(bundle, paths, top=3, threads=1)) for paths in (val, flat))
    assert np.array_equal(named, unnamed)


def test_a_subset_of_the_classes_changes_no_name(
    bundle: Bundle, val: list[str], tmp_path: Path
) -> None:
    reds = [path for path in val if "/red/" in path]
    folder = tmp_path / "blue"  # the name of a class that they are not of
    folder.mkdir()
    for path in reds:
        shutil.copy(path, folder)
    some = find_images([str(folder)], iter).paths
    whole = matrix(rank(bundle, val, top=3, threads=1))[[val.index(path) for path in reds]]
    found = matrix(rank(bundle, some, top=3, threads=1))
    assert 0 < len(reds) < len(val)
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-5)


def test_an_image_named_twice_is_predicted_twice(bundle: Bundle, val: list[str]) -> None:
    first, again, other = rank(bundle, [val[0], val[0], val[1]], top=3, threads=1)
    assert first.image == again.image
    np.testing.assert_allclose(matrix([first]), matrix([again]), rtol=0, atol=1e-6)
    assert matrix([first]).tolist() != matrix([other]).tolist()


def test_tta_is_the_mean_of_the_views_it_names(
    bundle: Bundle, val: list[str], tmp_path: Path
) -> None:
    mirrored = []
    for number, path in enumerate(val):
        mirrored.append(str(tmp_path / f"{number}.png"))
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored[-1])
    plain, other = (matrix(rank(bundle, paths, top=3, threads=1)) for paths in (val, mirrored))
    off = matrix(rank(bundle, val, top=3, tta=Tta(), threads=1))
    assert np.array_equal(off, plain)
    flip = matrix(rank(bundle, val, top=3, tta=Tta(flip=True), threads=1))
    np.testing.assert_allclose(flip, (plain + other) / 2, rtol=0, atol=1e-5)
    assert np.abs(flip - plain).max() > 20e-6  # negative control: no rounding
    np.testing.assert_allclose(flip.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("tta", [Tta(flip=True), Tta(crops=3), Tta(scales=(1.0, 1.5))])
def test_tta_depends_on_no_order_and_no_batch(bundle: Bundle, val: list[str], tta: Tta) -> None:
    whole = matrix(rank(bundle, val, top=3, tta=tta, threads=1))
    np.testing.assert_allclose(whole.sum(axis=1), 1, atol=1e-6)
    again = matrix(rank(bundle, val[::-1], top=3, tta=tta, batch_size=1, threads=1))
    np.testing.assert_allclose(again[::-1], whole, rtol=0, atol=1e-5)


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How an image was turned if its EXIF orientation is this number."""


def test_orientation_and_colour_modes_are_as_in_training(
    bundle: Bundle, tiny_folder: Path, tmp_path: Path
) -> None:
    """Each beside its plain copy: equal pixels in training, equal probabilities of ``predict``."""
    random = np.random.default_rng(0)
    upright = Image.fromarray(random.integers(0, 256, (24, 40, 3)).astype(np.uint8))
    gray, alpha = upright.convert("L"), Image.new("L", upright.size, 255)
    alpha.paste(0, (0, 0, 20, 24))
    half = upright.copy()
    half.paste((255, 255, 255), (0, 0, 20, 24))  # what is transparent lies over white
    gray_half = gray.copy()
    gray_half.paste(255, (0, 0, 20, 24))
    bits, colors = gray.convert("1"), half.convert("P", palette=Image.Palette.ADAPTIVE)
    cmyk = upright.convert("CMYK")
    pairs = {
        "opaque.png": (upright.convert("RGBA"), upright),
        "clear.png": (Image.merge("RGBA", (*upright.split(), alpha)), half),
        "gray.png": (gray, gray.convert("RGB")),
        "gray, clear.png": (Image.merge("LA", (gray, alpha)), gray_half.convert("RGB")),
        "bits.png": (bits, bits.convert("RGB")),
        "colors.png": (colors, colors.convert("RGB")),
        "print.tif": (cmyk, cmyk.convert("RGB")),
    }
    folder = tmp_path / "data" / "val" / "red"
    shutil.copytree(tiny_folder, tmp_path / "data")
    shutil.rmtree(folder)
    folder.mkdir()
    for name, images in pairs.items():
        for place, picture in zip(("odd ", "plain "), images, strict=True):
            kind = ".png" if place == "plain " else Path(name).suffix
            picture.save(folder / f"{place}{Path(name).stem}{kind}")
    for number, turn in TURNS.items():
        turned = upright.transpose(turn)
        exif = turned.getexif()
        exif[0x0112] = number
        turned.save(folder / f"odd {number}.png", exif=exif)
        upright.save(folder / f"plain {number}.png")
    data = Data(name="folder", root=str(tmp_path / "data"))
    dataset = load_dataset(data, 16, tmp_path / "cache", lambda *_: None)
    names = [name for _, name, label, _ in dataset.manifest if label == "red" and "val" in name]
    odd = [name for name in names if "odd" in name]
    plain = [name for name in names if "plain" in name]
    assert len(odd) == len(plain) == len(pairs) + len(TURNS)
    assert dataset.converted == {"1": 1, "CMYK": 1, "L": 1, "LA": 1, "P": 1, "RGBA": 2}
    paths = {row[1]: index for index, row in enumerate(dataset.manifest)}
    for name, other in zip(odd, plain, strict=True):
        found, expected = (dataset.store.rectangle(paths[each]) for each in (name, other))
        assert np.array_equal(found, expected), name
    found, expected = (
        matrix(rank(bundle, [f"{data.root}/{name}" for name in each], top=3, threads=1))
        for each in (odd, plain)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert len(np.unique(expected.round(4), axis=0)) > 4, "other pixels are other probabilities"


def test_the_most_probable_classes_come_first(bundle: Bundle, val: list[str]) -> None:
    for ranking in rank(bundle, val, top=2, threads=1):
        assert len(ranking.top) == 2
        assert ranking.top[0][1] >= ranking.top[1][1]
        assert sum(probability for _, probability in ranking.top) <= 1 + 1e-6


def test_weights_that_are_not_finite_are_refused(bundle: Bundle, val: list[str]) -> None:
    tensors = {name: tensor.clone() for name, tensor in bundle.tensors.items()}
    tensors["fc.bias"][0] = float("nan")
    from dataclasses import replace

    with pytest.raises(ArtefactError, match="not finite"):
        rank(replace(bundle, tensors=tensors), val[:2], top=1, threads=1)


# Which images words name.


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """b/2.png b/10.png b/note.txt a/2.png c[1].png x.JPG, as the current folder."""
    for name in ("b/2.png", "b/10.png", "a/2.png", "c[1].png", "x.JPG"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, format="PNG")
    (tmp_path / "b" / "note.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path


NAMED = {
    "a file": (["x.JPG"], ["x.JPG"]),
    "as they are named": (["x.JPG", "a/2.png"], ["x.JPG", "a/2.png"]),
    "a folder, by name": (["b"], ["b/10.png", "b/2.png"]),
    "equal names in two folders": (["b/2.png", "a"], ["b/2.png", "a/2.png"]),
    "named twice": (["x.JPG", "x.JPG"], ["x.JPG", "x.JPG"]),
    "a pattern": (["*/2.png"], ["a/2.png", "b/2.png"]),
    "a deep pattern": (["**/*.png"], ["a/2.png", "b/10.png", "b/2.png", "c[1].png"]),
    "a pattern of folders": (["[ab]"], ["a/2.png", "b/10.png", "b/2.png"]),
    "a name that looks like a pattern": (["c[1].png"], ["c[1].png"]),
    "nothing there": (["*.gif", "no.png"], ["*.gif", "no.png"]),
    "a list": (["x.JPG", "-"], ["x.JPG", "listed.png", "b/10.png", "b/2.png"]),
    "everything below": (
        ["."], ["./c[1].png", "./x.JPG", "./a/2.png", "./b/10.png", "./b/2.png"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_what_words_name(pictures: Path, name: str) -> None:
    words, expected = NAMED[name]
    found = find_images(words, lambda: iter(["listed.png", "b"]))
    assert list(found.paths) == expected


def test_files_that_are_no_images_are_counted(pictures: Path) -> None:
    assert find_images(["b"], iter).ignored == ("b/note.txt",)
    assert find_images(["b/note.txt"], iter).paths == ("b/note.txt",)  # who names it means it


@pytest.mark.parametrize("pattern", ["**/*.png", "**/2.png", "a/**", "**", "*/**/2.png"])
def test_links_that_lead_back_give_each_image_once(
    pictures: Path, pattern: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    without = find_images([pattern], iter)
    for folder in ("a", "b"):
        (pictures / folder / "back").symlink_to(pictures)
        (pictures / folder / "own").symlink_to(pictures / folder)
    found = find_images([pattern], iter)
    assert found.paths == without.paths
    assert len(found.paths) == len(set(found.paths)) > 0
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (pictures / "b" / "more").symlink_to(elsewhere)
    shutil.copy("x.JPG", elsewhere / "2.png")
    if not pattern.startswith("a"):  # the link that leads elsewhere is followed
        assert "b/more/2.png" in [
            os.path.normpath(path) for path in find_images([pattern], iter).paths
        ]


def test_a_word_that_cannot_be_a_path_stays_a_word(pictures: Path) -> None:
    odd = [
        "x" * 5000,
        "nul\0.png",
        "nul\0*.png",
        "x/" * 3000 + "**/*",
        "",
        "\ud800.png",
        "***/[",
        "b/2.png",
    ]
    assert find_images(odd, iter).paths == tuple(odd)


def test_a_folder_that_cannot_be_read_is_listed_with_the_reason(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def refuse(path: str) -> Any:  # root may read every folder
        if os.fspath(path).endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_images(["b", "a"], iter)
    assert (found.paths, found.unreadable) == (("a/2.png",), (("b", "Permission denied"),))


# The command.


def test_what_is_no_image_does_not_stop_the_others(
    run: Path, val: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Each with its reason; none is opened that could wait or fill the memory."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.png")
    with Path("huge.png").open("wb") as file:
        file.truncate(2**40)
    Path("line\nbreak.png").write_bytes(b"")
    Path("caf\u00e9.png").write_bytes(b"")
    Path("cafe\u0301.png").write_bytes(b"")
    Path("texture.png").write_bytes(b"DDS |\0\0\0" + bytes(40) + b"\xff" * 100)
    names = ["pipe.png", "huge.png", "line\nbreak.png", "caf\u00e9.png", "cafe\u0301.png"]
    names += ["texture.png", "x" * 5000, val[0]]
    stdin = io.TextIOWrapper(io.BytesIO("\0".join([*names, ""]).encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    monkeypatch.setattr(
        "sys.argv", ["predict", str(run), "-", "-0", "--csv", "-", "--threads", "1"]
    )
    with pytest.raises(SystemExit) as left:
        predict.main()
    said = capsys.readouterr()
    assert left.value.code == 3
    rows = list(csv.reader(io.StringIO(said.out)))[1:]
    assert len(rows) == 8
    assert (rows[-1][0], rows[-1][1]) == (val[0], "")
    assert "7 of 8 images could not be read:\n" in said.err
    for line in (
        "  pipe.png: not a regular file", "  huge.png: larger than 1,073,741,824 bytes",
        "  line\\nbreak.png: is empty", "  'caf\\xe9.png': is empty",
        "  'cafe\\u0301.png': is empty", "  texture.png: ", "File name too long",
    ):  # fmt: skip
        assert line in said.err, said.err


def test_the_command(command: Command, run: Path, tiny_folder: Path, tmp_path: Path) -> None:
    images = tiny_folder / "val" / "red"
    (tmp_path / "bad.png").write_bytes(b"")
    shutil.copytree(run / "bundle", tmp_path / "passed on")
    done = command(
        "passed on", str(images), "bad.png", "--top", "5", "--tta", "flip", "--csv", "rows.csv",
        "--json", "-", module="runner.predict",
    )  # fmt: skip
    assert done.returncode == 3
    assert "1 of 9 images could not be read:\n  bad.png: is empty" in done.stderr
    said = json.loads(done.stdout)
    assert said["tta"]["flip"] is True
    assert [entry["image"] for entry in said["images"]] == [
        *(str(images / f"{number:03d}.png") for number in range(8)), "bad.png",
    ]  # fmt: skip
    assert said["images"][-1] == {"image": "bad.png", "error": "is empty"}
    header, *rows = csv.reader(io.StringIO((tmp_path / "rows.csv").read_text()))
    assert header[:4] == ["image", "error", "class_1", "probability_1"]
    assert len(rows) == 9
    assert {len(row) for row in rows} == {8}  # three classes, however many are asked for
    assert float(rows[0][3]) == said["images"][0]["top"][0]["probability"]


def test_a_list_on_standard_input_and_the_table(
    run: Path, val: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = "\n".join(val[:3]) + "\n\n"
    stdin = io.TextIOWrapper(io.BytesIO(listed.encode()))
    assert called(monkeypatch, str(run), "-", "--threads", "1", stdin=stdin) == 0
    shown = capsys.readouterr().out
    assert "3 images, test_resnet" in shown
    for path in val[:3]:
        assert Path(path).name in shown


def called(monkeypatch: pytest.MonkeyPatch, *words: str, stdin: Any = None) -> int:
    """The command in this process; its exit code."""
    from runner import predict

    monkeypatch.setattr("sys.argv", ["predict", *words])
    if stdin is not None:
        monkeypatch.setattr("sys.stdin", stdin)
    try:
        predict.main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


WRONG: dict[str, tuple[list[str], int, str]] = {
    "no such run": (["nowhere", "x.png"], 3, "no such folder"),
    "no run": (["empty", "x.png"], 3, "this is no run and no bundle"),
    "unfinished": (["unfinished", "x.png"], 3, "no finished run"),
    "no images": (["RUN", "empty"], 3, "no images found"),
    "no path": (["RUN"], 2, "PATH"),
    "an image that is not there": (["RUN", "gone.png"], 3, "no such file\nwhere: gone.png\nfix: "),
    "a pattern without a match": (
        ["RUN", "*/**/*.jpg"],
        3,
        "the pattern matches nothing\nwhere: */**/*.jpg\nfix: ",
    ),
    "nothing that is there": (
        ["RUN", "gone.png", "*.jpg"],
        3,
        "none of the images exists:\n  gone.png: no such file\n"
        "  *.jpg: the pattern matches nothing\nfix: ",
    ),
    "a word on tta": (
        ["RUN", "VAL", "tta=flip"],
        2,
        "no such file: tta=flip; this command has options, and no "
        "words KEY=VALUE\nwhere: tta=flip\nfix: --tta flip\n",
    ),
    "a key of tta": (["RUN", "VAL", "tta.crops=5"], 2, "\nfix: --tta crops=5\n"),
    "a list of tta": (["RUN", "VAL", "tta=flip,book"], 2, "\nfix: --tta flip\n"),
    "a typo in a word": (["RUN", "VAL", "tat=flip"], 2, "\nfix: --tta flip\n"),
    "a word on the device": (["RUN", "VAL", "device=cpu"], 2, "\nfix: --device cpu\n"),
    "a word on batches": (["RUN", "eval.batch_size=8"], 2, "\nfix: --batch-size 8\n"),
    "a word of training": (["RUN", "VAL", "mixup=beta"], 2, "\nfix: leave it out; "),
    "a word as the run": (["tta=flip", "RUN", "VAL"], 2, "\nfix: --tta flip\n"),
    "a path with a sign": (["RUN", "code=1.png"], 2, "\nfix: --code 1.png\n"),
    "a path with another sign": (["RUN", "photo=1.png"], 3, "no such file\nwhere: photo=1.png\n"),
    "top 0": (["RUN", "x.png", "--top", "0"], 2, "1 or more"),
    "unknown tta": (["RUN", "x.png", "--tta", "flop"], 2, "did you mean flip?"),
    "a wrong value": (["RUN", "x.png", "--tta", "crops=zero"], 2, "tta.crops"),
    "a device": (["RUN", "x.png", "--device", "tpu"], 2, "device=tpu"),
    "two on standard output": (["RUN", "VAL", "--csv", "-", "--json", "-"], 2, "standard output"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_told(
    run: Path,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    words, code, reason = WRONG[name]
    places = {"RUN": str(run), "VAL": str(tiny_folder / "val" / "red")}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    shutil.copytree(run, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "result.json").unlink()
    assert called(monkeypatch, *(places.get(word, word) for word in words)) == code
    assert reason in capsys.readouterr().err


def test_files_are_images_whatever_their_names(
    run: Path,
    val: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["tta=flip", "device=cpu.png", "threads=1/2.png"]
    Path("threads=1").mkdir()
    for name in names:
        shutil.copy(val[0], name)
    words = [*names[:2], "threads=1", "threads=?/*.png"]
    assert called(monkeypatch, str(run), *words, "--csv", "-", "--threads", "1") == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))[1:]
    assert [row[0] for row in rows] == [*names, names[-1]]


def test_what_is_missing_is_told_and_all_others_are_predicted(
    run: Path,
    val: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.png").write_bytes(b"")
    words = [str(run), "gone.png", val[0], "*.jpg", "bad.png", "--csv", "-", "--threads", "1"]
    assert called(monkeypatch, *words) == 3
    said = capsys.readouterr()
    rows = list(csv.reader(io.StringIO(said.out)))[1:]
    assert [row[:2] for row in rows] == [
        ["gone.png", "no such file"], [val[0], ""], ["*.jpg", "the pattern matches nothing"],
        ["bad.png", "is empty"],
    ]  # fmt: skip
    assert said.err.endswith(
        "error: 3 of 4 images could not be read:\n  gone.png: no such file\n"
        "  *.jpg: the pattern matches nothing\n  bad.png: is empty\n"
        "fix: paths of files or folders that exist; repair the broken images or leave them out; "
        "all other images were predicted\n"
    )
    # What a list names is a path, whatever its characters.
    stdin = io.TextIOWrapper(io.BytesIO(b"gone.png\n*.jpg\n"))
    assert called(monkeypatch, str(run), "-", stdin=stdin) == 3
    assert "  *.jpg: no such file\n" in capsys.readouterr().err


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another size": (
        lambda found: found["preprocess"].update(size=32), "preprocess.size is 32, not 16",
    ),
    "another mean": (
        lambda found: found["preprocess"].update(mean=[0.5, 0.5, 0.5]),
        "preprocess.mean is [0.5, 0.5, 0.5], not [0.",
    ),
    "another deviation": (
        lambda found: found["preprocess"].update(std=[1.0, 1.0, 1.0]),
        "preprocess.std is [1.0, 1.0, 1.0], not [0.",
    ),
    "no mean": (lambda found: found["preprocess"].pop("mean"), "it has no 'mean'"),
    "no deviation": (lambda found: found["preprocess"].pop("std"), "it has no 'std'"),
    "no size": (lambda found: found["preprocess"].pop("size"), "it has no 'size'"),
    "classes in another order": (
        lambda found: found["classes"].reverse(),
        'classes is ["red", "green", "blue"], not ["blue", "green", "red"]',
    ),
    "a class less": (lambda found: found["classes"].pop(), 'classes is ["blue", "green"], not'),
    "no classes": (lambda found: found.pop("classes"), "it has no 'classes'"),
    "a key more": (lambda found: found.update(note="x"), 'note is "x", not null'),
    "code": (
        lambda found: found["preprocess"].update(_target_="os.system"),
        "the key preprocess._target_, which names code",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("of_run", [False, True])
def test_a_changed_bundle_gives_no_predictions(
    run: Path, val: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], name: str, of_run: bool,
) -> None:  # fmt: skip
    """Alone it says which value was changed; in its run, which hash is not that of the result."""
    change, reason = CHANGES[name]
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    path = copy / "bundle" / "model.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    words = [str(copy if of_run else path.parent), *val, "--csv", str(tmp_path / "rows.csv")]
    assert called(monkeypatch, *words) == 7
    told = capsys.readouterr().err
    if of_run:
        expected = json.loads((copy / "result.json").read_text())["bundle"]["model.json"]
        reason = f"its SHA-256 is {hashlib.sha256(path.read_bytes()).hexdigest()}, not {expected}"
    assert reason in told
    assert f"where: {path}" in told
    assert not (tmp_path / "rows.csv").exists()


def test_a_run_with_the_bundle_of_another_is_refused(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    result = json.loads((copy / "result.json").read_text())
    result["bundle"]["model.json"] = "0" * 64
    (copy / "result.json").write_text(json.dumps(result))
    with pytest.raises(ArtefactError, match="SHA-256"):
        open_bundle(copy)
    with pytest.raises(DataError, match="no such folder"):
        open_bundle(tmp_path / "nowhere")


def test_memory_that_runs_out_names_the_option(
    bundle: Bundle, val: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    monkeypatch.setattr("runner.training.predicting._predict", run_out)
    with pytest.raises(ProcessError, match="out of memory") as caught:
        rank(bundle, val, top=3, threads=1, batch_size=8)
    assert caught.value.fix == "--batch-size 4"
