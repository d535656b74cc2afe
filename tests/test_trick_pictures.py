"""The pictures of the pages about tricks: each has a trick, a file, and a page that shows it."""

import io
from pathlib import Path

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


@pytest.mark.whole
@pytest.mark.parametrize("name", sorted(PICTURES))
def test_the_picture_in_the_repository_has_the_size_that_is_drawn(name: str) -> None:
    drawn = Image.open(io.BytesIO(trick_pictures.content(name, load_fashion())))
    with Image.open(FOLDER / f"{name}.png") as kept:
        assert kept.size == drawn.size


def test_a_name_without_a_picture_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        trick_pictures.main(["mixpu"])
    assert caught.value.code == 2
    assert "no picture of mixpu" in capsys.readouterr().err
