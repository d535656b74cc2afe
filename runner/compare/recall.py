"""Find the answer of an ended comparison by the words of its command.

Composing and checking every arm takes a second or more. ``outputs/cache/asked/`` has a small file
for each command whose comparison has ended; the file names the comparison and its data. The data is
looked up again, so an answer about other images is never shown. Everything else that decides a
comparison is in the words, and in files whose content is part of the file's name. A file that is
missing, damaged or doubtful only costs that second.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from runner import __version__
from runner.compare.asked import Asked, separate_words
from runner.config import checks
from runner.config.options import CONF_DIR
from runner.config.schema import to_dict
from runner.errors import RunnerError, StorageError
from runner.machine import fields
from runner.machine.files import read_whole, replace_whole
from runner.machine.hardware import device_kind, used_precision
from runner.records.comparison_folder import FOLDER, ComparisonFolder
from runner.terminal.display import Display

if TYPE_CHECKING:
    from runner.compare.question import Question

_FOLDER = Path("cache", "asked")
_LARGEST = 2**20  # bytes of one of the files, and of an idea file


def ended(asked: Asked, display: Display) -> ComparisonFolder | None:
    """Return the ended comparison of equal words; None if none is remembered."""
    outputs, name = _outputs(asked), _name(asked)
    if outputs is None or name is None:
        return None
    with suppress(OSError, ValueError, RunnerError):
        found = fields.parsed(read_whole(outputs / _FOLDER / name, at_most=_LARGEST))
        folder = ComparisonFolder(outputs / FOLDER / fields.text(found, "comparison"))
        data = checks.from_dict({"data": fields.section(found, "data")}).data
        size = fields.whole(found, "size", at_least=1)
        if folder.answer() is None:
            return None
        from runner.data.dataset import load_dataset

        dataset = load_dataset(data, size, outputs / "cache", display.work)
        plan = folder.plan()
        own = dataset.fingerprint if plan.num_folds == 1 else dataset.pool_fingerprint
        return folder if plan.fingerprint == own else None
    return None


def remember(asked: Asked, question: "Question", folder: ComparisonFolder) -> None:
    """Remember the folder of an ended comparison; do nothing if that cannot be written."""
    outputs, name = _outputs(asked), _name(asked)
    if name is None or outputs != question.outputs or folder.answer() is None:
        return
    base = question.base
    content = {
        "comparison": folder.name,
        "data": to_dict(base)["data"],
        "size": base.largest_size,
    }
    with suppress(StorageError):
        replace_whole(outputs / _FOLDER / name, json.dumps(content, indent=2).encode())


def _outputs(asked: Asked) -> Path | None:
    """Return the folder that the words name; None if the words are ambiguous."""
    words = [word.lstrip("+~") for word in _words(asked)]
    places = [word.partition("=")[2] for word in words if word.startswith("outputs=")]
    if any(set(place) & set("'\"\\$[],{}()") for place in places) or len({*places}) > 1:
        return None
    return Path(places[0] if places else "outputs").expanduser()


def _name(asked: Asked) -> str | None:
    """Return the name of a command's file; None if its words alone do not decide the question."""
    words = _words(asked)
    if asked.config_dir is not None or any(_names_weights(word) for word in words):
        return None
    ideas = {
        word.partition("=")[2].strip("'\"")
        for word in words
        if word.lstrip("+~").startswith("code=")
    }
    digests = dict[str, str]()
    for path in [*sorted(ideas - {"null"}), *sorted(map(str, CONF_DIR.rglob("*.yaml")))]:
        try:
            content = read_whole(Path(path).expanduser(), at_most=_LARGEST)
        except (OSError, ValueError, RuntimeError):  # RuntimeError: the home folder is unknown
            return None
        digests[path] = hashlib.sha256(content).hexdigest()
    of_question = asdict(replace(asked, budget=None))
    device = device_kind("auto")
    machine = {"device": device, "precision": used_precision("auto", device)}
    content = json.dumps([__version__, of_question, digests, machine], sort_keys=True).encode()
    return f"{hashlib.sha256(content).hexdigest()[:32]}.json"


def _names_weights(word: str) -> bool:
    """Return whether a word names pretrained weights, whose content may change."""
    return word.lstrip("+").startswith("model.weights") or "pretrained" in word


def _words(asked: Asked) -> Sequence[str]:
    """Return all words of the baseline, the arms and the search."""
    tries = [word for arguments in asked.tries for one in arguments for word in separate_words(one)]
    return [*asked.words, *tries, *asked.tune]
