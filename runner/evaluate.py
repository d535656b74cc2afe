"""Evaluate trained runs again, with any TTA: ``python -m runner.evaluate RUN tta=book``.

Nothing is trained. Evaluations with TTA are kept in the folder of the run, where ``report`` and
``train`` find them. All variants share one pass over the validation images, so a table costs as
many forward passes as its variants have different views. Torch is imported only when evaluation
starts, so that help and errors appear at once.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from runner.config import checks, compose
from runner.config.complaints import translated
from runner.config.idea import IdeaFile, read_idea
from runner.config.options import EVALUATION_KEYS, GROUPS
from runner.config.schema import Data, RunConfig, Tta
from runner.config.words import nearest, own_words
from runner.errors import ArtefactError, BusyError, ConfigError, DataError, StorageError
from runner.machine import fields
from runner.records import evaluations
from runner.records import evaluations_on_test as on_test
from runner.records.identity import evaluation_identity
from runner.records.run_folder import RunFolder
from runner.terminal.arguments import Parser
from runner.terminal.command import command, program, write_outputs
from runner.terminal.console import legible, table_console
from runner.terminal.display import Display
from runner.terminal.metric_tables import class_table, metric_label, metric_text
from runner.terminal.tables import Table, to_csv
from runner.terminal.usage import KeysParser
from runner.training.metrics import METRICS, classification_metrics, mean_class_scores

if TYPE_CHECKING:
    from runner.data.dataset import Dataset
    from runner.data.preprocess import Preprocess
    from runner.records.bundle import Bundle
    from runner.training.predicting import Predictions

T = TypeVar("T")

_REPRODUCED = 1e-5  # largest difference of a probability that rounding explains
_PAIRED = ("points", "gained", "lost", "p_value", "p_holm")

# The columns of the table: heading and format by the name of the value.
_COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "variant": ("variant", str),
    "runs": ("runs", str),
    "accuracy": ("accuracy", "{:.2%}".format),
    "points": ("points", "{:+.2f}".format),
    "gained": ("gained", str),
    "lost": ("lost", str),
    "p_value": ("p", "{:.2g}".format),
    "p_holm": ("p (Holm)", "{:.2g}".format),
    **{name: (metric_label(name), partial(metric_text, name)) for name in METRICS[1:]},
    "forward_passes": ("passes", "{:g}".format),
    "pixels": ("pixels", "{:.3g}".format),
}


def _interval(ends: Sequence[float]) -> str:
    return f"{100 * ends[0]:.2f} – {ends[1]:.2%}"


_INTERVAL: tuple[str, Callable[[Any], str]] = ("95% interval", _interval)


@dataclass(frozen=True)
class RecordedRun:
    """A finished run as recorded on disk.

    Attributes:
        folder: the folder of the run.
        config: the configuration that the run was trained with.
        fingerprint: fingerprint of the run's data.
        classes: names of the classes in the order of the labels.
        bundle: SHA-256 of each file of the run's bundle, by name.
        identity: identity of the training.
        command: the command that trained the run.
        environment: the environment that the run was trained in.
    """

    folder: RunFolder
    config: RunConfig
    fingerprint: str
    classes: tuple[str, ...]
    bundle: dict[str, str]
    identity: str
    command: tuple[str, ...]
    environment: dict[str, Any]


@dataclass(frozen=True, eq=False)  # hashable, as a key
class Variant:
    """A variant of TTA, a row of the table.

    Attributes:
        name: the words of this variant that not all variants share.
        values: the values that its words set; see
            :func:`runner.config.compose.requested_values`.
        note: a note for the user; mostly empty.
        words: its words on TTA.
    """

    name: str
    values: Mapping[str, Any]
    note: str = ""
    words: tuple[str, ...] = ()


def read_run(path: Path) -> RecordedRun:
    """Read the finished run in a folder.

    Raises:
        DataError: there is no such folder, or no finished run in it.
        ArtefactError: the result is damaged, or of another version.
    """
    folder, where = RunFolder(path), str(path.absolute())
    if not path.is_dir():
        raise DataError("no such folder", where=where, fix="the folder of a finished run")
    result = folder.result()
    if result is None:
        raise DataError(
            f"no finished run is here (status: {folder.status()['status']})",
            where=where,
            fix="one of those that python -m runner.show lists as finished",
        )
    try:
        data, digests = fields.section(result, "data"), fields.section(result, "bundle")
        return RecordedRun(
            folder=folder,
            # Values, which are not composed: an interpolation in them stays text.
            config=checks.from_dict(fields.section(result, "config")),
            fingerprint=fields.text(data, "fingerprint"),
            classes=fields.texts(data, "classes"),
            bundle={name: fields.text(digests, name) for name in digests},
            identity=fields.text(result, "identity"),
            command=fields.texts(result, "command"),
            environment=fields.section(result, "environment"),
        )
    except ConfigError as error:
        reason = f"the result holds an invalid configuration: {error.what}"
    except ValueError as error:
        reason = f"the result does not say what was trained: {error}"
    raise ArtefactError(reason, where=f"{where}/result.json", fix="a whole copy of the folder")


def variants(words: Sequence[str], *, is_sweep: bool) -> list[Variant]:
    """Return the requested variants: one, or in a sweep every combination of the words' values.

    Raises:
        ConfigError: a word is unknown, or its effect would need another training. Hydra raises
            errors of its own; :func:`runner.config.complaints.translated` converts them.
    """
    for word in words:
        _check_word(word)
    compose.register()
    jobs = compose.jobs(words) if is_sweep else [list(words)]
    tta_words = [[word for word in job if word.lstrip("+").startswith("tta")] for job in jobs]
    return [
        _variant(
            own_words(own, tta_words) or "the run's own TTA", compose.requested_values(job), own
        )
        for own, job in zip(tta_words, jobs, strict=True)
    ]


def _variant(name: str, values: dict[str, Any], words: Sequence[str]) -> Variant:
    """Return the variant of these words on TTA, without ``beta`` unless it averages predictions."""
    tta = values.get("tta", {})
    reduce = tta.get("reduce", "mean")
    if reduce == "mean" or any(word.lstrip("+").startswith("tta.beta=") for word in words):
        return Variant(name, values, words=tuple(words))
    # fastai's learn.tta(use_max=True) does the same.
    note = f"tta.reduce={reduce} ignores tta.beta, which weighs a mean"
    unweighted = {**values, "tta": {**tta, "beta": None}}
    return Variant(
        name, unweighted, note if tta.get("beta", 0) is not None else "", (*words, "tta.beta=null")
    )


def _is_evaluation_key(key: str) -> bool:
    return key in EVALUATION_KEYS or re.fullmatch(r"tta\.\w+", key) is not None


def _check_word(word: str) -> None:
    key = word.lstrip("+").partition("=")[0]
    if "${" in word:
        raise ConfigError("a reference is not allowed here", where=word, fix="the value itself")
    if _is_evaluation_key(key):
        return
    allowed = f"allowed here: {', '.join(EVALUATION_KEYS)}"
    if key in checks.known_keys() or key in GROUPS:
        raise ConfigError(
            f"another {key} needs training again",
            where=word,
            fix=f"python -m runner.train … {word}; {allowed}",
        )
    guess = nearest(key, EVALUATION_KEYS)
    what = f"unknown key {key} (did you mean {guess}?)" if guess else checks.unknown_key(key)[0]
    raise ConfigError(what, where=word, fix=allowed)


def configurations(run: RecordedRun, wanted: Sequence[Variant]) -> list[RunConfig]:
    """Return a run's configuration for each variant; they differ only in ``tta``.

    Raises:
        ConfigError: a value is not allowed, or a key outside ``tta`` has several values.
    """
    configs = [checks.changed(run.config, variant.values) for variant in wanted]
    if len({replace(config, tta=Tta()) for config in configs}) > 1:
        raise ConfigError(
            "only tta can take several values: all variants share one pass",
            where="-m",
            fix="one command for each of the other values",
        )
    return configs


def evaluate_run(
    run: RecordedRun,
    configs: Mapping[Variant, RunConfig],
    load: Callable[[Data, int, str], "Dataset"],
    display: Display,
    codes: Sequence[IdeaFile] = (),
    *,
    on_test_part: bool = False,
) -> dict[str, Any]:
    """Evaluate one run.

    Args:
        run: a finished run.
        configs: the configuration of each variant.
        load: returns the data set for ``data``, largest size and ``outputs`` of a configuration.
        display: shows progress and notes.
        codes: files of code that the user allows to run, if the run needs one.
        on_test_part: whether to evaluate on the test part of the data, which ``load`` has read,
            and not on the validation images.

    Returns:
        Values for JSON: the run, data and environment of the evaluation, the difference to the
        saved predictions, and ``rows`` with the measures of the plain view and of each variant.

    Raises:
        ArtefactError: the bundle or the data is not the run's; or the network was changed by code
            that is not among ``codes``.
        ConfigError: the device does not exist.
        DataError: the data cannot be read.
    """
    from runner.machine.environment import differences, environment
    from runner.records.bundle import read_bundle
    from runner.report.family import holm
    from runner.training.learners import trained_learner
    from runner.training.memory import advise_smaller_batch
    from runner.training.predicting import evaluate_variants, images_per_pass
    from runner.tricks.tta import cost, looks_used

    ttas = [config.tta for config in configs.values()]
    config = next(iter(configs.values()))
    bundle = read_bundle(run.folder.path / "bundle", run.bundle)
    data = _stored_as(bundle.preprocess, config.data)
    dataset = load(data, config.largest_size, config.outputs)
    _check_data(run, dataset, data)
    if on_test_part:
        dataset = _test_part(dataset, data, display)
    learner = trained_learner(
        bundle,
        device=config.device,
        precision=config.precision,
        threads=config.threads,
        code=_chosen(codes, bundle),
    )
    crop = bundle.preprocess.crop
    with advise_smaller_batch("eval.batch_size=", images_per_pass(config, learner)):
        found = evaluate_variants(learner, dataset, config, ttas, progress=display.evaluation)
    now = environment(learner.device, learner.precision, learner.processes)
    difference = None
    if on_test_part:
        _keep_on_test(run, configs, found, dataset, now, display)
    else:
        difference = _difference(run, found[0], differences(run.environment, now), display)
        if difference is not None and difference <= _REPRODUCED:
            _keep(run, configs, found, dataset, now, display)
    names = [variant.name for variant in configs]
    views = [("plain", Tta()), *zip(names, ttas, strict=True)]
    measures = [_plain_measures(found[0], dataset.classes)]
    measures += [_tta_measures(predictions, dataset.classes) for predictions in found]
    # Choosing the best of several variants amounts to as many tests.
    corrected = holm([row["p_value"] for row in measures[1:]])
    for row, p_value in zip(measures[1:], corrected, strict=True):
        row["p_holm"] = p_value
    return {
        "run": str(run.folder.path),
        "seed": config.seed,
        "tricks": config.tricks,
        "environment": now,
        "images": len(found[0].labels),
        "seconds": found[0].seconds,
        "forward_passes": len(looks_used([Tta(), *ttas], crop)),
        **(_words_of_test(dataset) if on_test_part else {}),
        "difference_to_saved": difference,
        "rows": [
            {
                "variant": name,
                "tta": asdict(tta),
                **measured,
                "forward_passes": len(looks_used([tta], crop)),
                "pixels": cost(looks_used([tta], crop)),
            }
            for (name, tta), measured in zip(views, measures, strict=True)
        ],
    }


def _words_of_test(dataset: "Dataset") -> dict[str, Any]:
    """Return the facts about the test part, ``val`` of ``dataset``, for an evaluation's content."""
    return {
        "split": "test",
        "test_fingerprint": dataset.test_fingerprint,
        "num_leaked": len(dataset.leaked),
    }


def _keep(
    run: RecordedRun,
    configs: Mapping[Variant, RunConfig],
    found: Sequence["Predictions"],
    dataset: "Dataset",
    machine: Mapping[str, Any],
    display: Display,
) -> None:
    """Write the evaluations with TTA that the folder of the run lacks."""
    from runner.training.outcome import evaluation

    missing = {
        name: (variant, config, predictions)
        for (variant, config), predictions in zip(configs.items(), found, strict=True)
        if (name := evaluation_identity(config)) is not None
    }
    for name in evaluations.names(run.folder):
        with suppress(ArtefactError):  # a damaged one is written again
            evaluations.probabilities(run.folder, name)
            missing.pop(name, None)

    def write(name: str, view: "tuple[Variant, RunConfig, Predictions]") -> None:
        variant, config, predictions = view
        content = {
            "identity": run.identity,
            "command": _command(run, variant),
            **evaluation(config, predictions, dataset.classes, machine),
        }
        evaluations.write(run.folder, name, content, predictions.tta)

    _write_missing(run, missing, write, display)


def _write_missing(
    run: RecordedRun,
    missing: Mapping[str, T],
    write: Callable[[str, T], None],
    display: Display,
) -> None:
    """Write the evaluations that the folder of the run lacks, by name, unless it is in use."""
    if not missing:
        return
    try:
        with run.folder.owned():
            if run.folder.result() is None:  # force=true has begun to train it anew
                return
            for name, view in missing.items():
                write(name, view)
    except (BusyError, StorageError) as error:
        display.line(f"note: {run.folder.path}: the evaluations are not kept: {error.what}")


def _test_part(dataset: "Dataset", data: Data, display: Display) -> "Dataset":
    """Return the data set with its test part in place of the validation images.

    Raises:
        DataError: the data has no test part.
    """
    from runner.data.dataset import no_test_part

    if dataset.test is None:
        raise no_test_part(data)
    if dataset.test_leaked:
        display.line(
            f"note: {len(dataset.test_leaked)} of {len(dataset.test)} test images are in training "
            f"or validation too, such as {' and '.join(map(legible, dataset.test_leaked[0]))}"
        )
    return dataset.on_test()


def _keep_on_test(
    run: RecordedRun,
    configs: Mapping[Variant, RunConfig],
    found: Sequence["Predictions"],
    dataset: "Dataset",
    machine: Mapping[str, Any],
    display: Display,
) -> None:
    """Write the evaluations on the test part that the folder of the run lacks."""
    from runner.training.outcome import evaluation

    fingerprint = str(dataset.test_fingerprint)
    first = next(iter(configs.values()))
    plain = replace(found[0], tta=found[0].plain, passes_tta=found[0].passes_plain)
    views: dict[str | None, tuple[tuple[str, ...], RunConfig, Predictions]] = {
        None: (run.command, replace(first, tta=Tta()), plain)
    }
    for (variant, config), predictions in zip(configs.items(), found, strict=True):
        views.setdefault(evaluation_identity(config), (_command(run, variant), config, predictions))
    missing = {
        name: view
        for identity, view in views.items()
        if not _is_kept_on_test(run, name := on_test.name_of(identity, fingerprint), fingerprint)
    }

    def write(name: str, view: "tuple[tuple[str, ...], RunConfig, Predictions]") -> None:
        words, config, predictions = view
        content = {
            "identity": run.identity,
            "test_fingerprint": fingerprint,
            "num_test": len(predictions.labels),
            "num_leaked": len(dataset.leaked),
            "command": words,
            **evaluation(config, predictions, dataset.classes, machine),
        }
        kept = on_test.PredictionsOnTest(predictions.labels, predictions.tta, predictions.groups)
        on_test.write(run.folder, name, content, kept)

    _write_missing(run, missing, write, display)


def _is_kept_on_test(run: RecordedRun, name: str, fingerprint: str) -> bool:
    """Return whether the run's folder has an intact evaluation on the test part."""
    with suppress(FileNotFoundError, ArtefactError):
        on_test.read(run.folder, name, run.identity, fingerprint)
        return True
    return False


def recorded_variant(
    run: RecordedRun, evaluation: str | None, values: Mapping[str, Any]
) -> Variant:
    """Return the variant of one of a run's evaluations, with other ``values`` of this call.

    Args:
        run: a finished run.
        evaluation: name of the evaluation with TTA; None for the plain view.
        values: by group and key, as in :class:`Variant`.

    Raises:
        ArtefactError: the run has no such evaluation.
    """
    content = None if evaluation is None else evaluations.read(run.folder, evaluation)
    if evaluation is not None and content is None:
        raise ArtefactError(
            f"the run has no evaluation {evaluation}",
            where=str(run.folder.path),
            fix="the command that evaluated it, once more",
        )
    tta = asdict(Tta()) if content is None else {**asdict(Tta()), **content["tta"]}
    return Variant(evaluation or "plain", {**values, "tta": tta})


def predictions_on_test(
    run: RecordedRun,
    variant: Variant,
    test_fingerprint: str,
    load: Callable[[Data, int, str], "Dataset"],
    display: Display,
) -> on_test.PredictionsOnTest:
    """Return a run's predictions of one view for a test part; evaluate if its folder has none.

    Args:
        run: a finished run.
        variant: its TTA, and where the data is.
        test_fingerprint: fingerprint of the test part.
        load: see :func:`evaluate_run`.
        display: shows progress and notes.

    Raises:
        ArtefactError: see :func:`evaluate_run`; or the test part is another one.
        StorageError: the evaluation could not be kept.
        ConfigError, DataError: see :func:`evaluate_run`.
    """
    (config,) = configurations(run, [variant])
    name = on_test.name_of(evaluation_identity(config), test_fingerprint)
    if not _is_kept_on_test(run, name, test_fingerprint):
        codes = list[IdeaFile]()
        if run.config.code is not None:
            with suppress(ConfigError):  # evaluation says so if it needs the file
                codes.append(read_idea(run.config.code))
        evaluate_run(run, {variant: config}, load, display, codes, on_test_part=True)
    if not _is_kept_on_test(run, name, test_fingerprint):
        raise StorageError(
            "the evaluation on the test images could not be kept, or its images have changed",
            where=str(run.folder.path),
            fix="the same command again",
        )
    return on_test.predictions(run.folder, name)


def _command(run: RecordedRun, variant: Variant) -> tuple[str, ...]:
    """Return the command that trains the run and evaluates it as ``variant`` does."""
    names_option = any(word.lstrip("+").startswith("tta=") for word in variant.words)
    kept = [
        word
        for word in run.command
        if not (names_option and word.lstrip("+").startswith(("tta=", "tta.")))
    ]
    return (*kept, *variant.words)


def _chosen(codes: Sequence[IdeaFile], bundle: "Bundle") -> IdeaFile | None:
    """Return the file that the bundle requires, or else any file, which the error message names."""
    needed = bundle.architecture.code
    if needed is None:
        return None
    fitting = [code for code in codes if code.sha256 == needed["sha256"]]
    return next(iter([*fitting, *codes]), None)


def _stored_as(preprocess: "Preprocess", data: Data) -> Data:
    """Return ``data`` with the storage of images that the network was trained with."""
    return replace(
        data,
        presize=preprocess.presize,
        max_aspect=preprocess.max_aspect,
        interpolation=preprocess.interpolation,
        depth="auto" if preprocess.depth.rule == "window" else preprocess.depth.rule,
        window=preprocess.depth.window,
    )


def _check_data(run: RecordedRun, dataset: "Dataset", data: Data) -> None:
    if (dataset.fingerprint, dataset.classes) != (run.fingerprint, run.classes):
        raise ArtefactError(
            f"not the data of the run: fingerprint {dataset.fingerprint[:16]}…, and the run was "
            f"trained on {run.fingerprint[:16]}…",
            where=f"data={data.name} data.root={data.root}",
            fix="data.root=PATH of the data as it was",
        )


def _difference(
    run: RecordedRun, found: "Predictions", changes: Sequence[str], display: Display
) -> float | None:
    """Print a note on the largest difference between plain predictions and the run's; return it."""
    name = run.folder.path
    try:
        saved = run.folder.predictions()["plain"]
        if saved.shape != found.plain.shape or not np.isfinite(saved).all():
            raise ValueError("predictions.npz belongs to other images")
        largest = float(np.abs(found.plain - saved).max())
    except (ArtefactError, ValueError, TypeError) as error:
        display.line(f"warning: {name}: nothing to compare the plain row with: {error}")
        return None
    if largest <= _REPRODUCED:
        display.line(f"{name}: the plain row reproduces the run (to {largest:.1g})")
        return largest
    causes = ", ".join(changes) or "another device, precision or torch build"
    display.line(
        f"warning: {name}: the plain row differs from the run's own by up to {largest:.2g} in a "
        f"probability; possible causes: {causes}"
    )
    return largest


def _plain_measures(found: "Predictions", classes: Sequence[str]) -> dict[str, Any]:
    return {
        **classification_metrics(found.plain, found.labels, classes),
        **dict.fromkeys(_PAIRED),
    }


def _tta_measures(found: "Predictions", classes: Sequence[str]) -> dict[str, Any]:
    from runner.report.statistics import gained_and_lost, mcnemar

    after, before = (view.argmax(axis=1) == found.labels for view in (found.tta, found.plain))
    gained, lost = gained_and_lost(after, before)
    return {
        **classification_metrics(found.tta, found.labels, classes),
        "points": 100 * (gained - lost) / len(found.labels),
        "gained": gained,
        "lost": lost,
        "p_value": mcnemar(gained, lost),
    }


def averaged(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Average the rows of :func:`evaluated` over several runs.

    Returns:
        A row for the plain view and for each variant: ``variant``, the number of ``runs``, sums of
        ``gained`` and ``lost``, means of the other values, and p-values for a single run only. A
        value that does not exist is None.
    """
    rows = []
    for same in zip(*(entry["rows"] for entry in entries), strict=True):
        row: dict[str, Any] = {}
        for name in _COLUMNS:
            values = [one.get(name) for one in same]
            if name == "variant":
                row[name] = values[0]
            elif name == "runs":
                row[name] = len(same)
            elif None in values or (name.startswith("p_") and len(same) > 1):
                row[name] = None
            else:
                row[name] = sum(values) if name in ("gained", "lost") else fmean(values)
        rows.append(row)
    return rows


def _tables(
    rows: Sequence[Mapping[str, Any]],
    entries: Sequence[Mapping[str, Any]],
    title: str,
    *,
    with_interval: bool,
) -> list[Table]:
    """Return the table of accuracy and cost, that of further metrics, and those of the classes."""
    hidden = {*METRICS[1:], "p_value", "p_holm" if rows[0]["runs"] > 1 else "runs"}
    names = [name for name in _COLUMNS if name not in hidden]
    if with_interval:
        names.insert(names.index("accuracy") + 1, "accuracy_ci")
        names.remove("pixels")  # the table fits 80 columns
        intervals = [row["accuracy_ci"] for row in entries[0]["rows"]]
        rows = [{**row, "accuracy_ci": found} for row, found in zip(rows, intervals, strict=True)]
    return [
        _table(rows, names, title),
        _table(rows, ["variant", *METRICS[1:]], "further metrics"),
        *_class_tables(entries),
    ]


def _table(rows: Sequence[Mapping[str, Any]], names: Sequence[str], title: str) -> Table:
    shown = {name: _INTERVAL if name == "accuracy_ci" else _COLUMNS[name] for name in names}
    cells = tuple(
        tuple("" if row[name] is None else form(row[name]) for name, (_, form) in shown.items())
        for row in rows
    )
    return Table(title, tuple(heading for heading, _ in shown.values()), cells, ("variant",))


def _class_tables(entries: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Yield the classes of the plain view, and of the variant if it is the only one."""
    plain, *others = zip(*(entry["rows"] for entry in entries), strict=True)
    for same in (plain, *(others if len(others) == 1 else ())):
        if same is plain or same[0]["tta"] != plain[0]["tta"]:
            over = f", means of {len(same)} runs" if len(same) > 1 else ""
            means = mean_class_scores([row["per_class"] for row in same])
            yield class_table(f"{same[0]['variant']}, by class{over}", means)


def main() -> None:
    """Run the command; see ``--help``."""
    arguments = parser().parse_intermixed_args()
    command(lambda: _run(arguments), translated)


class _Parser(KeysParser):
    """Knows that an option that does not exist is perhaps a key that an evaluation takes."""

    def meant(self, key: str) -> str | None:
        """Return the key that someone who typed ``--KEY`` probably meant, if any."""
        by_name = {known.rpartition(".")[2]: known for known in EVALUATION_KEYS}
        return key if _is_evaluation_key(key) else by_name.get(key)


def parser() -> Parser:
    """Make the parser of the command's words."""
    found = _Parser(
        prog=program("evaluate"),
        usage="%(prog)s RUN [RUN …] [-m] [tta=NAME] [KEY=VALUE …]\n"
        "       [--code FILE] [--split test]\n"
        "       [--csv FILE] [--json FILE] [--markdown FILE]",
        description="Evaluate trained runs again, with any TTA, without training. All variants "
        "share one pass over the validation images.",
        epilog=f"Keys: {', '.join(EVALUATION_KEYS)}. Without words on tta, the run's own TTA is "
        "used.",
    )
    found.add_argument(
        "words", nargs="*", metavar="RUN|KEY=VALUE", help="folders of finished runs, and words"
    )
    found.add_argument(
        "-m", "--multirun", action="store_true", help="all combinations of the words' values"
    )
    found.add_argument(
        "--code", action="append", default=[], metavar="FILE",
        help="the file that changed the network of a run, by code=FILE; may be repeated",
    )  # fmt: skip
    found.add_argument(
        "--split", choices=("val", "test"), default="val", metavar="val|test",
        help="the images: those of validation (default), or those of the data's test part, "
        "once at the end",
    )  # fmt: skip
    for name, what in (
        ("--csv", "rows with all digits"),
        ("--json", "every number, including those of each run"),
        ("--markdown", "the printed tables"),
    ):
        found.add_argument(
            name,
            type=Path,
            metavar="FILE",
            help=f"{what}; - prints it instead",
        )
    return found


def _changes_of(config: RunConfig) -> str:
    """Return the tricks and the code of a run, in words."""
    code = [] if config.code is None else [f"code={Path(config.code).name}"]
    return " + ".join([*config.tricks, *code])


def _run(arguments: argparse.Namespace) -> None:
    paths = dict.fromkeys(Path(word) for word in arguments.words if _is_run(word))
    if not paths:
        raise ConfigError("which run?", where="RUN", fix="a folder such as outputs/fashion-…")
    targets = {name: getattr(arguments, name) for name in ("csv", "json", "markdown")}
    words = [word for word in arguments.words if not _is_run(word)]
    codes = [read_idea(path, "--code ") for path in arguments.code]
    wanted = variants(words, is_sweep=arguments.multirun)
    runs = [read_run(path) for path in paths]
    _check_comparable(runs)
    plans = [dict(zip(wanted, configurations(run, wanted), strict=True)) for run in runs]
    with Display(stderr=True) as display:
        kinds = dict.fromkeys(_changes_of(run.config) or "no trick" for run in runs)
        if len(kinds) > 1:
            display.line(f"note: means over runs with different tricks or code: {'; '.join(kinds)}")
        for note in dict.fromkeys(variant.note for variant in wanted if variant.note):
            display.line(f"note: {note}")
        entries = _evaluate_all(runs, plans, display, codes, split=arguments.split)
    _report(runs, entries, targets, split=arguments.split)


def _is_run(word: str) -> bool:
    """Return whether a word names a folder and is not a setting."""
    return "=" not in word or Path(word).is_dir()


def _check_comparable(runs: Sequence[RecordedRun]) -> None:
    for run in runs:
        if run.fingerprint != runs[0].fingerprint:
            raise ConfigError(
                "runs on different data cannot be averaged: fingerprints "
                f"{runs[0].fingerprint[:16]}… and {run.fingerprint[:16]}…",
                where=f"{runs[0].folder.path} {run.folder.path}",
                fix="one command for each",
            )


def loader(display: Display, *, with_test: bool) -> Callable[[Data, int, str], "Dataset"]:
    """Return a loader of the data set of :func:`evaluate_run`, with its test part if wanted."""
    from runner.data.dataset import load_dataset

    @lru_cache(maxsize=1)  # runs that differ only in their seed share the data set
    def load(data: Data, size: int, outputs: str) -> "Dataset":
        cache = Path(outputs).expanduser() / "cache"
        return load_dataset(data, size, cache, display.work, with_test=with_test)

    return load


def _evaluate_all(
    runs: Sequence[RecordedRun],
    plans: Sequence[Mapping[Variant, RunConfig]],
    display: Display,
    codes: Sequence[IdeaFile],
    *,
    split: str,
) -> list[dict[str, Any]]:
    is_test = split == "test"
    load = loader(display, with_test=is_test)
    entries = [
        evaluate_run(run, configs, load, display, codes, on_test_part=is_test)
        for run, configs in zip(runs, plans, strict=True)
    ]
    if is_test and len({entry["test_fingerprint"] for entry in entries}) > 1:
        raise ConfigError(
            "runs on different test images cannot be averaged",
            where=" ".join(str(run.folder.path) for run in runs),
            fix="one command for each, or data.root=PATH of the same images for all",
        )
    return entries


def _report(
    runs: Sequence[RecordedRun],
    entries: Sequence[Mapping[str, Any]],
    targets: Mapping[str, Path | None],
    *,
    split: str,
) -> None:
    """Print the table, unless standard output is a target, and write the requested files."""
    rows = averaged(entries)
    images = "test images" if split == "test" else "validation images"
    title = f"{runs[0].config.data.name}: {entries[0]['images']:,} {images}"
    title += f", means of {len(runs)} runs" if len(runs) > 1 else ""
    is_one_test = split == "test" and len(runs) == 1
    tables = _tables(rows, entries, title, with_interval=is_one_test)
    content = {"fingerprint": runs[0].fingerprint, "rows": rows, "runs": entries}
    if split == "test":
        content |= {"split": "test", "test_fingerprint": entries[0]["test_fingerprint"]}
    contents: dict[str, Callable[[], str]] = {
        "csv": lambda: to_csv(list(_COLUMNS), [list(row.values()) for row in rows]),
        "json": lambda: json.dumps(content, indent=2, allow_nan=False) + "\n",
        "markdown": lambda: "\n".join(table.markdown() for table in tables),
    }
    if not write_outputs(targets, contents):
        for table in tables:
            table.print(table_console())


if __name__ == "__main__":
    main()
