"""Errors of launchers and refusals of Slurm are told in plain words, with what to change."""

import pickle
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest

from runner.errors import ConfigError, RunnerError, StorageError, SweepError
from runner.jobs.reasons import explained
from runner.jobs.refusals import never_begins

VALUES: dict[str, Any] = {
    "timeout_min": 1440, "cpus_per_task": 4, "gpus_per_node": None, "tasks_per_node": 1,
    "mem_gb": None, "nodes": 1, "partition": "small", "qos": None, "account": None, "gres": None,
    "constraint": None, "exclude": None, "additional_parameters": {"mail-type": None},
}  # fmt: skip
FAILED = "sbatch: error: Batch job submission failed: "

# What sbatch says (Slurm 22.05), the values that were set, what is told of it, and the first key.
SUBMISSIONS: list[tuple[str, dict[str, Any], str, str]] = [
    (f"sbatch: error: invalid partition specified: nope\n{FAILED}Invalid partition name specified",
     {"partition": "nope"}, "invalid partition specified: nope", "partition=nope"),
    (f"{FAILED}No partition specified or system default partition",
     {"partition": None}, "No partition specified", "partition"),
    ("sbatch: error: Memory specification can not be satisfied\n"
     f"{FAILED}Requested node configuration is not available",
     {"mem_gb": 9000}, "Memory specification can not be satisfied", "mem_gb=9000"),
    ("sbatch: error: Invalid generic resource (gres) specification",
     {"gpus_per_node": 8}, "Invalid generic resource (gres) specification", "gpus_per_node=8"),
    ("sbatch: error: Invalid generic resource (gres) specification",
     {"gres": "gpu:9"}, "Invalid generic resource", "gres=gpu:9"),
    (f"{FAILED}Invalid account or account/partition combination specified",
     {"account": "me"}, "Invalid account", "account=me"),
    (f"{FAILED}Invalid qos specification", {"qos": "nope"}, "Invalid qos", "qos=nope"),
    (f"{FAILED}Requested time limit is invalid (missing or exceeds some limit)",
     {}, "Requested time limit is invalid", "timeout_min=1440"),
    (f"{FAILED}Requested node configuration is not available",
     {}, "Requested node configuration is not available", "cpus_per_task=4"),
    (f"{FAILED}Invalid feature specification", {"constraint": "x"}, "feature", "constraint=x"),
    (f"{FAILED}Invalid node name specified", {"exclude": "x"}, "node name", "exclude=x"),
    (f"{FAILED}User's group not permitted to use this partition", {}, "group", "partition=small"),
    (f"{FAILED}Job violates accounting/QOS policy (job submit limit, user's size and/or time "
     "limits)", {}, "Job violates accounting/QOS policy", "timeout_min=1440"),
    (f"sbatch: error: QOSMaxGRESPerUser\n{FAILED}Job violates accounting/QOS policy (job submit "
     "limit, user's size and/or time limits)", {}, "QOSMaxGRESPerUser", "gpus_per_node"),
    (f"sbatch: error: AssocMaxWallDurationPerJobLimit\n{FAILED}Job violates accounting/QOS policy",
     {}, "AssocMaxWallDurationPerJobLimit", "timeout_min=1440"),
    ("sbatch: error: CPU count per node can not be satisfied", {}, "CPU count", "cpus_per_task=4"),
    ("sbatch: error: Invalid --mail-type specification",
     {"additional_parameters": {"mail-type": "X"}}, "--mail-type",
     "additional_parameters.mail-type=X"),
    ("sbatch: unrecognized option '--foo=1'\nTry \"sbatch --help\" for more information",
     {"additional_parameters": {"foo": 1}}, "unrecognized option", "additional_parameters.foo=1"),
    (f"{FAILED}Requested reservation is invalid",
     {"additional_parameters": {"reservation": "x"}}, "reservation",
     "additional_parameters.reservation=x"),
]  # fmt: skip

REASONS = {  # of the queue
    "PartitionTimeLimit": "timeout_min=1440",
    "PartitionConfig": "cpus_per_task=4",
    "PartitionNodeLimit": "cpus_per_task=4",
    "BadConstraints": "cpus_per_task=4",
    "InvalidAccount": "partition=small",
    "InvalidQOS": "qos",
    "AccountNotAllowed": "partition=small",
    "Job's account not known, so it can't use this partition (small allows vip)": "partition=small",
    "QOSMaxWallDurationPerJobLimit": "timeout_min=1440",
    "AssocMaxWallDurationPerJobLimit": "timeout_min=1440",
    "QOSMaxCpuPerJobLimit": "cpus_per_task=4",
    "AssocMaxNodePerJobLimit": "nodes=1",
    "QOSMinCpuNotSatisfied": "cpus_per_task=4",
    "QOSMinGRES": "cpus_per_task=4",
    "QOSMaxNodePerJobLimit": "nodes=1",
    "QOSMaxGRESPerJob": "gpus_per_node",
    "AssocMaxGRESPerNode": "gpus_per_node",
    "QOSMaxMemoryPerJob": "mem_gb",
    "AssocMaxMemPerNode": "mem_gb",
    "QOSMaxCpuPerNode": "cpus_per_task=4",
    "AssocMaxCpuMinutesPerJobLimit": "timeout_min=1440",
    "QOSMaxLicensePerJob": "additional_parameters.licenses",
    "QOSMaxBillingPerJob": "cpus_per_task=4",
    "MaxMemPerLimit": "mem_gb",
    "QOSNotAllowed": "partition=small",
    "Job's_QOS_not_permitted_to_use_this_partition_(small_allows_a_not_b)": "partition=small",
    "ReservationDeleted": "additional_parameters.reservation",
    "DependencyNeverSatisfied": "additional_parameters.dependency",
}  # fmt: skip
_RESOURCES = (
    "BB",
    "Billing",
    "Cpu",
    "Energy",
    "GRES",
    "License",
    "Mem",
    "Memory",
    "Node",
    "Unknown",
)
PASSING = (
    "Resources", "Priority", "Dependency", "JobArrayTaskLimit", "BeginTime", "PartitionDown",
    "PartitionInactive", "NodeDown", "ReqNodeNotAvail, UnavailableNodes:node1",
    "ReqNodeNotAvail, UnavailableNodes:gres-01,mail-2", "ReqNodeNotAvail, Reserved for maintenance",
    "Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs_in_higher_priority_partitions",
    "Licenses", "Reservation", "JobHeldUser", "JobHeldAdmin", "launch failed requeued held",
    "QOSMaxJobsPerUserLimit", "QOSMaxJobsPerAccount", "AssocMaxJobsLimit", "QOSGrpWallLimit",
    "AssocGrpWallLimit", "QOSUsageThreshold", "QOSResourceLimit", "QOSJobLimit", "QOSTimeLimit",
    "AssociationJobLimit", "AssociationResourceLimit", "AssociationTimeLimit",
    "QOSMaxSubmitJobPerUserLimit", "Cleaning", "None", "",
    *(f"QOSMax{one}Per{who}{limit}" for one in _RESOURCES for who in ("User", "Account")
      for limit in ("", "Limit")),
    *(f"{who}Grp{one}{rest}" for who in ("QOS", "Assoc") for one in _RESOURCES
      for rest in ("", "Limit", "Minutes", "RunMinutes", "MinutesLimit", "RunMinutesLimit")),
)  # fmt: skip


@pytest.mark.parametrize(("said", "values", "what", "key"), SUBMISSIONS)
def test_what_sbatch_refuses_names_the_key(
    said: str, values: dict[str, Any], what: str, key: str
) -> None:
    error = explained(RuntimeError(said), "SlurmLauncher", {**VALUES, **values}, "folder")
    assert isinstance(error, ConfigError)
    assert what in error.what
    assert "sbatch:" not in error.what
    assert error.where.split()[0] == f"hydra.launcher.{key}"
    assert error.fix.startswith(f"hydra.launcher.{key.partition('=')[0]}=VALUE; ")


@pytest.mark.parametrize(("reason", "key"), REASONS.items())
def test_a_reason_that_does_not_pass_is_a_refusal(reason: str, key: str) -> None:
    error = never_begins(reason, VALUES)
    assert error is not None
    assert f"({reason})" in error.what
    assert error.where.split()[0] == f"hydra.launcher.{key}"


@pytest.mark.parametrize("reason", PASSING)
def test_a_reason_that_may_pass_is_no_refusal(reason: str) -> None:
    assert never_begins(reason, VALUES) is None


@pytest.mark.parametrize(
    "limit", ["AssocMaxSubmitJobLimit", "QOSMaxSubmitJobPerUserLimit", "AssocGrpSubmitJobsLimit"]
)
def test_a_limit_of_jobs_is_no_fault_of_a_key(limit: str) -> None:
    said = f"sbatch: error: {limit}\n{FAILED}Job violates accounting/QOS policy (job submit limit)"
    error = explained(RuntimeError(said), "SlurmLauncher", VALUES, "folder")
    assert isinstance(error, ConfigError)
    assert limit in error.what
    assert "VALUE" not in error.fix
    assert "fewer jobs" in error.fix


def test_a_machine_without_memory_is_no_fault_of_mem_gb() -> None:
    error = explained(
        RuntimeError(f"{FAILED}Unable to allocate memory"), "SlurmLauncher", VALUES, "folder"
    )
    assert "mem_gb" not in error.where + error.fix


ERRORS: list[tuple[str, Exception, type[RunnerError], str, str]] = [
    ("SlurmLauncher", RuntimeError('Could not detect "srun", are you indeed on a slurm cluster?'),
     ConfigError, "Slurm is not installed here: there is no sbatch", "hydra/launcher=joblib"),
    ("SlurmLauncher", RuntimeError(f"{FAILED}Unable to contact slurm controller (connect failure)"),
     StorageError, "Slurm does not answer: ", "scontrol ping"),
    ("SlurmLauncher", RuntimeError("sbatch: error: something new"),
     SweepError, "hydra/launcher=submitit_slurm could not run the jobs: RuntimeError: sbatch: "
     "error: something new", "leave hydra/launcher out"),
    ("JoblibLauncher", ModuleNotFoundError("No module named 'joblib'", name="joblib"),
     ConfigError, "the launcher needs joblib", "pip install 'trick-runner[parallel]'"),
    ("LocalLauncher", ModuleNotFoundError("No module named 'submitit'", name="submitit"),
     ConfigError, "the launcher needs submitit", "pip install 'trick-runner[slurm]'"),
    ("JoblibLauncher", pickle.PicklingError("Can't pickle <function f>"),
     ConfigError, "sent to other processes: Can't pickle <function f>", "leave hydra/launcher out"),
    ("JoblibLauncher", BrokenProcessPool("A process in the process pool was terminated abruptly"),
     SweepError, "a worker process died: it was killed, or memory ran out", "n_jobs=1"),
    ("LocalLauncher", BlockingIOError(11, "Resource temporarily unavailable"),
     StorageError, "no further process can be started", "ulimit -u"),
    ("LocalLauncher", OSError(28, "No space left on device", "file"),
     StorageError, "No space left on device", "free space"),
    ("JoblibLauncher", StorageError("the disk is full", fix="space"),
     StorageError, "the disk is full", "space"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "error", "becomes", "what", "fix"), ERRORS)
def test_an_error_of_a_launcher_is_told_in_plain_words(
    kind: str, error: Exception, becomes: type[RunnerError], what: str, fix: str
) -> None:
    found = explained(error, kind, VALUES, "folder")
    assert type(found) is becomes
    assert what in found.what
    assert fix in found.fix
    assert found.where or isinstance(error, StorageError)
