"""Comparisons by cross-validation: what is refused, the plan, and a whole one to its answer."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small import Command, write_images

from runner.compare.asked import Asked
from runner.compare.batches import job_of
from runner.compare.plan import Planned, lines
from runner.compare.question import question
from runner.errors import ConfigError, DataError
from runner.machine.arrays import read_npz
from runner.records.comparison_folder import BASE, PairedRun, plan_content, plan_of
from runner.report.comparisons import by_seed

Plan = Callable[..., Planned]


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Two classes of 12 images, without a split."""
    for seed, (name, colour) in enumerate({"red": (200, 60, 60), "blue": (60, 60, 200)}.items()):
        write_images(tmp_path / "pool" / name, 12, colour, seed)
    return tmp_path / "pool"


def words_of(root: Path) -> tuple[str, ...]:
    return (
        "data=folder", f"data.root={root}", "data.batch_size=8", "resize.size=16", "model=timm",
        "model.name=test_resnet", "budget.epochs=1", "threads=1", "device=cpu",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"folds": "2"}, "with two folds no arm can be decided"),
        ({"folds": "101"}, "from 3 to 100"),
        ({"folds": "five"}, "from 3 to 100"),
        ({"folds": "5", "seeds": "0"}, "from 1 to 100 with --folds"),
        ({"folds": "5", "max_seeds": "5"}, "a fixed design"),
        ({"folds": "5", "tune": ("optim.lr=1e-3,1e-2",)}, "tuned on the images of one fold"),
        ({"folds": "5", "words": ("data.fold=2",)}, "sets the folds of all trainings itself"),
        ({"folds": "5", "words": ("data=fashion",)}, "data=fashion has a split of its own"),
    ],
)
def test_what_has_no_folds_is_refused(pool: Path, options: dict[str, object], what: str) -> None:
    words = (*words_of(pool)[:2], *options.pop("words", ()))  # type: ignore[misc]
    if "data=fashion" in words:
        words = ("data=fashion",)
    with pytest.raises(ConfigError, match=what) as caught:
        question(Asked(words=words, tries=(("mixup=beta",),), **options))  # type: ignore[arg-type]
    assert caught.value.fix


def test_data_with_a_split_is_refused_before_any_training(
    plan: Plan, tiny_words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="split of its own"):
        plan(tiny_words, "mixup=beta", folds="3")
    assert not (tmp_path / "outputs" / "comparisons").exists()


def test_auroc_needs_two_classes_in_each_fold(plan: Plan, pool: Path, tmp_path: Path) -> None:
    for path in sorted((pool / "red").iterdir())[3:]:
        path.unlink()
    words = words_of(pool)
    # The first fold alone may lack a class that all folds together have, and the reverse.
    plan(words, "mixup=beta", folds="3", metric="auroc")
    with pytest.raises(ConfigError, match=r"all images of fold \d are of class blue"):
        plan(words, "mixup=beta", folds="5", metric="auroc")
    assert not (tmp_path / "outputs" / "comparisons").exists()


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        ("no such", "24 of 24 images have no group"),
        ("red|blue", "would have no images: there are 2 groups"),
        ("red|[0-9]+", "red: images in one fold only"),
    ],
)
def test_groups_that_leave_a_fold_without_a_class_are_refused_before_any_training(
    plan: Plan, pool: Path, tmp_path: Path, pattern: str, what: str
) -> None:
    with pytest.raises(DataError, match=what) as caught:
        plan((*words_of(pool), f"data.group_pattern='{pattern}'"), "mixup=beta", folds="3")
    assert caught.value.fix
    assert not (tmp_path / "outputs" / "comparisons").exists()
    assert not list(tmp_path.glob("outputs/*/run.json"))


def test_the_plan_and_the_jobs_of_folds(plan: Plan, pool: Path) -> None:
    found = plan((*words_of(pool), "seed=4"), "mixup=beta", folds="3", seeds="2")

    comparison = found.comparison
    assert (comparison.num_folds, comparison.max_seeds, comparison.looks) == (3, 2, (2,))
    assert comparison.num_val == 24
    assert (comparison.seeds, comparison.pairs) == (range(4, 6), range(4, 10))
    assert comparison.pair_name(8) == "seed 5, fold 1"
    assert len(found.trainings(2)) == 12
    text = "\n".join(lines(found))
    assert "2 for every arm and each of 3 folds" in text
    assert "12 at most" in text
    assert "24 validation images" in text
    job = job_of(comparison, comparison.labels[0], 8, ())
    assert {"seed=5", "data.fold=1", "data.num_folds=3", "mixup=beta"} <= {*job.words}
    named = plan_of({**plan_content(comparison), "name": "folds"})
    assert named.question == comparison.question
    alone = plan_content(plan(words_of(pool), "mixup=beta", seeds="5").comparison)
    assert "num_folds" not in alone


def test_a_seed_has_a_run_if_all_its_folds_have(plan: Plan, pool: Path) -> None:
    comparison = plan(words_of(pool), "mixup=beta", folds="3", seeds="3").comparison
    good, again = PairedRun("run"), PairedRun(None, failed="out of memory")
    lost = PairedRun(None, failed="it diverged", is_diverged=True)
    pairs = {0: good, 1: good, 2: good, 3: good, 4: again, 5: lost, 6: good}

    found = by_seed(comparison, {BASE: pairs})[BASE]

    assert found[0].run == "run"
    assert (found[1].failed, found[1].is_diverged) == ("fold 2: it diverged", True)
    assert 2 not in found


@pytest.mark.whole
def test_a_comparison_of_three_folds_uses_every_image_once(
    command: Command, pool: Path, tmp_path: Path
) -> None:
    words = (*words_of(pool), "--folds", "3", "--try", "mixup=beta", "--json", "answer.json")

    first = command(*words, module="runner.compare")

    assert first.returncode == 0, first.stderr
    (folder,) = (tmp_path / "outputs" / "comparisons").iterdir()
    recorded = json.loads((folder / "comparison.json").read_text())
    assert (recorded["num_folds"], recorded["base"]["num_val"]) == (3, 24)
    runs = json.loads((folder / "runs.json").read_text())["runs"]
    assert {label: len(found) for label, found in runs.items()} == {"base": 3, "mixup=beta": 3}
    names: list[str] = []
    for one in runs["base"].values():
        run = tmp_path / "outputs" / one["run"]
        result = json.loads((run / "result.json").read_text())
        assert result["data"]["folds"]["num_folds"] == 3
        assert f"-fold{result['data']['folds']['fold']}-" in run.name
        names.append(result["data"]["folds"]["fingerprint"])
    assert len(names) == 3
    assert len({*names}) == 1
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["is_ended"]
    (arm,) = answer["arms"]
    assert arm["pairs"][0]["seed"] == 0
    assert arm["low"] <= arm["difference"] <= arm["high"]
    assert any("3 folds: each of the 24 images" in note for note in answer["notes"])

    again = command(*words[:-2], module="runner.compare")

    assert again.returncode == 0, again.stderr
    assert "3 folds, 1 seed each" in again.stdout
    assert "after 3 folds of 1 seed" in again.stdout
    report = command("outputs", module="runner.report")
    assert report.returncode == 0, report.stderr
    assert "3 folds, 1 seed each" in " ".join(report.stdout.split())


@pytest.mark.whole
def test_a_sweep_over_folds_is_pooled_by_the_report(
    command: Command, pool: Path, tmp_path: Path
) -> None:
    words = (*words_of(pool), "data.num_folds=3", "data.fold=range(3)", "mixup=none,beta")

    swept = command("-m", *words)
    found = command("outputs", "--json", "-", "--html", "page.html", module="runner.report")

    assert swept.returncode == 0, swept.stderr
    assert found.returncode == 0, found.stderr
    (group,) = json.loads(found.stdout)["groups"]
    assert "3 folds" in group["title"]
    (one,) = group["comparisons"]
    assert (one["seeds"], one["found"]["n"], one["found"]["is_of_folds"]) == ([0], 3, True)
    assert one["p_zero"] is not None
    runs = [tmp_path / "outputs" / run["run"] for run in group["runs"]]
    assert len(runs) == 6
    places: list[int] = []
    for run in runs[:3]:
        places += read_npz(run / "predictions.npz", ("places",))["places"].tolist()
    assert sorted(places) == [*range(24)]
    assert "3 folds" in (tmp_path / "page.html").read_text()
