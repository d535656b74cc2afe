"""Train one configuration, or a sweep of them: ``python -m runner.train +trick=mixup seed=3``.

The command line is Hydra's. Torch is imported only when training starts, so that help,
configuration errors and finished runs appear at once.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.callable_module import make_callable
from runner.config.idea import idea_of
from runner.config.overlays import own_overlays, words_without_effect
from runner.config.requested import Requested
from runner.config.schema import RunConfig
from runner.errors import ConfigError, RunnerError
from runner.loggers.tool import require_package
from runner.machine.files import require_writable
from runner.machine.hardware import (
    device_kind,
    device_note,
    own_gpu,
    require_device,
    used_precision,
)
from runner.machine.processes import Processes, from_environment, joined
from runner.records import evaluations
from runner.records.identity import folder_name, identified, keys_with_auto
from runner.records.run_folder import (
    RunFolder,
    begun_with_another_auto,
    unfinished_on_other_data,
)
from runner.terminal.console import distinguishable
from runner.terminal.display import Display
from runner.terminal.start import Rate, Work, hydra_command
from runner.terminal.usage import EXIT_CODES, Usage
from runner.training.finished import (
    finished_before,
    shown_result,
    summaries_of_others,
    summary,
)
from runner.training.sharing import prepare

if TYPE_CHECKING:
    from runner.data.dataset import Dataset


def run(
    config: RunConfig, overrides: list[str], others: Sequence[Requested] = ()
) -> dict[str, Any]:
    """Start or resume the run of ``config``, or show its finished result; return a summary.

    Args:
        config: the configuration of the run.
        overrides: the words of the user.
        others: configurations that differ from ``config`` only in their evaluation, which are
            evaluated in the same pass over the images. The summary then has ``others``: their
            summaries, None for each that has no result.
    """
    require_device(config.device)
    require_package(config.logger)
    processes = from_environment()
    if processes.count > 1:  # an error of one evaluation would be one of all processes
        others = ()
    with Display(quiet=not processes.is_first) as display:
        with joined(processes, device_kind(config.device)):
            folder, status, result, found = _run(config, overrides, others, processes, display)
        display.result(result, str(folder.path))
    own = summary(status, folder, result)
    return {**own, "others": found} if found else own


def _run(
    config: RunConfig,
    overrides: list[str],
    others: Sequence[Requested],
    processes: Processes,
    display: Display,
) -> tuple[RunFolder, str, dict[str, Any], list[dict[str, Any] | None]]:
    """Return the folder of the run, how it came to its result, the result, and the others'."""
    _require_one_precision(config, processes)
    outputs = Path(config.outputs).expanduser()
    place = Path(config.run_dir).expanduser() if config.run_dir else None
    # The data may take minutes to read. Results that exist need no place that can be written.
    if not any((outputs if place is None else place.parent).glob("*/result.json")):
        require_writable(place or outputs)
    code = idea_of(config)
    if note := device_note(config.device):
        display.line(f"note: {note}")
    if not config.tricks and (own := own_overlays(overrides)):
        display.line(
            f"note: {', '.join(own)} turns on none of our tricks, so this run is called baseline; "
            "report --by KEY compares what it changes, --by all everything"
        )
    for note in words_without_effect(config, overrides):
        display.line(f"note: {note}")
    from runner.data.dataset import load_dataset
    from runner.data.shared import kept_dataset

    weights = None
    if config.names_weights:
        from runner.training.learners import fitted_to_weights

        config, weights = fitted_to_weights(config, display, code)
    with processes.first_alone():
        named = (config.data, config.largest_size, outputs / "cache")
        dataset = kept_dataset(*named) or load_dataset(*named, display.work)
    _print_notes(dataset, config, display)
    config, what = identified(config, dataset, weights.identity if weights else None, code)
    if not processes.have_same(int(what["identity"][:15], 16)):
        raise ConfigError(
            "the processes of this run do not have the same words, data, weights, code and version "
            "of trick-runner",
            where=f"WORLD_SIZE={processes.count}",
            fix="the same command and the same files on every machine",
        )
    if code is not None:
        display.line(f"code: {', '.join(code.lines)} of {code.name}, SHA-256 {code.sha256[:8]}…")
    name = folder_name(config, what["identity"])
    folder = RunFolder(place or outputs / name)
    is_auto = keys_with_auto(config)
    folder.check(what, is_auto)
    others = [other.of(config) for other in others]
    before = frozenset[str]() if config.force else frozenset(evaluations.names(folder))
    result = None if config.force else folder.whole_result()
    if result is not None:
        folder.drop_checkpoints()  # left by a process that was killed after writing the result
        if (shown := shown_result(folder, config, result)) is not None:
            display.line("finished before; force=true runs it anew")
            return folder, "skipped", shown, summaries_of_others(folder, others, before)
        display.line("trained before: only the evaluation with this tta is missing")
    elif not folder.is_begun and (begun := begun_with_another_auto(outputs, name, what, is_auto)):
        other, is_finished, words = begun
        status, does = ("finished", "shows") if is_finished else ("unfinished", "continues")
        display.line(
            f"note: {other.path.name} has the same settings and is {status}: {words} {does} it. On "
            "this machine, auto means another training, which begins now"
        )
    elif not folder.is_begun and (unfinished := unfinished_on_other_data(outputs, name, what)):
        display.line(
            f"note: {unfinished.path.name} has the same settings and is unfinished, but was "
            "trained on other data: it is not continued, and a new run begins"
        )
    from runner.training.experiment import Experiment
    from runner.training.session import evaluate_finished, train_and_evaluate
    from runner.tricks.idea import NO_IDEA, load_idea

    idea = load_idea(code) if code is not None else NO_IDEA
    experiment = Experiment(config, dataset, what, overrides, weights, idea, tuple(others))
    try:
        if result is not None:
            done = evaluate_finished(experiment, folder, result, display, processes)
        else:
            done = train_and_evaluate(experiment, folder, display, processes)
        return folder, *done, summaries_of_others(folder, others, before)
    except RunnerError as error:
        error.run = str(folder.path)
        raise


def _require_one_precision(config: RunConfig, processes: Processes) -> None:
    """Raise in every process if ``precision=auto`` is not the same for all of them."""
    if processes.count == 1:
        return
    device = device_kind(config.device)
    if device == "cuda":
        device = f"cuda:{own_gpu(processes.local_count, processes.local_rank)}"
    own = used_precision(config.precision, device)
    is_other = own != used_precision(config.precision, config.device)  # than in the identity
    if processes.any(is_other) or not processes.have_same(int(own == "bf16")):
        raise ConfigError(
            "the processes of this run have different hardware: precision=auto is bf16 for some of "
            "them and fp32 for others",
            where=f"precision={config.precision}",
            fix="precision=fp32",
        )


def _what_trains(config: RunConfig) -> str:
    """Return the network, where it is from, and the tricks, in one line."""
    model = config.model
    start = model.weights if model.weights is not None else "pretrained" * model.pretrained
    origin = ", ".join(filter(None, [model.source * (model.source != "xresnet"), start]))
    network = f"{model.name} ({origin})" if origin else model.name
    tricks = ", ".join(config.tricks) or "none"
    return f"network: {network}; tricks: {tricks}; seed: {config.seed}"


def _print_notes(dataset: "Dataset", config: RunConfig, display: Display) -> None:
    batch_size = config.data.batch_size
    display.line(
        f"{dataset.name}: {len(dataset.train):,} training and {len(dataset.val):,} validation "
        f"images in {len(dataset.classes)} classes"
    )
    display.line(_what_trains(config))
    if config.sampling.is_on:
        display.line(
            "note: each epoch draws its training images with replacement (sampling.power="
            f"{config.sampling.power:g}): some come several times, others not at all"
        )
        drawn = {*dataset.train.labels.tolist()}
        if empty := [name for at, name in enumerate(dataset.classes) if at not in drawn]:
            more = f" and {len(empty) - 10} more" if len(empty) > 10 else ""
            display.line(
                f"warning: no training image is of {', '.join(empty[:10])}{more}, so balanced "
                "sampling cannot draw any"
            )
        if config.loss.is_weighted:
            display.line(
                "note: class weights and balanced sampling both make up for the sizes of the "
                "classes; together, rare classes count more than frequent ones"
            )
    elif 0 < (left_out := len(dataset.train) % batch_size) < len(dataset.train):
        display.line(
            f"note: each epoch leaves out {left_out:,} of {len(dataset.train):,} training images, "
            f"others each time, because only whole batches of {batch_size} are trained on"
        )
    if dataset.is_streamed:
        display.line(
            "note: images are decoded again in each epoch, because data.cache_gb is too small for "
            "them; a larger data.cache_gb is faster if the disk has space"
        )
    for note in dataset.notes:
        display.line(f"note: {note}")
    if dataset.skipped:
        display.line(f"warning: {len(dataset.skipped)} broken images left out:")
        shown = dataset.skipped[:10]
        for name, (_, reason) in zip(
            distinguishable([name for name, _ in shown]), shown, strict=True
        ):
            display.line(f"  {name}: {reason}")
    if dataset.leaked:
        first, second = distinguishable(dataset.leaked[0])
        display.line(
            f"warning: {len(dataset.leaked)} of {len(dataset.val)} validation images are in "
            f"training too, such as {first} = {second}"
        )


_USAGE = Usage(
    "Train an image classifier and see what a training trick changes.",
    (
        ("", "the baseline"),
        ("+trick=mixup seed=3", "one trick"),
        ("'+trick=[mixup,tta]'", "several"),
        ("-m '+trick=baseline,mixup' seed=0,1,2", "a sweep"),
        ("data=folder data.root=PATH", "your own images"),
        ("-m code=null,my_idea.py seed=0,1,2", "your own idea"),
    ),
    can_sweep=True,
    notes="The same command again resumes a run that was interrupted or killed, and prints\n"
    "the result of a finished run. python -m runner.show lists all runs.\n\n" + EXIT_CODES,
)


def rate_of(config: RunConfig) -> Rate:
    """Import what trains ``config``, for this process and its forks; return what measures that."""
    from runner.training import rate
    from runner.training.sharing import import_what_trains

    import_what_trains(config.model.source)
    return partial(rate.training_rate, config)


WORK = Work(run, finished_before, can_share=True, prepare=prepare, rate_of=rate_of)
"""What a job of this command does."""

if __name__ != "__main__":
    make_callable(__name__)


def main() -> None:
    """Run the command; see ``--help``."""
    hydra_command("train", WORK, _USAGE)


if __name__ == "__main__":
    main()
