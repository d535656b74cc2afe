"""``python -m runner.data stats``: an option of ``normalize``, of the training split alone."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from small import COLOURS, Command, write_images

from runner import train
from runner.config.schema import Normalize, RunConfig

Statistics = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training images unlike those of validation, which are much brighter."""
    root = tmp_path_factory.mktemp("unlike")
    for seed, (name, colour) in enumerate(COLOURS.items()):
        write_images(root / "train" / name, 16, colour, seed)
        bright = tuple(channel // 2 + 128 for channel in colour)
        write_images(root / "val" / name, 8, bright, 100 + seed)  # type: ignore[arg-type]
    return root


@pytest.fixture
def words(root: Path) -> tuple[str, ...]:
    """The images are stored as they are: their short side is 24 px."""
    return ("data=folder", f"data.root={root}", "resize.size=16", "data.presize=24")


def stats(command: Command, *words: str) -> str:
    done: subprocess.CompletedProcess[str] = command("stats", *words, module="runner.data")
    assert done.returncode == 0, done.stderr
    return done.stdout


def independent(folders: list[Path]) -> Statistics:
    """By numpy, over all pixels of all files below."""
    files = [path for folder in folders for path in sorted(folder.rglob("*.png"))]
    pixels = np.concatenate([np.asarray(Image.open(path)).reshape(-1, 3) for path in files]) / 255
    return pixels.mean(axis=0), pixels.std(axis=0)


def test_what_is_printed_is_measured_on_the_training_split_alone(
    command: Command, root: Path, words: tuple[str, ...]
) -> None:
    printed = stats(command, *words)
    found = yaml.safe_load(printed)
    assert found.keys() == {"source", "mean", "std"}
    assert found["source"] == "fixed"
    mean, std = independent([root / "train"])
    np.testing.assert_allclose(found["mean"], mean, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["std"], std, rtol=0, atol=1e-6)
    assert "48 training images of folder, short side 24 px" in printed
    # Negative control: with the validation images it would be something else.
    both, _ = independent([root / "train", root / "val"])
    assert np.abs(both - mean).min() > 0.01


def test_it_pastes_back(
    command: Command,
    composed: Callable[..., RunConfig],
    words: tuple[str, ...],
    tmp_path: Path,
) -> None:
    printed = stats(command, *words)
    option = tmp_path / "options" / "normalize" / "mine.yaml"
    option.parent.mkdir(parents=True)
    option.write_text(printed)
    short = ("data.batch_size=16", "budget.epochs=1", "threads=1")
    done = command(
        "--config-dir", str(tmp_path / "options"), *words, *short, "normalize=mine",
        f"run_dir={tmp_path / 'mine'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = json.loads((tmp_path / "mine" / "result.json").read_text())["model"]
    measured = Path(
        train.run(composed(*words, *short, "normalize=dataset", f"outputs={tmp_path}"), [])[
            "folder"
        ]
    )
    expected = json.loads((measured / "result.json").read_text())["model"]
    for name in ("mean", "std"):
        assert model[name] == yaml.safe_load(printed)[name]
        np.testing.assert_allclose(model[name], expected[name], rtol=0, atol=1e-6)
    # And the words of its comment, as the shell would take them apart.
    said = re.findall(r"'(normalize\.\w+=[^']+)'", printed)
    assert len(said) == 2
    config = composed(*words, *said)
    assert config.normalize == Normalize("fixed", tuple(model["mean"]), tuple(model["std"]))


def test_a_streamed_set_gives_the_same(command: Command, words: tuple[str, ...]) -> None:
    cached = stats(command, *words, "outputs=cached")
    assert stats(command, *words, "outputs=streamed", "data.cache_gb=0") == cached
    smaller = stats(command, *words[:-1], "data.presize=12", "outputs=cached")
    assert smaller != cached  # negative control: other stored pixels, another answer


MISTAKES: dict[str, tuple[list[str], int, str]] = {
    "no words": (["tell"], 2, "invalid choice"),
    "no fact": ([], 2, "required"),
    "an unknown key": (["stats", "data.rot=x"], 2, "did you mean data.root?"),
    "an unknown set": (["stats", "data=imagenete"], 2, "did you mean imagenette?"),
    "a size that is none": (["stats", "resize.size=big"], 2, "resize.size=big"),
    "no root": (["stats", "data=folder"], 2, "data.root"),
    "nothing there": (["stats", "data=folder", "data.root=nowhere"], 3, "nowhere"),
    "no images": (["stats", "data=folder", "data.root=empty"], 3, "empty"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told(command: Command, tmp_path: Path, name: str) -> None:
    words, code, text = MISTAKES[name]
    (tmp_path / "empty").mkdir()
    done = command(*words, module="runner.data")
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
