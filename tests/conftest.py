"""What many tests share: a tiny data set, the composed configuration, the command line."""

import functools
import gc
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import kill
import pytest

from runner import train
from runner.config import compose
from runner.config.schema import RunConfig

if TYPE_CHECKING:  # it imports torch, which the process that only hands out tests does without
    from small import Command

# Tests work on tiny tensors, for which more threads are no gain; read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where a test has more threads, they leave the cores to the other tests while they wait.
os.environ["GOMP_SPINCOUNT"] = "0"
# A shell without job control starts what it leaves in the background with SIGINT ignored, and nohup
# with SIGHUP. Processes that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

ASKED_FOR = {
    "slow": "takes minutes: run with -m slow",
    "whole": "what .ci/run adds: run with -m whole",
    # Some fill the memory of the GPU, which fails other tests that run at the same time.
    "gpu": "needs a GPU for itself: run with -m gpu",
}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Iterator[None]:
    """What is imported and collected stays: to look for garbage in it took a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that take long run only where ``-m`` asks for them."""
    for marker, reason in ASKED_FOR.items():
        if marker not in config.getoption("-m"):
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(pytest.mark.skip(reason=reason))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process per core, at most four, and one more; none for a single file, nor to debug.

    One more, because a third of the time of the tests is waiting: for processes that they start,
    signals and locks. None for the tests of a GPU either: some fill its memory, with which a test
    at the same time would fail.
    """
    files = {argument.partition("::")[0] for argument in config.option.file_or_dir}
    is_one_file = len(files) == 1 and Path(*files).is_file()
    asks_for_gpu = re.search(r"(?<!\bnot )\bgpu\b", config.getoption("-m"))
    if is_one_file or config.option.usepdb or asks_for_gpu:
        return 0
    return min(len(os.sched_getaffinity(0)), 4) + 1


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """A command in this process leaves its own handlers of signals and more such settings."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers, thresholds = [signal.getsignal(one) for one in signals], gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    for one, handler in zip(signals, handlers, strict=True):
        signal.signal(one, handler)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # more threads wait for each other


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ with three classes of 16 and 8 images."""
    from small import COLOURS, write_images

    root = tmp_path_factory.mktemp("tiny")
    for seed, (name, colour) in enumerate(COLOURS.items()):
        write_images(root / "train" / name, 16, colour, seed)
        write_images(root / "val" / name, 8, colour, 100 + seed)
    return root


@pytest.fixture(scope="session")
def composed() -> Callable[..., RunConfig]:
    """The checked configuration of a list of overrides, composed in this process, once each."""
    compose.register()

    @functools.cache
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
            "model=timm", "model.name=test_resnet", "budget.epochs=1", "threads=1",
            f"outputs={tmp_path_factory.mktemp('outputs')}", *words,
        )  # fmt: skip
        return Path(train.run(config, [])["folder"])

    return train_words


@pytest.fixture
def process(tmp_path: Path) -> "Command":
    """Run ``python -m MODULE WORDS`` as its user does, in an empty folder.

    Warnings there are not ours to fail on.
    """

    def run(
        *words: str, module: str = "runner.train", **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", module, *words],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@pytest.fixture(params=["fork", pytest.param("process", marks=pytest.mark.slow)])
def command(
    request: pytest.FixtureRequest,
    process: "Command",
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> "Command":
    """As ``process``, but in a fork that has imported torch already: a tenth of the time.

    With ``-m whole`` as ``process``.
    """
    log = tmp_path_factory.mktemp("log")

    def run(
        *words: str, module: str = "runner.train", **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        # Python reads its variables only when it starts.
        is_early = any(name.startswith("PYTHON") for name in environment)
        if is_early or sys.platform != "linux":
            return process(*words, module=module, **environment)
        return kill.completed(tmp_path, module, words, environment, log)

    return run if request.param == "fork" else process


@pytest.fixture
def tiny_words(tiny_folder: Path) -> tuple[str, ...]:
    """Overrides for a run of seconds on :func:`tiny_folder`."""
    return (
        "data=folder",
        f"data.root={tiny_folder}",
        "data.batch_size=16",
        "resize.size=16",
        "model=timm",
        "model.name=test_resnet",
        "budget.epochs=1",
        "threads=1",
    )
