"""Training on a pretended GPU, on which everything raises that would wait for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.whole
def test_all_works_on_a_pretended_gpu() -> None:
    cases = Path(__file__).parent / "on_a_fake_gpu.py"
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", str(cases)]
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        command, env=variables, cwd=cases.parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
