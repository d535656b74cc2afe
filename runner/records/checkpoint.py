"""The state from which an unfinished run resumes: tensors in safetensors, the rest in JSON.

A checkpoint is a folder, committed whole. It is written under a temporary name: every file is
synced, the manifest with sizes and SHA-256 comes last. Then the folder gets its name, and only then
older checkpoints are removed, except one generation. So a process killed at any instant leaves the
previous checkpoint or the new one, and a flipped bit or a cut file is found before it is used.

Every random draw is keyed by its position, so a checkpoint holds no random state: weights, state of
the optimizer and the number of steps done are enough.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runner.errors import ArtefactError, DivergedError
from runner.machine import fields
from runner.machine.files import (
    own_folder,
    read_whole,
    remove,
    remove_leftovers,
    require_own,
    sync_folder,
    temporary_sibling,
    unwritable,
    write_synced,
)
from runner.records import tensor_files
from runner.records.run_folder import VERSION

_PREFIX = "step-"
_SUPERSEDED = "-old"  # while another checkpoint of the same step replaces this one
_NAME = re.compile(rf"{_PREFIX}(\d+)({_SUPERSEDED})?")
_GENERATIONS = 2
_LARGEST_MANIFEST = 2**20  # bytes


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read from disk.

    Attributes:
        done: number of steps done.
        tensors: the tensors by group, such as ``model`` and ``optimizer``, and by name.
        state: everything else.
        refused: newer checkpoints that could not be used, with the reason for each.
    """

    done: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    refused: tuple[str, ...]


def write(
    folder: Path,
    identity: str,
    done: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> None:
    """Commit a checkpoint below ``folder``, and remove all but the two newest.

    Args:
        folder: folder of this run's checkpoints; made if missing.
        identity: identity of the run.
        done: number of steps done.
        tensors: the tensors by group and name.
        state: everything else, as values for JSON.

    Raises:
        DivergedError: a tensor is not finite; the older checkpoints stay as they are.
        StorageError: the disk is full or not writable; the older checkpoints stay as they are.
    """
    for group, members in tensors.items():
        for name, tensor in members.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise DivergedError(
                    f"{name} of the {group} is not finite after step {done}",
                    where=str(folder),
                    fix="a lower optim.lr",
                )
    files: dict[str, bytes | bytearray] = {
        f"{group}.safetensors": tensor_files.to_bytes(members) for group, members in tensors.items()
    }
    content = {"record_version": VERSION, "identity": identity, "done": done, **state}
    files["state.json"] = (json.dumps(content, allow_nan=False) + "\n").encode()
    manifest = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }
    files["manifest.json"] = (json.dumps({"files": manifest}, indent=2) + "\n").encode()

    target = folder / f"{_PREFIX}{done:09d}"
    building = temporary_sibling(target)
    try:
        own_folder(folder)
        remove_leftovers(folder)
        building.mkdir()
        for name, bytes_ in files.items():
            write_synced(building / name, bytes_)
        sync_folder(building)
        if os.path.lexists(target):  # refused when read, or written before the evaluation
            superseded = folder / f"{target.name}{_SUPERSEDED}"
            if os.path.lexists(superseded):
                _discard(superseded)
            target.rename(superseded)
        building.rename(target)
        sync_folder(folder)
        committed = _committed(folder)
        # Newer checkpoints have been refused; they must not count as a generation.
        older = committed[committed.index(target) + 1 :]
        kept = [path for path in older if not path.name.endswith(_SUPERSEDED)]
        for path in {*committed} - {target, *kept[: _GENERATIONS - 1]}:
            _discard(path)
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        with suppress(OSError):
            remove(building)


def newest(folder: Path, identity: str) -> Checkpoint | None:
    """Read the newest complete checkpoint below ``folder``; None if there never was a checkpoint.

    Raises:
        ArtefactError: none of the checkpoints can be used; gives the reason for each.
        StorageError: ``folder`` is a link or not a folder.
    """
    require_own(folder)
    refused: list[str] = []
    for path in _committed(folder):
        try:
            tensors, state = _read(path, identity)
            return Checkpoint(fields.whole(state, "done"), tensors, state, tuple(refused))
        except (OSError, ValueError) as error:
            refused.append(f"{path.name}: {error}")
    if refused:
        raise ArtefactError(
            "no checkpoint can be used:\n" + "\n".join(f"  {reason}" for reason in refused),
            where=str(folder.absolute()),
            fix="force=true to run anew",
        )
    return None


def _read(path: Path, identity: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    contents = {}
    for name, (size, digest) in _manifest(path).items():
        if Path(name).name != name:
            raise ValueError(f"the manifest names a file outside the checkpoint: {name}")
        if (found := (path / name).stat().st_size) != size:
            raise ValueError(f"{name} has {found:,} bytes instead of the {size:,} of manifest.json")
        content = read_whole(path / name)
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError(f"the SHA-256 of {name} is not the one in manifest.json")
        contents[name] = content
    if "state.json" not in contents:
        raise ValueError("manifest.json does not list state.json")
    try:
        state = fields.parsed(contents.pop("state.json"))
        version, of_run = fields.value(state, "record_version"), fields.text(state, "identity")
    except ValueError as error:
        raise ValueError(f"state.json: {error}") from error
    if version != VERSION:
        raise ValueError(f"its record version is {version}; this program reads {VERSION}")
    if of_run != identity:
        raise ValueError(f"it belongs to run {of_run}, not to {identity}")
    tensors = {
        name.removesuffix(".safetensors"): tensor_files.from_bytes(data)
        for name, data in contents.items()
    }
    return tensors, state


def _manifest(path: Path) -> dict[str, tuple[int, str]]:
    """Size in bytes and SHA-256 of each file of the checkpoint at ``path``."""
    try:
        listed = fields.section(
            fields.parsed(read_whole(path / "manifest.json", at_most=_LARGEST_MANIFEST)), "files"
        )
        entries = {name: fields.section(listed, name) for name in listed}
        return {
            name: (fields.whole(entry, "bytes"), fields.text(entry, "sha256"))
            for name, entry in entries.items()
        }
    except ValueError as error:
        raise ValueError(f"manifest.json: {error}") from error


def _committed(folder: Path) -> list[Path]:
    """Return the committed checkpoints, newest first."""
    if not folder.is_dir():
        return []
    found = {path: match for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}
    return sorted(found, key=lambda path: (-int(found[path][1]), bool(found[path][2])))


def _discard(path: Path) -> None:
    """Remove a committed checkpoint; its name never belongs to an incomplete checkpoint."""
    away = temporary_sibling(path)
    path.rename(away)
    remove(away)
