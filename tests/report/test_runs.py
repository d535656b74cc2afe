"""Reading run folders: whatever lies there is a run, is listed with its reason, or is passed over.

Nothing that can be in a folder may end the report.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated import FINGERPRINT, write_run
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from runner.errors import ArtefactError, DataError
from runner.machine.locks import locked
from runner.records import evaluations
from runner.records.identity import NEUTRAL
from runner.records.run_folder import VERSION, RunFolder
from runner.report import text
from runner.report.answer import Answer, answer
from runner.report.runs import Found, find_runs
from runner.report.scores import ScoreBook
from runner.terminal.tables import Table

NO_CACHE = Path("/nowhere/report.npz")
Change = Callable[[dict[str, Any]], object]


def names(found: Found) -> list[str]:
    return [run.name for run in found.runs]


def listed(found: Found) -> dict[str, tuple[str, str]]:
    return {run.name: (run.status, run.reason) for run in found.unranked}


def edit(folder: RunFolder, file: str, change: Change) -> None:
    content = json.loads((folder.path / file).read_text())
    change(content)
    (folder.path / file).write_text(json.dumps(content))


def put(*path: str, value: object) -> Change:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


def told(found: Found) -> Answer:
    """The answer, said in every form that it can be said in."""
    answered = answer(found, ScoreBook(NO_CACHE), 0.05)
    json.loads(text.to_json(answered))
    text.csv(answered)
    text.markdown(answered)
    for part in text.content(answered):
        if isinstance(part, Table):
            part.print(Console(file=io.StringIO(), width=80))
    return answered


# ── States ─────────────────────────────────────────────────────────────────────────────────────


def test_every_state_of_a_run_is_distinguishable(tmp_path: Path) -> None:
    write_run(tmp_path, name="finished")
    write_run(tmp_path, name="killed", seed=1, finish=False)
    failed = write_run(tmp_path, name="failed", seed=2, finish=False)
    failed.write_status("failed", "the loss is not finite\nwhere: epoch 1")
    diverged = write_run(tmp_path, name="diverged", seed=5, finish=False)
    diverged.write_status("failed", "not finite", "DivergedError")
    stopped = write_run(tmp_path, name="stopped", seed=3, finish=False)
    stopped.write_status("interrupted", "SIGTERM after step 3 of 9")
    running = write_run(tmp_path, name="running", seed=4, finish=False)
    with locked(running.lock):
        found = find_runs([tmp_path])
    assert names(found) == ["finished"]
    assert found.foreign == []
    assert {name: status for name, (status, _) in listed(found).items()} == {
        "killed": "killed", "failed": "failed", "stopped": "interrupted", "running": "running",
        "diverged": "diverged",
    }  # fmt: skip
    assert listed(found)["failed"][1] == "the loss is not finite"
    assert listed(found)["stopped"][1] == "SIGTERM after step 3 of 9"
    assert listed(find_runs([tmp_path]))["running"][0] == "killed", "once nobody holds the lock"


def test_a_run_that_is_trained_anew_is_not_ranked_by_its_old_result(tmp_path: Path) -> None:
    folder = write_run(tmp_path, name="run")
    folder.clear()
    with locked(folder.lock):
        assert listed(find_runs([tmp_path]))["run"][0] == "running"


def test_what_a_finished_run_says_is_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "mixup", "tta", seed=3, accuracy=0.6, tta_accuracy=0.8)
    result = json.loads((folder.path / "result.json").read_text())
    plain, run = find_runs([tmp_path]).runs
    assert (run.seed, run.tricks, run.num_val) == (3, ("mixup", "tta"), 60)
    assert (plain.tricks, plain.values["tta"]) == (("mixup",), NEUTRAL["tta"])
    assert (plain.identity, run.fingerprint) == (result["identity"], FINGERPRINT)
    (name,) = evaluations.names(folder)
    assert run.identity == f"{plain.identity}-{name}"
    assert run.metrics["tta"]["accuracy"] == 0.8
    assert run.metrics["plain"] == plain.metrics["plain"] == plain.metrics["tta"]
    assert run.metrics["plain"]["forward_passes"] == 1
    assert run.budget["pixels"] == 1_000_000
    assert run.command == tuple(result["command"])
    assert [row["epoch"] for row in run.epochs] == [1, 2, 3]
    assert run.epochs[-1] == {
        "epoch": 3, "pixels": 1e6, "val_accuracy": 0.6, "val_loss": 1.0, "seconds": 10.0,
    }  # fmt: skip


# ── Half-written and damaged ───────────────────────────────────────────────────────────────────


def test_a_folder_with_run_json_alone_is_listed(tmp_path: Path) -> None:
    whole = write_run(tmp_path, name="whole")
    (tmp_path / "begun").mkdir()
    shutil.copy(whole.path / "run.json", tmp_path / "begun")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "run.json").touch()
    found = find_runs([tmp_path])
    assert names(found) == ["whole"]
    assert listed(found) == {"begun": ("new", ""), "empty": ("new", "")}


DAMAGE: dict[str, tuple[str, Change]] = {
    "another record version": ("result.json", put("record_version", value=1)),
    "no record version": ("result.json", lambda content: content.pop("record_version")),
    "of another identity": ("result.json", put("identity", value="0" * 16)),
    "identity a number": ("result.json", put("identity", value=1)),
    "accuracy NaN": ("result.json", put("metrics", "plain", "accuracy", value=float("nan"))),
    "loss infinite": ("result.json", put("metrics", "plain", "log_loss", value=float("inf"))),
    "accuracy negative": ("result.json", put("metrics", "plain", "accuracy", value=-0.5)),
    "accuracy a text": ("result.json", put("metrics", "plain", "accuracy", value="0.5")),
    "accuracy null": ("result.json", put("metrics", "plain", "accuracy", value=None)),
    "accuracy true": ("result.json", put("metrics", "plain", "accuracy", value=True)),
    "accuracy too large to be a float": (
        "result.json", put("metrics", "plain", "accuracy", value=10**400),
    ),
    "no accuracy": ("result.json", lambda content: content["metrics"]["plain"].pop("accuracy")),
    "metrics a list": ("result.json", put("metrics", value=[1, 2])),
    "seconds too large to be a float": ("result.json", put("budget", "seconds", value=10**400)),
    "seed a text": ("result.json", put("seed", value="0")),
    "seed negative": ("result.json", put("seed", value=-1)),
    "no images": ("result.json", put("data", "num_val", value=0)),
    "tricks a text": ("result.json", put("tricks", value="mixup")),
    "tricks of numbers": ("result.json", put("tricks", value=[1])),
    "config a list": ("result.json", put("config", value=[])),
    "environment a text": ("result.json", put("environment", value="linux")),
    "values null": ("run.json", put("values", value=None)),
    "a group of values a number": ("run.json", put("values", "mixup", value=1)),
    "no fingerprint": ("run.json", lambda content: content.pop("fingerprint")),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_result_is_listed_and_the_others_are_compared(
    damage: str, tmp_path: Path
) -> None:
    write_run(tmp_path, name="good", num_images=30)
    bad = write_run(tmp_path, name="bad", seed=1, num_images=30)
    assert names(find_runs([tmp_path])) == ["bad", "good"], "before"
    edit(bad, *DAMAGE[damage])
    found = find_runs([tmp_path])
    assert names(found) == ["good"]
    status, reason = listed(found)["bad"]
    assert status == "unreadable"
    assert reason


def test_a_run_of_record_version_3_is_read_with_defaults_for_what_it_lacks(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "mixup", name="old", num_images=30)
    (whole,) = find_runs([tmp_path]).runs

    def age(content: dict[str, Any]) -> None:
        content["record_version"] = 3
        if "values" in content:
            del content["values"]["smoothing"], content["values"]["code"]
            del content["values"]["mixup"]["cutmix"]

    for file in ("run.json", "result.json"):
        edit(folder, file, age)
    found = find_runs([tmp_path])
    assert found.unranked == []
    (run,) = found.runs
    head = run.values["model"].pop("head")
    assert run == whole
    assert head == "as its library draws it"
    # Other heads are other numbers, which are not averaged with new ones.
    write_run(tmp_path, "mixup", name="new", seed=1, num_images=30)
    groups = told(find_runs([tmp_path])).groups
    assert sorted(row.seeds for group in groups for row in group.rows) == [(0,), (1,)]
    assert {"head=as" in group.group.title for group in groups} == {
        True, False,
    }  # fmt: skip


def test_an_unfinished_run_of_record_version_3_cannot_be_continued(tmp_path: Path) -> None:
    folder = write_run(tmp_path, name="run", finish=False)
    assert listed(find_runs([tmp_path]))["run"][1].endswith("the same command goes on with it")
    edit(folder, "run.json", put("record_version", value=3))
    status, reason = listed(find_runs([tmp_path]))["run"]
    assert status == "killed"
    assert "record version 3: train again" in reason


NESTED = b"[" * 200_000
BYTES = {
    "truncated": b'{"record_version": %d, "identity": "1' % VERSION,
    "empty": b"",
    "not UTF-8": b"\xff\xfe\x00",
    "a list": b"[]",
    "a number": b"7",
    "nested without end": NESTED,
    "an integer of many digits": b'{"record_version": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("content", BYTES.values(), ids=BYTES)
@pytest.mark.parametrize("file", ["run.json", "result.json"])
def test_a_file_that_is_no_json_of_ours_is_listed(
    file: str, content: bytes, tmp_path: Path
) -> None:
    write_run(tmp_path, name="good", num_images=30)
    bad = write_run(tmp_path, name="bad", seed=1, num_images=30)
    (bad.path / file).write_bytes(content)
    found = find_runs([tmp_path])
    assert names(found) == ["good"]
    assert listed(found)["bad"][0] == "unreadable"


@pytest.mark.parametrize("content", BYTES.values(), ids=BYTES)
def test_a_broken_status_of_an_unfinished_run_does_no_harm(content: bytes, tmp_path: Path) -> None:
    bad = write_run(tmp_path, name="bad", finish=False)
    (bad.path / "status.json").write_bytes(content)
    assert set(listed(find_runs([tmp_path]))) == {"bad"}


def test_a_reason_of_a_strange_kind_is_told_as_text(tmp_path: Path) -> None:
    bad = write_run(tmp_path, name="bad", finish=False)
    for reason in (None, 3, ["x"], {"a": 1}):
        edit(bad, "status.json", put("reason", value=reason))
        assert isinstance(listed(find_runs([tmp_path]))["bad"][1], str)


@pytest.mark.parametrize("file", ["result.json", "status.json", "metrics.jsonl", "predictions.npz"])
def test_a_folder_in_the_place_of_a_file_does_no_harm(file: str, tmp_path: Path) -> None:
    write_run(tmp_path, name="good", num_images=30)
    bad = write_run(tmp_path, name="bad", seed=1, num_images=30)
    (bad.path / file).unlink()
    (bad.path / file).mkdir()
    answered = told(find_runs([tmp_path]))
    is_needed = file in ("result.json", "predictions.npz")
    assert [run.name for run in answered.unranked] == (["bad"] if is_needed else [])


@pytest.mark.timeout(3)
@pytest.mark.parametrize("file", ["result.json", "predictions.npz"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(file: str, tmp_path: Path) -> None:
    bad = write_run(tmp_path, name="bad", num_images=30)
    (bad.path / file).unlink()
    os.mkfifo(bad.path / file)
    assert [run.name for run in told(find_runs([tmp_path])).unranked] == ["bad"]


@pytest.mark.parametrize(
    "row",
    [
        b'{"epoch": 2, "val_acc', b"[]\n", b"\x00", b'"text"\n', NESTED,
        b'{"epoch": 4, "pixels": 1, "val_accuracy": NaN, "val_loss": 1}\n',
        b'{"epoch": 4, "pixels": 1, "val_accuracy": 1' + b"0" * 400 + b', "val_loss": 1}\n',
    ],
    ids=["half", "list", "nul", "text", "nested", "nan", "too large to be a float"],
)  # fmt: skip
@pytest.mark.parametrize("file", ["metrics.jsonl", "timings.jsonl"])
def test_a_row_that_cannot_be_read_is_left_out(file: str, row: bytes, tmp_path: Path) -> None:
    folder = write_run(tmp_path, epochs=3)
    with (folder.path / file).open("ab") as log:
        log.write(row)
    (run,) = find_runs([tmp_path]).runs
    assert [epoch["epoch"] for epoch in run.epochs] == [1, 2, 3]


def test_logs_that_cannot_be_read_at_all_are_no_epochs(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    (folder.path / "timings.jsonl").write_bytes(b"\xff\xfe")
    (run,) = find_runs([tmp_path]).runs
    assert run.epochs == []


# ── Predictions ────────────────────────────────────────────────────────────────────────────────

LABELS, VIEW = np.arange(30) % 3, np.full((30, 3), 1 / 3, np.float32)


def filled(value: float) -> np.ndarray:
    view = VIEW.copy()
    view[4, 1] = value
    return view


PREDICTIONS: dict[str, dict[str, Any]] = {
    "labels missing": {"plain": VIEW, "tta": VIEW},
    "fewer images": {"labels": LABELS[:9], "plain": VIEW[:9], "tta": VIEW[:9]},
    "fewer labels": {"labels": LABELS[:9], "plain": VIEW, "tta": VIEW},
    "views of two shapes": {"labels": LABELS, "plain": VIEW, "tta": VIEW[:, :2]},
    "fewer outputs than classes": {"labels": LABELS, "plain": VIEW[:, :2], "tta": VIEW[:, :2]},
    "no outputs": {"labels": LABELS, "plain": VIEW[:, :0], "tta": VIEW[:, :0]},
    "one dimension": {"labels": LABELS, "plain": VIEW[:, 0], "tta": VIEW[:, 0]},
    "no dimension": {"labels": LABELS, "plain": np.float32(1), "tta": np.float32(1)},
    "labels a table": {"labels": LABELS[:, None], "plain": VIEW, "tta": VIEW},
    "label too large": {"labels": LABELS + 1, "plain": VIEW, "tta": VIEW},
    "label negative": {"labels": LABELS - 1, "plain": VIEW, "tta": VIEW},
    "labels fractions": {"labels": LABELS / 2, "plain": VIEW, "tta": VIEW},
    "labels texts": {"labels": LABELS.astype(str), "plain": VIEW, "tta": VIEW},
    "groups of others": {"labels": LABELS, "plain": VIEW, "groups": LABELS[1:]},
    "groups a table": {"labels": LABELS, "plain": VIEW, "groups": LABELS[:, None]},
    "groups fractions": {"labels": LABELS, "plain": VIEW, "groups": LABELS / 2},
    "groups texts": {"labels": LABELS, "plain": VIEW, "groups": LABELS.astype(str)},
    "groups pickled": {"labels": LABELS, "plain": VIEW, "groups": np.full(30, None)},
    "NaN": {"labels": LABELS, "plain": filled(np.nan), "tta": VIEW},
    "infinite": {"labels": LABELS, "plain": VIEW, "tta": filled(np.inf)},
    "texts": {"labels": LABELS, "plain": np.full((30, 3), "a"), "tta": VIEW},
    "pickled": {"labels": LABELS, "plain": np.full((30, 3), None), "tta": VIEW},
}


def test_predictions_are_read_as_they_were_written(tmp_path: Path) -> None:
    folder = write_run(tmp_path, num_images=30)
    with np.load(folder.path / "predictions.npz") as file:
        written = {key: file[key] for key in file}
    (run,) = find_runs([tmp_path]).runs
    found = run.predictions()
    np.testing.assert_array_equal(found.labels, written["labels"])
    for view in ("plain", "tta"):
        written.setdefault(view, written["plain"])
        np.testing.assert_array_equal(found.views[view], written[view])
        right = [
            max(range(3), key=row.__getitem__) == label
            for row, label in zip(written[view], written["labels"], strict=True)
        ]
        assert found.correct(view).tolist() == right
    np.savez(folder.path / "predictions.npz", labels=LABELS, plain=VIEW, tta=VIEW)
    assert run.predictions().groups is None
    np.savez(folder.path / "predictions.npz", labels=LABELS, plain=VIEW, groups=LABELS + 7)
    np.testing.assert_array_equal(run.predictions().groups, LABELS + 7)


@pytest.mark.parametrize("arrays", PREDICTIONS.values(), ids=PREDICTIONS)
def test_predictions_of_something_else_are_refused(arrays: dict[str, Any], tmp_path: Path) -> None:
    write_run(tmp_path, name="good", num_images=30)
    bad = write_run(tmp_path, name="bad", seed=1, num_images=30)
    np.savez(bad.path / "predictions.npz", **arrays)
    found = find_runs([tmp_path])
    with pytest.raises(ArtefactError):
        found.runs[0].predictions()
    answered = told(found)
    assert [(run.name, run.status) for run in answered.unranked] == [("bad", "unreadable")]
    assert [row.seeds for row in answered.groups[0].rows] == [(0,)]


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "truncated", "flipped", "an .npy", "text", "claims", "a pipe"]
)
def test_damaged_predictions_are_listed(damage: str, tmp_path: Path) -> None:
    bad = write_run(tmp_path, num_images=30)
    path = bad.path / "predictions.npz"
    whole = path.read_bytes()
    middle = len(whole) // 3
    if damage == "an .npy":
        with path.open("wb") as file:
            np.save(file, VIEW)
    elif damage == "missing":
        path.unlink()
    elif damage == "a pipe":
        path.unlink()
        os.mkfifo(path)
    elif damage == "claims":  # 900 bytes that claim terabytes
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("labels", "plain"):
                with archive.open(f"{name}.npy", "w") as file:
                    shape = {"descr": "<f4", "fortran_order": False, "shape": (2**20, 2**20)}
                    np.lib.format.write_array_header_1_0(file, shape)
    else:
        path.write_bytes(
            {
                "empty": b"", "truncated": whole[:-40], "text": b"predictions",
                "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
            }[damage]
        )  # fmt: skip
    answered = told(find_runs([tmp_path]))
    assert [run.status for run in answered.unranked] == ["unreadable"]
    assert answered.groups == ()


# ── Foreign things, links, places ──────────────────────────────────────────────────────────────


def test_foreign_things_are_named_and_ours_are_not(tmp_path: Path) -> None:
    write_run(tmp_path, name="run")
    for folder in ("notes", "cache", "sweeps", ".git"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "odd" / "run.json").mkdir(parents=True)
    found = find_runs([tmp_path])
    assert names(found) == ["run"]
    assert found.unranked == []
    assert sorted(found.foreign) == ["a file", "dangling", "loop", "notes", "odd", "self"]


def test_a_run_and_a_link_to_it_count_once(tmp_path: Path) -> None:
    write_run(tmp_path, name="run")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    found = find_runs([tmp_path])
    assert names(found) == ["copy"]
    assert listed(found) == {
        "link": ("duplicate", "the same run as copy"),
        "run": ("duplicate", "the same run as copy"),
    }


def test_places_may_be_runs_and_overlap(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / "a", name=f"run{seed}", seed=seed)
    write_run(tmp_path / "b", "mixup", name="other")
    assert names(find_runs([tmp_path / "a" / "run1"])) == ["run1"]
    found = find_runs([tmp_path / "b", tmp_path / "a" / "run1", tmp_path / "a"])
    assert names(found) == ["other", "run1", "run0"]
    assert found.unranked == []


def test_a_run_called_by_its_place_alone_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path, name="run")
    monkeypatch.chdir(folder.path)
    assert names(find_runs([Path()])) == ["run"]


@pytest.mark.parametrize("place", ["nowhere", "a file", "dangling", "self"])
def test_a_place_that_is_no_folder_is_an_error(place: str, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    with pytest.raises(DataError) as caught:
        find_runs([tmp_path, tmp_path / place])
    assert str(tmp_path / place) in str(caught.value)


def test_an_empty_folder_is_no_error(tmp_path: Path) -> None:
    found = find_runs([tmp_path])
    assert (found.runs, found.unranked, found.foreign) == ([], [], [])


def unprivileged(*words: str) -> list[str]:
    """A command that file modes hold for, also where these tests run as root."""
    if os.geteuid() != 0:
        return list(words)
    if not shutil.which("setpriv"):
        pytest.skip("nothing here that takes a capability away")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *words]


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Takes every right on a path away until the test is over."""
    paths: list[Path] = []

    def close(path: Path) -> None:
        path.chmod(0)
        paths.append(path)

    yield close
    for path in paths:
        path.chmod(0o700)


def test_unreadable_folders_and_files_are_listed(
    tmp_path: Path, closed: Callable[[Path], None]
) -> None:
    for seed, name in enumerate(("good", "folder", "run.json", "result.json", "predictions.npz")):
        run = write_run(tmp_path / "outputs", seed=seed, name=name, num_images=30)
        if name != "good":
            closed(run.path if name == "folder" else run.path / name)
    (tmp_path / "outputs" / "notes").mkdir()
    closed(tmp_path / "outputs" / "notes")
    done = subprocess.run(
        unprivileged(sys.executable, "-m", "runner.report", "outputs", "--json", "-"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert [run["run"] for group in found["groups"] for run in group["runs"]] == ["good"]
    said = {run["name"]: (run["status"], run["reason"]) for run in found["not_compared"]}
    assert {"folder", "run.json", "result.json", "predictions.npz"} <= set(said)
    for status, reason in said.values():
        assert status == "unreadable"
        assert "ermission" in reason


def test_a_place_that_may_not_be_listed_is_an_error(
    tmp_path: Path, closed: Callable[[Path], None]
) -> None:
    (tmp_path / "outputs").mkdir()
    closed(tmp_path / "outputs")
    done = subprocess.run(
        unprivileged(sys.executable, "-m", "runner.report"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 3, done.stderr
    assert "Permission denied" in done.stderr
    assert "Traceback" not in done.stderr


# ── Anything at all ────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    outputs = tmp_path_factory.mktemp("two")
    write_run(outputs, name="good", num_images=30)
    bad = write_run(outputs, "mixup", "tta", name="other", num_images=30)
    files = {name: (bad.path / name).read_text() for name in ("run.json", "result.json")}
    assert len(told(find_runs([outputs])).groups[0].comparisons) == 2
    return {"outputs": outputs, "bad": bad.path, "files": files}


def key_paths(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from key_paths(item, (*path, key))


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 0, 1, 2**63, 1e308, 1e-320])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["tta", "\ud800", "x in y", "\x1b[2J"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_any_value_at_any_key_is_accepted_or_listed(
    two_runs: dict[str, Any], data: st.DataObject
) -> None:
    file = data.draw(st.sampled_from(["run.json", "result.json"]))
    content = json.loads(two_runs["files"][file])
    path = data.draw(st.sampled_from(sorted(key_paths(content))))
    put(*path, value=data.draw(ANYTHING))(content)
    for name, original in two_runs["files"].items():
        changed = json.dumps(content) if name == file else original
        (two_runs["bad"] / name).write_text(changed)
    found = find_runs([two_runs["outputs"]])
    answered = told(found)
    ranked = {
        run.name
        for group in answered.groups
        for arm in group.group.arms
        for run in arm.runs.values()
    }
    assert "good" in ranked
    assert ("other" in ranked) != ("other" in {run.name for run in answered.unranked})


@pytest.mark.parametrize(
    "path", [("model", "weights"), ("data", "presize"), ("device",), ("precision",)]
)
def test_a_folder_in_the_place_of_a_value_is_no_option(
    two_runs: dict[str, Any], path: tuple[str, ...]
) -> None:
    content = json.loads(two_runs["files"]["run.json"])
    put("values", *path, value={"": False, "0": False})(content)
    (two_runs["bad"] / "result.json").write_text(two_runs["files"]["result.json"])
    (two_runs["bad"] / "run.json").write_text(json.dumps(content))
    told(find_runs([two_runs["outputs"]]))


@pytest.mark.parametrize(
    "tricks", [["x in y"], ["mixup", "x in y"], ["a + b", "mixup"], ["=1", "\x1b[2J"], [""]]
)
def test_tricks_of_any_name_can_be_told(tricks: list[str], tmp_path: Path) -> None:
    write_run(tmp_path, name="baseline", num_images=30)
    both = write_run(tmp_path, "mixup", "label_smoothing", name="both", num_images=30)
    one = write_run(tmp_path, "label_smoothing", name="one", num_images=30)
    edit(both, "result.json", put("tricks", value=tricks))
    edit(one, "result.json", put("tricks", value=[word for word in tricks if word != "mixup"]))
    told(find_runs([tmp_path]))


# ── While somebody writes ──────────────────────────────────────────────────────────────────────


def test_no_clock_decides_the_order(tmp_path: Path) -> None:
    """Clocks are set back, and folders are copied."""
    made = [
        write_run(tmp_path, *tricks, seed=seed) for tricks in ((), ("mixup",)) for seed in (1, 0)
    ]
    made.append(write_run(tmp_path, seed=2, finish=False))

    def said() -> str:
        return text.to_json(told(find_runs([tmp_path])))

    before = said()
    for age, run in enumerate(made):
        for path in (run.path, *run.path.rglob("*")):
            os.utime(path, (1e9 - 86400 * age,) * 2)
        edit(run, "status.json", put("time", value=f"20{30 - age}-01-01T00:00:00+00:00"))
    assert said() == before


def test_a_run_that_finishes_while_it_is_looked_at_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path, name="run")
    result = (folder.path / "result.json").read_bytes()
    (folder.path / "result.json").unlink()
    original = RunFolder.status

    def finish_first(self: RunFolder) -> dict[str, Any]:
        (self.path / "result.json").write_bytes(result)
        return original(self)

    monkeypatch.setattr(RunFolder, "status", finish_first)
    found = find_runs([tmp_path])
    assert names(found) == ["run"] or listed(found)["run"][0] == "running"


def test_files_that_change_while_they_are_read_never_end_the_report(tmp_path: Path) -> None:
    write_run(tmp_path, name="good", num_images=30)
    busy = write_run(tmp_path, "mixup", name="busy", num_images=30)
    contents = {path: path.read_bytes() for path in busy.path.iterdir() if path.is_file()}
    is_over = threading.Event()

    def rewrite() -> None:
        while not is_over.is_set():
            for path, content in contents.items():
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                    path.write_bytes(content[: len(content) // 2])  # not as we write: in pieces
                    path.write_bytes(content)
            with (busy.path / "metrics.jsonl").open("ab") as log:
                log.write(b'{"epoch": 4, "pix')

    writer = threading.Thread(target=rewrite)
    writer.start()
    seen = set()
    try:
        for _ in range(80):
            found = find_runs([tmp_path])
            assert "good" in names(found)
            for run in found.runs:
                assert [row["epoch"] for row in run.epochs] in ([], [1], [1, 2], [1, 2, 3])
            answered = told(found)
            assert answered.groups
            assert any(row.label == "baseline" for row in answered.groups[0].rows)
            here = [*names(found), *listed(found), *found.foreign]
            seen.add("busy" in names(found))
            assert here.count("busy") == 1
    finally:
        is_over.set()
        writer.join()
    assert seen == {True, False}, "both the whole and the half file were met"
