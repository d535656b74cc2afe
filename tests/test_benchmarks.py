"""The benchmarks measure what they say: turns, ratios round by round, the real training loop."""

import csv
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import augmentations, gpu, growth, measure, memory, precision, spinning
from benchmarks.measure import Spread, Worker, ratio, throughput
from benchmarks.own_worker import OwnTraining
from runner.errors import ProcessError
from runner.models import build_model

ROOT = Path(__file__).parent.parent
COMMANDS = (
    "augmentations", "evaluate", "gpu", "growth", "memory", "precision", "price", "spinning",
    "startup", "sweep", "throughput", "time_to_accuracy", "tta_arms", "verdict",
)  # fmt: skip

FAKE = """
import json, sys
settings = json.loads(sys.argv[1])
print(json.dumps({"ready": True, "name": "fake"}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    with open(settings["diary"], "a") as diary:
        diary.write(settings["letter"])
    if asked["command"] == "die":
        sys.exit("out of order")
    images = 10 * asked["steps"]
    print(json.dumps({"seconds": settings["seconds"], "images": images}), flush=True)
"""


@pytest.fixture
def fake(tmp_path: Path):
    """A contestant that takes as long as it is told, and writes down whose turn it was."""

    def start(letter: str, seconds: float) -> Worker:
        diary = str(tmp_path / "diary")
        settings = {"letter": letter, "seconds": seconds, "diary": diary}
        return Worker([sys.executable, "-c", FAKE], settings, tmp_path / "log")

    return start


def test_contestants_take_turns_and_the_warm_up_does_not_count(fake, tmp_path: Path) -> None:
    with fake("a", 2.0) as one, fake("b", 4.0) as other:
        found = throughput({"one": one, "other": other}, images=64, batch_size=16, repeats=3)
    assert (tmp_path / "diary").read_text() == "ab" * 4
    assert found["one"].values == (20.0,) * 3  # 4 steps of 10 images in 2 seconds
    assert ratio(found["one"], found["other"]).values == (2.0,) * 3


def test_a_contestant_that_dies_is_told_with_its_last_words(fake) -> None:
    with fake("a", 1.0) as worker, pytest.raises(SystemExit, match="out of order"):
        worker.ask("die")


def test_ratios_are_taken_round_by_round() -> None:
    slow_machine_in_round_two = Spread((100.0, 50.0, 100.0)), Spread((200.0, 100.0, 200.0))
    found = ratio(*slow_machine_in_round_two)
    assert found.values == (0.5, 0.5, 0.5)
    assert found.median == 0.5
    assert str(found) == "0.5 [0.5, 0.5]"
    assert found.to_dict()["values"] == [0.5, 0.5, 0.5]


def test_peers_do_not_see_this_projects_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    assert "PYTHONPATH" not in measure.peer_environment()


def test_every_benchmark_explains_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in COMMANDS:
        monkeypatch.setattr("sys.argv", [name, "--help"])
        with pytest.raises(SystemExit) as caught:
            importlib.import_module(f"benchmarks.{name}").main()
        assert caught.value.code == 0
        assert "--json" in capsys.readouterr().out, name


@pytest.mark.whole
def test_augmentations_are_timed_with_the_step_they_are_part_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "times.json"
    augmentations.main(
        ["--size=32", "--batch-size=8", "--repeats=2", f"--threads={torch.get_num_threads()}",
         f"--json={target}"]
    )  # fmt: skip
    times = json.loads(target.read_text())["milliseconds"]
    assert {"bare step", "trivial_augment", "rand_augment", "random_erasing"} < set(times)
    assert all(len(spread["values"]) == 2 and spread["min"] > 0 for spread in times.values())
    assert "part of the bare step" in capsys.readouterr().out


@pytest.mark.whole
def test_precisions_take_turns_and_a_measured_line_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(precision.NETWORKS, "xresnet18", ("model=timm", "model.name=test_resnet"))
    target, turns = tmp_path / "times.json", []
    train = OwnTraining.train

    def noted(training: OwnTraining, steps: int) -> dict[str, Any]:
        turns.append(training.learner.precision)
        return train(training, steps)

    monkeypatch.setattr(OwnTraining, "train", noted)
    monkeypatch.setattr(
        "sys.argv",
        ["precision", "--networks=xresnet18", "--sizes=16", "--repeats=2", "--seconds=0.01",
         f"--outputs={tmp_path}", f"--json={target}", "--words", "threads=1"],
    )  # fmt: skip
    precision.main()
    assert turns[-4:] == ["fp32", "bf16"] * 2
    (line,) = json.loads(target.read_text())["results"]
    rates = zip(line["bf16"]["values"], line["fp32"]["values"], strict=True)
    assert line["bf16_times"]["values"] == [bf16 / fp32 for bf16, fp32 in rates]
    turns.clear()
    precision.main()
    assert not turns
    assert json.loads(target.read_text())["results"] == [line]
    assert "xresnet18" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_benchmark_explains_itself_as_a_process(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("role", ["run", "limit"])
def test_the_own_contestant_trains_for_real(tiny_words, tmp_path: Path, role: str) -> None:
    settings = {"words": [*tiny_words, f"outputs={tmp_path}"], "role": role}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    asked = [{"command": "train", "steps": 7}, {"command": "validate"}]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.own_worker", json.dumps(settings)],
        input="\n".join(map(json.dumps, asked)) + "\n",
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ready, trained, validated = map(json.loads, done.stdout.splitlines())
    network = build_model("timm", "test_resnet", 3, seed=0)
    assert ready["num_parameters"] == sum(each.numel() for each in network.parameters())
    assert trained["images"] == 7 * 16  # over the ends of epochs
    assert trained["loss"] > 0
    assert validated["images"] == 24
    assert ("accuracy" in validated) == (role == "run")


def benchmark(name: str, *words: str) -> None:
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *words], cwd=ROOT, check=True)


@pytest.mark.slow
def test_whole_commands_are_timed_to_their_accuracy(tiny_folder: Path, tmp_path: Path) -> None:
    words = ("data=folder", "data.batch_size=16", "resize.size=16", "budget.epochs=2")
    options = ("--outputs", f"{tmp_path}", "--json", f"{tmp_path / 'found.json'}")
    benchmark(
        "time_to_accuracy", "--data", f"{tiny_folder}", *options, "--seeds", "4", "5",
        "--words", *words,
    )  # fmt: skip
    (own,) = json.loads((tmp_path / "found.json").read_text())["results"]
    assert own["n"] == len(own["seconds"]) == 2
    assert all(0 <= accuracy <= 1 for accuracy in own["accuracies"])
    assert all(1 < seconds < 60 for seconds in own["seconds"])


@pytest.mark.parametrize("kind", growth.SPLITS)
def test_splits_are_measured(kind: str) -> None:
    found = growth.split({"split": 500, "kind": kind})
    assert found["seconds"] > 0
    assert found["peak_bytes"] > 500 * 8


def test_a_table_has_groups_of_one_class(tiny_folder: Path, tmp_path: Path) -> None:
    folder = memory.linked(tiny_folder, tmp_path, 20)
    with growth.grouped_table(folder).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert all((folder / row["path"]).is_file() for row in rows)
    labels: dict[str, set[str]] = {}
    for row in rows:
        labels.setdefault(row["group"], set()).add(row["label"])
    assert 7 <= len(labels) < 20
    assert all(len(of_group) == 1 for of_group in labels.values())


def test_growth_goes_on_where_it_was(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = list[list[str]]()

    def fake(words: list[str], steps: int, log: Path) -> dict[str, float]:
        measured.append(words)
        return {"images_per_second": 1.0, "start_seconds": 2.0, "peak_bytes": 3}

    monkeypatch.setattr(growth, "measured", fake)
    monkeypatch.setattr(growth, "sweep", lambda *_: {"seconds_per_job": 1.0, "peak_bytes": 1})
    monkeypatch.setattr(growth, "augmentations", lambda *_: {"prices": {}})
    data, target = tmp_path / "data", tmp_path / "growth.json"
    data.symlink_to(tiny_folder)
    words = [
        "growth",
        "--data",
        str(data),
        "--json",
        str(target),
        "--images",
        "9",
        "--splits",
        "90",
    ]
    words += ["--sizes", "64", "--depths", "18", "--jobs", "2", "--figure", str(tmp_path / "f.svg")]
    monkeypatch.setattr("sys.argv", [*words, "--seconds", "0"])
    growth.main()
    assert not target.exists()
    monkeypatch.setattr("sys.argv", words)
    growth.main()
    assert len(measured) == len(growth.KINDS) + 2
    assert any("data.group_column=group" in words for words in measured)
    assert "images that are split" in (tmp_path / "f.svg").read_text()
    growth.main()
    assert len(measured) == len(growth.KINDS) + 2, "nothing is measured twice"


@pytest.mark.slow
def test_growth_is_measured_and_drawn(tiny_folder: Path, tmp_path: Path) -> None:
    data = memory.linked(tiny_folder, tmp_path, 130)
    assert len(list((data / "train").rglob("*.*"))) == 130
    images = memory.by_images(data, [70], 1, tmp_path)
    assert [entry["kind"] for entry in images] == ["cached", "streamed"]
    jobs = [{"jobs": number, **growth.sweep(data, number, tmp_path)} for number in (2, 3)]
    for entry in (*images, *jobs):
        assert 1e8 < entry["peak_bytes"] < 3e9
    size = [{"size": 64, "images_per_second": 1.0, "peak_bytes": 1}]
    growth.draw({"images": images, "size": size, "jobs": jobs}, tmp_path / "figure.svg")
    assert "jobs of a sweep" in (tmp_path / "figure.svg").read_text()


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run the benchmark of a GPU without one, with these measurements; its JSON and exit code."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(gpu.gc, "collect", lambda: None)  # nothing is on a card, and it takes long
    monkeypatch.setattr(gpu, "_card", lambda: {"card": "NVIDIA H100"})

    def run(measurements: dict[str, Any], *words: str) -> tuple[dict[str, Any], object]:
        target = tmp_path / "gpu.json"
        monkeypatch.setattr(gpu, "measurements", lambda _: measurements)
        monkeypatch.setattr(
            "sys.argv",
            ["gpu", f"--data={tmp_path}", f"--outputs={tmp_path}", f"--json={target}", *words],
        )
        code: object = 0
        try:
            gpu.main()
        except SystemExit as problem:
            code = problem.code
        return json.loads(target.read_text()), code

    return run


def failing(problem: BaseException):
    def measure() -> dict[str, Any]:
        raise problem

    return measure


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("backend='inductor' raised: CompilationError"),
        ProcessError("out of memory", where="data.batch_size=64", fix="data.batch_size=32"),
        ValueError("max() iterable argument is empty"),
        SystemExit("a contestant ended without an answer"),
    ],
    ids=lambda problem: str(problem)[:12],
)
def test_a_measurement_that_fails_is_reported_and_tried_again(
    on_a_gpu, capsys: pytest.CaptureFixture[str], problem: BaseException
) -> None:
    def works(number: int):
        return lambda: {"number": number, "text": f"{number} images/s"}

    found, code = on_a_gpu({"one": failing(problem), "two": works(2)})
    assert code == 1
    assert list(found["measurements"]) == ["two"]
    assert found["measurements"]["two"]["number"] == 2
    message = f"{type(problem).__name__}: {problem}"
    assert found["failures"]["one"]["text"] == message
    printed = capsys.readouterr()
    assert f"one failed: {message}" in printed.err
    assert "Traceback" in printed.err
    assert "2 images/s" in printed.out

    # What was measured is not measured again, and what failed is.
    found, code = on_a_gpu({"one": works(1), "two": failing(AssertionError("again"))})
    assert code == 0
    assert found["failures"] == {}
    assert {name: each["number"] for name, each in found["measurements"].items()} == {
        "one": 1, "two": 2,
    }  # fmt: skip


def test_a_failure_that_is_not_tried_again_still_ends_in_exit_code_1(on_a_gpu) -> None:
    every = {"one": failing(RuntimeError("no")), "two": lambda: {"text": "2"}}
    on_a_gpu(every)
    found, code = on_a_gpu(every, "--minutes=-1")
    assert code == 1
    assert list(found["failures"]) == ["one"]
    assert on_a_gpu(every, "--only", "two")[1] == 0


def test_a_user_who_interrupts_is_obeyed(on_a_gpu) -> None:
    with pytest.raises(KeyboardInterrupt):
        on_a_gpu({"one": failing(KeyboardInterrupt())})


def test_after_an_error_that_cuda_keeps_nothing_else_is_called_failed(
    on_a_gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks() -> dict[str, Any]:
        monkeypatch.setattr(torch.cuda, "synchronize", failing(error))
        raise error

    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    two = list[int]()
    found, code = on_a_gpu({"one": breaks, "two": lambda: two.append(2)})
    assert "illegal memory access" in str(code)  # such a code ends in 1
    assert list(found["failures"]) == ["one"]
    assert not two


def out_of_memory(kind: str) -> Exception:
    """An error of a batch that is too large, as torch, its libraries and ours raise it."""
    of_torch = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if kind == "torch":
        return of_torch
    if kind == "cuDNN":
        return RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
    of_ours = ProcessError("out of memory", where="model=xresnet50", fix="device=cpu")
    of_ours.__cause__ = of_torch
    return of_ours


@pytest.mark.parametrize("kind", ["torch", "cuDNN", "ours"])
@pytest.mark.parametrize(
    ("most", "sizes", "text"),
    [
        (100, [32, 64], "64 images, 1,000 images/s; 128 do not fit"),
        (31, [], "none fits; 32 do not fit"),
        (10**6, [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192], "8192 images, 1,000 images/s"),
    ],
)
def test_the_largest_batch_that_fits(
    on_a_gpu, monkeypatch: pytest.MonkeyPatch, most: int, sizes: list[int], text: str, kind: str
) -> None:
    class Training:
        def __init__(self, words: list[str], role: str) -> None:
            (batch,) = (word for word in words if word.startswith("data.batch_size="))
            self.batch = int(batch.partition("=")[2])
            if self.batch > most:
                raise out_of_memory(kind)

        def train(self, steps: int) -> dict[str, float]:
            return {"seconds": steps * self.batch / 1000}

    monkeypatch.setattr(gpu, "OwnTraining", Training)
    bench = gpu.Bench(Path(), Path(), None)
    found, code = on_a_gpu({"largest": lambda: gpu.largest_batch(bench, "xresnet50", 128)})
    assert code == 0
    (made,) = found["measurements"].values()
    assert list(map(int, made["images_per_second"])) == sizes
    assert made["largest"] == max(sizes, default=None)
    assert made["text"] == text


def test_another_error_does_not_pass_for_too_large_a_batch(
    on_a_gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(gpu, "OwnTraining", broken)
    bench = gpu.Bench(Path(), Path(), None)
    with pytest.raises(RuntimeError, match="shapes"):
        gpu.largest_batch(bench, "xresnet50", 128)


def test_the_card_is_busy_for_the_time_of_its_kernels_in_steps_without_the_profiler(
    on_a_gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_profiled = False

    class Training:
        def __init__(self, words: list[str], role: str) -> None:
            pass

        def train(self, steps: int) -> dict[str, float]:
            return {"seconds": steps * (1.0 if is_profiled else 0.1)}

    def event(name: str, microseconds: float, device: str = "CUDA", is_block: bool = False) -> Any:
        return SimpleNamespace(
            name=name, self_device_time_total=microseconds, is_user_annotation=is_block,
            device_type=SimpleNamespace(name=device),
        )  # fmt: skip

    class Profile:
        def __enter__(self) -> "Profile":
            nonlocal is_profiled
            is_profiled = True
            return self

        def __exit__(self, *_: object) -> None:
            nonlocal is_profiled
            is_profiled = False

        def events(self) -> list[Any]:
            return [
                *[event("cudnn_convolution", 30_000)] * 20,
                *[event("multi_tensor_apply_kernel<FusedAdam>", 10_000)] * 20,
                *[event("Optimizer.step#AdamW.step", 10_000, is_block=True)] * 20,
                *[event("Optimizer.step#AdamW.step", 0, "CPU", is_block=True)] * 20,
                *[event("cudaLaunchKernel", 0, "CPU")] * 40,
            ]

    monkeypatch.setattr(gpu, "OwnTraining", Training)
    monkeypatch.setattr(torch.profiler, "profile", lambda **_: Profile())
    found, _ = on_a_gpu({"kernels": lambda: gpu.kernels(gpu.Bench(Path(), Path(), None), [])})
    (made,) = found["measurements"].values()
    assert made["busy"] == pytest.approx(0.4)  # 40 ms of kernels in a step of 100 ms
    assert made["kernels_per_step"] == 2
    assert made["shares"] == pytest.approx({"convolutions": 0.75, "optimizer": 0.25})


def test_torch_still_marks_blocks_with_a_name() -> None:
    weights = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(weights.parameters())
    weights(torch.ones(1, 3)).sum().backward()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    marks = {each.name: each.is_user_annotation for each in profile.events() or ()}
    assert marks["Optimizer.step#AdamW.step"]
    assert not any(mark for name, mark in marks.items() if name.startswith("aten::"))


def test_two_trainings_at_a_time_overlap_and_add_up() -> None:
    both = Barrier(2, timeout=20)

    def ask(command: str, steps: int) -> dict[str, float]:
        both.wait()  # a training that waits for the end of the other one breaks it
        return {"seconds": 2.0, "images": 10.0 * steps}

    assert spinning.rate([SimpleNamespace(ask=ask)] * 2, steps=3) == 30.0


def test_spinning_gives_each_value_to_its_own_trainings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = []

    class Training:
        def __init__(self, command: Any, settings: Any, log: Path, variables: Any) -> None:
            self.seconds = float(variables["GOMP_SPINCOUNT"])
            given.append(settings["words"])

        def ask(self, command: str, steps: int) -> dict[str, float]:
            return {"seconds": self.seconds, "images": 60.0}

        def __enter__(self) -> "Training":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(spinning, "Worker", Training)
    found = spinning.measured(["3", "5"], ["seed=4"], 0.1, 2, tmp_path / "log")
    assert given == [["seed=4"]] * 4
    assert found["3"]["alone"].values == found["3"]["with a busy program"].values == (20.0, 20.0)
    assert found["5"]["two at a time"].values == (24.0, 24.0)
