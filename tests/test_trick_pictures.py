"""The pictures of the pages about tricks: each has a trick, a file, and a page that shows it."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runner.config.options import CONF_DIR
from runner.data.embedded import load_fashion
from scripts import trick_pictures
from scripts.trick_pictures import FOLDER, LARGEST_FILE, PICTURES


def test_every_picture_is_of_a_trick_and_on_its_page() -> None:
    assert {path.stem for path in FOLDER.glob("*.png")} == set(PICTURES)
    for name in PICTURES:
        assert (CONF_DIR / "trick" / f"{name}.yaml").exists(), name
        assert f"]({name}.png)" in (FOLDER / f"{name}.md").read_text(), name
        assert (FOLDER / f"{name}.png").stat().st_size <= LARGEST_FILE, name


def test_a_picture_is_drawn_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    trick_pictures.main(["mixup", "--folder", str(tmp_path)])
    (file,) = tmp_path.iterdir()
    assert file.name == "mixup.png"
    assert file.read_bytes() == trick_pictures.content("mixup", load_fashion())


def distance(one: Image.Image, other: Image.Image) -> float:
    """The mean difference of two pictures of one size, in levels of 0..255.

    Neighborhoods are compared, because versions of matplotlib place letters and lines differently
    by a part of a pixel.
    """
    pixels = [np.asarray(each.convert("L").reduce(4), dtype=np.float64) for each in (one, other)]
    return float(np.abs(pixels[0] - pixels[1]).mean())


@pytest.mark.whole
@pytest.mark.parametrize("name", sorted(PICTURES))
def test_the_picture_in_the_repository_is_the_one_that_is_drawn(name: str) -> None:
    drawn = Image.open(io.BytesIO(trick_pictures.content(name, load_fashion())))
    with Image.open(FOLDER / f"{name}.png") as kept:
        assert kept.size == drawn.size
        assert distance(kept, drawn) < 1


def test_another_picture_of_the_same_size_is_told_apart() -> None:
    pictures = [Image.open(io.BytesIO(path.read_bytes())) for path in FOLDER.glob("*.png")]
    pairs = [
        (one, other) for one, other in itertools.combinations(pictures, 2) if one.size == other.size
    ]
    assert len(pairs) > 5
    assert min(distance(*pair) for pair in pairs) > 2


def test_the_functions_are_in_alphabetical_order() -> None:
    assert [*PICTURES] == sorted(PICTURES)


def test_a_name_without_a_picture_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        trick_pictures.main(["mixpu"])
    assert caught.value.code == 2
    assert "no picture of mixpu" in capsys.readouterr().err
