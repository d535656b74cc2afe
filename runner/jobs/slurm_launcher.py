"""Hydra's launcher for Slurm, which here submits jobs and does not wait for them."""

from collections.abc import Sequence
from pathlib import Path

import submitit
from hydra.core.singleton import Singleton
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher


class SlurmArray(SlurmLauncher):  # type: ignore[misc]  # Hydra is untyped to mypy
    """Submits jobs as arrays.

    The plugin's own ``launch`` waits for the jobs, and gives all of them up when one dies. Its
    ``__call__`` is what runs on a node, and its ``checkpoint`` lets submitit queue a job again.
    """

    def submit(self, jobs: Sequence[Sequence[str]], folder: Path, at_once: int) -> list[str]:
        """Submit jobs as one array; return the id of each, such as ``12_3``, without waiting.

        Args:
            jobs: the words of each job.
            folder: where submitit puts the script, what the jobs read, and Slurm's own logs.
            at_once: how many of them may run at the same time.

        Raises:
            Exception: whatever submitit raises; ``sbatch`` has refused the jobs, or there is none.
        """
        values = {name: value for name, value in self.params.items() if value is not None}
        values.pop("submitit_folder")
        if values["name"] == self.config.hydra.job.name:  # none of the user's
            values["name"] = f"sweep-{folder.parent.name}"  # until a job begins, and says its run
        values["array_parallelism"] = at_once
        countdown = values.pop("max_num_timeout")
        # Some clusters requeue only jobs that ask for it: preemption and time limits need it.
        extra = {"requeue": True, **(values.pop("additional_parameters", None) or {})}
        values["additional_parameters"] = {
            name: value for name, value in extra.items() if value is not None
        }
        executor = submitit.AutoExecutor(
            folder=folder / "%j", cluster="slurm", slurm_max_num_timeout=countdown
        )
        generic = {*BaseQueueConf.__dataclass_fields__}
        executor.update_parameters(
            **{name if name in generic else f"slurm_{name}": it for name, it in values.items()}
        )
        # As the plugin's own `launch` calls `__call__`.
        state = Singleton.get_state()
        arguments = [
            (list(words), "hydra.sweep.dir", at, f"job_id_for_{at}", state)
            for at, words in enumerate(jobs)
        ]
        return [str(job.job_id) for job in executor.map_array(self, *zip(*arguments, strict=True))]
