"""Anything can be a factor: runs that differ in it are arms, named by their values."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fabricated import write_run

from runner.config import checks, overlays, schema
from runner.config.options import CONF_DIR, OVERLAYS
from runner.config.schema import Augment, Data, Eval, Mixup, Model, Optim, Resize, Tta
from runner.errors import ConfigError
from runner.report import text
from runner.report.answer import Answer, GroupAnswer, answer
from runner.report.factors import Factor, looks_of, nearest_option, trick_factors, view_groups
from runner.report.page import page
from runner.report.paired import Comparison
from runner.report.runs import find_runs
from runner.report.scores import ScoreBook
from runner.terminal.tables import Table

MARGIN = 0.05
COMMAND = ("python", "-m", "runner.report", "some folder")
INCEPTION = checks.from_dict({"augment": overlays.option_values("augment", "inception")}).augment
STANDARD = checks.from_dict({"augment": overlays.option_values("augment", "standard")}).augment


def ask(outputs: Path, *by: str, baseline: Sequence[str] = ()) -> Answer:
    found = find_runs([outputs])
    assert found.unranked == []
    return answer(found, ScoreBook(Path("/nowhere/x.npz")), MARGIN, baseline, by, COMMAND)


def only(found: Answer) -> GroupAnswer:
    (group,) = found.groups
    return group


def labels(group: GroupAnswer) -> list[str]:
    return [row.label for row in group.rows]


def write(
    outputs: Path, *tricks: str, seeds: int = 2, accuracy: float = 0.5, **changes: Any
) -> None:
    for seed in range(seeds):
        drawn = accuracy + 0.1 * (seed % 2)
        write_run(outputs, *tricks, seed=seed, accuracy=drawn, num_images=40, **changes)


def difference(one: Comparison) -> float:
    return round(one.found.mean, 6)


# ── One key ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def rates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("rates")
    for lr, accuracy in ((1e-3, 0.4), (3e-3, 0.5), (0.01, 0.7)):
        write(outputs, optim=Optim(lr=lr), accuracy=accuracy)
    return outputs


def test_a_key_is_compared_with_its_default(rates: Path) -> None:
    group = only(ask(rates, "optim.lr"))
    assert labels(group) == ["optim.lr=0.003", "optim.lr=0.001", "optim.lr=0.01"]
    assert group.baseline == "optim.lr=0.003"
    assert [difference(one) for one in group.comparisons] == [-0.1, 0.2]
    assert [row.values for row in group.rows] == [{"optim.lr": lr} for lr in (3e-3, 1e-3, 0.01)]
    assert group.notes == ()
    assert group.contributions == ()
    assert group.group.title == "folder · xresnet18 · 28 px · 5 epochs"


@pytest.mark.parametrize("word", ["optim.lr=0.01", "optim.lr=1e-2", "optim.lr=.01"])
def test_another_value_can_be_the_baseline(rates: Path, word: str) -> None:
    group = only(ask(rates, "optim.lr", baseline=[word]))
    assert group.baseline == "optim.lr=0.01"
    assert {one.label: difference(one) for one in group.comparisons} == {
        "optim.lr=0.001": -0.3, "optim.lr=0.003": -0.2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("word", "what"),
    [("optim.lr=0.5", "no runs with these values"), ("mixup", "a value, not a name"),
     ("=", "no runs with these values")],
)  # fmt: skip
def test_a_baseline_that_is_not_there_is_an_error(rates: Path, word: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ask(rates, "optim.lr", baseline=[word])
    assert what in caught.value.what
    assert caught.value.where == f"--baseline {word}"
    assert "optim.lr=" in caught.value.fix


def test_without_the_default_the_value_of_most_runs_is_the_baseline(tmp_path: Path) -> None:
    for lr, seeds in ((0.1, 1), (0.2, 2), (0.05, 1)):
        write(tmp_path, optim=Optim(lr=lr), seeds=seeds)
    group = only(ask(tmp_path, "optim.lr"))
    assert labels(group) == ["optim.lr=0.2", "optim.lr=0.05", "optim.lr=0.1"]
    (note,) = [note for note in group.notes if "default" in note]
    assert "optim.lr=0.2, which has the most runs" in note
    write(tmp_path, optim=Optim(lr=0.05))
    group = only(ask(tmp_path, "optim.lr"))
    assert labels(group)[0] == "optim.lr=0.05", "of as many runs the smallest"
    assert any("the first in order" in note for note in group.notes)


def test_tricks_that_differ_are_groups_when_they_are_no_factors(tmp_path: Path) -> None:
    for lr in (3e-3, 0.01):
        write(tmp_path, optim=Optim(lr=lr))
        write(tmp_path, "mixup", optim=Optim(lr=lr))
    found = ask(tmp_path, "optim.lr")
    assert [labels(group) for group in found.groups] == [["optim.lr=0.003", "optim.lr=0.01"]] * 2
    titles = {group.group.title.rpartition(" · ")[2] for group in found.groups}
    assert titles == {"mixup=none", "mixup=beta"}
    assert len(ask(tmp_path).groups) == 2, "by tricks, it is the other way round"


@pytest.mark.parametrize(
    ("key", "changes", "names"),
    [
        ("precision", [{}, {"precision": "bf16"}], ["precision=fp32", "precision=bf16"]),
        ("model.name", [{}, {"model": Model(name="xresnet34")}],
         ["model.name=xresnet18", "model.name=xresnet34"]),
        ("tta.scales", [{"tta": Tta(scales=scales)} for scales in ((1.0,), (1.0, 1.5))],
         ["tta.scales=[1.0]", "tta.scales=[1.0, 1.5]"]),
        ("mixup", [{}, {"mixup": Mixup(probability=1.0)}], ["mixup=none", "mixup=beta"]),
        ("mixup", [{}, {"mixup": Mixup(probability=1.0, alpha=0.2)}],
         ["mixup=none", "mixup=beta (alpha=0.2)"]),
        ("augment", [{}, {"augment": STANDARD}, {"augment": INCEPTION}],
         ["augment=none", "augment=inception", "augment=standard"]),
        ("augment", [{"augment": STANDARD}, {"augment": replace(STANDARD, flip=0.0)}],
         ["augment=standard", "augment=standard (flip=0.0)"]),
        ("augment", [{}, {"augment": Augment("rectangle", 0.5, 2.0, "batch", 0.25, 5.0)}],
         ["augment=none", "augment (crop_from=rectangle, min_scale=0.5, max_ratio=2.0, "
          "crop_per=batch, flip=0.25, max_rotate=5.0)"]),
        ("model", [{}, {"model": Model(name="xresnet50")}], ["model=xresnet18", "model=xresnet50"]),
        ("model", [{}, {"model": Model(source="timm", name="convnext_tiny")}],
         ["model=xresnet18", "model=timm (name=convnext_tiny)"]),
        ("optim", [{}, {"optim": Optim(lr=0.01)}], ["optim=adamw", "optim=adamw (lr=0.01)"]),
    ],
)  # fmt: skip
def test_arms_are_named_by_their_values(
    key: str, changes: list[dict[str, Any]], names: list[str], tmp_path: Path
) -> None:
    for change in changes:
        write(tmp_path, **change)
    group = only(ask(tmp_path, key))
    assert labels(group)[0] == names[0], "the default is the baseline"
    assert sorted(labels(group)) == sorted(names)


@pytest.mark.parametrize(
    ("group", "name"),
    sorted((path.parent.name, path.stem) for path in CONF_DIR.glob("*/*.yaml")
           if path.parent.name not in (*OVERLAYS, "data", "budget", "logger")),
)  # fmt: skip
def test_every_option_is_called_by_its_name(group: str, name: str, tmp_path: Path) -> None:
    values = overlays.option_values(group, name)
    chosen = getattr(checks.from_dict({group: values}), group)
    write(tmp_path, seeds=1, **{group: chosen})
    look = looks_of(find_runs([tmp_path]).runs[-1])[-1]
    assert nearest_option(group, look) == (name, ())


def test_numbers_of_option_files_are_numbers() -> None:
    assert overlays.option_values("optim", "sgd")["weight_decay"] == 5e-4
    assert overlays.option_values("optim", "adamw")["lr"] == 3e-3
    assert yaml.safe_load("lr: 3e-3") == {"lr": "3e-3"}, "or nothing is tested"


# ── A size, on which other values depend ───────────────────────────────────────────────────────


def test_values_that_follow_a_factor_are_no_difference(tmp_path: Path) -> None:
    for size in (28, 56):
        write(tmp_path, resize=Resize(size=size))
    group = only(ask(tmp_path, "resize.size"))
    assert labels(group) == ["resize.size=28", "resize.size=56"]
    assert len(ask(tmp_path).groups) == 2


def test_a_size_that_was_left_to_the_data_is_its_default(tmp_path: Path) -> None:
    data = Data(name="folder", root="images", default_size=64)
    for size in (32, None):
        write(tmp_path, resize=Resize(size=size), data=data)
    group = only(ask(tmp_path, "resize.size"))
    assert group.baseline == "resize.size=64"
    assert group.notes == ()


def test_values_that_were_chosen_are_a_difference(tmp_path: Path) -> None:
    write(tmp_path, resize=Resize(size=28))
    write(tmp_path, resize=Resize(size=56), eval=Eval(size=28))
    assert len(ask(tmp_path, "resize.size").groups) == 2


# ── Two factors ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("crossed")
    for augment, more in ((Augment(), 0.0), (INCEPTION, 0.1)):
        for name, accuracy in (("xresnet18", 0.4), ("xresnet34", 0.6)):
            pixels = 1_000_000 if name == "xresnet18" else 2_000_000
            write(
                outputs, augment=augment, model=Model(name=name), accuracy=accuracy + 1.5 * more
                if name == "xresnet34" else accuracy + more, pixels=pixels,
            )  # fmt: skip
    return outputs


def test_two_factors_are_crossed(crossed: Path) -> None:
    group = only(ask(crossed, "augment", "model.name"))
    both = "augment=inception + model.name=xresnet34"
    assert labels(group) == [
        "augment=none, model.name=xresnet18", "augment=inception", "model.name=xresnet34", both,
    ]  # fmt: skip
    assert {one.label: difference(one) for one in group.comparisons} == {
        "augment=inception": 0.1, "model.name=xresnet34": 0.2, both: 0.35,
    }  # fmt: skip
    assert {(one.label, one.reference): difference(one) for one in group.contributions} == {
        ("augment=inception with model.name=xresnet34", "model.name=xresnet34"): 0.15,
        ("model.name=xresnet34 with augment=inception", "augment=inception"): 0.25,
    }
    unequal = {one.label: not one.is_equal_budget for one in group.comparisons}
    assert unequal == {"augment=inception": False, "model.name=xresnet34": True, both: True}
    assert group.rows[3].changes == ("augment=inception", "model.name=xresnet34")


def test_each_factor_of_a_baseline_can_be_chosen(crossed: Path) -> None:
    asked = ["augment=inception", "model.name=xresnet34"]
    group = only(ask(crossed, "augment", "model.name", baseline=asked))
    assert group.baseline == "augment=inception, model.name=xresnet34"
    assert {one.label: difference(one) for one in group.comparisons}["augment=none"] == -0.15
    group = only(ask(crossed, "augment", "model.name", baseline=asked[:1]))
    assert group.baseline == "augment=inception, model.name=xresnet18", "the rest is default"
    group = only(ask(crossed, "augment", "model.name", baseline=["augment.flip=0.5"]))
    assert group.baseline == "augment=inception, model.name=xresnet18", "a key of the group"


def test_one_factor_of_two_leaves_two_groups(crossed: Path) -> None:
    found = ask(crossed, "augment")
    assert [labels(group) for group in found.groups] == [["augment=none", "augment=inception"]] * 2
    assert {group.group.title.split(" · ")[1] for group in found.groups} == {
        "xresnet18", "xresnet34",
    }  # fmt: skip


def test_all_is_everything_that_differs(crossed: Path, rates: Path, tmp_path: Path) -> None:
    assert ask(crossed, "all").by == ("augment", "model.name")
    assert only(ask(crossed, "all")) == only(ask(crossed, "augment", "model.name"))
    assert ask(rates, "all").by == ("optim.lr",)
    write(tmp_path, optim=Optim(lr=0.1))
    write(tmp_path, optim=Optim(lr=0.1, eps=1e-3))
    write(tmp_path, optim=Optim(lr=0.2), seeds=1)
    write(tmp_path, "tta", optim=Optim(lr=0.2), seeds=1)
    assert ask(tmp_path, "all").by == ("optim", "tta.flip")


def test_all_of_runs_that_do_not_differ(tmp_path: Path) -> None:
    write(tmp_path)
    found = ask(tmp_path, "all")
    assert found.by == ()
    assert labels(only(found)) == ["all runs"]
    assert found.notes == ("the runs differ in nothing but their seeds",)
    page(found)


def test_a_group_covers_its_keys(tmp_path: Path) -> None:
    for lr in (3e-3, 0.01):
        write(tmp_path, optim=Optim(lr=lr))
    assert ask(tmp_path, "optim.lr", "optim", "optim").by == ("optim",)


# ── TTA, which changes only what is seen ───────────────────────────────────────────────────────


def test_another_factor_is_compared_in_each_view(tmp_path: Path) -> None:
    for lr, accuracy in ((3e-3, 0.5), (0.01, 0.6)):
        for seed in range(2):
            write_run(tmp_path, "tta", seed=seed, optim=Optim(lr=lr), accuracy=0.5,
                      tta_accuracy=accuracy, num_images=40)  # fmt: skip
    found = {group.group.title: group for group in ask(tmp_path, "optim.lr").groups}
    assert len(found) == 2
    assert {
        ("tta=flip" in title): [difference(one) for one in group.comparisons]
        for title, group in found.items()
    } == {True: [0.1], False: [0.0]}


def test_tta_is_compared_within_the_very_runs_also_by_key(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, seed=seed, accuracy=0.5, num_images=40)
        write_run(tmp_path, "tta", seed=seed, accuracy=0.7, tta_accuracy=0.8, num_images=40,
                  is_old=True, name=f"old{seed}")  # fmt: skip
    for key in ("tta", "tta.flip"):
        (one,) = only(ask(tmp_path, key)).comparisons
        assert difference(one) == 0.1, "and not 0.8 - 0.5"


def test_only_tta_is_a_view() -> None:
    assert view_groups() == {"tta"}
    assert {factor.name for factor in trick_factors().all} == {*schema.trick_groups(), "code"}


# ── The reader's own code ──────────────────────────────────────────────────────────────────────


def with_code(outputs: Path, name: str, sha256: str | None, *tricks: str, accuracy: float) -> None:
    """Runs that a file of the user's took part in."""
    for seed in range(2):
        folder = write_run(outputs, *tricks, seed=seed, accuracy=accuracy, num_images=40,
                           name=f"{name}-{sha256}-{tricks}-{seed}")  # fmt: skip
        for file in ("run.json", "result.json"):
            content = json.loads((folder.path / file).read_text())
            content["identity"] += f"{name}{sha256}"
            if file == "run.json":
                content["values"]["code"] = sha256
            else:
                content["config"]["code"] = f"ideas/{name}"
            (folder.path / file).write_text(json.dumps(content))


def test_code_is_a_factor_without_by(tmp_path: Path) -> None:
    write(tmp_path, accuracy=0.5)
    with_code(tmp_path, "mine.py", "a" * 64, accuracy=0.7)
    with_code(tmp_path, "mine.py", "a" * 64, "mixup", accuracy=0.8)
    write(tmp_path, "mixup", accuracy=0.5)
    group = only(ask(tmp_path))
    assert labels(group) == ["baseline", "code=mine.py", "mixup", "mixup + code=mine.py"]
    assert {one.label for one in group.contributions} == {
        "code=mine.py in mixup + code=mine.py", "mixup in mixup + code=mine.py",
    }  # fmt: skip
    with_code(tmp_path, "mine.py", "b" * 64, accuracy=0.6)
    assert len({*labels(only(ask(tmp_path)))}) == 5, "another content is another arm"


def test_by_code(tmp_path: Path) -> None:
    write(tmp_path, accuracy=0.5)
    with_code(tmp_path, "mine.py", "a" * 64, accuracy=0.7)
    assert labels(only(ask(tmp_path, "code"))) == ["code=null", "code=mine.py"]
    group = only(ask(tmp_path, "code", baseline=["code=mine.py"]))
    assert group.baseline == "code=mine.py"
    with_code(tmp_path, "mine.py", "b" * 64, accuracy=0.7)
    assert len({*labels(only(ask(tmp_path, "code")))}) == 3


@pytest.mark.parametrize("by", [(), ("code",)], ids=["tricks", "by code"])
def test_two_files_of_one_name_are_an_ambiguous_baseline(
    by: tuple[str, ...], tmp_path: Path
) -> None:
    write(tmp_path, accuracy=0.5)
    with_code(tmp_path, "mine.py", "a" * 64, accuracy=0.7)
    assert only(ask(tmp_path, *by, baseline=["code=mine.py"])).baseline == "code=mine.py"
    with_code(tmp_path, "mine.py", "b" * 64, accuracy=0.6)
    full = ["code=mine.py (aaaaaaaa)", "code=mine.py (bbbbbbbb)"]
    assert labels(only(ask(tmp_path, *by)))[1:] == full
    for name in ("code=mine.py", *(["code=ideas/mine.py"] if by else [])):
        with pytest.raises(ConfigError, match="2 kinds of runs have that name") as caught:
            ask(tmp_path, *by, baseline=[name])
        assert caught.value.where == f"--baseline {name}"
        assert all(f"--baseline '{label}'" in caught.value.fix for label in full)
    for label in full:
        group = only(ask(tmp_path, *by, baseline=[label]))
        assert group.baseline == label
        assert len(group.comparisons) == 2


def test_a_title_calls_code_by_the_words_of_the_arms(tmp_path: Path) -> None:
    for lr in (3e-3, 0.01):
        write(tmp_path, optim=Optim(lr=lr))
    with_code(tmp_path, "mine.py", "a" * 64, accuracy=0.7)

    def ends() -> set[str]:
        groups = ask(tmp_path, "optim.lr").groups
        return {group.group.title.rpartition(" · ")[2] for group in groups}

    assert ends() == {"code=null", "code=mine.py"}
    with_code(tmp_path, "mine.py", "b" * 64, accuracy=0.6)
    assert ends() == {"code=null", "code=mine.py (aaaaaaaa)", "code=mine.py (bbbbbbbb)"}


def test_the_copy_of_a_file_is_called_by_the_name_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, accuracy=0.5)
    with_code(tmp_path, "code.py", "a" * 64, accuracy=0.7)
    assert labels(only(ask(tmp_path))) == ["baseline", "code=code.py"]
    with_code(tmp_path, "mine.py", "a" * 64, accuracy=0.7)
    found = find_runs([tmp_path]).runs
    assert found[-1].config["code"] == "ideas/mine.py", "the copy is read first"
    assert labels(only(ask(tmp_path))) == ["baseline", "code=mine.py"]


@pytest.mark.parametrize("name", ["cifar10", "table"])
def test_data_is_not_called_by_the_option_of_other_data(name: str, tmp_path: Path) -> None:
    values = overlays.option_values("data", "cifar10")
    data = replace(checks.from_dict({"data": values}).data, name=name)
    write(tmp_path, seeds=1, data=data)
    look = looks_of(find_runs([tmp_path]).runs[0])[-1]
    assert (nearest_option("data", look)[0] == "cifar10") == (name == "cifar10")
    assert nearest_option("data", look)[0] in ("cifar10", None)


def test_a_model_is_not_called_by_the_option_of_another_source(tmp_path: Path) -> None:
    write(tmp_path, seeds=1, model=Model(source="torchvision", name="resnet18d"))
    look = looks_of(find_runs([tmp_path]).runs[0])[-1]
    assert nearest_option("model", look) == ("torchvision", ("model.name",))


# ── What cannot be compared, and what could be ─────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("key", "what", "fix"),
    [
        ("optim.lrr", "unknown key optim.lrr (did you mean optim.lr?)", "--by optim.lr"),
        ("lr", "unknown key lr (did you mean optim.lr?)", ""),
        ("augmnt", "did you mean augment?", ""),
        ("augment.mixup", "unknown key", ""),
        ("label_smoothing", "is a trick", "--by smoothing"),
        ("threads", "does not decide a result", "--by all"),
        ("outputs", "does not decide a result", "--by all"),
        ("optim.lr=0.01", "without a value", "--by optim.lr --baseline optim.lr=0.01"),
        ("data.root", "equal images", ""),
        ("seed", "equal seeds", ""),
        ("trick", "short for", "--by all"),
        ("", "unknown key", ""),
        ("optim.", "unknown key", ""),
    ],
)
def test_a_key_that_is_none_is_an_error(rates: Path, key: str, what: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ask(rates, key)
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.where == f"--by {key}"


@pytest.mark.parametrize("by", [("all", "bogus"), ("bogus", "all")])
def test_all_does_not_hide_a_key_that_is_none(rates: Path, by: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="unknown key bogus"):
        ask(rates, *by)
    assert ask(rates, "all", "augment").by == ("optim.lr",)


def test_a_baseline_of_what_is_not_compared_says_so(rates: Path) -> None:
    for key, word in (("code", "code=null"), ("optim.eps", "optim.eps=1")):
        with pytest.raises(ConfigError, match=f"{key} is not compared") as caught:
            ask(rates, "optim.lr", baseline=[word])
        assert caught.value.where == f"--baseline {word}"
        assert caught.value.fix == f"--by optim.lr --by {key}"
    assert only(ask(rates, "optim.lr", "code", baseline=["code=null"])).baseline
    with pytest.raises(ConfigError, match="code is not compared") as caught:
        ask(rates, "all", baseline=["code=null"])
    assert "--by all found no difference" in caught.value.fix


def test_a_factor_that_is_the_same_in_all_runs_is_told(rates: Path) -> None:
    found = ask(rates, "optim.lr", "augment")
    assert found.notes == ("all runs have augment=none: there is nothing to compare it with",)
    assert len(only(found).comparisons) == 2
    assert "augment" not in "".join(labels(only(found)))
    found = ask(rates, "augment")
    assert "all runs have augment=none" in found.notes[0]
    assert found.notes[-1] == "    python -m runner.report 'some folder' --by optim.lr"


def test_runs_that_differ_in_one_thing_that_is_no_trick(rates: Path, crossed: Path) -> None:
    found = ask(rates)
    assert [len(group.rows) for group in found.groups] == [1, 1, 1]
    assert found.notes == (
        "the runs differ in optim.lr; to compare by it:",
        "    python -m runner.report 'some folder' --by optim.lr",
    )
    assert ask(crossed).notes == (
        "the runs differ in augment and model.name; to compare by them:",
        "    python -m runner.report 'some folder' --by augment --by model.name",
    )
    for form in (text.markdown(found), page(found)):
        assert "python -m runner.report &#39;some folder&#39; --by optim.lr" in form or (
            "python -m runner.report 'some folder' --by optim.lr" in form
        )


def test_runs_that_are_compared_need_no_hint(tmp_path: Path) -> None:
    for lr in (3e-3, 0.01):
        write(tmp_path, optim=Optim(lr=lr))
    assert ask(tmp_path).notes, "or nothing is tested"
    for lr in (3e-3, 0.01):
        write(tmp_path, "mixup", optim=Optim(lr=lr))
    assert ask(tmp_path).notes == ()


def test_a_group_of_one_arm_is_hinted_at_though_others_are_compared(tmp_path: Path) -> None:
    for lr in (3e-3, 0.01):
        write(tmp_path, optim=Optim(lr=lr))
    write(tmp_path, "mixup")
    found = ask(tmp_path)
    assert found.notes[-1] == "    python -m runner.report 'some folder' --by optim.lr"
    assert not any("train a trick" in note for group in found.groups for note in group.notes)
    write(tmp_path, "label_smoothing", optim=Optim(lr=0.1))
    assert ask(tmp_path).notes == found.notes, "nothing else differs from it in one factor alone"


def test_groups_with_nothing_to_compare_are_named_in_one_line(tmp_path: Path) -> None:
    for lr in (3e-3, 0.01):
        write(tmp_path, optim=Optim(lr=lr))
    for trick in ("mixup", "label_smoothing"):
        write(tmp_path, trick)
    found = ask(tmp_path, "optim.lr")
    tables = [part for part in text.content(found) if isinstance(part, Table)]
    assert [table.title for table in tables if "verdict" in table.columns] == [
        found.groups[0].group.title
    ]
    sentences = [part for part in text.content(found) if isinstance(part, str)]
    (line,) = [part for part in sentences if part.startswith("with nothing to compare: ")]
    assert all(group.group.title in line for group in found.groups[1:])
    assert found.groups[0].group.title not in line


def test_runs_that_differ_in_tricks_and_else(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, "mixup", optim=Optim(lr=0.01))
    assert ask(tmp_path).notes[-1].endswith("--by mixup.probability --by optim.lr")
    found = ask(tmp_path, "optim.lr")
    assert found.notes[-1].endswith("--by mixup.probability --by optim.lr")


def test_other_data_is_not_compared(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, fingerprint="a" * 64, data=Data(name="table", root="x.csv"))
    assert ask(tmp_path).notes == ()
    (note,) = ask(tmp_path, "data.name").notes
    assert "runs that differ in data.name have other images" in note


def test_nothing_found() -> None:
    found = answer(find_runs([]), ScoreBook(Path("/nowhere/x.npz")), MARGIN, (), ("optim.lr",))
    assert (found.groups, found.notes) == ((), ())


# ── Every form ─────────────────────────────────────────────────────────────────────────────────


def test_csv_and_json_say_what_was_compared(crossed: Path) -> None:
    found = ask(crossed, "augment", "model.name")
    lines = list(csv.DictReader(io.StringIO(text.csv(found), newline="")))
    group = only(found)
    assert [line["arm"] for line in lines] == [
        *labels(group), *(one.label for one in group.contributions),
    ]  # fmt: skip
    said = json.loads(text.to_json(found), parse_constant=pytest.fail)
    assert said["by"] == ["augment", "model.name"]
    (told,) = said["groups"]
    assert told["arms"] == json.loads(json.dumps([asdict(row) for row in group.rows]))
    assert told["arms"][1]["values"]["augment.flip"] == 0.5
    assert {run["arm"] for run in told["runs"]} == {*labels(group)}


def test_no_table_speaks_of_tricks(crossed: Path, rates: Path) -> None:
    for found in (ask(crossed, "augment", "model.name"), ask(rates, "optim.lr")):
        tables = [part for part in text.content(found) if isinstance(part, Table)]
        assert len(tables) >= 2
        assert "trick" not in "".join(table.markdown() for table in tables)
        shown = page(found)
        assert ">trick<" not in shown
        assert "everything but trick" not in shown


@pytest.mark.parametrize(
    ("by", "panels"), [(("optim.lr",), 1), (("optim",), 0)], ids=["key", "group"]
)
def test_the_page_draws_accuracy_against_a_number(
    rates: Path, by: tuple[str, ...], panels: int
) -> None:
    shown = page(ask(rates, *by))
    assert shown.count("accuracy against optim.lr</h2>") == panels
    if panels:
        assert np.all([f'<td class="number">{lr:g}</td>' in shown for lr in (1e-3, 3e-3, 0.01)])


def test_a_factor_holds_its_own_keys() -> None:
    assert Factor("optim.lr").holds("optim.lr")
    assert not Factor("optim.lr").holds("optim.lr_spread")
    assert Factor("optim").holds("optim.lr")
    assert not Factor("resize", ("resize.size",)).holds("resize.size")
    assert not Factor("data").holds("dataset.x")
