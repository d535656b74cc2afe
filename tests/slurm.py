"""A real Slurm on this machine, for tests: started and ended in about a second, and then gone.

Its daemons and all jobs are in namespaces of their own: another host name, other process ids, as
the nodes of a cluster have them for the machine of the sweep. When this process ends, by whatever
signal, the kernel ends all of them. Nothing is written outside of one temporary folder, and no
other Slurm of the machine is touched.

    main        by default
    nightly     preempted by urgent, at once (GraceTime=0)
    patient     preempted by urgent, 30 s after a SIGTERM (GraceTime=30)
    urgent      preempts those two
    short       at most 10 minutes (MaxTime=10)
    closed      takes jobs, but begins none (State=DOWN)
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

NODE = "node-of-tests"
CORES = 4
"""Of the node, whatever this machine has: jobs share the machine's cores."""
MAX_ARRAY_SIZE = 6
_NEEDED = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "squeue", "unshare", "nsenter")

CONF = """\
ClusterName=tests
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
# A job that is queued again begins cred_expire seconds later; by default 120.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
ReturnToService=2
MinJobAge=3600
MaxArraySize={max_array_size}
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=1,batch_sched_delay=0,sched_interval=1,sched_min_interval=0
NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=16000
PartitionName=DEFAULT Nodes=ALL State=UP DefMemPerCPU=100
PartitionName=main Default=YES PriorityTier=1 PreemptMode=OFF
PartitionName=nightly PriorityTier=1 GraceTime=0
PartitionName=patient PriorityTier=1 GraceTime=30
PartitionName=urgent PriorityTier=10 PreemptMode=OFF
PartitionName=short PriorityTier=1 PreemptMode=OFF MaxTime=10
PartitionName=closed PriorityTier=1 PreemptMode=OFF State=DOWN
"""

# Process 1 of the namespaces. The kernel ends all others with it, and it with this process.
INIT = """\
hostname {node}
mount --bind {folder}/hosts /etc/hosts
munged --force --foreground --key-file {folder}/munge.key --socket {folder}/munge.socket \
  --pid-file {folder}/munged.pid --seed-file {folder}/munge.seed 2> {folder}/munged.log &
until [ -S {folder}/munge.socket ]; do sleep 0.02; done
slurmctld -D &
slurmd -D &
while :; do wait; sleep 1; done
"""


@dataclass(frozen=True)
class Slurm:
    """A Slurm that runs.

    Attributes:
        folder: its files; ``bin`` in it comes first on PATH.
        environment: variables for a command that is to meet this Slurm and no other.
    """

    folder: Path
    environment: Mapping[str, str]
    init: int

    def say(self, *words: str) -> str:
        """The output of a command of Slurm's, such as ``squeue``."""
        return subprocess.run(
            words, env=self.environment, check=True, capture_output=True, text=True, timeout=60
        ).stdout.strip()

    def jobs(self) -> dict[str, str]:
        """The state of every job that this Slurm knows, by id."""
        listed = self.say("squeue", "--noheader", "--array", "--states=all", "--format=%i %T")
        return dict(line.split() for line in listed.splitlines())

    def kill(self, pid: int, signum: int = signal.SIGKILL) -> None:
        """Send a signal to a process of a job, by the id that it has on its node."""
        here = ["nsenter", f"--pid=/proc/{self.init}/ns/pid", "kill", f"-{int(signum)}", str(pid)]
        subprocess.run(here, check=True, timeout=60)

    def end_jobs(self) -> None:
        """Cancel all jobs at once, and wait until none is left."""
        if self.say("squeue", "--noheader", "--format=%i"):
            self.say("scancel", "--signal=KILL", "--full", "--user=root")
            self.say("scancel", "--user=root")
        deadline = time.monotonic() + 30
        while self.say("squeue", "--noheader", "--format=%i"):
            if time.monotonic() > deadline:
                raise TimeoutError(self.say("squeue"))
            time.sleep(0.1)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm with the partitions above; skipped where it cannot be started.

    With RUNNER_SLURM=1 in the environment, that is an error.
    """
    if (why := _missing()) is not None:
        if os.environ.get("RUNNER_SLURM"):
            raise RuntimeError(why)
        pytest.skip(why)
    with started(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def _missing() -> str | None:
    """Why no Slurm can be started here; None if one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a Slurm is started by root on Linux"
    if missing := [name for name in _NEEDED if shutil.which(name) is None]:
        packages = "apt-get install munge slurmctld slurmd slurm-client util-linux"
        return f"no Slurm here ({', '.join(missing)}): {packages}"
    tried = subprocess.run([*_namespaces(), "true"], capture_output=True, text=True, timeout=60)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


def _namespaces() -> list[str]:
    return ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]


@contextmanager
def started(folder: Path) -> Iterator[Slurm]:
    """A Slurm with all its files in an empty folder, until the end of the block."""
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    places = {"folder": folder, "node": NODE}
    conf = folder / "slurm.conf"
    controller_port, node_port = _free_ports(2)
    conf.write_text(
        CONF.format(
            **places,
            controller_port=controller_port,
            node_port=node_port,
            cores=CORES,
            max_array_size=MAX_ARRAY_SIZE,
        )
    )
    (folder / "hosts").write_text(f"127.0.0.1 localhost {NODE} {socket.gethostname()}\n")
    (folder / "init").write_text(INIT.format(**places))
    subprocess.run(["mungekey", "--create", "--keyfile", folder / "munge.key"], check=True)
    kept = {name: value for name, value in os.environ.items() if not _is_slurm(name)}
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**kept, "SLURM_CONF": str(conf), "PATH": path}
    with ExitStack() as stack:
        log = stack.enter_context((folder / "init.log").open("w"))
        process = subprocess.Popen(
            # The kernel kills `unshare` with this process, which kills what it started.
            ["setpriv", "--pdeathsig", "KILL", *_namespaces(), "sh", folder / "init"],
            env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        stack.callback(process.wait)
        stack.callback(process.kill)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        _wait_for(lambda: bool(children.read_text().split()), folder)
        running = Slurm(folder, environment, int(children.read_text().split()[0]))

        def is_up() -> bool:
            try:
                return running.say("sinfo", "--noheader", "--format=%T", "-p", "main") == "idle"
            except subprocess.CalledProcessError:
                return False

        _wait_for(is_up, folder)
        yield running


def _wait_for(condition: Callable[[], bool], folder: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            logs = [f"{log.name}:\n{log.read_text()[-2000:]}" for log in folder.glob("*.log")]
            raise TimeoutError("\n".join(logs))
        time.sleep(0.02)


def _is_slurm(name: str) -> bool:
    return name.startswith(("SLURM", "SBATCH", "SQUEUE", "SINFO", "SACCT", "SCONTROL"))


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]
