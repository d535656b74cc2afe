"""Files that want to run code, given to every command that reads any: refused, and nothing is run.

Their digests are right, as somebody's would be who made them on purpose; and torch's variable that
turns its own protection off is set.
"""

import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small import Command

from runner.records.run_folder import VERSION

UNSAFE = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "COLUMNS": "400"}


class Touch:
    """Pickles as the order to make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.fixture(scope="module")
def finished(finished_run: Callable[..., Path]) -> Path:
    return finished_run()


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be tampered with."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def kinds(canary: Path) -> dict[str, bytes]:
    """A harmful file by kind."""
    zipped, old = io.BytesIO(), io.BytesIO()
    payload = {"x": torch.zeros(1), "y": Touch(canary)}
    torch.save(payload, zipped)
    torch.save(payload, old, _use_new_zipfile_serialization=False)
    plain = pickle.dumps(Touch(canary))
    return {"zipped": zipped.getvalue(), "old": old.getvalue(), "pickle": plain}


KINDS = ("zipped", "old", "pickle")


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def test_they_do_harm_where_they_are_let(canary: Path, tmp_path: Path) -> None:
    """The control of all others."""
    for name, content in kinds(canary).items():
        if name == "pickle":
            pickle.loads(content)  # noqa: S301
        else:
            torch.load(io.BytesIO(content), weights_only=False)
        assert canary.exists(), name
        canary.unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_does_not_go_on_from_them(
    command: Command, run: Path, canary: Path, tiny_words: tuple[str, ...], kind: str
) -> None:
    content = kinds(canary)[kind]
    identity = json.loads((run / "run.json").read_text())["identity"]
    (run / "result.json").unlink()
    state = {"record_version": VERSION, "identity": identity, "done": 2, "meter": {}, "logs": {}}
    files = {
        "model.safetensors": content,
        "optimizer.pth": content,
        "state.json": json.dumps(state).encode(),
    }
    folder = run / "checkpoints" / "step-000000002"
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    listed = {name: {"bytes": len(data), "sha256": digest(data)} for name, data in files.items()}
    (folder / "manifest.json").write_text(json.dumps({"files": listed}))
    done = command(*tiny_words, f"run_dir={run}", **UNSAFE)
    assert done.returncode == 7, done.stderr
    assert "step-000000002: not a safetensors file" in done.stderr
    assert f"where: {run / 'checkpoints'}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not canary.exists()
    assert not (run / "result.json").exists()


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        *(("runner.predict", kind) for kind in KINDS),
        ("runner.evaluate", "zipped"),
    ],
)
def test_nothing_is_predicted_with_them(
    command: Command,
    run: Path,
    canary: Path,
    tiny_folder: Path,
    tmp_path: Path,
    module: str,
    kind: str,
) -> None:
    bundle = run / "bundle"
    content = kinds(canary)[kind]
    weights = bundle / "model.safetensors"
    weights.write_bytes(content)
    edit(bundle / "model.json", lambda found: found.update(files={weights.name: digest(content)}))
    digests = {path.name: digest(path.read_bytes()) for path in bundle.iterdir()}
    edit(run / "result.json", lambda found: found.update(bundle=digests))
    images = [str(tiny_folder / "val")] if module == "runner.predict" else []
    done = command(str(run), *images, "--csv", "rows.csv", module=module, **UNSAFE)
    assert done.returncode == 7, done.stderr
    assert "not a safetensors file" in done.stderr
    assert f"where: {weights}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not canary.exists()
    assert not (tmp_path / "rows.csv").exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_no_training_starts_from_them(
    command: Command, canary: Path, tiny_words: tuple[str, ...], tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(kinds(canary)["zipped"])
    words = [f"model.weights={path}", "normalize=imagenet"]
    done = command(*tiny_words, *words, **UNSAFE)
    assert done.returncode == 7, done.stderr
    why = "it needs posix.system" if suffix == "pth" else "not a safetensors file"
    assert f"the weights are refused: {why}" in done.stderr
    assert f"where: model.weights={path}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not canary.exists()


def test_the_report_lists_them_and_reads_none(command: Command, run: Path, canary: Path) -> None:
    objects = np.empty((24, 3), dtype=object)
    objects[:] = Touch(canary)
    labels = np.repeat(np.arange(3), 8)
    with (run / "predictions.npz").open("wb") as file:
        np.savez(file, labels=labels, plain=objects, tta=objects)
    shutil.copytree(run, run.parent / "second")
    for path in (run / "result.json", run / "metrics.jsonl"):
        path.write_bytes(kinds(canary)["pickle"])
    done = command(str(run.parent), module="runner.report", **UNSAFE)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0  # a report tells what it leaves out
    told = done.stdout + done.stderr
    assert "cannot read the predictions" in told
    assert "Object arrays cannot be loaded" in told
    for name in ("run", "second"):
        assert name in told
    assert not canary.exists()
    with pytest.raises(ValueError, match="Object arrays"):
        np.load(run / "predictions.npz")["plain"]
    np.load(run / "predictions.npz", allow_pickle=True)["plain"]  # negative control
    assert canary.exists()


def test_a_configuration_that_names_code_is_refused(
    command: Command, run: Path, canary: Path
) -> None:
    code = {"_target_": "os.system", "_args_": [f"touch {canary}"]}
    original = (run / "result.json").read_bytes()
    for place, key in ((["config"], "_target_"), (["config", "tta"], "tta._target_")):
        (run / "result.json").write_bytes(original)

        def change(found: dict[str, object], place: list[str] = place) -> None:
            for name in place:
                found = found[name]  # type: ignore[assignment]
            found.update(code)

        edit(run / "result.json", change)
        done = command(str(run), "tta=flip", module="runner.evaluate", **UNSAFE)
        assert done.returncode == 7, done.stderr
        assert f"unknown key {key}" in done.stderr
        assert f"where: {run / 'result.json'}" in done.stderr
        assert "Traceback" not in done.stderr
        assert not canary.exists()
