"""The refusals of Slurm, with the keys of ``hydra.launcher`` to change."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from runner.errors import ConfigError
from runner.machine.slurm import Limits


class _Refusal(NamedTuple):
    """A line of ``sbatch``, and what to change.

    Attributes:
        said: pattern of the line.
        keys: the keys below ``hydra.launcher`` that may be the cause; the first is the one to
            change if the user set none of them.
        advice: what is allowed, or the command that lists it.
    """

    said: str
    keys: tuple[str, ...]
    advice: str


class _Never(NamedTuple):
    """A reason of the queue that never passes, and what to change.

    Attributes:
        reason: pattern of the whole reason, because ``QOSMaxGRESPerJob`` never passes and
            ``QOSMaxGRESPerUser`` does.
        keys: as of :class:`_Refusal`.
        advice: what is allowed, or the command that lists it.
        meaning: the reason in plain words.
    """

    reason: str
    keys: tuple[str, ...]
    advice: str
    meaning: str


_GPUS = ("gpus_per_node", "gpus_per_task", "gres", "cpus_per_gpu", "mem_per_gpu")
_MEMORY = ("mem_gb", "mem_per_cpu", "mem_per_gpu")
_CORES = ("cpus_per_task", "tasks_per_node")
_SIZE = (*_CORES, "nodes")
_ALL = (*_SIZE, *_GPUS, *_MEMORY)
_LICENSES = ("additional_parameters.licenses",)
_RESERVATION = ("additional_parameters.reservation",)
_NODES, _ACCOUNTS = "sinfo lists partitions and nodes", "sacctmgr show associations user=$USER"
_LIMITS = "sacctmgr show qos and show associations list the limits"

_NEVER = (
    _Never(r"QOSNotAllowed|AccountNotAllowed|(Job|User)'s .*use this partition.*",
           ("account", "qos", "partition"), _ACCOUNTS,
           "the partition does not take jobs of this account or QOS"),
    _Never(r"InvalidQOS", ("qos",), "sacctmgr show qos lists them", "there is no such QOS"),
    _Never(r"InvalidAccount", ("account", "partition"), _ACCOUNTS,
           "the account may not submit jobs here"),
    _Never(r"PartitionTimeLimit", ("timeout_min", "partition"),
           "sinfo -o '%P %l' lists the limits",
           "the jobs ask for more time than the partition allows"),
    _Never(r"(QOS|Assoc)MaxWall\w*PerJob(Limit)?", ("timeout_min", "qos"), _LIMITS,
           "the jobs ask for more time than the QOS or account allows"),
    *(
        _Never(rf"(QOS|Assoc)Max{what}Per(Job|Node)(Limit)?", (*keys, "qos"), _LIMITS,
               "a job asks for more than the QOS or account allows")
        for what, keys in {
            r"(?!Wall)\w+Minutes": ("timeout_min", *_ALL),
            "C(pu|PU)": _CORES,
            r"Mem\w*": _MEMORY,
            "GRES": _GPUS,
            "Node": ("nodes",),
            "License": _LICENSES,
            "(BB|Billing|Energy|Unknown)": _ALL,
        }.items()
    ),
    _Never(r"MaxMemPerLimit", _MEMORY, "scontrol show config lists the limit, MaxMemPer…",
           "a job asks for more memory than the cluster allows"),
    _Never(r"QOSMin\w+", (*_ALL, "qos"), "sacctmgr show qos lists the limits",
           "a job asks for less than the QOS wants"),
    _Never(r"PartitionNodeLimit", (*_SIZE, "partition"),
           "scontrol show partition lists the limits",
           "a job asks for more, or fewer, nodes than the partition allows"),
    _Never(r"PartitionConfig", (*_ALL, "constraint", "partition"),
           "sinfo -o '%P %c %m %G' lists the cores, MB and GPUs of the nodes",
           "the jobs ask for more than a node of the partition has"),
    _Never(r"BadConstraints", ("constraint", *_GPUS, *_MEMORY, *_SIZE), _NODES,
           "no node can be what the jobs ask for"),
    _Never(r"ReservationDeleted", _RESERVATION, "scontrol show reservations lists them",
           "the reservation is gone"),
    _Never(r"DependencyNeverSatisfied", ("additional_parameters.dependency",),
           "squeue --me lists your jobs", "a job before has failed"),
)  # fmt: skip

_REFUSALS = (
    _Refusal(r"[Ii]nvalid partition name|invalid partition specified|[Nn]o partition specified|"
             r"group not permitted to use this partition", ("partition",), _NODES),
    _Refusal(r"[Ii]nvalid qos", ("qos",), "sacctmgr show qos lists them"),
    _Refusal(r"[Ii]nvalid account", ("account", "partition"), _ACCOUNTS),
    _Refusal(r"time limit is invalid|[Ii]nvalid --time|PartitionTimeLimit",
             ("timeout_min", "partition"), "sinfo -o '%P %l' lists the limits"),
    # The lines that say which limit come before the line that says "violates".
    _Refusal(r"(QOS|Assoc)\w*(Wall|Minutes)", ("timeout_min", "qos"), _LIMITS),
    _Refusal(r"(QOS|Assoc)\w*GRES", (*_GPUS, "qos"), _LIMITS),
    _Refusal(r"(QOS|Assoc)\w*Mem", (*_MEMORY, "qos"), _LIMITS),
    _Refusal(r"(QOS|Assoc)\w*C(pu|PU)", (*_CORES, "qos"), _LIMITS),
    _Refusal(r"(QOS|Assoc)\w*Node", ("nodes", "qos"), _LIMITS),
    _Refusal(r"violates accounting/QOS policy", ("timeout_min", *_ALL, "qos", "account"), _LIMITS),
    _Refusal(r"[Mm]emory (specification|required|request|limit)|--mem\b", _MEMORY,
             "sinfo -o '%P %m' lists the MB of the nodes"),
    _Refusal(r"[Gg]eneric resource|\bgres\b|--gpus|--gres|GRES|did not request any GPU", _GPUS,
             "sinfo -o '%P %G' lists the GPUs of the nodes; "
             "without the key, a job has none"),
    _Refusal(r"CPU count|[Mm]ore processors|--cpus-per-task", _CORES,
             "sinfo -o '%P %c' lists the cores of the nodes"),
    _Refusal(r"[Nn]ode count", ("nodes", "partition"), _NODES),
    _Refusal(r"[Ii]nvalid node name", ("exclude", "additional_parameters.nodelist"), _NODES),
    _Refusal(r"[Ii]nvalid feature", ("constraint",), "sinfo -o '%P %f' lists the features"),
    _Refusal(r"(node|partition) configuration (is )?not available",
             (*_ALL, "constraint", "partition"),
             "sinfo -o '%P %c %m %G' lists the cores, MB and GPUs of the nodes"),
    _Refusal(r"[Rr]eservation is invalid", _RESERVATION, "scontrol show reservations lists them"),
    _Refusal(r"[Ii]nvalid license", _LICENSES, "scontrol show licenses lists them"),
    _Refusal(r"--mail", ("additional_parameters.mail-type", "additional_parameters.mail-user"),
             "such as hydra.launcher.additional_parameters.mail-type=END"),
)  # fmt: skip


def refused(said: str, launcher: Mapping[str, Any]) -> ConfigError | None:
    """Return the error for a request that ``sbatch`` refuses, with the key to change.

    Args:
        said: what ``sbatch`` wrote.
        launcher: the values of ``hydra.launcher``.

    Returns:
        The error; None if what it wrote is about no key.
    """
    if match := re.search(r"\w*Submit\w*Limit|MaxJobCount|[Jj]ob count limit", said):
        return ConfigError(
            f"Slurm has as many of your jobs as it takes: {_line(said, match.start())}",
            where="hydra/launcher=submitit_slurm",
            fix="the same command with fewer jobs; or again when some of the jobs that "
            "squeue --me lists have ended",
        )
    for refusal in (*_REFUSALS, *_of_option(said)):
        if match := re.search(refusal.said, said):
            return _error(_line(said, match.start()), refusal.keys, refusal.advice, launcher)
    return None


def never_begins(reason: str, launcher: Mapping[str, Any]) -> ConfigError | None:
    """Return the error for jobs that Slurm has taken and will never begin, with the key to change.

    Args:
        reason: for which a job waits in the queue, such as ``PartitionTimeLimit``.
        launcher: the values of ``hydra.launcher``.

    Returns:
        The error; None if the reason may pass by itself, as when nodes are busy or a limit of the
        user is reached, or is not known.
    """
    for never in _NEVER:
        if re.fullmatch(never.reason, reason.strip().replace("_", " ")):
            what = f"{never.meaning} ({reason})"
            return _error(what, never.keys, never.advice, launcher)
    return None


def _error(
    what: str, keys: tuple[str, ...], advice: str, launcher: Mapping[str, Any]
) -> ConfigError:
    return ConfigError(
        f"Slurm cannot run these jobs: {what}",
        where=" ".join(_as_set(keys, launcher)),
        fix=f"hydra.launcher.{_to_change(keys, launcher)}=VALUE; {advice}",
    )


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
                f"the partition {limits.name} has at most {math.floor(10 * most) / 10:g} {what}, "
                f"and a job asks for {value:g}",
                where=f"hydra.launcher.{key}={launcher.get(key)}",
                fix=f"hydra.launcher.{key}={largest}"
                if largest
                else "hydra.launcher.tasks_per_node=1",
            )


def _of_option(said: str) -> list[_Refusal]:
    """Return the refusal of an option of ``sbatch`` that its message names, such as ``--nice``."""
    found = re.search(r"--([a-z][a-z-]+)", said)
    if found is None or "sbatch" not in said:
        return []
    return [_Refusal("--", (f"additional_parameters.{found[1]}",), "man sbatch lists its options")]


def _line(said: str, at: int) -> str:
    """Return the line of ``sbatch`` at a place, without the words with which each line begins."""
    line = said[said.rfind("\n", 0, at) + 1 :].partition("\n")[0]
    return re.sub(r"^(\w+: )?(error: |fatal: )?(Batch job submission failed: )?", "", line)


def _value(key: str, launcher: Mapping[str, Any]) -> Any:
    group, _, name = key.rpartition(".")
    values = launcher.get(group) if group else launcher
    return values.get(name) if isinstance(values, Mapping) else None


def _as_set(keys: tuple[str, ...], launcher: Mapping[str, Any]) -> list[str]:
    """Return the keys that have a value, as words."""
    found = {key: _value(key, launcher) for key in keys}
    words = [f"hydra.launcher.{key}={value}" for key, value in found.items() if value is not None]
    return words or [f"hydra.launcher.{keys[0]}"]


def _to_change(keys: tuple[str, ...], launcher: Mapping[str, Any]) -> str:
    return next((key for key in keys if _value(key, launcher) is not None), keys[0])
