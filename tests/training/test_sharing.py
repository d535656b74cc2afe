"""What the process of a sweep does once for the jobs that it forks: torch, data, frozen memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# In a process of its own, because this one has imported torch, and has threads.
SWEEP = """
import gc, json, os, sys
from pathlib import Path

from runner import train
from runner.config import compose
from runner.data import dataset
from runner.jobs.launch import run_jobs

words, outputs = sys.argv[2:], Path(sys.argv[1])
load, loaded = dataset.load_dataset, outputs / "loaded"


def counted(*arguments, **more):
    with loaded.open("a") as file:
        file.write(f"{os.getpid()}\\n")
    return load(*arguments, **more)


def state():
    return {
        "has torch": "torch" in sys.modules,
        "threads": len(os.listdir("/proc/self/task")),
        "is frozen": gc.get_freeze_count() > 10_000,
        "loads": loaded.read_text().split().count(str(os.getpid())),
        "loads of jobs": len(set(loaded.read_text().split()) - {str(os.getpid())}),
    }


def note(event, arguments):
    if event == "import" and os.getpid() != sweep:
        with imported.open("a") as file:
            file.write(f"{arguments[0]}\\n")


dataset.load_dataset = counted
loaded.touch()
compose.register()
config = compose.config_of(words)
if (child := os.fork()) == 0:  # so that this process has none of the threads that decode
    load(config.data, config.largest_size, outputs / "cache", lambda *_: None)
    os._exit(0)
os.waitpid(child, 0)
states = [state()]
train.WORK.prepare(config)
states.append(state())
sweep, imported = os.getpid(), outputs / "imported"
sys.addaudithook(note)
jobs = [[*words, f"seed={seed}"] for seed in range(2)]
done = run_jobs(jobs, train.WORK, (), outputs, is_quiet=True)
states.append(state())
print(json.dumps([states, [one.status for one in done.outcomes], imported.read_text().split()]))
"""


@pytest.mark.parametrize(
    "network", ["model=timm model.name=test_resnet", "model.source=xresnet model.name=xresnet18"]
)
def test_jobs_find_torch_and_data_in_a_process_without_threads(
    tiny_words: tuple[str, ...], tmp_path: Path, network: str
) -> None:
    words = [*tiny_words, f"outputs={tmp_path}", "device=cpu", *network.split()]
    variables = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "2",  # so that a computation with torch would leave a thread
        "OPENBLAS_NUM_THREADS": "1",  # numpy begins its threads when it is imported
    }
    found = subprocess.run(
        [sys.executable, "-c", SWEEP, str(tmp_path), *words],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert found.returncode == 0, found.stderr
    (before, prepared, after), outcomes, imported = json.loads(found.stdout)
    assert before == {
        "has torch": False, "threads": 1, "is frozen": False, "loads": 0, "loads of jobs": 0,
    }  # fmt: skip
    assert prepared == {
        "has torch": True, "threads": 1, "is frozen": True, "loads": 1, "loads of jobs": 0,
    }  # fmt: skip
    assert outcomes == ["finished"] * 2
    assert after == prepared, "no job reads the data again, and none computes in this process"
    assert [name for name in imported if name.partition(".")[0] in ("torch", "torchvision")] == []
