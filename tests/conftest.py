"""What many tests share: a tiny data set, the composed configuration, the command line."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from small import COLOURS, Command, write_images

from runner import train
from runner.config import compose
from runner.config.schema import RunConfig


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of minutes run only where ``-m`` asks for them."""
    if "slow" not in config.getoption("-m"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: run with -m slow"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ with three classes of 16 and 8 images."""
    root = tmp_path_factory.mktemp("tiny")
    for seed, (name, colour) in enumerate(COLOURS.items()):
        write_images(root / "train" / name, 16, colour, seed)
        write_images(root / "val" / name, 8, colour, 100 + seed)
    return root


@pytest.fixture(scope="session")
def composed() -> Callable[..., RunConfig]:
    """The checked configuration of a list of overrides, composed in this process."""
    compose.register()

    def compose_words(*words: str) -> RunConfig:
        return compose.config_of(words)

    return compose_words


@pytest.fixture(scope="session")
def finished_run(
    tiny_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    composed: Callable[..., RunConfig],
) -> Callable[..., Path]:
    """A function that trains :func:`tiny_folder` with more words; the folder of the run."""

    def train_words(*words: str) -> Path:
        config = composed(
            "data=folder", f"data.root={tiny_folder}", "data.batch_size=16", "resize.size=16",
            "budget.epochs=1", "threads=1", f"outputs={tmp_path_factory.mktemp('outputs')}", *words,
        )  # fmt: skip
        return Path(train.run(config, [])["folder"])

    return train_words


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run ``python -m MODULE WORDS`` in an empty folder; warnings there are not ours to fail on."""

    def run(
        *words: str, module: str = "runner.train", **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", module, *words],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@pytest.fixture
def tiny_words(tiny_folder: Path) -> tuple[str, ...]:
    """Overrides for a run of seconds on :func:`tiny_folder`."""
    return (
        "data=folder",
        f"data.root={tiny_folder}",
        "data.batch_size=16",
        "resize.size=16",
        "budget.epochs=1",
        "threads=1",
    )
