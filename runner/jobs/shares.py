"""What each job gets of the machine when several run at the same time."""

from dataclasses import dataclass

from omegaconf import DictConfig, read_write

from runner.machine.hardware import num_cores, num_gpus


@dataclass(frozen=True)
class Share:
    """The share of a job.

    Attributes:
        threads: threads for each process of a job if its configuration does not set them; 0 leaves
            the number open.
        num_slots: how many jobs may run at the same time if the launcher starts all of them at
            once; 0 for no limit.
    """

    threads: int = 0
    num_slots: int = 0


def share_of(config: DictConfig, kind: str, num_jobs: int) -> Share:
    """The share of each job of a launcher; sets the number of joblib's workers.

    Args:
        config: the composed configuration, with the launcher.
        kind: name of the launcher's class.
        num_jobs: how many jobs there are.
    """
    launcher, cores = config.hydra.launcher, num_cores()
    if kind == "JoblibLauncher":
        at_once = launcher.n_jobs if launcher.n_jobs > 0 else num_gpus() or cores
        with read_write(config):
            launcher.n_jobs = min(at_once, num_jobs)
        return Share(threads=max(1, cores // launcher.n_jobs))
    if kind == "LocalLauncher":
        per_task = launcher.cpus_per_task or 1
        if launcher.gpus_per_node:
            return Share(threads=per_task, num_slots=1)
        at_once = max(1, cores // (per_task * launcher.tasks_per_node))
        return Share(threads=per_task, num_slots=at_once)
    return Share()
