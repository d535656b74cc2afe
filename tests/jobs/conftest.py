"""What tests of sweeps on Slurm have in common."""

import pytest
from fake_cluster import Cluster

from runner.jobs import overview, states
from runner.machine import slurm


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(slurm, "queue", made.queue)
    monkeypatch.setattr(overview, "_QUEUE_SECONDS", 0)
    monkeypatch.setattr(states, "LATE_SECONDS", 0)
    return made
