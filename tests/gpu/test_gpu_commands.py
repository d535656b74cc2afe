"""The commands on a GPU, as a user would give them: does each end, and with which numbers?"""

import json
from pathlib import Path
from statistics import mean
from typing import Any

import kill
import pytest
import torch
from small import Command

from runner.config.options import CONF_DIR
from runner.machine.hardware import cpu_name

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.timeout(600),
]

SHORT = ("budget=smoke", "outputs=o")
OVERLAYS = sorted(path.stem for path in (CONF_DIR / "trick").glob("*.yaml"))
NETWORKS = {
    "fine_tune": ("optim=fine_tune", "model=torchvision", "model.name=resnet18", "resize.size=64"),
    "depthwise": ("model=torchvision", "model.name=mobilenet_v3_small", "resize.size=64"),
    "convnext": ("model=timm", "model.name=convnext_atto", "resize.size=64"),
    "streamed": ("data.cache_gb=0", "augment=inception", "data.num_workers=2"),
    "cutmix": ("mixup=cutmix", "optim=sgd"),
    "fp32": ("precision=fp32",),
    "progressive": ("resize=progressive",),
    "recipe": ("+recipe=strong",),
}


@pytest.fixture(scope="module")
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu-cache")


@pytest.fixture
def command(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """As elsewhere, with more patience: to compile a network takes minutes on a busy machine."""
    log = tmp_path_factory.mktemp("log")

    def run(*words: str, module: str = "runner.train") -> Any:
        return kill.completed(tmp_path, module, words, {}, log, seconds=500)

    return run


@pytest.fixture
def trained(command: Command, tmp_path: Path, one_cache: Path) -> Any:
    """A function that trains with words and returns the content of ``result.json``.

    It checks that the training was on the GPU, or with ``device=cpu`` on the CPU.
    """

    def train(*words: str) -> dict[str, Any]:
        (tmp_path / "o").mkdir(exist_ok=True)
        if not (tmp_path / "o" / "cache").exists():
            (tmp_path / "o" / "cache").symlink_to(one_cache)
        before = set((tmp_path / "o").glob("*/result.json"))
        done = command(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        (file,) = set((tmp_path / "o").glob("*/result.json")) - before
        found = json.loads(file.read_text())
        expected = cpu_name() if "device=cpu" in words else torch.cuda.get_device_name()
        assert found["environment"]["device"] == expected
        return {**found, "folder": str(file.parent)}

    return train


def test_auto_takes_the_gpu(trained: Any) -> None:
    assert trained("+trick=mixup", *SHORT)["metrics"]["plain"]["accuracy"] > 0.2


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_trains(trained: Any, overlay: str) -> None:
    trained(f"+trick={overlay}", *SHORT)


@pytest.mark.parametrize("words", NETWORKS.values(), ids=NETWORKS)
def test_other_networks_and_ways(trained: Any, words: tuple[str, ...]) -> None:
    trained(*words, *SHORT)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_networks_train(trained: Any, mode: str) -> None:
    plain = trained("precision=fp32", *SHORT)["metrics"]["plain"]["accuracy"]
    compiled = trained("precision=fp32", f"compile={mode}", *SHORT)
    assert compiled["metrics"]["plain"]["accuracy"] == pytest.approx(plain, abs=0.05)


def test_every_command_works_on_a_run_of_the_gpu(
    trained: Any, command: Command, tmp_path: Path
) -> None:
    found = trained("precision=fp32", *SHORT)
    run = str(Path(found["folder"]).relative_to(tmp_path))
    image = next((Path(__file__).parents[2] / "docs").rglob("*.png"))

    def works(*words: str, module: str) -> str:
        done = command(*words, module=module)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def evaluated(*words: str) -> dict[str, Any]:
        works(run, *words, "--json", "found.json", module="runner.evaluate")
        (entry,) = json.loads((tmp_path / "found.json").read_text())["runs"]
        return entry

    assert evaluated("tta=book")["environment"]["device"] == torch.cuda.get_device_name()
    on_cpu = evaluated("device=cpu")
    assert on_cpu["environment"]["device"] == cpu_name()
    own = found["metrics"]["plain"]["accuracy"]
    assert on_cpu["rows"][0]["accuracy"] == pytest.approx(own, abs=0.002)  # three of 1,500 images
    works(run, str(image), "--device", "cuda", module="runner.predict")
    works(run, module="runner.export")
    works("outputs=o", "device=cuda", module="runner.lr_find")
    works(run, "--device", "cuda", module="runner.look")
    works("outputs=o", module="runner.look")
    assert "baseline" in works("o", module="runner.report")


def test_a_comparison_answers(command: Command, tmp_path: Path) -> None:
    words = ("budget=smoke", "outputs=o", "--try", "+trick=tta", "--seeds", "3")
    done = command(*words, module="runner.compare")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tta" in done.stdout
    results = [json.loads(path.read_text()) for path in (tmp_path / "o").glob("*/result.json")]
    devices = [result["environment"]["device"] for result in results]
    assert devices == [torch.cuda.get_device_name()] * 3


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_accuracy_is_that_of_the_cpu_within_noise(trained: Any, precision: str) -> None:
    def accuracy(*words: str) -> float:
        found = [trained(*words, f"seed={seed}", *SHORT) for seed in range(3)]
        return 100 * mean(each["metrics"]["plain"]["accuracy"] for each in found)

    on_gpu = accuracy("device=cuda", f"precision={precision}")
    on_cpu = accuracy("device=cpu", "precision=fp32", "threads=4")
    print(f"accuracy of three seeds: GPU in {precision} {on_gpu:.2f}, CPU in fp32 {on_cpu:.2f}")
    assert on_gpu == pytest.approx(on_cpu, abs=4)
