"""Names of classes and files, whatever characters they have, in pictures and their alt texts."""

import io
from xml.dom import minidom

import numpy as np
import pytest
from PIL import Image

from runner.pictures import charts, galleries
from runner.pictures.paper import picture_bytes

NAMES = ["猫", "собака", "a\x00b", "\udcff", "<x>&$y$"]


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_names_in_any_script_are_drawn_without_warnings(suffix: str) -> None:
    matrix = np.eye(5, dtype=int) * 5 + 1
    alt = charts.confusion_alt(matrix, NAMES)
    content = picture_bytes(charts.confusion(matrix, NAMES), suffix, f"{alt} \udcff")
    if suffix == ".svg":
        text = minidom.parseString(content).documentElement.toxml()  # noqa: S318  ours
        assert "猫" in text
        assert "a\\x00b" in text
    else:
        with Image.open(io.BytesIO(content)) as picture:
            assert "猫 taken for" in str(picture.info["Title"])
            assert "\\udcff" in str(picture.info["Title"])


def test_names_of_images_are_drawn() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    card = galleries.Card(image, "猫", "\udcff", 0.5, 1.0, f"a/\udcff/{'x' * 99}.png")
    for figure in (
        galleries.mistakes([("first", [card] * 4), ("then", [card])]),
        galleries.heat_rows([(card, np.zeros((8, 8)), np.ones((8, 8)))]),
    ):
        assert picture_bytes(figure, ".png", "").startswith(b"\x89PNG")
