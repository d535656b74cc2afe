"""The command line as its user meets it: every case is a process of its own, or a fork."""

import csv
import gzip
import itertools
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import COLOURS, Command, all_predictions, whole_result, write_images

from runner import train
from runner.config.overlays import all_tricks
from runner.config.schema import RunConfig
from runner.errors import ConfigError
from runner.machine import hardware

TinyWords = tuple[str, ...]


def results(root: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(root.glob("outputs/*/result.json"))]


def test_help_is_short_and_quick(process: Command) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = process("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) < 50
    for word in ("+trick=mixup", "label_smoothing", "-m", "Exit codes", "--config-dir"):
        assert word in done.stdout
    # Of the processor's time, which other programs do not stretch; importing torch takes more.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"], ["+epoch=5"]])
def test_torch_is_imported_only_to_train(words: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['runner.train', *sys.argv[1:]]\n"
        "from runner.train import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "False"


def test_cfg_prints_the_configuration(command: Command, tmp_path: Path) -> None:
    done = command("--cfg", "job", "+trick=mixup", "mixup.alpha=0.2")
    assert done.returncode == 0
    assert "alpha: 0.2" in done.stdout
    assert "probability: 1.0" in done.stdout
    assert list(tmp_path.iterdir()) == []


MISTAKES = {
    "+mixup.alpah=1": "did you mean mixup.alpha",
    "+triks=mixup": "did you mean trick",
    "+epoch=5": "did you mean budget.epochs",
    "epoch=5": "did you mean budget.epochs",
    "mixup.alpah=1": "did you mean mixup.alpha",
    "+trick=mixpu": "did you mean mixup",
    "mixup=cutmx": "did you mean cutmix",
    "smoothing.epsilon=2": "≥ 0 and ≤ 1",
    "budget.epochs=0": "≥ 1",
    "-m +trick=baseline,mixpu seed=0": "did you mean mixup",
    "-m seed=0,1 smoothing.epsilon=0,2": "smoothing.epsilon=2",
    "+mixup=beta": "mixup=NAME",
    "+trick=mixup +trick=tta": "'+trick=[first,second]'",
    "mixup=null": "mixup=none",
    "+trick=../../evil": "not a path",
    "--experimental-rerun=x.pickle": "pickle",
    "data.root=/data/żółw": """'data.root="/data/żółw"'""",
    "mixup": "KEY=VALUE",
    "data=folder": "data.root=PATH",
    "device=tpu": "device=auto",
    "mixup=0.4": "mixup=beta mixup.alpha=0.4",
    "tta=true": "by name",
    "-m mixup=0.2,0.4": "mixup=beta mixup.alpha=0.2,0.4",
    "-m tta=none,true": "by name",
    "-m +trick=[mixup,1],baseline": "by name",
    "mixup=nan": "by name",
    "model=resnet50": "model=torchvision model.name=resnet50",
    "-m model=timm model.name=test_resnet,test_resnett": "did you mean model.name=test_resnet",
    "seed=0,1,2": "-m",
    "--cfg job +mixup.alpah=1": "did you mean mixup.alpha",
    "--cfg job optim.lr=-1": "> 0",
    "-m --cfg job seed=0,1": "--cfg job",
    "--config-dir nowhere mixup=beta": "nowhere",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_explained_and_leaves_nothing(
    command: Command, tmp_path: Path, words: str
) -> None:
    done = command(*words.split(" "))
    assert done.returncode == 2, done.stderr
    assert MISTAKES[words] in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert list(tmp_path.rglob("*")) == []


def test_a_typo_in_an_option_of_the_user_is_found(command: Command, tmp_path: Path) -> None:
    options = tmp_path / "mine" / "mixup"
    options.mkdir(parents=True)
    (options / "gentle.yaml").write_text("probability: 1.0\nalhpa: 0.1\n")
    done = command("--config-dir", str(tmp_path / "mine"), "mixup=gentle")
    assert done.returncode == 2
    assert "did you mean mixup.alpha" in done.stderr
    (options / "gentle.yaml").write_text("probability: [1.0\n")
    done = command("--config-dir", str(tmp_path / "mine"), "mixup=gentle")
    assert done.returncode == 2
    assert "gentle.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_option_of_the_user_works(
    command: Command, tmp_path: Path, tiny_words: TinyWords
) -> None:
    options = tmp_path / "mine" / "mixup"
    options.mkdir(parents=True)
    (options / "gentle.yaml").write_text("probability: 1.0\nalpha: 0.1\n")
    done = command("--config-dir", str(tmp_path / "mine"), "mixup=gentle", *tiny_words)
    assert done.returncode == 0, done.stderr
    (result,) = results(tmp_path)
    assert result["config"]["mixup"]["alpha"] == 0.1


def test_one_run_leaves_the_whole_folder(
    command: Command, tmp_path: Path, tiny_words: TinyWords
) -> None:
    done = command("+trick=all", "seed=3", *tiny_words)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (result,) = results(tmp_path)
    assert result["status"] == "finished"
    (path,) = tmp_path.glob("outputs/*/result.json")
    result = whole_result(path.parent)
    assert set(result["tricks"]) == all_tricks()
    assert result["seed"] == 3
    assert result["data"]["num_train"] == 48
    assert result["data"]["num_val"] == 24
    assert result["data"]["skipped"] == 0
    assert len(result["data"]["fingerprint"]) == 64
    for view in ("plain", "tta"):
        metrics = result["metrics"][view]
        low, high = metrics["accuracy_ci"]
        assert 0 <= low <= metrics["accuracy"] <= high <= 1
        assert {"log_loss", "brier", "ece", "per_class"} <= set(metrics)
    assert {"epochs", "images", "pixels", "seconds", "images_per_second"} <= set(result["budget"])
    (folder,) = (path.parent for path in tmp_path.glob("outputs/*/result.json"))
    assert "normalize+progressive_resizing" in folder.name
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1]
    arrays = all_predictions(folder)
    assert arrays["plain"].shape == arrays["tta"].shape == (24, 3)
    accuracy = (arrays["tta"].argmax(1) == arrays["labels"]).mean()
    assert accuracy == pytest.approx(result["metrics"]["tta"]["accuracy"])
    with gzip.open(folder / "split.csv.gz", "rt") as file:
        split = list(csv.DictReader(file))
    assert [row["split"] for row in split].count("val") == 24
    assert (folder / "bundle" / "model.safetensors").exists()
    assert "+trick=all" in (folder / "overrides.txt").read_text().splitlines()
    assert not list(tmp_path.rglob("*.tmp*"))
    assert str(folder.name) in done.stdout
    assert "TTA" in done.stdout
    tricks = ", ".join(result["tricks"])
    named = f"network: test_resnet (timm); tricks: {tricks}; seed: 3"
    assert named in done.stdout.splitlines()[:6], "before the first step"


def test_the_same_command_answers_from_its_result(
    command: Command, tmp_path: Path, tiny_words: TinyWords
) -> None:
    narrow = command(*tiny_words, TERM="dumb", COLUMNS="20")
    assert narrow.returncode == 0
    assert "\x1b" not in narrow.stdout + narrow.stderr
    (path,) = tmp_path.glob("outputs/*/result.json")
    before = path.stat().st_mtime_ns
    again = command(*tiny_words)
    assert again.returncode == 0
    assert "finished before" in again.stdout
    assert path.stat().st_mtime_ns == before
    assert command(*tiny_words, "force=true").returncode == 0
    assert path.stat().st_mtime_ns > before


def test_equal_runs_give_equal_predictions_and_another_seed_does_not(
    command: Command, tmp_path: Path, tiny_words: TinyWords
) -> None:
    words = ("+trick=mixup", *tiny_words)
    for name, more in {
        "a": (),
        "b": ("data.cache_gb=0", "data.num_workers=2"),
        "c": ("seed=1",),
    }.items():
        assert command(*words, f"outputs={name}", *more).returncode == 0
    plain = {}
    for name in "abc":
        (path,) = tmp_path.glob(f"{name}/*/predictions.npz")
        with np.load(path) as arrays:
            plain[name] = arrays["plain"]
    assert np.array_equal(plain["a"], plain["b"])
    assert not np.array_equal(plain["a"], plain["c"])


def test_a_sweep_runs_the_grid_and_counts_it(
    command: Command, tmp_path: Path, tiny_words: TinyWords
) -> None:
    words = ("-m", "+trick=baseline,mixup,[mixup,label_smoothing]", "seed=0,1", *tiny_words)
    done = command(*words)
    assert done.returncode == 0, done.stderr
    found = sorted((tuple(result["tricks"]), result["seed"]) for result in results(tmp_path))
    assert found == [
        ((), 0), ((), 1),
        (("mixup",), 0), (("mixup",), 1),
        (("mixup", "label_smoothing"), 0), (("mixup", "label_smoothing"), 1),
    ]  # fmt: skip
    assert "6 jobs" in done.stdout
    entries = {path.name for path in (tmp_path / "outputs").iterdir()}
    assert len(entries) == 8, "six runs, the cache and the sweeps, no files of Hydra's"
    assert {"cache", "sweeps"} < entries


def test_a_failing_job_stops_no_other_and_is_listed(
    command: Command, tmp_path: Path, tiny_words: TinyWords
) -> None:
    words = [word for word in tiny_words if not word.startswith("data.batch_size")]
    done = command("-m", "data.batch_size=16,1000,8", *words)
    assert done.returncode == 6
    assert len(results(tmp_path)) == 2
    assert "1 of 3 jobs failed" in done.stderr
    assert "failed: data.batch_size=1000" in done.stdout
    assert "do not fill one batch" in done.stdout


def test_divergence_stops_before_the_update(
    command: Command, tmp_path: Path, tiny_words: TinyWords
) -> None:
    done = command("optim=sgd", "optim.lr=1e30", "optim.schedule=constant", *tiny_words)
    assert done.returncode == 5, done.stdout + done.stderr
    for word in ("not finite", "epoch 1, step", "lr", "optim.lr="):
        assert word in done.stderr
    assert results(tmp_path) == []
    (status,) = tmp_path.glob("outputs/*/status.json")
    assert json.loads(status.read_text())["status"] == "failed"


def test_broken_and_leaked_images_are_named_and_counted(
    command: Command, tmp_path: Path, tiny_words: TinyWords
) -> None:
    root = tmp_path / "data"
    for seed, (name, colour) in enumerate(COLOURS.items()):
        write_images(root / "train" / name, 16, colour, seed)
        write_images(root / "val" / name, 8, colour, 100 + seed)
    good = (root / "train" / "red" / "000.png").read_bytes()
    (root / "train" / "red" / "000.png").write_bytes(good[: len(good) // 2])
    (root / "val" / "blue" / "001.png").write_bytes(b"<html>not found</html>")
    words = [word for word in tiny_words if not word.startswith("data.root")]
    done = command(*words, f"data.root={root}")
    assert done.returncode == 3
    assert "train/red/000.png" in done.stderr
    assert "val/blue/001.png" in done.stderr
    assert "data.on_corrupt=skip" in done.stderr
    shutil.copy(root / "train" / "red" / "001.png", root / "val" / "blue" / "copy.png")
    done = command(*words, f"data.root={root}", "data.on_corrupt=skip", COLUMNS="300")
    assert done.returncode == 0, done.stderr
    assert re.search(r"warning: 1 .*train/red/001\.png = val/blue/copy\.png", done.stdout)
    (result,) = results(tmp_path)
    assert (result["data"]["num_train"], result["data"]["num_val"]) == (47, 24)
    assert result["data"]["leaked"] == 1
    assert result["data"]["skipped"] == 2
    assert {entry["image"] for entry in result["data"]["skipped_images"]} == {
        "train/red/000.png",
        "val/blue/001.png",
    }


SPELLINGS = ("with space", "żółw", "a=b", "per%cent", "[x]", "emoji😀", "#1")


@pytest.mark.parametrize(
    "name",
    # Together, and where that fails, each alone to tell which it is.
    [" ".join(SPELLINGS), *(pytest.param(name, marks=pytest.mark.slow) for name in SPELLINGS)],
)
def test_paths_of_any_spelling_work_when_quoted(
    command: Command, tmp_path: Path, tiny_folder: Path, tiny_words: TinyWords, name: str
) -> None:
    """Of data, results, weights to start from, images to predict and a table."""
    (tmp_path / name).symlink_to(tiny_folder)
    words = [word for word in tiny_words if not word.startswith("data.root")]
    words.append(f'data.root="{tmp_path / name}"')
    done = command(*words, f'outputs="to {name}"', "+trick=baseline", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    (bundle,) = (tmp_path / f"to {name}").glob("*/bundle")
    start = f'model.weights="{bundle.parent}"'
    done = command(*words, start, LC_ALL="C")
    assert done.returncode == 0, done.stderr
    images = str(tmp_path / name / "val" / "red")
    done = command(str(bundle), images, "--csv", f"{name}.csv", module="runner.predict", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / f"{name}.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 9
    assert all(str(tmp_path / name) in row for row in rows[1:])


def test_the_hint_for_a_path_works_as_it_stands(
    command: Command, tmp_path: Path, tiny_folder: Path, tiny_words: TinyWords
) -> None:
    (tmp_path / "żółw").symlink_to(tiny_folder)
    words = [word for word in tiny_words if not word.startswith("data.root")]
    done = command(*words, f"data.root={tmp_path}/żółw")
    assert done.returncode == 2
    fixes = re.findall(r"^fix: .*?('data\.root=.*')", done.stderr, re.MULTILINE)
    (fix,) = shlex.split(fixes[0])
    done = command(*words, fix)
    assert done.returncode == 0, done.stderr


def test_as_little_data_as_can_be(command: Command, tmp_path: Path, tiny_words: TinyWords) -> None:
    """Images of a single pixel or of a single row, and one of each class: finite, or an error."""
    sizes = {"red": [(1, 1), (5000, 1)], "blue": [(1, 5000), (2, 3)]}
    for split, name, number in itertools.product(("train", "val"), sizes, range(2)):
        path = tmp_path / "odd" / split / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        tint = 100 * (split == "val")  # no image of one split is in the other
        Image.new("RGB", sizes[name][number], (*COLOURS[name][:2], tint)).save(path)
    for split, name in itertools.product(("train", "val"), ("blue", "red")):
        write_images(tmp_path / "one of each" / split / name, 1, COLOURS[name], len(split))
    for name in ("red", "blue"):
        write_images(tmp_path / "no validation" / name, 1, COLOURS[name], 0)
    words = [word for word in tiny_words if not word.startswith("data.")]
    words += ["data=folder", "data.batch_size=2", "+trick=all"]
    expected = {"odd": 0, "one of each": 0, "no validation": 3}
    for name, code in expected.items():
        done = command(*words, f"data.root={name}", f"outputs=results/{name}")
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
    assert "error: no validation images" in done.stderr
    found = [whole_result(path.parent) for path in tmp_path.glob("results/*/*/result.json")]
    assert sorted(result["data"]["num_train"] for result in found) == [2, 4]
    for result in found:
        for view in ("plain", "tta"):
            json.dumps(result["metrics"][view], allow_nan=False)


@pytest.mark.parametrize(
    ("word", "fix"),
    [
        ("data.label_column=${oc.env:API_TOKEN}", 'data.label_column="$API_TOKEN"'),
        ("outputs=${oc.env:API_TOKEN,out}", 'outputs="$API_TOKEN"'),
        ("seed=${oc.decode:${oc.env:API_TOKEN}}", 'seed="$API_TOKEN"'),
        ("data.root=${hydra:runtime.cwd}", "the value itself"),
        ("data.root=${hydra.job.env_set.API_TOKEN}", "the value itself"),
        ("hydra.output_subdir=.hydra", "config.yaml"),
        ("hydra.job.env_copy=[API_TOKEN]", "NAME=VALUE python -m"),
        ("+hydra.job.env_set.API_TOKEN=hunter2hunter2", "NAME=VALUE python -m"),
    ],
)
@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_no_word_brings_a_secret_into_a_file(
    command: Command, tmp_path: Path, tiny_words: TinyWords, word: str, fix: str, mode: list[str]
) -> None:
    done = command(*mode, word, *tiny_words, API_TOKEN="hunter2hunter2")  # noqa: S106
    assert done.returncode == 2, done.stderr
    assert fix in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_closed_pipe_is_no_error(tmp_path: Path, tiny_words: TinyWords) -> None:
    words = " ".join(f"'{word}'" for word in tiny_words)
    script = f"'{sys.executable}' -m runner.train {words} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert "Traceback" not in done.stderr
    assert len(results(tmp_path)) == 1, "training does not depend on who reads its output"


@pytest.mark.slow  # test_survival.py interrupts forks
def test_an_interrupt_never_looks_finished(tmp_path: Path, tiny_words: TinyWords) -> None:
    words = [word for word in tiny_words if not word.startswith("budget")]
    process = subprocess.Popen(
        [sys.executable, "-m", "runner.train", *words, "budget.epochs=5000"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("outputs/*/metrics.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    assert results(tmp_path) == []
    (status,) = tmp_path.glob("outputs/*/status.json")
    assert json.loads(status.read_text())["status"] == "interrupted"


def test_lr_find_suggests_and_writes_no_run(
    command: Command, tmp_path: Path, tiny_words: TinyWords
) -> None:
    done = command(*tiny_words, module="runner.lr_find")
    assert done.returncode == 0, done.stderr
    assert re.search(r"valley: optim\.lr=\d", done.stdout)
    assert not list(tmp_path.glob("outputs/*/status.json"))
    assert command("-m", "seed=0,1", *tiny_words, module="runner.lr_find").returncode == 2


def test_outputs_moves_everything(command: Command, tmp_path: Path, tiny_words: TinyWords) -> None:
    assert command(*tiny_words, "outputs=there/deep").returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"there"}


def test_outputs_that_cannot_be_written(
    command: Command, tmp_path: Path, tiny_words: TinyWords
) -> None:
    (tmp_path / "file").write_text("in the way")
    started = time.perf_counter()
    done = command(*tiny_words, "outputs=file")
    assert done.returncode == 4
    assert str(tmp_path / "file") in done.stderr
    assert "Traceback" not in done.stderr
    assert "images" not in done.stdout + done.stderr, "before any data is read"
    assert time.perf_counter() - started < 10


def test_an_unfinished_run_on_other_data_is_named(
    composed: Callable[..., RunConfig],
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images, words = tmp_path / "images", [
        "data=folder", "data.batch_size=24", "resize.size=16", "model=timm",
        "model.name=test_resnet", "budget.epochs=1", "threads=1", f"outputs={tmp_path / 'outputs'}",
    ]  # fmt: skip
    shutil.copytree(tiny_folder, images)

    def trained(*more: str) -> tuple[str, str]:
        """The folder of the run, and what was printed."""
        summary = train.run(composed(f"data.root={images}", *words, *more), [])
        return summary["folder"], " ".join(capsys.readouterr().out.split())

    first, _ = trained()
    image = next(images.glob("train/*/*.png"))
    shutil.copy(image, image.with_name("new.png"))
    again, said = trained("force=true")
    assert first != again
    assert "is unfinished" not in said, "the first run has finished"
    shutil.rmtree(again)
    (Path(first) / "result.json").unlink()  # as after a kill
    assert "is unfinished" not in trained("seed=1")[1], "other settings"
    _, said = trained()
    assert f"note: {Path(first).name} has the same settings and is unfinished" in said


def test_a_run_that_was_begun_in_another_precision_is_named(
    composed: Callable[..., RunConfig],
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [
        "data=folder", f"data.root={tiny_folder}", "data.batch_size=24", "resize.size=16",
        "model=timm", "model.name=test_resnet", "budget.epochs=1", "threads=1",
        f"outputs={tmp_path / 'outputs'}", "device=cpu",
    ]  # fmt: skip

    def trained(flag: str, *more: str) -> tuple[str, str]:
        """The folder of the run on a processor with this flag, and what was printed."""
        monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset({flag}))
        summary = train.run(composed(*words, *more), [])
        return summary["folder"], " ".join(capsys.readouterr().out.split())

    first, said = trained("avx512_bf16")
    assert "has the same settings" not in said
    other, said = trained("avx2")
    assert f"note: {Path(first).name} has the same settings and is finished" in said
    assert "finished: precision=bf16 shows it" in said
    shutil.rmtree(other)
    (Path(first) / "result.json").unlink()  # as after a kill
    assert "has the same settings" not in trained("avx2", "seed=1")[1], "other settings"
    assert "has the same settings" not in trained("avx2", "precision=fp32")[1], "as the user says"
    shutil.rmtree(other)
    assert "is unfinished: precision=bf16 continues it. On this" in trained("avx2")[1]
    assert trained("avx2", "precision=bf16")[0] == first
    with pytest.raises(ConfigError) as caught:
        trained("avx2", f"run_dir={first}")
    assert caught.value.fix.startswith("precision=bf16, with which it was begun; or run_dir=")
    assert train.run(composed(*words, "precision=bf16", f"run_dir={first}"), [])["folder"] == first


def test_an_overlay_of_the_user_that_is_no_trick_is_said_to_be_called_baseline(
    command: Command, tmp_path: Path, tiny_words: TinyWords
) -> None:
    overlays = tmp_path / "mine" / "trick"
    overlays.mkdir(parents=True)
    (overlays / "slow.yaml").write_text("# @package _global_\noptim:\n  lr: 0.0005\n")
    (overlays / "mix.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /mixup: beta\n"
    )
    said = {
        name: command("--config-dir", str(tmp_path / "mine"), f"+trick={name}", *tiny_words)
        for name in ("slow", "mix", "baseline")
    }
    assert {done.returncode for done in said.values()} == {0}, said["slow"].stderr
    assert "+trick=slow turns on none of our tricks" in said["slow"].stdout
    assert "called baseline" not in said["mix"].stdout + said["baseline"].stdout
    lrs = {result["config"]["optim"]["lr"] for result in results(tmp_path)}
    assert 0.0005 in lrs
