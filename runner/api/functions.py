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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.api.objects import Comparison, Run, Runs
from runner.api.process import output_of
from runner.config import compose
from runner.config.complaints import translated
from runner.config.idea import blamed, read_idea
from runner.config.overrides import checked_words
from runner.errors import ConfigError, DataError, RunnerError, of_system
from runner.records import evaluations
from runner.records.run_folder import RunFolder, run_folders

if TYPE_CHECKING:
    from runner.api.model import Model

_PLAIN = re.compile(r"[\w.+/:@-]+|\[.*\]")
"""Values that need no quotes; lists may be written as text."""


def train(*words: str, **values: Any) -> Run:
    """Train a configuration, resume it, or return its finished run.

    Args:
        words: words of ``python -m runner.train``, such as ``"+trick=mixup"``.
        values: further words by key, such as ``seed=3``, ``mixup="beta"`` or
            ``**{"optim.lr": 1e-3}``. True, False and None become ``true``, ``false``, ``null``.

    Raises:
        RunnerError: a mistake in the words, or whatever ends the command.
        KeyboardInterrupt: the training was interrupted, and is saved: the same call resumes it.
    """
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
    tries: Sequence[str] = (),
    margin: float | None = None,
    metric: str | None = None,
    max_seeds: int | None = None,
    seeds: int | None = None,
    folds: int | None = None,
    budget: str | None = None,
    tune: Sequence[str] = (),
    name: str | None = None,
    **values: Any,
) -> Comparison:
    """Train until it is known which changes help, or return an answer that exists.

    The trainings run in processes of their own, as those of ``python -m runner.compare`` do, whose
    options have the same names.

    Args:
        words: words of the baseline.
        tries: what each arm changes, such as ``["mixup=beta", "optim.lr=1e-2 ema=standard"]``; by
            default, the five tricks, each alone.
        margin: smallest difference that matters, in the unit of the command.
        metric: what is compared.
        max_seeds: seeds per arm at most.
        seeds: a fixed number of seeds.
        folds: number of folds of a cross-validation.
        budget: begin no training after this time, such as ``"2h"``.
        tune: values to search, such as ``["optim.lr=1e-3,1e-2"]``.
        name: name of the comparison.
        values: further words of the baseline by key, as for :func:`train`.

    Raises:
        RunnerError: a mistake in the words, or whatever ends the command.
        KeyboardInterrupt: the comparison was interrupted: the same call goes on from there.
    """
    options = {
        "--margin": margin, "--metric": metric, "--max-seeds": max_seeds, "--seeds": seeds,
        "--folds": folds, "--budget": budget, "--name": name,
    }  # fmt: skip
    arguments = _words(words, values)
    for key, value in options.items():
        arguments += [] if value is None else [key, str(value)]
    for text in tries:
        arguments += ["--try", text]
    for text in tune:
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


def _words(words: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """The words of a command."""
    if wrong := next((word for word in words if not isinstance(word, str)), None):
        raise ConfigError("a word is a string", where=repr(wrong), fix='train("+trick=mixup")')
    return [*words, *(f"{key}={_value(value)}" for key, value in values.items())]


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
