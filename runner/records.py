"""The format of a run folder: written while a run goes on, read by everything that comes after.

    config.yaml      the resolved configuration
    overrides.txt    the command's own words, one a line
    status.json      running, finished, failed or interrupted, and why
    metrics.jsonl    a row per epoch
    split.csv.gz     every image with its split, label and SHA-256
    predictions.npz  labels (n,), plain (n, K), tta (n, K): probabilities per validation image
    bundle/          the trained network with all that its use needs
    result.json      written last: its presence is the only proof that the run finished

No torch here, so that reading is quick.
"""

import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from runner.errors import ArtefactError, StorageError

VERSION = 1
"""Of the format and of what the numbers mean; part of a run's identity."""

_SECRETS = ("token", "secret", "password", "passwd", "api_key", "apikey", "credential")


class RunFolder:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def result(self) -> dict[str, Any] | None:
        """The result of a finished run, or None.

        Raises:
            ArtefactError: the file is there but is not a result.
        """
        path = self.path / "result.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ArtefactError(
                f"cannot read the result: {error}", where=str(path), fix="force=true to run anew"
            ) from error
        if not isinstance(found, dict) or found.get("record_version") != VERSION:
            raise ArtefactError(
                f"not a result of record version {VERSION}",
                where=str(path),
                fix="force=true to run anew",
            )
        return found

    def start(self, config: Mapping[str, Any], overrides: Sequence[str]) -> None:
        """Begin anew: whatever an earlier attempt left here is removed.

        Raises:
            StorageError: the folder cannot be written.
        """
        try:
            # The proof of completion goes first, so that no moment shows it beside new files.
            (self.path / "result.json").unlink(missing_ok=True)
            for entry in self.path.iterdir() if self.path.is_dir() else ():
                if entry.name == "run.lock":
                    continue
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            (self.path / "bundle").mkdir(parents=True)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self.write_text("config.yaml", yaml.safe_dump(redacted(config), sort_keys=False))
        self.write_text("overrides.txt", "".join(f"{_redacted_word(word)}\n" for word in overrides))
        self.write_status("running")

    def write_status(self, status: str, reason: str = "") -> None:
        """Say how the run stands: ``running``, ``finished``, ``failed`` or ``interrupted``."""
        content = {"status": status, "reason": reason, "pid": os.getpid()}
        self.write_text("status.json", json.dumps(content, indent=2) + "\n")

    def append_row(self, row: Mapping[str, Any]) -> None:
        """Add one epoch to ``metrics.jsonl``."""
        try:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def write_predictions(
        self,
        labels: NDArray[np.int64],
        plain: NDArray[np.float32],
        tta: NDArray[np.float32],
    ) -> None:
        """Write ``predictions.npz``; its rows are the validation rows of ``split.csv.gz``."""
        content = io.BytesIO()
        np.savez_compressed(content, labels=labels, plain=plain, tta=tta)
        self.write_bytes("predictions.npz", content.getvalue())

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``, last and whole."""
        content = {"record_version": VERSION, "status": "finished", **result}
        content["config"] = redacted(content["config"])
        if "command" in content:
            content["command"] = [_redacted_word(word) for word in content["command"]]
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        self.write_status("finished")
        self.write_text("result.json", text)

    def write_text(self, name: str, text: str) -> None:
        """Write a file whole or not at all."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all."""
        target = self.path / name
        temporary = target.with_name(f"{target.name}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except OSError as error:
            raise _unwritable(target, error) from error


def redacted(values: Any) -> Any:
    """``values`` with everything under a key that names a secret blanked out."""
    if isinstance(values, Mapping):
        return {
            key: "<redacted>" if _is_secret(str(key)) and value is not None else redacted(value)
            for key, value in values.items()
        }
    return [redacted(item) for item in values] if isinstance(values, list) else values


def _redacted_word(override: str) -> str:
    key, separator, _ = override.partition("=")
    return f"{key}=<redacted>" if separator and _is_secret(key) else override


def _is_secret(key: str) -> bool:
    return any(word in key.lower() for word in _SECRETS)


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write: {error.strerror or error}",
        where=str(path.absolute()),
        fix="outputs=FOLDER that you may write to, on a disk with space",
    )
