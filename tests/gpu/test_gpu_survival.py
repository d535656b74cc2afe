"""Whatever ends a run on a GPU, the same command goes on; and too little memory is explained."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import kill
import pytest
import torch
from kill import STEP, Place, Trap
from small import EVERY_TRICK, Command, write_images

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.timeout(600),
]

WORDS = {
    "bf16": ("precision=bf16", "+trick=[mixup,normalize]"),
    "bf16, every trick": ("precision=bf16", EVERY_TRICK, "model.dropout=0.5"),
    "bf16, another network": (
        "precision=bf16", "model=torchvision", "model.name=resnet18", "resize.size=64",
    ),
    "fp32": ("precision=fp32", "+trick=[mixup,normalize]"),
    "fp32, every trick": ("precision=fp32", EVERY_TRICK, "model.dropout=0.5"),
}  # fmt: skip
Make = Callable[..., Place]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    root = tmp_path_factory.mktemp("places")
    cache_folder = root / "cache"
    cache_folder.mkdir()
    numbers = iter(range(1000))
    common = ("device=cuda", "budget.epochs=2", "checkpoint.minutes=0.02")
    yield lambda *words: Place(root / str(next(numbers)), (*common, *words), cache_folder)
    kill.end_all()


@pytest.fixture(scope="module")
def undisturbed(make: Make) -> Callable[..., Place]:
    return kill.finished_once(make)


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_a_killed_run_goes_on_to_the_bit(
    make: Make, undisturbed: Callable[..., Place], words: tuple[str, ...]
) -> None:
    reference, place = undisturbed(*words), make(*words)
    assert place.run(traps=[Trap(STEP, 60, kill.die)]).code == -signal.SIGKILL
    assert place.run().code == 0
    assert kill.bits_that_differ(place, reference) == 0


def test_the_comparison_can_fail(make: Make, undisturbed: Callable[..., Place]) -> None:
    other = make(*WORDS["fp32"], "seed=1")
    assert other.run().code == 0
    assert kill.bits_that_differ(other, undisturbed(*WORDS["fp32"])) > 0


def test_sigterm_saves_and_the_same_command_goes_on(
    make: Make, undisturbed: Callable[..., Place]
) -> None:
    words = WORDS["fp32"]
    place = make(*words)
    assert place.run(traps=[Trap(STEP, 30, kill.terminate)]).code == 128 + signal.SIGTERM
    assert place.status() == "interrupted"
    assert place.run().code == 0
    assert kill.bits_that_differ(place, undisturbed(*words)) == 0


def test_a_loss_that_is_not_finite_stops_the_run(make: Make) -> None:
    place = make("optim.lr=1e18", "optim.schedule=constant", "precision=fp32")
    done = place.run()
    assert done.code == 5, done.out + done.err
    assert "epoch 1, step" in done.out + done.err
    assert place.status() == "failed"


MUCH = ("resize.size=2048", "data.batch_size=3000")


def test_too_large_a_training_is_code_5_with_advice(make: Make) -> None:
    done = make(*MUCH).run()
    assert done.code == 5, done.out + done.err
    assert "out of memory" in done.err
    assert "data.batch_size=1500" in done.err


def test_too_large_a_search_for_rates_is_code_5_too(command: Command) -> None:
    done = command("device=cuda", "outputs=o", *MUCH, module="runner.lr_find")
    assert done.returncode == 5, done.stdout + done.stderr
    assert "out of memory" in done.stderr


@pytest.mark.parametrize("module", ["runner.train", "runner.evaluate", "runner.predict"])
def test_a_gpu_that_other_programs_have_filled_is_code_5(
    undisturbed: Callable[..., Place], command: Command, tmp_path: Path, module: str
) -> None:
    run = str(undisturbed(*WORDS["fp32"]).folder)
    write_images(tmp_path / "pictures", 4, (40, 60, 200), 0)
    words = {
        "runner.train": ("device=cuda", "outputs=o", "budget=smoke"),
        "runner.evaluate": (run, "tta=book", "device=cuda"),
        "runner.predict": (run, "pictures", "--device", "cuda"),
    }[module]
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(free - 300 * 2**20, dtype=torch.uint8, device="cuda")
    try:
        done = command(*words, module=module)
    finally:
        del held
        torch.cuda.empty_cache()
    assert done.returncode == 5, done.stdout + done.stderr
    assert "out of memory" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_job_without_memory_does_not_take_the_others_down(
    command: Command, tmp_path: Path
) -> None:
    done = command("-m", "data.batch_size=32,5000", "resize.size=768", "budget=smoke", "outputs=o")
    assert done.returncode == 6, done.stdout + done.stderr
    statuses = [
        json.loads(path.read_text())["status"] for path in (tmp_path / "o").glob("*/status.json")
    ]
    assert sorted(statuses) == ["failed", "finished"]
    (result,) = (tmp_path / "o").glob("*/result.json")
    device = json.loads(result.read_text())["environment"]["device"]
    assert device == torch.cuda.get_device_name()
