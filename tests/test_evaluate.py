"""Evaluating again: the run's own numbers come back, variants make a table, mistakes are told."""

import csv
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import run as run_process
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from small import Command, small_dataset, whole_result

from runner import train
from runner.config.complaints import translated
from runner.config.schema import Data, RunConfig, Tta
from runner.data.dataset import Dataset, load_dataset
from runner.errors import ArtefactError, ConfigError, DataError, RunnerError
from runner.evaluate import averaged, configurations, evaluate_run, read_run, variants
from runner.models import build_model
from runner.records.bundle import bundle_files, read_bundle
from runner.records.run_folder import RunFolder
from runner.terminal.display import Display

BOOK = Tta(passes=4, beta=0.25)


@pytest.fixture(scope="module")
def runs(
    tiny_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    composed: Callable[..., RunConfig],
) -> tuple[Path, Path]:
    """Two finished runs: seed 0 with TTA, seed 1 without."""
    words = [
        "data=folder", f"data.root={tiny_folder}", "data.batch_size=16", "resize.size=16",
        "budget.epochs=1", "threads=1", f"outputs={tmp_path_factory.mktemp('outputs')}",
    ]  # fmt: skip
    with_tta, plain = (
        Path(train.run(composed(*words, *more), [])["folder"])
        for more in (["tta=flip", "seed=0"], ["seed=1"])
    )
    return with_tta, plain


@pytest.fixture
def copied(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the first run, to be damaged."""
    return Path(shutil.copytree(runs[0], tmp_path / "copied"))


def edit(path: Path, change: Callable[[Any], object]) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def load(data: Data, size: int, outputs: str) -> Dataset:
    return load_dataset(data, size, Path(outputs) / "cache", lambda what, done, total: None)


def measured(path: Path, *words: str, source: Callable[..., Dataset] = load) -> dict[str, Any]:
    run = read_run(path)
    wanted = variants(words, is_sweep=True)
    configs = dict(zip(wanted, configurations(run, wanted), strict=True))
    with Display(stderr=True) as display:
        return evaluate_run(run, configs, source, display)


def test_the_run_itself_comes_back(
    command: Command, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    done = command(str(runs[0]), "--json", "-", "--csv", "rows.csv", module="runner.evaluate")
    assert done.returncode == 0, done.stderr
    assert "the plain row reproduces the run (to 0)" in done.stderr
    (entry,) = json.loads(done.stdout)["runs"]
    plain, own = entry["rows"]
    expected = whole_result(runs[0])["metrics"]
    assert own["variant"] == "the run's own TTA"
    assert plain.items() >= expected["plain"].items()
    assert own.items() >= expected["tta"].items()
    assert (entry["difference_to_saved"], entry["forward_passes"]) == (0, 2)
    assert (own["forward_passes"], own["pixels"]) == (2, 2)
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert [row["variant"] for row in rows] == ["plain", "the run's own TTA"]
    assert float(rows[1]["accuracy"]) == expected["tta"]["accuracy"]
    assert rows[0]["points"] == ""


def test_a_grid_over_several_runs(command: Command, runs: tuple[Path, Path]) -> None:
    words = [*map(str, runs), "-m", "tta=flip,book", "tta.reduce=mean,max"]
    done = command(*words, "--csv", "-", module="runner.evaluate")
    assert done.returncode == 0, done.stderr
    assert "note: tta.reduce=max ignores tta.beta, which weighs a mean" in done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["variant"] for row in rows] == [
        "plain", *(f"tta={name} tta.reduce={reduce}"
                   for name in ("flip", "book") for reduce in ("mean", "max")),
    ]  # fmt: skip
    assert {row["runs"] for row in rows} == {"2"}
    assert {row["p_value"] for row in rows} == {""}, "a p-value is of one run's images"
    results = [json.loads((path / "result.json").read_text())["metrics"] for path in runs]
    accuracies = [result["plain"]["accuracy"] for result in results]
    assert float(rows[0]["accuracy"]) == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert len({row["log_loss"] for row in rows}) == 5


def test_measures_of_a_variant(runs: tuple[Path, Path]) -> None:
    entry = measured(runs[1], "tta=flip,scales")
    plain, *others = entry["rows"]
    for row in others:
        gained, lost = row["gained"], row["lost"]
        assert row["accuracy"] - plain["accuracy"] == pytest.approx((gained - lost) / 24)
        assert row["points"] == pytest.approx(100 * (gained - lost) / 24)
        total = gained + lost
        assert row["p_value"] == pytest.approx(binomtest(gained, total).pvalue if total else 1)
    assert [row["pixels"] for row in entry["rows"]] == [1, 2, 2 * (1 + 1.25**2 + 1.5**2)]
    assert entry["forward_passes"] == 6, "the views of scales hold those of flip"
    assert entry["environment"]["threads"] == 1


def test_rows_over_runs() -> None:
    def entry(accuracy: float, gained: int) -> dict[str, Any]:
        common = {"log_loss": 1.0, "brier": 0.5, "ece": 0.1, "forward_passes": 2, "pixels": 2.0}
        paired = {"points": 1.0, "gained": gained, "lost": 1, "p_value": 0.5}
        return {"rows": [{"variant": "x", "accuracy": accuracy, **common, **paired}]}

    (single,) = averaged([entry(0.5, 3)])
    assert (single["runs"], single["p_value"], single["gained"]) == (1, 0.5, 3)
    (row,) = averaged([entry(0.5, 3), entry(0.7, 5)])
    assert (row["runs"], row["gained"], row["lost"], row["p_value"]) == (2, 8, 2, None)
    assert row["accuracy"] == pytest.approx(0.6)


def test_words_change_the_runs_own_tta_or_replace_it(runs: tuple[Path, Path]) -> None:
    run = read_run(runs[0])
    own = run.config.tta
    assert own == Tta(flip=True)

    def tta(*words: str) -> list[Tta]:
        wanted = variants(words, is_sweep=True)
        return [config.tta for config in configurations(run, wanted)]

    assert tta() == [own]
    assert tta("tta.crops=3") == [replace(own, crops=3)]
    assert tta("tta=book", "threads=1") == [BOOK]
    assert tta("tta.passes=2", "tta=book") == [replace(BOOK, passes=2)]
    assert tta("tta=book", "tta.reduce=mean,max") == [BOOK, replace(BOOK, beta=None, reduce="max")]
    assert tta("tta.crops=range(1,4)") == [replace(own, crops=crops) for crops in (1, 2, 3)]
    with pytest.raises(ConfigError, match="weighs a mean"):
        tta("tta=book", "tta.reduce=max", "tta.beta=0.5")
    with pytest.raises(ConfigError, match="only tta can take several"):
        tta("threads=1,2")
    with pytest.raises(ConfigError, match="out of range"):
        tta("tta.crops=100")


@pytest.mark.parametrize(
    ("word", "what", "fix"),
    [
        ("mixup.alpha=0.2", "another mixup.alpha needs training again", "tta.KEY"),
        ("model=xresnet34", "another model needs training again", "runner.train"),
        ("resize.size=64", "another resize.size needs training again", "eval.batch_size"),
        ("tat=book", "unknown key tat (did you mean tta?)", "allowed here"),
        ("~tta.beta=1", "unknown key", "allowed here"),
        ("hydra.verbose=true", "unknown key", "allowed here"),
        ("data.root=${oc.env:HOME}", "a reference is not allowed here", "the value itself"),
        ("tta=2", "tta is a group", "tta=book"),
        ("tta=bok", "did you mean book?", "ten_crop"),
        ("tta.flp=true", "did you mean tta.flip?", "tta.flip=true"),
        ("tta=flip,book", "several values, but not a sweep", "-m"),
        ("tta=choice(flip,book)", "several values, but not a sweep", "-m"),
    ],
)
def test_a_wrong_word_is_told(word: str, what: str, fix: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011  ours, or Hydra's to be translated
        variants([word], is_sweep=False)
    error = caught.value
    known = error if isinstance(error, RunnerError) else translated(error)
    assert isinstance(known, ConfigError)
    assert what in known.what
    assert fix in known.fix


def test_the_command_tells_mistakes(command: Command, runs: tuple[Path, Path]) -> None:
    run = str(runs[0])
    for words, code, text in (
        ((run, "mixup.alpha=0.2"), 2, "another mixup.alpha needs training again"),
        ((run, "tta=flip,book"), 2, "fix: -m"),
        ((run, "tta=flip", "--csv", "-", "--json", "-"), 2, "standard output"),
        (("tta=flip",), 2, "which run?"),
        ((run, "--tta", "flip"), 2, "fix: tta=flip\n"),
        ((run, "--tta.crops=5"), 2, "fix: tta.crops=5\n"),
        ((run, "--batch-size", "8"), 2, "fix: eval.batch_size=8\n"),
        ((run, "--mixup", "beta"), 2, "--help\n"),
        ((run, "--jsn", "a"), 2, "fix: --json\n"),
        (("nowhere", "tta=flip"), 3, "no such folder"),
    ):
        done = command(*words, module="runner.evaluate")
        assert done.returncode == code, done.stderr
        assert text in done.stderr
        assert "Traceback" not in done.stderr


def test_mistakes_are_told_without_torch() -> None:
    code = "import sys, runner.evaluate; runner.evaluate.variants([], is_sweep=True); "
    run_process([sys.executable, "-c", f"{code}assert 'torch' not in sys.modules"], check=True)


def test_an_unfinished_run_has_nothing_to_evaluate(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.begin({"identity": "0", "fingerprint": "f", "values": {}}, {}, [])
    with pytest.raises(DataError, match="no finished run"):
        read_run(tmp_path)


def test_references_in_a_recorded_configuration_stay_text(copied: Path) -> None:
    text = "${oc.env:HOME}"
    edit(copied / "result.json", lambda found: found["config"]["data"].update(root=text))
    run = read_run(copied)
    (config,) = configurations(run, variants(["tta=flip"], is_sweep=False))
    assert config.data.root == text


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.pop("config"),
        lambda found: found["config"].update(_target_="os.system"),
        lambda found: found["config"]["tta"].update(crops="${oc.env:HOME}"),
        lambda found: found.update(data=[]),
        lambda found: found.pop("bundle"),
        lambda found: found.update(bundle=["model.json"]),
        lambda found: found.update(record_version=0),
    ],
)
def test_a_damaged_result_is_refused(copied: Path, change: Callable[[Any], object]) -> None:
    edit(copied / "result.json", change)
    with pytest.raises(ArtefactError) as caught:
        read_run(copied)
    assert "result.json" in caught.value.where


def test_what_is_not_the_runs_own_is_refused(runs: tuple[Path, Path], copied: Path) -> None:
    with pytest.raises(ArtefactError, match="not the data of the run") as caught:
        measured(copied, source=lambda *_: small_dataset())
    assert "f" * 16 in caught.value.what
    assert read_run(copied).fingerprint[:16] in caught.value.what
    assert "data.root=" in caught.value.fix
    description = copied / "bundle" / "model.json"
    edit(description, lambda found: found["classes"].reverse())
    with pytest.raises(ArtefactError, match="SHA-256") as caught:
        measured(copied)
    assert caught.value.where == str(description)
    assert caught.value.exit_code == 7


def test_statistics_come_from_the_bundle(runs: tuple[Path, Path], copied: Path) -> None:
    wrong = {"mean": [0.5] * 3, "std": [0.2] * 3}
    edit(copied / "result.json", lambda found: found["config"]["normalize"].update(wrong))
    assert measured(copied)["difference_to_saved"] == 0
    description = copied / "bundle" / "model.json"
    content = description.read_bytes()
    edit(description, lambda found: found["preprocess"].update(wrong))
    with pytest.raises(ArtefactError, match="SHA-256"):
        measured(copied)
    # Negative control: a whole bundle with other statistics, whose digests the run knows.
    description.write_bytes(content)
    bundle = read_bundle(copied / "bundle")
    model = build_model("xresnet", "xresnet18", 3, seed=0)
    bundle.load_into(model)
    other = replace(bundle.preprocess, mean=(0.5,) * 3, std=(0.2,) * 3)
    files = bundle_files(
        model,
        architecture=bundle.architecture,
        classes=bundle.classes,
        preprocess=other,
        evaluated=bundle.evaluated,
    )
    for name, data in files.items():
        (copied / "bundle" / name).write_bytes(data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    edit(copied / "result.json", lambda found: found.update(bundle=digests))
    assert measured(copied)["difference_to_saved"] > 1e-3


@pytest.mark.parametrize("damage", ["missing", "cut", "other images", "other numbers"])
def test_a_plain_row_that_is_not_the_runs_is_told(
    copied: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied / "predictions.npz"
    content, saved = path.read_bytes(), RunFolder(copied).predictions()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[:-50])
    elif damage == "other images":
        np.savez(path, **{name: values[1:] for name, values in saved.items()})
    elif damage == "other numbers":
        np.savez(path, **{**saved, "plain": saved["plain"][::-1]})
    found = measured(copied)["difference_to_saved"]
    told = capsys.readouterr().err
    assert "warning" in told
    assert (found is None) == (damage != "other numbers")
    assert "torch" in told or found is None


def test_runs_on_different_data_are_not_averaged(
    command: Command, runs: tuple[Path, Path], copied: Path
) -> None:
    edit(copied / "result.json", lambda found: found["data"].update(fingerprint="0" * 64))
    done = command(str(runs[0]), str(copied), module="runner.evaluate")
    assert done.returncode == 2
    assert "cannot be averaged" in done.stderr


@pytest.mark.parametrize(
    "network",
    [
        "model.source=xresnet model.name=xresnet18",
        pytest.param("model=torchvision model.name=resnet18", marks=pytest.mark.whole),
    ],
)
def test_evaluation_and_prediction_import_torchvision_for_its_networks_alone(
    finished_run: Callable[..., Path], tiny_folder: Path, network: str
) -> None:
    """With torchvision comes torch's compiler, and both take longer to import than torch."""
    run = finished_run(*network.split())
    image = next((tiny_folder / "val").rglob("*.png"))
    for module, *words in (
        ("runner.predict", str(run), str(image)),
        ("runner.evaluate", str(run), "tta=flip"),
    ):
        code = (
            f"import runpy, sys; sys.argv = {['', *words]!r}\n"
            f"try: runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
            "except SystemExit as end: assert not end.code, end.code\n"
            "print('imported:', {'torchvision', 'torch._dynamo'} & set(sys.modules))"
        )
        done = run_process([sys.executable, "-c", code], capture_output=True, text=True)
        is_theirs = "torchvision" in network
        assert ("imported: set()" in done.stdout) == (not is_theirs), done.stdout + done.stderr
        assert is_theirs == ("'torchvision'" in done.stdout)
