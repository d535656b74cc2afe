"""The wheel, installed elsewhere and run from another folder, is complete."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    (path,) = folder.glob("trick_runner-*.whl")
    return path


def test_every_file_that_is_needed_is_in_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for option in (ROOT / "conf").rglob("*.yaml"):
        assert f"runner/conf/{option.relative_to(ROOT / 'conf')}" in names
    for source in (ROOT / "runner").rglob("*.py"):
        assert str(source.relative_to(ROOT)) in names
    assert "hydra_plugins/trick_runner.py" in names
    assert "runner/py.typed" in names
    for data in ("fashion.npz", "fashion.sha256", "FASHION-MNIST-LICENSE"):
        assert f"runner/data/embedded/{data}" in names
    assert not [name for name in names if name.startswith(("tests/", "outputs/"))]


def test_it_runs_from_another_folder(wheel: Path, tmp_path: Path, tiny_folder: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--no-index"]
    subprocess.run([*install, "--target", str(site), str(wheel)], check=True, capture_output=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*words: str) -> str:
        return subprocess.run(
            [sys.executable, *words],
            cwd=elsewhere, env=environment, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    where = run("-c", "import runner.config.compose as c; print(c.__file__); print(c.CONF_DIR)")
    for line in where.splitlines():
        assert line.startswith(str(site)), "the checkout must not be what is tested"
    assert "probability: 1.0" in run("-m", "runner.train", "--cfg", "job", "+trick=mixup")
    assert run(str(site / "bin" / "trick-runner"), "--version").startswith("trick-runner ")
    # A sweep, so that Hydra finds our plugin; of one tiny training, each job in another process.
    words = [f"data.root={tiny_folder}", "data=folder", "data.batch_size=16", "resize.size=16"]
    train = (str(site / "bin" / "trick-runner"), "train", "-m", "hydra/launcher=joblib")
    output = run(*train, *words, "budget.epochs=1", "+trick=mixup,tta")
    assert "2 jobs" in output
    assert len(list(elsewhere.glob("outputs/*/result.json"))) == 2
