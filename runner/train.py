"""Train one configuration, or a sweep of them: ``python -m runner.train +trick=mixup seed=3``.

The command line is Hydra's. Torch is imported when training starts and not before, so that help,
configuration errors and finished runs answer at once.
"""

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from runner import compose, schema
from runner.display import Display
from runner.errors import RunnerError
from runner.records import VERSION, RunFolder
from runner.schema import RunConfig

if TYPE_CHECKING:
    from runner.data.dataset import Dataset


def run(config: RunConfig, overrides: list[str]) -> dict[str, Any]:
    """Train as ``config`` says unless that was done before; returns a summary of the result."""
    with Display() as display:
        for key in schema.without_effect(config):
            display.line(f"note: {key} has no effect in this configuration")
        from runner.data.dataset import load_dataset

        outputs = Path(config.outputs)
        dataset = load_dataset(config.data, config.size, outputs / "cache", display.work)
        _tell(dataset, display)
        run_identity = compose.identity(config, dataset.fingerprint, VERSION)
        folder = RunFolder(outputs / compose.folder_name(config, run_identity))
        result = None if config.force else folder.result()
        status = "done before" if result else "finished"
        if result is None:
            from runner.session import train_and_evaluate

            result = train_and_evaluate(config, dataset, folder, overrides, run_identity, display)
        else:
            display.line("finished before; force=true runs it anew")
    display.result(result, str(folder.path))
    metrics = result["metrics"]
    return {
        "status": status,
        "folder": str(folder.path),
        "accuracy": metrics["plain"]["accuracy"],
        "tta": metrics["tta"]["accuracy"] if "tta" in result["tricks"] else None,
    }


def _tell(dataset: "Dataset", display: Display) -> None:
    display.line(
        f"{dataset.name}: {len(dataset.train):,} training and {len(dataset.val):,} validation "
        f"images in {len(dataset.classes)} classes"
    )
    for note in dataset.notes:
        display.line(f"note: {note}")
    if dataset.skipped:
        display.line(f"warning: {len(dataset.skipped)} broken images left out:")
        for name, reason in dataset.skipped[:10]:
            display.line(f"  {name}: {reason}")
    if dataset.leaked:
        first, second = dataset.leaked[0]
        display.line(
            f"warning: {len(dataset.leaked)} images are in training and in validation, "
            f"such as {first} = {second}"
        )


def _job(composed: DictConfig) -> dict[str, Any]:
    """One job, as Hydra calls it."""
    config = compose.run_config(composed)
    return run(config, list(HydraConfig.get().overrides.task))


def main() -> None:
    """The command. Ends the process with the exit code of ``runner.errors``."""
    # Hydra's own handler would print a traceback and exit with 1; this hands the error to ours.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        compose.check_arguments(sys.argv[1:])
        compose.register()
        hydra.main(version_base="1.3", config_path=str(compose.CONF_DIR), config_name="config")(
            _job
        )()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `| head` closed our output; the run itself is complete or not
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        known = error if isinstance(error, RunnerError) else compose.translated(error)
        if known is None or os.environ.get("RUNNER_DEBUG"):
            traceback.print_exc()
        if known is None:
            print("this is a bug of trick-runner", file=sys.stderr)
            sys.exit(1)
        print(f"error: {known}", file=sys.stderr)
        sys.exit(known.exit_code)


if __name__ == "__main__":
    main()
