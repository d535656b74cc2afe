"""Files of runs, checkpoints, bundles and sweeps, damaged by chance and on purpose.

Each command either answers, or ends with an error of ours, or lists the run with the reason; it
never meets another exception, never waits without end, and never takes more memory than a bound.
``-s`` prints the counts.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import resource
import shutil
import socket
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kill
import numpy as np
import pytest
from kill import STEP, Place, Trap

from runner import evaluate, predict, show, train
from runner.config.schema import RunConfig
from runner.errors import RunnerError
from runner.records.sweep_folder import SweepFolder
from runner.report import __main__ as report

MEMORY = 4 * 2**30  # bytes that a command may take beyond what the tests take
SECONDS = 30  # for one command, on a busy machine
DEEP = 50_000
NUM_SWEEPS = 60
AT_LEAST = 12  # damaged folders, however busy the machine is
NUMBERS = (10**12, 2**63, -1, 0, 1e308, 10**400, 0.5, True)
LINKS = ("/dev/zero", "/dev/stdin", "/nowhere", "/", "/proc/self/mem", "itself")
OTHERS = (None, [], {}, "", "x", "\0", "\ud800", [[]], {"a": 1}, *NUMBERS)


@pytest.fixture(scope="module")
def words(tiny_folder: Path) -> tuple[str, ...]:
    return kill.two_epochs(tiny_folder)


@pytest.fixture(scope="module")
def outputs(
    tmp_path_factory: pytest.TempPathFactory, words: tuple[str, ...]
) -> tuple[Path, Path, Path]:
    """An outputs folder with two finished runs; one of these; and the same, unfinished."""
    root = tmp_path_factory.mktemp("place") / "root"
    place = Place(root, [*words, "run_dir=outputs/run"])
    stopped = place.run(traps=[Trap(STEP, 4, kill.terminate)])
    assert stopped.code == 143, stopped.err
    unfinished = Path(shutil.copytree(root / "outputs/run", root / "unfinished"))
    assert place.run("tta=flip").code == 0  # with an evaluation
    assert place.run("seed=1", "run_dir=outputs/other").code == 0
    kill.end_all()
    return root / "outputs", root / "outputs/run", unfinished


# ── Damage to one file ─────────────────────────────────────────────────────────────────────────


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 3, 30)) if content else 0):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def cut(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content) + 1)])


def append(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.choice((1, 1000))))


def noise(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(draw.choice((0, 1, 100, 10_000))))


def remove(path: Path, draw: random.Random) -> None:
    path.unlink()


def pipe(path: Path, draw: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def unix_socket(path: Path, draw: random.Random) -> None:
    path.unlink()
    here = Path.cwd()
    os.chdir(path.parent)  # its name may have only 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def link(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.symlink_to(draw.choice(LINKS))


def folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()
    (path / "run.json").write_text("{}")


def huge(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.choice((2**33, 2**42)))  # sparse


def nested(path: Path, draw: random.Random) -> None:
    opening, closing = draw.choice((('{"a":', "}"), ("[", "]")))
    depth = draw.choice((200, 900, DEEP))
    path.write_text(f'{{"identity": {opening * depth}1{closing * depth}}}')


def other_values(path: Path, draw: random.Random) -> None:
    """Replace some values of JSON, or whole parts of it, by values of another type or size."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except (ValueError, UnicodeDecodeError):
        try:
            lines = [json.loads(path.read_text())]
        except (ValueError, UnicodeDecodeError):
            return noise(path, draw)
    for _ in range(draw.choice((1, 1, 3))):
        places = list(_places(lines))
        where, key = draw.choice(places)
        if draw.random() < 0.15 and isinstance(where, dict):
            del where[key]
        else:
            where[key] = draw.choice(OTHERS)
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return None


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    for key in values if isinstance(values, dict) else range(len(values)):
        yield values, key
        if isinstance(values[key], dict | list):
            yield from _places(values[key])


def claims(path: Path, draw: random.Random) -> None:
    """An archive of arrays whose headers claim more than there is, or that unpacks to more."""
    content = io.BytesIO()
    kind = draw.choice(("shape", "type", "objects", "zeros", "directory"))
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("labels", "plain", "tta", "index", "bits"):
            shape = draw.choice(((2**40,), (10**9, 10**6), (0, 2**62), (24, 3)))
            dtype = {"type": "<U1000000", "objects": "|O"}.get(kind, "<f4")
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                header, {"descr": dtype, "fortran_order": False, "shape": shape}
            )
            body = bytes(2**22) if kind == "zeros" else b"\0" * 288
            archive.writestr(f"{name}.npy", header.getvalue() + body)
    found = content.getvalue()
    if kind == "directory":  # sizes in the central directory
        at = found.rfind(b"PK\x01\x02")
        found = found[: at + 24] + b"\xf0\xff\xff\xff" + found[at + 28 :]
    path.write_bytes(found)


def bomb(path: Path, draw: random.Random) -> None:
    """A gzip file that unpacks to 3 GB in one line, or in many."""
    import zlib

    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    line = draw.choice((b"\0", b"val,x.png,blue,0\n", b"\n")) * 2**20
    start = packer.compress(b"split,image,label,sha256\n")
    path.write_bytes(start + b"".join(packer.compress(line) for _ in range(40)) + packer.flush())


ANY = (flip, cut, append, noise, remove, pipe, unix_socket, link, folder, huge)
BY_SUFFIX: dict[str, tuple[Callable[[Path, random.Random], None], ...]] = {
    ".json": (nested, other_values, other_values, other_values, other_values),
    ".jsonl": (nested, other_values, other_values),
    ".npz": (claims, claims),
    ".gz": (bomb,),
    ".yaml": (nested,),
    ".lock": (nested, other_values),
}


def reseal(changed: Path, run: Path) -> None:
    """Correct the digests above a changed file, so that what is inside is read at all."""
    with contextlib.suppress(Exception):  # the file is damaged
        if changed.stat().st_size > 2**30 or not changed.is_file():
            return
        content = changed.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if changed.parent.name.startswith("step-"):
            manifest = changed.parent / "manifest.json"
            found = json.loads(manifest.read_text())
            found["files"][changed.name] = {"bytes": len(content), "sha256": digest}
            manifest.write_text(json.dumps(found))
        elif changed.name == "model.json":
            weights = changed.with_name("model.safetensors")
            old = weights.read_bytes()
            length = int.from_bytes(old[:8], "little")
            header = json.loads(old[8 : 8 + length])
            description = json.loads(content)
            description.pop("files", None)
            header["__metadata__"]["trick-runner"] = json.dumps(description)
            text = json.dumps(header).encode()
            new = len(text).to_bytes(8, "little") + text + old[8 + length :]
            weights.write_bytes(new)
            description["files"] = {weights.name: hashlib.sha256(new).hexdigest()}
            changed.write_text(json.dumps(description))
        elif changed.name == "model.safetensors":
            described = changed.with_name("model.json")
            description = json.loads(described.read_text())
            description["files"][changed.name] = digest
            described.write_text(json.dumps(description))
        if changed.parent.name == "bundle":
            result = json.loads((run / "result.json").read_text())
            result["bundle"] = {
                path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in changed.parent.iterdir()
            }
            (run / "result.json").write_text(json.dumps(result))


# ── Commands ───────────────────────────────────────────────────────────────────────────────────


def ended(main: Callable[[], None], *words: str) -> str:
    """Run a command in this process: its exit code, or what it says that must not be."""
    said = io.StringIO()
    argv, sys.argv = sys.argv, ["command", *words]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            main()
        code: object = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = argv
    assert "this is a bug" not in said.getvalue(), said.getvalue()[-3000:]
    assert "Traceback" not in said.getvalue(), said.getvalue()[-3000:]
    assert code in (0, 2, 3, 4, 5, 7, 75), (code, said.getvalue()[-1000:])
    return f"exit {code}"


class Commands:
    """The commands that read run folders."""

    def __init__(self, run_config: Callable[[Path], RunConfig], images: Path) -> None:
        self._run_config = run_config
        self._images = images

    def report(self, run: Path) -> str:
        return ended(report.main, str(run.parent), "--json", "-")

    def page(self, run: Path) -> str:
        return ended(report.main, str(run.parent), "--html", "-")

    def show(self, run: Path) -> str:
        return ended(show.main, str(run.parent))

    def evaluate(self, run: Path) -> str:
        return ended(evaluate.main, str(run), "--csv", "-")

    def predict(self, run: Path) -> str:
        return ended(predict.main, str(run), str(self._images), "--csv", "-")

    def resume(self, run: Path) -> str:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            try:
                return str(train.run(self._run_config(run), [])["status"])
            except RunnerError as error:
                return type(error).__name__


def commands_for(name: str) -> list[str]:
    """Which commands read a file of this name; the quick ones always run."""
    found = ["report", "show", "resume"]
    if name in ("metrics.jsonl", "timings.jsonl", "split.csv.gz", "code.py", "predictions.npz"):
        found.append("page")
    if name in ("result.json", "run.json", "status.json", "run.lock", "predictions.npz"):
        found += ["evaluate", "predict"]
    if name.startswith("evaluations/"):
        found += ["page", "evaluate"]
    if name.startswith("bundle/"):
        found.append("predict")
    return found


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize(
    "seconds",
    [pytest.param(8, marks=pytest.mark.whole), pytest.param(600, marks=pytest.mark.slow)],
)
@pytest.mark.timeout(900)
def test_files_of_a_run(
    outputs: tuple[Path, Path, Path],
    composed: Callable[..., RunConfig],
    words: tuple[str, ...],
    tiny_folder: Path,
    tmp_path: Path,
    seconds: float,
) -> None:
    shared, finished, unfinished = outputs
    # The cache of decoded images, and the scores that a report remembers, are not of this test.
    commands = Commands(
        lambda run: composed(*words, f"run_dir={run}", f"outputs={shared}"), tiny_folder / "val"
    )
    draw, counts, number = random.Random(0), Counter[str](), 0  # noqa: S311
    deadline = time.monotonic() + seconds
    with bounded_memory():
        while time.monotonic() < deadline or number < AT_LEAST:
            number += 1
            place = tmp_path / str(number)
            source = draw.choice((finished, unfinished))
            run = Path(shutil.copytree(source, place / "run"))
            shutil.copytree(shared / "other", place / "other")
            names = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
            name = draw.choice(names)
            damages = (*ANY, *(BY_SUFFIX.get(Path(name).suffix, ()) * 2))
            damage = draw.choice(damages)
            damage(run / name, draw)
            if draw.random() < 0.7:
                reseal(run / name, run)
            for command in commands_for(name):
                started = time.monotonic()
                try:
                    end = getattr(commands, command)(run)
                except BaseException as error:
                    error.add_note(f"case {number}: {damage.__name__} of {name} in {source.name}")
                    error.add_note(f"command: {command}; folder: {run}")
                    raise
                assert time.monotonic() - started < SECONDS, (command, damage.__name__, name)
                counts[f"{command}: {end}"] += 1
            shutil.rmtree(place)
    print(f"\n{number} damaged folders, {counts.total()} commands: {dict(sorted(counts.items()))}")
    assert {end.partition(": ")[2] for end in counts} >= {"exit 0", "resumed", "ArtefactError"}


def test_files_of_a_sweep(tmp_path: Path) -> None:
    draw, counts = random.Random(0), Counter[str]()  # noqa: S311
    whole = SweepFolder.create(tmp_path, [["seed=0"]])
    whole.write(0, "failed", accuracy=0.5, folder="x")
    assert whole.read(0)["status"] == "failed", "undamaged, it is read"
    with bounded_memory():
        for number in range(NUM_SWEEPS):
            folder = SweepFolder.create(tmp_path, [["seed=0"]])
            folder.write(0, draw.choice(("running", "busy", "failed")), accuracy=0.5, folder="x")
            folder.stop(15)
            folder.log(0).write_text("Fatal Python error: Aborted\n")
            for name in ("0.json", "stop", "0.log"):
                damage = draw.choice((*ANY, nested, other_values, other_values))
                damage(folder.path / name, draw)
            found = folder.read(0)
            counts[found["status"] if isinstance(found["status"], str) else "?"] += 1
            assert isinstance(found["status"], str), number
            assert folder.stopped_by is None or 1 <= folder.stopped_by <= 64
            shutil.rmtree(folder.path)
    print(f"\n{NUM_SWEEPS} damaged sweeps: {dict(counts)}")
    assert counts["pending"] > NUM_SWEEPS // 3
