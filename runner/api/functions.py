"""The commands as functions, for Python and notebooks.

    import runner

    run = runner.train("+trick=mixup", seed=3)       # as python -m runner.train +trick=mixup seed=3
    run.accuracy
    answer = runner.compare(tries=["mixup=beta"])    # as python -m runner.compare --try mixup=beta
    answer.verdicts
    table = runner.load_runs().table()               # pandas.DataFrame(table)
    model = runner.load_model(run.folder)
    model.predict(["photo.jpg"])

They do what the commands do, with the same identities in the same folders: a run that a command
has finished is returned at once, and the other way round. Mistakes raise
:class:`runner.errors.RunnerError`, with ``what``, ``where`` and ``fix``, and nothing exits. After
an interruption, the same call goes on from where it was.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.api.objects import Comparison, Run, Runs
from runner.api.process import output_of
from runner.config import checks, compose
from runner.config.complaints import translated
from runner.config.idea import blamed, read_idea
from runner.config.options import GROUPS
from runner.config.overrides import checked_words
from runner.config.words import nearest
from runner.errors import ConfigError, DataError, RunnerError, of_system
from runner.records import evaluations
from runner.records.run_folder import RunFolder, run_folders

if TYPE_CHECKING:
    from runner.api.model import Model

COMMAND_ONLY: dict[str, dict[str, str]] = {
    "train": {
        "config_dir": "python -m runner.train … --config-dir DIR",
        "multirun": "a call for each job, or python -m runner.train -m …",
    },
    "compare": {
        "try": 'tries=["mixup=beta"]',
        "plan": "python -m runner.compare … --plan",
        "html": 'Path("answer.html").write_text(runner.compare(…).page())',
        "json": "runner.compare(…).answer has every number",
        "exit_code": "runner.compare(…).verdicts",
        "confirm_on": "python -m runner.compare … --confirm-on test",
        "config_dir": "python -m runner.compare … --config-dir DIR",
    },
}
"""What to do instead of giving an option of a command that its function does not have."""

_PLAIN = re.compile(r"[\w.+/:@-]+|\[.*\]")
"""Values that need no quotes; lists may be written as text."""


def train(*words: str, **values: Any) -> Run:
    """Train a configuration, resume it, or return its finished run.

    Args:
        words: words of ``python -m runner.train``, such as ``"+trick=mixup"``.
        values: further words by key, such as ``seed=3``, ``mixup="beta"`` or
            ``**{"optim.lr": 1e-3}``. True, False and None become ``true``, ``false``, ``null``.
            ``python -m runner.train --help GROUP`` shows the keys.

    Raises:
        RunnerError: a mistake in the words, or whatever ends the command.
        KeyboardInterrupt: the training was interrupted, and is saved: the same call resumes it.
    """
    _check_keywords("train", values)
    given = _words(words, values)
    with _our_errors():
        from runner import train as command

        compose.register()
        summary = command.run(compose.config_of(given), checked_words(given))
        folder = RunFolder(Path(summary["folder"]))
        result, name = folder.result(), summary["evaluation"]
        assert result is not None
        evaluation = None if name is None else evaluations.read(folder, name)
    return Run(folder.path, evaluations.joined(result, evaluation), summary["status"])


def compare(
    *words: str,
    tries: str | Sequence[str] = (),
    margin: float | None = None,
    metric: str | None = None,
    max_seeds: int | None = None,
    seeds: int | None = None,
    folds: int | None = None,
    budget: str | None = None,
    tune: str | Sequence[str] = (),
    name: str | None = None,
    **values: Any,
) -> Comparison:
    """Train until it is known which changes help, or return an answer that exists.

    The trainings run in processes of their own, as those of ``python -m runner.compare`` do, whose
    options have the same names.

    Args:
        words: words of the baseline, such as ``"data=folder"``.
        tries: what each arm changes, such as ``["mixup=beta", "optim.lr=1e-2 ema=standard"]``; a
            single string is one arm, and ``""`` the baseline again under other seeds. By default,
            the five tricks, each alone.
        margin: smallest difference that matters, in percentage points, or for log loss and Brier
            score in their own units; None: the default of the metric.
        metric: what is compared, such as ``"log_loss"``; None: accuracy.
        max_seeds: seeds per arm at most, 3 to 20; None: 10. Seeds are added until each arm is
            decided.
        seeds: a fixed number of seeds for every arm, 3 to 100, instead of ``max_seeds``.
        folds: number of folds of a cross-validation, with ``seeds`` seeds per fold, 1 to 100;
            None: none.
        budget: begin no training after this time, such as ``"2h"``; None: no limit.
        tune: values to search, such as ``["optim.lr=1e-3,1e-2"]``; a single string is one key.
        name: name of the comparison, for a new one whose arms were compared before.
        values: further words of the baseline by key, as for :func:`train`.

    Raises:
        RunnerError: a mistake in the words, or whatever ends the command.
        KeyboardInterrupt: the comparison was interrupted: the same call goes on from there.
    """
    _check_keywords("compare", values)
    options = {
        "--margin": margin, "--metric": metric, "--max-seeds": max_seeds, "--seeds": seeds,
        "--folds": folds, "--budget": budget, "--name": name,
    }  # fmt: skip
    arguments = _words(words, values)
    for key, value in options.items():
        arguments += [] if value is None else [key, str(value)]
    for text in _texts("tries", tries, '["mixup=beta", "optim.lr=1e-2"]'):
        arguments += ["--try", text]
    for text in _texts("tune", tune, '["optim.lr=1e-3,1e-2"]'):
        arguments += ["--tune", text]
    content = json.loads(output_of("runner.compare", [*arguments, "--json", "-"]))
    from runner.report.comparison_json import from_json

    answer = from_json(content)
    outputs = next(
        (word.partition("=")[2] for word in arguments if word.startswith("outputs=")), "outputs"
    )
    return Comparison(answer, Path(outputs).expanduser() / "comparisons" / answer.plan.name)


def load_runs(folder: str | Path = "outputs") -> Runs:
    """Return the finished runs below a folder, each once plain and once for each of its TTAs.

    Runs that have not finished are skipped.

    Raises:
        DataError: there is no such folder.
        ArtefactError: a result is damaged.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise DataError("no such folder", where=str(place.absolute()), fix='load_runs("outputs")')
    found = []
    for run in run_folders(place):
        if (result := run.result()) is None:
            continue
        each = [None, *(evaluations.read(run, name) for name in evaluations.names(run))]
        found += [Run(run.path, evaluations.joined(result, one)) for one in each]
    return Runs(found)


def load_model(
    run: "str | Path | Run", *, device: str = "auto", code: str | None = None
) -> "Model":
    """Return the network of a finished run, or of a bundle, with its preprocessing.

    Args:
        run: the run, its folder, or the folder of a bundle.
        device: the device, spelled as in the configuration.
        code: the file that changed the network, if the run has one. It runs only if it is that
            file.

    Raises:
        DataError: there is no finished run and no bundle.
        ArtefactError: the bundle is damaged, or was changed by other code.
        ConfigError: the device or a package does not exist.
    """
    from runner.api.model import Model
    from runner.records.bundle import open_bundle
    from runner.training.learners import trained_learner

    with _our_errors():
        path = run.folder if isinstance(run, Run) else Path(run).expanduser()
        bundle = open_bundle(path)
        idea = None if code is None else read_idea(code, "code=")
        learner = trained_learner(bundle, device=device, precision="auto", threads=0, code=idea)
    return Model(bundle, learner)


def _check_keywords(function: str, values: Mapping[str, Any]) -> None:
    """Refuse keywords that are options of the command alone, or misspelled parameters.

    Args:
        function: ``train`` or ``compare``.
        values: the keywords that are no parameters; those that could be keys are checked as words.
    """
    parameters = {"train": train, "compare": compare}[function].__kwdefaults__ or {}
    keys = [*checks.known_keys(), *GROUPS]
    for name, value in values.items():
        option, where = name.replace("-", "_"), f"{name}={value!r}"
        if name in keys:
            continue
        if (fix := COMMAND_ONLY[function].get(option)) is not None:
            raise ConfigError(f"{name} is an option of the command alone", where=where, fix=fix)
        guess = nearest(option, [*parameters, *keys])
        if guess in parameters:
            raise ConfigError(
                f"unknown keyword {name} (did you mean {guess}?)",
                where=where,
                fix=f"{guess}={value!r}",
            )


def _texts(name: str, value: Any, example: str) -> list[str]:
    """Return the strings of a parameter that takes several, or one alone.

    Raises:
        ConfigError: the value is something else.
    """
    is_several = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    texts = list(value) if is_several else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ConfigError(
            f"{name} takes strings, one for each arm or key",
            where=f"{name}={value!r}",
            fix=f"{name}={example}",
        )
    for text in texts:
        _refuse_option(text)
    return texts


def _words(words: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """The words of a command."""
    if wrong := next((word for word in words if not isinstance(word, str)), None):
        raise ConfigError("a word is a string", where=repr(wrong), fix='train("+trick=mixup")')
    for word in words:
        _refuse_option(word)
    return [*words, *(f"{key}={_value(value)}" for key, value in values.items())]


def _refuse_option(word: str) -> None:
    """Raise if a word is an option of a command, which would change what the command prints."""
    if word.startswith("-"):
        raise ConfigError(
            "options of the command are no words",
            where=word,
            fix="KEY=VALUE, or a parameter such as seeds=3: help(runner.compare) lists them",
        )


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_value, value)) + "]"
    text = str(value)
    if not isinstance(value, str | Path) or _PLAIN.fullmatch(text):
        return text
    # In quotes, backslashes count only before a quote, and before the last one.
    escaped = re.sub(r"(\\*)('|$)", lambda end: end[1] * 2 + (end[2] and "\\'"), text)
    return f"'{escaped}'"  # as the grammar of words wants it: no shell takes quotes off here


@contextmanager
def _our_errors() -> Iterator[None]:
    """Raise the errors of libraries and of the system in our form, as commands print them."""
    try:
        yield
    except RunnerError:
        raise
    except Exception as error:
        known = translated(error) or blamed(error) or of_system(error)
        if known is None:
            raise
        raise known from error
