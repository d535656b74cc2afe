"""``python -m runner.report`` as people call it: its forms, its exit codes, its bad company."""

import csv
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fabricated import write_run
from small import Command

from runner.report import __main__ as report_main
from runner.report.runs import find_runs

Main = Callable[..., int]
ESCAPES = "[bold]x \x1b[2J :bomb:"
CLASSES = ("=HYPERLINK(1)", "</script><img src=x onerror=alert(1)>", ESCAPES)


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Main:
    """The command in this process, in an empty folder; returns its exit code."""
    monkeypatch.chdir(tmp_path)
    # Handlers of signals would outlive the test.
    monkeypatch.setattr("runner.terminal.command.raise_on_signals", lambda: None)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["report", *map(str, words)])
        try:
            report_main.main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    return run


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    place = tmp_path / "outputs"
    for seed in range(2):
        write_run(place, seed=seed, accuracy=0.4 + 0.1 * seed, num_images=30)
        write_run(place, "mixup", "tta", seed=seed, accuracy=0.7, num_images=30)
    return place


# ── Forms ──────────────────────────────────────────────────────────────────────────────────────


def test_every_form_in_one_call(
    main: Main, outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("--json", "x.json", "--csv", "x.csv", "--markdown", "x.md") == 0
    told = capsys.readouterr()
    assert "mixup + tta" in told.out, "the terminal, too"
    assert told.err == ""
    said = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert said["margin"] == 0.005
    labels = [arm["label"] for arm in said["groups"][0]["arms"]]
    assert labels == ["baseline", "mixup", "mixup + tta"]
    lines = list(csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text(), newline="")))
    assert [line["arm"] for line in lines][:3] == labels
    assert "| mixup + tta |" in (tmp_path / "x.md").read_text()
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


def test_the_path_of_a_page_is_printed(
    main: Main, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("--html", "[b] x.html") == 0
    told = capsys.readouterr()
    assert told.out.endswith("\npage: [b] x.html\n")
    assert told.err == ""
    assert main("--html", "x.html", "--json", "-") == 0
    told = capsys.readouterr()
    assert json.loads(told.out), "standard output holds the result alone"
    assert told.err == "page: x.html\n"
    assert main("--html", "-") == 0
    assert "page: " not in "".join(capsys.readouterr())


@pytest.mark.parametrize("form", ["csv", "json", "markdown"])
def test_a_form_on_the_terminal_is_all_that_is_said(
    form: str, main: Main, outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(f"--{form}", "x") == 0
    capsys.readouterr()
    assert main(f"--{form}", "-") == 0
    assert capsys.readouterr().out == (tmp_path / "x").read_text()


def test_places_baseline_and_margin(
    main: Main, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [run.path for run in find_runs([outputs]).runs]
    assert main(*runs[:2], outputs, "--baseline", "mixup", "--margin", 2, "--json", "-") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["margin"] == 0.02
    assert said["groups"][0]["baseline"] == "mixup"
    assert len(said["groups"][0]["runs"]) == 2 + 2 * 2


def test_an_empty_folder(main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "outputs").mkdir()
    assert main() == 0
    assert "no finished runs" in capsys.readouterr().out


def test_the_cache_is_written_only_where_there_is_a_folder_for_it(
    main: Main, outputs: Path
) -> None:
    before = sorted(path.name for path in outputs.iterdir())
    assert main() == 0
    assert sorted(path.name for path in outputs.iterdir()) == before
    (outputs / "cache").mkdir()
    assert main() == 0
    assert [path.name for path in (outputs / "cache").iterdir()] == ["report.npz"]


def test_a_second_report_says_the_same(
    main: Main, outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (outputs / "cache").mkdir()
    said = []
    for _ in range(2):
        assert main("--json", "-") == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


# ── Exit codes ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("nowhere",), 3, "nowhere"),
        (("outputs", "nowhere"), 3, "nowhere"),
        (("--margin", "0"), 2, "margin"),
        (("--margin=-1",), 2, "margin"),
        (("--margin", "nan"), 2, "margin"),
        (("--margin", "inf"), 2, "margin"),
        (("--margin", "100"), 2, "margin"),
        (("--margin", "much"), 2, "margin"),
        (("--baseline", "cutmix"), 2, "mixup + tta"),
        (("--json", "outputs/x/"), 4, "outputs/x"),
        (("--json", "a file/x.json"), 4, "a file"),
        (("--csv", "outputs"), 4, "outputs"),
    ],
)
def test_exit_codes(
    words: tuple[str, ...],
    code: int,
    told: str,
    main: Main,
    outputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a file").touch()
    (outputs / "x").mkdir()
    found = main(*words)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert found == code
    assert told in said


@pytest.mark.parametrize("file", [".", "", "/", ".."])
def test_a_file_without_a_name_is_an_error(
    file: str, main: Main, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("--csv", file) in (2, 4)
    assert "Traceback" not in capsys.readouterr().err


def test_what_cannot_be_written_is_mended_by_another_file(
    main: Main, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("--json", "/proc/x.json") == 4
    said = capsys.readouterr().err
    assert "/proc/x.json" in said
    assert "outputs=" not in said, "this command knows no such word"


def test_a_pipe_in_the_place_of_a_file_is_written_through(
    main: Main, outputs: Path, tmp_path: Path
) -> None:
    # As /dev/stdout, /dev/null and >(less) are: what is there is no file of ours to replace.
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []

    def reader() -> None:
        descriptor = os.open(pipe, os.O_RDWR)  # so that nobody waits if nobody writes
        is_over.wait(30)
        os.set_blocking(descriptor, False)
        try:
            read.append(os.read(descriptor, 60_000).decode())
        except BlockingIOError:
            read.append("")
        os.close(descriptor)

    is_over = threading.Event()
    thread = threading.Thread(target=reader)
    thread.start()
    code = main("--csv", "pipe")
    is_over.set()
    thread.join()
    assert code == 0
    assert pipe.is_fifo()
    assert read[0].startswith("group,table,arm")


# ── Processes of their own ─────────────────────────────────────────────────────────────────────


def test_hostile_names_stay_names(command: Command, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    words = ("seed=0", f"data.root={ESCAPES}", "=HYPERLINK(1)")
    write_run(outputs, num_images=30, classes=CLASSES, name=f"run {ESCAPES}", words=words)
    write_run(outputs, "mixup", num_images=30, classes=CLASSES, name="-rf\nx", words=words)
    failed = write_run(outputs, seed=5, name="=cmd|x\n[b]", finish=False)
    failed.write_status("failed", ESCAPES)
    (outputs / f"foreign {ESCAPES}\nline").mkdir()
    done = command(
        "--json", "x.json", "--csv", "x.csv", "--markdown", "x.md", "--html", "x.html",
        module="runner.report", COLUMNS="300",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout
    shown = "[bold]x \\x1b[2J :bomb:"
    assert done.stdout.count(shown) >= 3, "a foreign folder, a reason, the words of a command"
    assert f"foreign {shown}" in done.stdout
    said = json.loads((tmp_path / "x.json").read_text())
    assert {run["run"] for run in said["groups"][0]["runs"]} == {f"run {ESCAPES}", "-rf\nx"}
    assert said["groups"][0]["runs"][0]["command"][3:] == list(words)
    for name in ("x.csv", "x.md"):
        assert "\x1b" not in (tmp_path / name).read_text()
    page = (tmp_path / "x.html").read_text()
    assert "\x1b" not in page
    assert "<img src=x" not in page


@pytest.mark.parametrize("column", ["20", "80"])
def test_a_terminal_of_few_columns(
    column: str, main: Main, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", column)
    assert main() == 0


def test_nothing_slow_is_imported(outputs: Path, tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        "for name in ('torch', 'scipy.stats', 'matplotlib', 'hydra', 'PIL'):\n"
        "    sys.modules[name] = None\n"  # an import of it would raise ImportError
        "sys.argv = ['report', '--json', 'x.json']\n"
        "runpy.run_module('runner.report', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "mixup + tta" in done.stdout
    assert json.loads((tmp_path / "x.json").read_text())["groups"]


@pytest.mark.parametrize("words", [(), ("--csv", "-")], ids=["tables", "csv"])
def test_a_closed_pipe_is_no_error(words: tuple[str, ...], outputs: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `| head -1` does when it has its line
    try:
        done = subprocess.run(
            [sys.executable, "-m", "runner.report", *words],
            cwd=tmp_path,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize("words", [(), ("--markdown", "-")], ids=["tables", "markdown"])
def test_a_terminal_of_another_encoding(
    words: tuple[str, ...], command: Command, outputs: Path
) -> None:
    done = command(*words, module="runner.report", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "mixup + tta" in done.stdout


def test_the_default_place_is_missing(command: Command) -> None:
    done = command(module="runner.report")
    assert done.returncode == 3
    assert "outputs" in done.stderr
    assert "Traceback" not in done.stderr


def test_standard_output_takes_one(tmp_path: Path, command: Command) -> None:
    (tmp_path / "outputs").mkdir()
    done = command("--csv", "-", "--json", "-", module="runner.report")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--csv - --json -" in done.stderr


@pytest.mark.slow
def test_a_thousand_runs(tmp_path: Path, command: Command) -> None:
    names = ("", "normalize", "mixup", "label_smoothing", "tta")
    classes = tuple(f"class {number}" for number in range(10))
    for number in range(1000):
        tricks = (names[number % 5],) if number % 5 else ()
        write_run(tmp_path / "outputs", *tricks, seed=number // 5, num_images=1500, classes=classes)
    (tmp_path / "outputs" / "cache").mkdir()
    for name in ("first", "second", "third"):
        started = time.perf_counter()
        done = command(module="runner.report")
        print(f"{name} report on 1,000 runs: {time.perf_counter() - started:.2f} s")
        assert done.returncode == 0, done.stderr
        assert "label_smoothing  200" in done.stdout
