"""What Slurm says when it refuses a request, with the key of ``hydra.launcher`` to change."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from runner.errors import ConfigError
from runner.machine.slurm import Limits


class _Refusal(NamedTuple):
    """What Slurm says, and what can be changed.

    Attributes:
        said: pattern of a line of ``sbatch``, or of a reason in the queue.
        keys: the keys below ``hydra.launcher`` that may be the cause; the first is the one to
            change if the user set none of them.
        advice: what is allowed, or the command that lists it.
        meaning: the reason of the queue in plain words; empty for a line of ``sbatch``, which is
            one already.
    """

    said: str
    keys: tuple[str, ...]
    advice: str
    meaning: str = ""


_GPUS = ("gpus_per_node", "gpus_per_task", "gres", "cpus_per_gpu", "mem_per_gpu")
_MEMORY = ("mem_gb", "mem_per_cpu", "mem_per_gpu")
_SIZE = ("cpus_per_task", "tasks_per_node", "nodes")
_NODES, _ACCOUNTS = "sinfo lists partitions and nodes", "sacctmgr show associations user=$USER"
_PER_JOB = r"(Cpu|CPU|Node|GRES|Mem|BB)\w*PerJob"

_REFUSALS = (
    _Refusal(r"QOSNotAllowed|AccountNotAllowed|use this partition \(",
             ("account", "qos", "partition"), _ACCOUNTS,
             "the partition does not take jobs of this account or QOS"),
    _Refusal(r"[Ii]nvalid partition name|invalid partition specified|[Nn]o partition specified|"
             r"group not permitted to use this partition", ("partition",), _NODES),
    _Refusal(r"\bInvalidQOS\b", ("qos",), "sacctmgr show qos lists them", "there is no such QOS"),
    _Refusal(r"[Ii]nvalid qos", ("qos",), "sacctmgr show qos lists them"),
    _Refusal(r"\bInvalidAccount\b", ("account", "partition"),
             _ACCOUNTS, "the account may not submit jobs here"),
    _Refusal(r"[Ii]nvalid account", ("account", "partition"), _ACCOUNTS),
    _Refusal(r"PartitionTimeLimit", ("timeout_min", "partition"),
             "sinfo -o '%P %l' lists the limits",
             "the jobs ask for more time than the partition allows"),
    _Refusal(r"(QOS|Assoc)MaxWall\w*PerJob|QOSTimeLimit|AssociationTimeLimit",
             ("timeout_min", "qos"), "sacctmgr show qos and show associations list the limits",
             "the jobs ask for more time than the QOS or account allows"),
    _Refusal(r"time limit is invalid|[Ii]nvalid --time", ("timeout_min", "partition"),
             "sinfo -o '%P %l' lists the limits"),
    _Refusal(rf"(QOS|Assoc)Max{_PER_JOB}|QOSMin\w+|PartitionNodeLimit",
             (*_SIZE, *_GPUS, *_MEMORY, "qos"), "sacctmgr show qos and sinfo list the limits",
             "a job asks for more, or less, than the partition, QOS or account allows"),
    _Refusal(r"violates accounting/QOS policy",
             ("timeout_min", *_SIZE, *_GPUS, *_MEMORY, "qos", "account"),
             "sacctmgr show qos and show associations list the limits"),
    _Refusal(r"[Mm]emory|--mem\b", _MEMORY, "sinfo -o '%P %m' lists the MB of the nodes"),
    _Refusal(r"[Gg]eneric resource|\bgres\b|--gpus|--gres|GRES", _GPUS,
             "sinfo -o '%P %G' lists the GPUs of the nodes"),
    _Refusal(r"CPU count|[Mm]ore processors|--cpus-per-task", ("cpus_per_task", "tasks_per_node"),
             "sinfo -o '%P %c' lists the cores of the nodes"),
    _Refusal(r"[Nn]ode count", ("nodes", "partition"), _NODES),
    _Refusal(r"[Ii]nvalid node name", ("exclude", "additional_parameters.nodelist"), _NODES),
    _Refusal(r"[Ii]nvalid feature", ("constraint",), "sinfo -o '%P %f' lists the features"),
    _Refusal(r"BadConstraints", ("constraint", *_GPUS, *_MEMORY, *_SIZE), _NODES,
             "no node can be what the jobs ask for"),
    _Refusal(r"PartitionConfig|(node|partition) configuration (is )?not available",
             (*_SIZE, *_GPUS, *_MEMORY, "constraint", "partition"),
             "sinfo -o '%P %c %m %G' lists the cores, MB and GPUs of the nodes",
             "the jobs ask for more than a node of the partition has"),
    _Refusal(r"[Rr]eservation is invalid", ("additional_parameters.reservation",),
             "scontrol show reservations lists them"),
    _Refusal(r"[Ll]icense", ("additional_parameters.licenses",),
             "scontrol show licenses lists them"),
    _Refusal(r"mail", ("additional_parameters.mail-type", "additional_parameters.mail-user"),
             "such as hydra.launcher.additional_parameters.mail-type=END"),
)  # fmt: skip


def refused(said: str, launcher: Mapping[str, Any]) -> ConfigError | None:
    """The error for a request that Slurm refuses for good, with the key to change.

    Args:
        said: what ``sbatch`` wrote, or the reason for which a job waits in the queue, such as
            ``PartitionTimeLimit``.
        launcher: the values of ``hydra.launcher``.

    Returns:
        The error; None if the cause may pass by itself, as when nodes are busy, or is not known.
    """
    for refusal in (*_REFUSALS, *_of_option(said)):
        if match := re.search(refusal.said, said):
            line = _line(said, match.start())
            is_reason = refusal.meaning and line == said.strip()
            return ConfigError(
                "Slurm cannot run these jobs: "
                + (f"{refusal.meaning} ({line})" if is_reason else line),
                where=" ".join(_as_set(refusal.keys, launcher)),
                fix=f"hydra.launcher.{_to_change(refusal.keys, launcher)}=VALUE; {refusal.advice}",
            )
    return None


def require_possible(launcher: Mapping[str, Any], limits: Limits) -> None:
    """Raise if jobs ask for more than their partition has, which some clusters let wait for ever.

    Args:
        launcher: the values of ``hydra.launcher``.
        limits: of the partition.

    Raises:
        ConfigError: naming the key to change, and the largest value.
    """
    cores = (launcher.get("cpus_per_task") or 1) * (launcher.get("tasks_per_node") or 1)
    wanted = {
        # A QOS may allow more time than its partition; the queue says so if it does not.
        "timeout_min": (None if launcher.get("qos") else launcher.get("timeout_min"),
                        limits.max_minutes, "minutes"),
        "cpus_per_task": (cores, limits.cores_per_node, "cores of a node"),
        "mem_gb": (launcher.get("mem_gb"), limits.memory_gb, "GB of a node"),
    }  # fmt: skip
    for key, (value, most, what) in wanted.items():
        if value is not None and most is not None and value > most:
            largest = int(most)
            if key == "cpus_per_task":
                largest //= launcher.get("tasks_per_node") or 1
            raise ConfigError(
                f"the partition {limits.name} has at most {most:g} {what}, and a job asks for "
                f"{value:g}",
                where=f"hydra.launcher.{key}={launcher.get(key)}",
                fix=f"hydra.launcher.{key}={largest}"
                if largest
                else "hydra.launcher.tasks_per_node=1",
            )


def _of_option(said: str) -> list[_Refusal]:
    """The refusal of an option of ``sbatch`` that its message names, such as ``--nice``."""
    found = re.search(r"--([a-z][a-z-]+)", said)
    if found is None or "sbatch" not in said:
        return []
    return [_Refusal("--", (f"additional_parameters.{found[1]}",), "man sbatch lists its options")]


def _line(said: str, at: int) -> str:
    """The line of ``sbatch`` at a place, without the words with which each line begins."""
    line = said[said.rfind("\n", 0, at) + 1 :].partition("\n")[0]
    return re.sub(r"^(\w+: )?(error: |fatal: )?(Batch job submission failed: )?", "", line)


def _value(key: str, launcher: Mapping[str, Any]) -> Any:
    group, _, name = key.rpartition(".")
    values = launcher.get(group) if group else launcher
    return values.get(name) if isinstance(values, Mapping) else None


def _as_set(keys: tuple[str, ...], launcher: Mapping[str, Any]) -> list[str]:
    """The keys that have a value, as words."""
    found = {key: _value(key, launcher) for key in keys}
    words = [f"hydra.launcher.{key}={value}" for key, value in found.items() if value is not None]
    return words or [f"hydra.launcher.{keys[0]}"]


def _to_change(keys: tuple[str, ...], launcher: Mapping[str, Any]) -> str:
    return next((key for key in keys if _value(key, launcher) is not None), keys[0])
