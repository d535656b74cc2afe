"""The common parts of all benchmarks: contestants that are measured in turn, ratios, tables.

The speed of a shared machine drifts, so contestants run interleaved (A B A B …) and are compared
pair by pair within a round: what slows a round slows both sides of its ratio. A contestant is a
process that reads one JSON object per line and answers with one; between its turns it sleeps.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from runner.machine.files import write_output
from runner.machine.hardware import cpu_name, num_cores, num_gpus
from runner.terminal.console import table_console
from runner.terminal.tables import Table

_PACKAGES = ("trick-runner", "torch", "torchvision", "numpy")


@dataclass(frozen=True)
class Spread:
    """Values of repeated measurements, in the order of the rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the values."""
        return median(self.values)

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        return f"{_short(self.median)} [{_short(low)}, {_short(high)}]"

    def to_dict(self) -> dict[str, Any]:
        """Return the values and their summary, ready for JSON."""
        return {
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "values": list(self.values),
        }


def ratio(one: Spread, other: Spread) -> Spread:
    """``one`` / ``other``, round by round."""
    return Spread(tuple(a / b for a, b in zip(one.values, other.values, strict=True)))


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


class Worker:
    """A contestant in a process of its own; use it as a context manager.

    Attributes:
        facts: the facts about itself that the contestant sent when it was ready.
        name: name of the contestant, with its version if the contestant sent one.
    """

    def __init__(
        self,
        command: Sequence[str],
        settings: Mapping[str, Any],
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(  # noqa: S603  the benchmark's own command
                [*command, json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        self.facts = self._answer()
        self.name = str(self.facts["name"])

    def ask(self, command: str, **more: Any) -> dict[str, Any]:
        """Send a command to the contestant and return its answer.

        Raises:
            SystemExit: the contestant died; its log says why.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, **more}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
            sys.exit(f"a contestant ended without an answer; {self._log} ends with\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait()


def own_worker(settings: Mapping[str, Any], log: Path) -> Worker:
    """Start trick-runner itself, or with ``role: limit`` the bare network of the same settings."""
    return Worker([sys.executable, "-m", "benchmarks.own_worker"], settings, log)


def peer_worker(peers: Path, name: str, settings: Mapping[str, Any], log: Path) -> Worker:
    """Start a peer in the environment that ``python -m benchmarks.peers`` made below ``peers``."""
    environment = "fastai" if name == "fastai" else "timm"
    python = peers / environment / "bin" / "python"
    if not python.exists():
        sys.exit(f"no {python}: make the environments with python -m benchmarks.peers {peers}")
    script = Path(__file__).parent / "peers" / f"{name}_worker.py"
    return Worker([str(python), str(script)], settings, log, peer_environment())


def peer_environment() -> dict[str, str]:
    """The environment variables of this process, without those that point to its packages."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def throughput(
    workers: Mapping[str, Worker], images: int, batch_size: int, repeats: int, warmup: int = 1
) -> dict[str, Spread]:
    """Images per second of each contestant's training, in turns of ``images`` images.

    Args:
        workers: the contestants by name.
        images: approximate number of images in one turn.
        batch_size: images per step.
        repeats: number of measured rounds.
        warmup: number of rounds before the measured rounds.
    """
    found: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(warmup + repeats):
        for name, worker in workers.items():
            said = worker.ask("train", steps=max(1, round(images / batch_size)))
            if turn >= warmup:
                found[name].append(said["images"] / said["seconds"])
    return {name: Spread(tuple(values)) for name, values in found.items()}


def machine() -> dict[str, Any]:
    """Return the machine, the versions and the date of a measurement."""
    return {
        "processor": cpu_name(),
        "cores": num_cores(),
        "gpus": num_gpus(),
        "load_before": os.getloadavg()[0],
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in _PACKAGES},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """Make a parser with the options that all benchmarks have."""
    found = argparse.ArgumentParser(
        allow_abbrev=False, prog=f"python -m benchmarks.{module}", description=description
    )
    found.add_argument("--json", type=Path, metavar="FILE", help="write every number")
    found.add_argument(
        "--outputs", type=Path, default=Path("outputs/benchmarks"), metavar="DIR",
        help="logs and caches (default: %(default)s)",
    )  # fmt: skip
    return found


def add_data_option(found: argparse.ArgumentParser) -> None:
    """Add the option that names the data."""
    found.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER_OR_ARCHIVE",
        help="Imagenette at 160 px: imagenette2-160.tgz, or its folder",
    )  # fmt: skip


def report(title: str, table: Table, content: Mapping[str, Any], target: Path | None) -> None:
    """Print a table, and write all numbers to ``target`` if there is one."""
    about = machine()
    console = table_console()
    table.print(console)
    console.print(f"{about['processor']}, {about['cores']} cores, {about['date']}", markup=False)
    if target is not None:
        whole = {"benchmark": title, "command": " ".join(sys.argv), "machine": about, **content}
        write_output(target, (json.dumps(whole, indent=2) + "\n").encode())


@contextmanager
def unpacked(data: Path) -> Iterator[Path]:
    """The folder ``data``; an archive is unpacked into a folder that lasts as long as the block."""
    if data.is_dir():
        yield data
        return
    with tempfile.TemporaryDirectory() as folder:
        # The benchmark's own user names the archive; the program itself checks every member.
        subprocess.run(["tar", "-xf", str(data.absolute()), "-C", folder], check=True)  # noqa: S603, S607
        (inside,) = [entry for entry in Path(folder).iterdir() if entry.is_dir()]
        yield inside


@dataclass
class Stopwatch:
    """Measures the seconds of a block."""

    seconds: float = 0.0

    def __enter__(self) -> "Stopwatch":
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._started
