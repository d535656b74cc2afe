"""How many jobs train at the same time on the CPU, with how many threads each: by a measurement.

One job with all cores, a job per core, or a split between them: which is fastest depends on the
network, the images and the machine. The measurement takes a few seconds and is kept in the cache of
the outputs, because the number of threads decides the rounding of a run: the same command must find
the same number again.
"""

import json
import resource
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from runner.config.schema import RunConfig
from runner.errors import StorageError
from runner.machine import fields
from runner.machine.children import Barrier, answer_of_child, answers_of_children, can_fork
from runner.machine.files import memory, read_whole, replace_whole
from runner.machine.hardware import cpu_name, device_kind, used_precision
from runner.machine.locks import locked
from runner.terminal.start import Rate

FEWEST_JOBS = 3
"""With fewer jobs, the measurement would take longer than it saves."""
_SECONDS = 1.5  # seconds of the measurement of a split
_LARGEST = 2**20  # bytes of the kept measurements
_PART = 2  # all jobs together get at most one in so many bytes of the memory


@dataclass(frozen=True)
class Split:
    """A split of the cores among jobs.

    Attributes:
        at_once: number of jobs at the same time.
        threads: number of threads of each job.
        note: what was measured.
    """

    at_once: int
    threads: int
    note: str


def measured_split(
    config: RunConfig, rate_of: Callable[[RunConfig], Rate], cores: int, num_jobs: int
) -> Split | None:
    """Choose the split with which jobs like that of ``config`` are done soonest.

    Args:
        config: the configuration of one of the jobs.
        rate_of: returns what measures the training of a configuration; it may import torch.
        cores: number of cores that the jobs may use.
        num_jobs: number of jobs.

    Returns:
        None if there is nothing to choose, or if nothing could be measured: a job reports its
        errors itself.
    """
    if cores < 2 or num_jobs < FEWEST_JOBS or not can_fork() or device_kind(config.device) != "cpu":
        return None
    kept = Path(config.outputs).expanduser() / "cache" / "training-rates.json"
    key = _key(config, cores)
    with ExitStack() as stack:
        with suppress(StorageError):  # where nothing can be locked, the measurement counts as well
            # Another sweep measures now, and one measurement would be the load of the other.
            stack.enter_context(locked(kept.with_suffix(".lock")))
        rates = _read(kept).get(key)
        if rates is None:
            try:
                rates = _measured(config, rate_of, cores)
            except (RuntimeError, OSError):  # such as a network that the job refuses with a reason
                return None
            with suppress(StorageError):  # the jobs report a full disk
                replace_whole(kept, json.dumps({**_read(kept), key: rates}).encode())
    by_number = {int(number): found for number, found in rates.items()}
    at_once = fastest(by_number, num_jobs)
    threads = max(1, cores // min(at_once, num_jobs))
    note = (
        f"{min(at_once, num_jobs)} of {num_jobs} jobs at a time, each with {threads} "
        f"thread{'s' * (threads > 1)}: {_shown(by_number, cores)}; "
        f"without {kept}, it is measured again"
    )
    return Split(min(at_once, num_jobs), threads, note)


def splits(cores: int) -> list[int]:
    """Return the numbers of jobs at a time: from one to one per core, which is halved each time."""
    return [cores >> shift for shift in reversed(range(cores.bit_length()))]


def fastest(rates: Mapping[int, float], num_jobs: int) -> int:
    """Return the number of jobs at a time with which ``num_jobs`` equal jobs are done soonest.

    Args:
        rates: images per second of all jobs together, by the number of jobs at a time.
        num_jobs: number of jobs; the last round of them may leave cores unused.
    """

    def seconds(at_once: int) -> float:
        rounds = -(-num_jobs // at_once)
        return rounds * at_once / rates[at_once]

    return min(sorted(rates, reverse=True), key=seconds)


def _measured(
    config: RunConfig, rate_of: Callable[[RunConfig], Rate], cores: int
) -> dict[str, float]:
    """Measure splits in children of a child: neither this process nor that one computes.

    The child imports torch once for all of its children, and leaves this process without it. One
    job is measured first; more at a time only as long as memory suffices for them.

    Raises:
        RuntimeError: nothing could be measured, with the reason.
    """

    def measure() -> str:
        rate = rate_of(config)

        def measured(at_once: int) -> list[tuple[float, int]]:
            begin, end = Barrier(), Barrier()

            def ask() -> str:
                return json.dumps((rate(max(1, cores // at_once), begin, end, _SECONDS), _peak()))

            return [*map(json.loads, answers_of_children([ask] * at_once, (begin, end)))]

        found, most = dict[int, float](), 1
        for at_once in splits(cores):
            if at_once > most:
                break
            try:
                rates, peaks = zip(*measured(at_once), strict=True)
            except RuntimeError:  # such as memory that does not suffice
                if not found:
                    raise
                break
            found[at_once] = sum(rates)
            most = memory() // _PART // max(peaks)
        return json.dumps(found)

    found: dict[str, float] = json.loads(answer_of_child(measure))
    return found


def _peak() -> int:
    """Return the most memory that this process has used, in bytes."""
    return 2**10 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux


def _shown(rates: Mapping[int, float], cores: int) -> str:
    """Return what was measured, for the user."""
    parts = [
        f"{rates[at_once]:,.0f} images/s by {at_once} × {max(1, cores // at_once)}"
        for at_once in sorted(rates)
    ]
    return f"measured {', '.join(parts)} (jobs × threads)"


def _key(config: RunConfig, cores: int) -> str:
    """Return everything that a measurement depends on."""
    parts = (
        cpu_name(), cores, version("torch"), config.model.source, config.model.name,
        config.model.num_outputs,
        config.size, config.data.batch_size // config.accumulate.steps,
        used_precision(config.precision, "cpu"), config.optim.name,
    )  # fmt: skip
    return " | ".join(map(str, parts))


def _read(path: Path) -> dict[str, dict[str, float]]:
    """Return the kept measurements; those that cannot be read are made again."""
    found = dict[str, dict[str, float]]()
    with suppress(OSError, ValueError, AttributeError, TypeError):
        for key, rates in fields.parsed(read_whole(path, at_most=_LARGEST)).items():
            if rates and all(int(number) > 0 and rate > 0 for number, rate in rates.items()):
                found[key] = rates
    return found
