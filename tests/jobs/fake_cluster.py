"""A Slurm that answers what a test wants, and sweeps whose jobs it has."""

import json
from collections.abc import Iterable
from pathlib import Path

from runner.errors import StorageError
from runner.machine.slurm import QueuedJob
from runner.records.sweep_folder import SlurmRecord, SweepFolder

JOBS = [["model=timm", f"seed={seed}"] for seed in range(4)]
DEAD = 2**22 + 1  # no process has such an id


class Cluster:
    """A Slurm that answers what a test wants."""

    def __init__(self) -> None:
        self.jobs: dict[str, QueuedJob] = {}
        self.problem = ""
        self.asked: list[list[str]] = []

    def queue(self, ids: Iterable[str]) -> dict[str, QueuedJob]:
        self.asked.append(sorted(ids))
        if self.problem:
            raise StorageError(self.problem)
        return {one: job for one, job in self.jobs.items() if one in self.asked[-1]}

    def put(self, one: str, state: str, reason: str = "", node: str = "") -> None:
        self.jobs[one] = QueuedJob(one, state, reason, node)


def submitted(outputs: Path, jobs: list[list[str]] = JOBS) -> SweepFolder:
    """A sweep whose jobs Slurm has, and whose process has ended."""
    folder = SweepFolder.create(outputs, jobs)
    edit(folder, "sweep.json", pid=DEAD)
    for number in range(len(jobs)):
        folder.write(number, "queued")
    folder.submitted({number: SlurmRecord(f"7_{number}", None, number) for number in range(4)})
    return folder


def edit(folder: SweepFolder, name: str, **values: object) -> None:
    path = folder.path / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
