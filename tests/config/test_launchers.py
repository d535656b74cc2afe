"""Words of launchers: what is refused, with the launcher's own keys, and what to type instead."""

import shlex
from typing import Any

import pytest
from omegaconf import OmegaConf

from runner.config import compose
from runner.config.complaints import translated
from runner.config.overrides import checked_words
from runner.errors import ConfigError, RunnerError

SLURM, JOBLIB = "submitit_slurm", "joblib"


def launcher(name: str, *words: str) -> dict[str, Any]:
    """The values of a launcher with these words, or the error of the command."""
    compose.register()
    try:
        checked = checked_words([f"hydra/launcher={name}", *words, "seed=0,1"])
        with compose.opened():
            composed = compose.composed(checked, is_sweep=True)
            found: Any = OmegaConf.to_container(composed.hydra.launcher, resolve=False)
            return dict(found)
    except RunnerError:
        raise
    except Exception as error:
        problem = translated(error)
        assert problem is not None
        raise problem from error


REFUSED = [
    (SLURM, "gpus=1", "unknown key hydra.launcher.gpus: the launcher has gpus_per_node, ", ""),
    (SLURM, "cpus=1", "the launcher has cpus_per_task, cpus_per_gpu, ", ""),
    (SLURM, "+foo=1", "unknown key hydra.launcher.foo: the launcher has ", ""),
    (JOBLIB, "jobs=3", "the launcher has n_jobs, ", "hydra.launcher.n_jobs=VALUE; without this "
     "key, the same command with --cfg hydra lists all keys"),
    (SLURM, "additional_parameters.foo=1", "needs a + in front",
     "+hydra.launcher.additional_parameters.foo=VALUE; man sbatch lists the names"),
    ("basic", "n_jobs=3", "no launcher is chosen", ""),
    (SLURM, "timeout_min=abc", "expected a whole number", "hydra.launcher.timeout_min=1440"),
    (SLURM, "timeout_min=1-00:00:00", "a whole number", "hydra.launcher.timeout_min=1440"),
    (SLURM, "cpus_per_task=1.5", "a whole number", "hydra.launcher.cpus_per_task=2"),
    (SLURM, "setup=hostname", "expected a list", """'hydra.launcher.setup=["hostname"]'"""),
    (SLURM, "partition=[a,b]", "expected text", """'hydra.launcher.partition="a,b"'"""),
    (SLURM, "partition=a,b", "needs quotes", """'hydra.launcher.partition="a,b"'"""),
    (SLURM, "setup=[export HELLO=1,hostname]", "text in a list needs quotes",
     """'hydra.launcher.setup=["export HELLO=1",hostname]'"""),
    (SLURM, "exclude=node[1-3]", "needs quotes", """'hydra.launcher.exclude="node[1-3]"'"""),
    (SLURM, "array_parallelism=0", "must be ≥ 1", "hydra.launcher.array_parallelism=1"),
    (SLURM, "cpus_per_task=0", "must be ≥ 1", "hydra.launcher.cpus_per_task=1"),
    (SLURM, "mem_gb=-3", "must be ≥ 1", "hydra.launcher.mem_gb=1"),
    (SLURM, "nodes=0", "must be ≥ 1", "hydra.launcher.nodes=1"),
    (SLURM, "timeout_min=2", "told to save as soon as they begin",
     "hydra.launcher.signal_delay_s=60"),
    ("submitit_local", "tasks_per_node=0", "must be ≥ 1", "hydra.launcher.tasks_per_node=1"),
    (JOBLIB, "n_jobs=0", "-1 for a job per core", "hydra.launcher.n_jobs=-1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "setting", "what", "fix"), REFUSED)
def test_a_word_that_a_launcher_does_not_take_is_refused(
    name: str, setting: str, what: str, fix: str
) -> None:
    plus = "+" * setting.startswith("+")
    word = f"{plus}hydra.launcher.{setting.lstrip('+')}"
    with pytest.raises(ConfigError) as caught:
        launcher(name, word)
    assert what in caught.value.what
    assert caught.value.where.startswith(("hydra.launcher.", "+hydra"))
    if fix:
        assert caught.value.fix == fix
    assert "normalize" not in str(caught.value), "keys of the training"
    if "VALUE" not in fix and fix:
        launcher(name, *shlex.split(fix), *([word] if "signal_delay" in fix else []))


ACCEPTED = [
    ('setup=["export HELLO=1",hostname]', ["export HELLO=1", "hostname"]),
    ("additional_parameters.mail-user=me@x.org", {"mail-user": "me@x.org", "mail-type": None}),
    ("additional_parameters.mail-type=END", {"mail-user": None, "mail-type": "END"}),
    ('additional_parameters.mail-type="END,FAIL"', {"mail-user": None, "mail-type": "END,FAIL"}),
    ("gres=gpu:a100:2", "gpu:a100:2"),
    ("gpus_per_node=0", 0),
    ("partition=null", None),
]


@pytest.mark.parametrize(("setting", "value"), ACCEPTED)
def test_what_users_of_a_cluster_set_needs_no_sign_in_front(setting: str, value: object) -> None:
    key = setting.partition("=")[0].partition(".")[0]
    assert launcher(SLURM, f"hydra.launcher.{setting}")[key] == value


def test_other_options_of_sbatch_can_be_added() -> None:
    found = launcher(SLURM, "+hydra.launcher.additional_parameters.reservation=x")
    assert found["additional_parameters"]["reservation"] == "x"
