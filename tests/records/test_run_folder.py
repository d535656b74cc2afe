"""The run folder: what is written when, what a failure leaves behind, what is kept secret."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from runner.errors import ArtefactError, ConfigError, StorageError
from runner.machine.locks import locked
from runner.records.run_folder import LOGS, VERSION, RunFolder, redacted, run_folders

RESULT = {"config": {"seed": 3}, "command": ["python", "seed=3"], "metrics": {"accuracy": 0.5}}
LEFTOVER = "run.json.tmp-0123456789abcdef"
WHAT = {
    "identity": "1" * 16,
    "fingerprint": "a" * 64,
    "values": {"optim": {"lr": 0.1, "name": "adamw"}, "seed": 3},
}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def begin(folder, what=WHAT, config=None, words=()):
    folder.check(what)
    folder.begin(what, config or {}, list(words))


def last_write(path):
    """What writing changes. Reading changes the time of access too, which is none of it."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def status(folder):
    return json.loads((folder.path / "status.json").read_text())


def test_a_run_from_start_to_result(folder):
    assert folder.result() is None
    begin(folder, WHAT, {"seed": 3, "optim": {"lr": 0.1}}, ["seed=3", "+trick=mixup"])
    assert folder.result() is None
    assert json.loads((folder.path / "run.json").read_text()) == {
        "record_version": VERSION,
        **WHAT,
    }
    assert status(folder)["status"] == "running"
    assert yaml.safe_load((folder.path / "config.yaml").read_text())["optim"] == {"lr": 0.1}
    assert (folder.path / "overrides.txt").read_text() == "seed=3\n+trick=mixup\n"

    for epoch in (1, 2):
        folder.append_row({"epoch": epoch, "val_loss": 1 / 3})
    rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"epoch": 1, "val_loss": 1 / 3}, {"epoch": 2, "val_loss": 1 / 3}]

    labels = np.array([0, 1])
    plain = np.eye(2, dtype=np.float32)
    folder.write_predictions(labels, plain)
    with np.load(folder.path / "predictions.npz") as found:
        assert set(found) == {"labels", "plain"}
        np.testing.assert_array_equal(found["labels"], labels)
        np.testing.assert_array_equal(found["plain"], plain)
    assert folder.result() is None

    folder.write_bytes("checkpoints/state.json", b"{}")
    assert folder.finish(RESULT) == folder.result()
    assert status(folder)["status"] == "finished"
    assert not folder.checkpoints.exists()
    assert folder.result() == {**RESULT, "record_version": VERSION, "status": "finished"}
    assert not [path for path in folder.path.rglob("*") if "tmp" in path.name]


def test_a_failed_run_says_why(folder):
    begin(folder)
    folder.write_status("failed", "the loss is not finite")
    assert status(folder)["reason"] == "the loss is not finite"
    assert folder.result() is None


# ── Nothing half written ───────────────────────────────────────────────────────────────────────


def test_the_result_is_the_last_file_to_appear(folder, monkeypatch):
    begin(folder)
    written, original = [], Path.replace

    def recorded(self, target):
        written.append(Path(target).name)
        return original(self, target)

    monkeypatch.setattr(Path, "replace", recorded)
    folder.finish(RESULT)
    assert written == ["status.json", "result.json"]


def test_a_failure_while_writing_leaves_no_result(folder, monkeypatch):
    begin(folder)
    original = Path.replace

    def full(self, target):
        if Path(target).name == "result.json":
            raise OSError(28, "No space left on device")
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(StorageError, match="No space left") as caught:
            folder.finish(RESULT)
    assert caught.value.exit_code == 4
    assert "result.json" in caught.value.where
    assert folder.result() is None
    folder.finish(RESULT)  # with space again
    assert folder.result() is not None


def test_a_process_killed_while_writing_leaves_no_result(folder):
    begin(folder)
    (folder.path / "result.json.tmp").write_text('{"record_version": 1, "stat')
    assert folder.result() is None


def test_a_rewritten_file_is_old_or_new_never_half(folder, monkeypatch):
    begin(folder)
    folder.finish(RESULT)

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError):
        folder.write_text("result.json", "other")
    assert folder.result()["config"] == {"seed": 3}


def test_clearing_removes_what_an_earlier_attempt_left(folder):
    begin(folder, words=["seed=1"])
    for log in LOGS:
        folder.append_row({"epoch": 1}, log)
    folder.write_bytes("bundle/model.safetensors", b"old")
    folder.write_bytes("split.csv.gz", b"old")
    folder.write_predictions(np.zeros(1), np.zeros((1, 2)))
    folder.finish(RESULT)
    folder.write_bytes("checkpoints/step-000000001/state.json", b"{}")
    (folder.path / "run.lock").write_text("held")
    before = (folder.path / "run.json").read_bytes()

    folder.clear()
    assert {path.name for path in folder.path.iterdir()} == {"run.lock", "run.json"}
    assert (folder.path / "run.lock").read_text() == "held"
    assert (folder.path / "run.json").read_bytes() == before

    begin(folder, words=["seed=2"])
    assert {path.name for path in folder.path.iterdir()} == {
        "run.lock", "run.json", "config.yaml", "overrides.txt", "status.json",
    }  # fmt: skip
    assert (folder.path / "overrides.txt").read_text() == "seed=2\n"
    assert folder.result() is None


def test_the_old_result_is_the_first_to_go(folder, monkeypatch):
    begin(folder)
    folder.finish(RESULT)
    original = Path.unlink

    def stuck(self, missing_ok=False):
        if self.name != "result.json":
            raise OSError(16, "Device or resource busy")
        original(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", stuck)
    with pytest.raises(StorageError, match="busy"):
        folder.clear()
    assert folder.result() is None
    assert (folder.path / "config.yaml").exists()


def test_going_on_keeps_what_an_earlier_attempt_left(folder):
    begin(folder, words=["seed=3"])
    folder.append_row({"epoch": 1})
    folder.write_status("interrupted", "SIGTERM")
    before = last_write(folder.path / "run.json")
    earlier = last_write(folder.path / "overrides.txt")
    begin(folder, words=["seed=3", "threads=1"])
    assert last_write(folder.path / "run.json") == before
    assert last_write(folder.path / "overrides.txt") != earlier
    assert (folder.path / "metrics.jsonl").read_text() == '{"epoch": 1}\n'
    assert (folder.path / "overrides.txt").read_text() == "seed=3\nthreads=1\n"
    assert status(folder)["status"] == "running"
    folder.clear_rows()  # where there is nothing to go on from
    assert not (folder.path / "metrics.jsonl").exists()


# ── What is refused ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "content",
    [
        b"", b'{"record_version": 1', b"[]", b"{}", b"null", b"\xff\xfe",
        b'{"record_version": 0}', b'{"record_version": "1"}',
        b'{"record_version": 2}', b'{"record_version": 6}',
    ],
)  # fmt: skip
def test_a_file_that_is_no_result_is_refused(folder, content):
    begin(folder)
    (folder.path / "result.json").write_bytes(content)
    with pytest.raises(ArtefactError) as caught:
        folder.result()
    assert caught.value.exit_code == 7
    assert caught.value.where == str(folder.path / "result.json")
    assert "force=true" in caught.value.fix


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_does_not_have_are_never_written(folder, bad):
    begin(folder)
    folder.append_row({"epoch": 1})
    with pytest.raises(ValueError, match="JSON"):
        folder.append_row({"epoch": 2, "val_loss": bad})
    assert (folder.path / "metrics.jsonl").read_text() == '{"epoch": 1}\n'
    with pytest.raises(ValueError, match="JSON"):
        folder.finish({**RESULT, "metrics": {"accuracy": bad}})
    assert folder.result() is None
    assert status(folder)["status"] == "running"


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: folder.begin(WHAT, {}, []),
        lambda folder: folder.clear(),
        lambda folder: folder.append_row({"epoch": 1}),
        lambda folder: folder.write_status("running"),
        lambda folder: folder.write_predictions(np.zeros(1), np.zeros((1, 2))),
        lambda folder: folder.finish(RESULT),
    ],
)
def test_a_folder_that_cannot_be_written_is_named(tmp_path, write):
    (tmp_path / "file").write_text("in the way")  # root may write anywhere, but not into a file
    with pytest.raises(StorageError) as caught:
        write(RunFolder(tmp_path / "file" / "run"))
    assert caught.value.exit_code == 4
    assert str(tmp_path / "file" / "run") in caught.value.where
    assert "outputs=" in caught.value.fix


# ── Whose folder it is ─────────────────────────────────────────────────────────────────────────


def other(**values):
    """Another run than ``WHAT``."""
    return {**WHAT, "identity": "2" * 16, "values": {**WHAT["values"], **values}}


def content(folder):
    return {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def test_a_folder_takes_the_run_that_it_belongs_to(folder):
    folder.check(WHAT)  # nothing is there
    assert not folder.path.exists()
    begin(folder)
    folder.check(WHAT)
    # Identity is what counts: values may be spelled in other ways.
    folder.check({**WHAT, "values": {}})


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        (other(optim={"lr": 0.3, "name": "adamw"}), ["  optim.lr: 0.1 → 0.3"]),
        (other(seed=4), ["  seed: 3 → 4"]),
        (other(resize={"size": 64}), ["  resize.size: null → 64"]),
        # The values of an evaluation, which older folders have, are no difference.
        (other(optim={"lr": 0.1}), ['  optim.name: "adamw" → null']),
        # A key that is newer than the folder is at its default there.
        (other(mixup={"alpha": 0.2}), ["  mixup.alpha: 0.4 → 0.2"]),
        (other(seed=4, mixup={"alpha": 0.4}), ["  seed: 3 → 4"]),
        (other(zoo={"size": 1}), ["  zoo.size: null → 1"]),
        (
            other(seed=4, optim={"lr": 0.2, "name": "sgd"}),
            ["  optim.lr: 0.1 → 0.2", '  optim.name: "adamw" → "sgd"', "  seed: 3 → 4"],
        ),
        (
            {**WHAT, "identity": "2" * 16, "fingerprint": "b" * 64},
            [f'  data: "{"a" * 15}… → "{"b" * 15}…'],
        ),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value),
)
def test_another_run_is_refused_with_what_differs(folder, what, changes):
    begin(folder)
    before = content(folder)
    with pytest.raises(ConfigError) as caught:
        folder.check(what)
    assert caught.value.exit_code == 2
    assert caught.value.what.splitlines() == [
        "the folder belongs to another run, which differs in", *changes,
    ]  # fmt: skip
    assert caught.value.where == f"run_dir={folder.path}"
    assert "run_dir=ANOTHER_FOLDER" in caught.value.fix
    assert content(folder) == before


@pytest.mark.parametrize(
    ("began", "now", "is_auto", "words"),
    [
        (("cpu", "bf16"), ("cpu", "fp32"), ["device", "precision"], "precision=bf16"),
        (("cpu", "fp32"), ("cuda", "bf16"), ["device", "precision"], "device=cpu precision=fp32"),
        (("cuda", "bf16"), ("cpu", "bf16"), ["device"], "device=cuda"),
        (("cpu", "bf16"), ("cpu", "fp32"), ["device"], None),  # as the user says
        (("cpu", "\x1b[2J"), ("cpu", "fp32"), ["precision"], None),  # a changed file
        (("cpu", ["bf16"]), ("cpu", "fp32"), ["precision"], None),
    ],
)
def test_a_run_with_another_meaning_of_auto_is_refused_with_the_words_that_continue_it(
    folder, began, now, is_auto, words
):
    first, second = (dict(zip(("device", "precision"), pair, strict=True)) for pair in (began, now))
    folder.begin({**other(**first), "identity": WHAT["identity"]}, {}, [])
    for more in ({}, {"seed": 4}):  # which no word of the machine makes equal
        with pytest.raises(ConfigError) as caught:
            folder.check(other(**second, **more), is_auto)
        expected = f"{words}, with which it was begun; or " if words and not more else ""
        assert caught.value.fix.partition("run_dir")[0] == expected


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1, None])
def test_a_folder_of_another_record_version_is_refused_with_both(folder, version):
    begin(folder)
    path = folder.path / "run.json"
    path.write_text(json.dumps({**WHAT, "record_version": version}))
    before = content(folder)
    for what in (WHAT, other(seed=4)):  # whichever run it is
        with pytest.raises(ArtefactError) as caught:
            folder.check(what)
        assert caught.value.exit_code == 7
        assert f"version {version}; this program writes {VERSION}" in caught.value.what
        assert caught.value.where == str(folder.path)
    assert content(folder) == before
    path.write_text(json.dumps({**WHAT, "record_version": VERSION}))  # negative control
    folder.check(WHAT)


def test_results_of_record_version_3_are_read_but_its_folders_are_not_continued(folder):
    begin(folder)
    folder.finish(RESULT)
    for name in ("run.json", "result.json"):
        path = folder.path / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "record_version": 3}))
    assert folder.result() == {**RESULT, "record_version": 3, "status": "finished"}
    with pytest.raises(ArtefactError) as caught:
        folder.check(WHAT)
    assert caught.value.what == f"the run has record version 3; this program writes {VERSION}"
    for way in ("still be reported", "leave run_dir out", "trick-runner 0.1.0"):
        assert way in caught.value.fix


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", "{}", f'{{"record_version": {VERSION}}}', "\x00",
     json.dumps({"record_version": VERSION, **WHAT, "values": 3})],
)  # fmt: skip
def test_a_folder_that_does_not_say_whose_it_is_is_refused(folder, text):
    folder.path.mkdir()
    (folder.path / "run.json").write_text(text)
    with pytest.raises(ArtefactError, match="cannot read which run this is") as caught:
        folder.check(WHAT)
    assert caught.value.exit_code == 7
    assert caught.value.where == str(folder.path / "run.json")
    assert (folder.path / "run.json").read_text() == text


@pytest.mark.parametrize(
    "names", [["photo.jpg"], ["result.json"], ["run.lock", "notes.txt"], ["images/a.png"],
              [f"{letter}.txt" for letter in "gfedcba"]],
)  # fmt: skip
def test_a_folder_of_something_else_is_refused_and_untouched(folder, names):
    for name in names:
        folder.write_bytes(name, b"mine")
    before = content(folder)
    with pytest.raises(ConfigError, match="not a run folder, and not empty") as caught:
        folder.check(WHAT)
    assert caught.value.exit_code == 2
    shown = caught.value.what.partition(": ")[2].split(", ")
    mine = sorted({name.split("/")[0] for name in names} - {"run.lock"})
    assert shown == mine[:5]
    assert caught.value.where == f"run_dir={folder.path}"
    assert content(folder) == before


@pytest.mark.parametrize("names", [[], ["run.lock"], [LEFTOVER], ["run.lock", LEFTOVER]])
def test_an_empty_folder_is_taken(folder, names):
    """Also one whose first attempt was killed before it said whose it is."""
    folder.path.mkdir()
    for name in names:
        folder.write_text(name, "")
    folder.check(WHAT)
    with folder.owned():
        begin(folder)
    assert json.loads((folder.path / "run.json").read_text())["identity"] == WHAT["identity"]
    assert not (folder.path / LEFTOVER).exists()


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("in the way")
    folder = RunFolder(tmp_path / "file")
    with pytest.raises((ConfigError, ArtefactError, StorageError)):
        begin(folder)
    assert (tmp_path / "file").read_text() == "in the way"


# ── How it stands ──────────────────────────────────────────────────────────────────────────────


def written(status, reason=""):
    def write(folder):
        begin(folder)
        folder.write_status(status, reason)

    return write


def finish(folder):
    begin(folder)
    folder.finish(RESULT)


def lose_the_result(folder):
    finish(folder)
    (folder.path / "result.json").unlink()


def spoil(folder):
    begin(folder)
    (folder.path / "status.json").write_text("[]")


EVIDENCE = {
    "no folder": (lambda folder: None, "new", ""),
    "an empty folder": (lambda folder: folder.path.mkdir(), "new", ""),
    "begun, and nobody is at it": (begin, "killed", ""),
    "said to run, and nobody is at it": (written("running"), "killed", ""),
    "failed": (written("failed", "not finite"), "failed", "not finite"),
    "interrupted": (written("interrupted", "SIGTERM"), "interrupted", "SIGTERM"),
    "said to be finished, and no result": (written("finished"), "killed", ""),
    "finished": (finish, "finished", ""),
    "its result was removed": (lose_the_result, "killed", ""),
    "not legible": (spoil, "new", ""),
}


@pytest.mark.parametrize(("prepare", "expected", "reason"), EVIDENCE.values(), ids=EVIDENCE)
def test_a_status_goes_by_the_evidence(folder, prepare, expected, reason):
    prepare(folder)
    found = folder.status()
    assert (found["status"], found["reason"]) == (expected, reason)
    # Whoever holds the lock is at it; but a result is a result.
    with locked(folder.lock):
        assert folder.status()["status"] == ("finished" if expected == "finished" else "running")
    assert folder.status()["status"] == expected


def test_a_status_says_who_when_and_which_error(folder):
    begin(folder)
    assert folder.status()["error_kind"] == ""
    folder.write_status("failed", "not finite", "DivergedError")
    assert folder.status()["error_kind"] == "DivergedError"
    assert {"pid", "host", "time"} < set(folder.status())
    assert folder.status()["pid"] == status(folder)["pid"]


def test_runs_are_found_among_other_folders(tmp_path):
    for name in ("b", "a"):
        begin(RunFolder(tmp_path / name))
    (tmp_path / "cache").mkdir()
    (tmp_path / "file").write_text("")
    assert [folder.path.name for folder in run_folders(tmp_path)] == ["a", "b"]
    assert list(run_folders(tmp_path / "nowhere")) == []
    assert list(run_folders(tmp_path / "file")) == []


# ── Logs ───────────────────────────────────────────────────────────────────────────────────────


def append_rows(folder, epochs):
    for epoch in epochs:
        folder.append_row({"epoch": epoch, "val_loss": epoch / 3})
        folder.append_row({"epoch": epoch, "seconds": epoch / 7}, "timings.jsonl")


def logs(folder):
    return [(folder.path / name).read_bytes() for name in LOGS]


def test_what_is_timed_has_a_log_of_its_own(folder):
    begin(folder)
    append_rows(folder, [1, 2])
    assert (folder.path / "metrics.jsonl").read_text().splitlines() == [
        json.dumps({"epoch": epoch, "val_loss": epoch / 3}) for epoch in (1, 2)
    ]
    assert (folder.path / "timings.jsonl").read_text().splitlines() == [
        json.dumps({"epoch": epoch, "seconds": epoch / 7}) for epoch in (1, 2)
    ]


def test_rewinding_cuts_the_rows_of_steps_that_were_lost(folder):
    begin(folder)
    append_rows(folder, [1, 2])
    marks, before = folder.log_marks(), logs(folder)
    marks = json.loads(json.dumps(marks))  # as a checkpoint keeps them
    folder.rewind(marks)
    assert logs(folder) == before
    append_rows(folder, [3, 4])
    path = folder.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"epoch": 5, "val')  # a killed writer's
    folder.rewind(marks)
    assert logs(folder) == before
    append_rows(folder, [3])
    assert [row["epoch"] for row in map(json.loads, logs(folder)[0].splitlines())] == [1, 2, 3]


def test_rewinding_to_before_the_first_row(folder):
    begin(folder)
    marks = folder.log_marks()
    folder.rewind(marks)
    assert not any((folder.path / name).exists() for name in LOGS)
    append_rows(folder, [1])
    folder.rewind(marks)
    assert logs(folder) == [b"", b""]


def cut(content):
    return content[:-1]


def replace_first(content):
    return content.replace(b"1", b"9", 1)


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("change", [cut, replace_first, lambda content: b"", lambda content: None])
def test_rows_that_were_changed_are_not_gone_on_from(folder, name, change):
    begin(folder)
    append_rows(folder, [1, 2])
    marks = folder.log_marks()
    path = folder.path / name
    changed = change(path.read_bytes())
    path.unlink()
    if changed is not None:
        path.write_bytes(changed)
    before = content(folder)
    with pytest.raises(ArtefactError, match="have been changed") as caught:
        folder.rewind(marks)
    assert caught.value.exit_code == 7
    assert caught.value.where == str(path)
    assert "force=true" in caught.value.fix
    assert content(folder)[folder.path / "status.json"] == before[folder.path / "status.json"]
    assert path.exists() == (changed is not None)


# ── Secrets ────────────────────────────────────────────────────────────────────────────────────


def test_secrets_are_blanked_wherever_they_are():
    values = {
        "api_token": "hush",
        "Password": "hush",
        "aws": [{"SECRET_KEY": "hush", "region": "eu"}],
        "proxy": {"credentials": {"user": "hush"}},
        "hub_token": None,
        "seed": 3,
    }
    shown = redacted(values)
    assert "hush" not in json.dumps(shown)
    assert shown["aws"][0]["region"] == "eu"
    assert (shown["hub_token"], shown["seed"]) == (None, 3)
    assert "<redacted>" not in values.values()  # what came in stays as it was


@pytest.mark.parametrize("key", ["+api_token", "hub.token", "++data.password", "API_KEY"])
def test_no_file_of_the_folder_holds_a_secret(folder, key):
    words = ["seed=3", f"{key}=hush", "~data.token"]
    what = {**WHAT, "values": {"api_token": "hush"}}
    begin(folder, what, {"api_token": "hush", "seed": 3}, words)
    folder.finish({**RESULT, "config": {"api_token": "hush"}, "command": ["python", *words]})
    for path in folder.path.rglob("*"):
        assert path.is_dir() or "hush" not in path.read_text(), path
    overrides = (folder.path / "overrides.txt").read_text().splitlines()
    assert overrides == ["seed=3", f"{key}=<redacted>", "~data.token"]
    assert folder.result()["command"] == ["python", *overrides]
