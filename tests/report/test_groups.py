"""Runs are pooled when all but trick and seed is equal; anything else is named."""

import json
from pathlib import Path
from typing import Any

import pytest
from fabricated import TRICKS, write_run

from runner.config.schema import Augment, Budget, Mixup, Normalize, Optim, Resize, Tta
from runner.errors import ConfigError
from runner.report.groups import RunGroup, group_runs, trick_label
from runner.report.runs import find_runs

FIVE = tuple(TRICKS)


def groups(outputs: Path) -> list[RunGroup]:
    found = find_runs([outputs])
    assert found.unranked == []
    return group_runs(found.runs)


def labels(group: RunGroup) -> dict[str, list[int]]:
    """Seeds by label."""
    found = {arm.label: sorted(arm.runs) for arm in group.arms}
    assert len(found) == len(group.arms), "two arms of one label"
    return found


# ── What is pooled ─────────────────────────────────────────────────────────────────────────────


def test_seeds_and_tricks_are_pooled(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, seed=seed, num_images=30)
        for trick in FIVE:
            write_run(tmp_path, trick, seed=seed, num_images=30)
    (group,) = groups(tmp_path)
    assert labels(group) == {label: [0, 1] for label in ("baseline", *FIVE)}
    assert group.arms[0].label == "baseline"
    assert group.title == "folder · xresnet18 · 28 px · 5 epochs"
    assert group.differs == {}


@pytest.mark.parametrize(
    ("changes", "key", "told"),
    [
        ({"optim": Optim(lr=0.125)}, "optim.lr", "optim.lr=0.125"),
        ({"augment": Augment(flip=0.5)}, "augment.flip", "augment.flip=0.5"),
        ({"resize": Resize(size=64)}, "resize.size", "64 px"),
        ({"budget": Budget(epochs=1)}, "budget.epochs", "1 epoch"),
        ({"fingerprint": "a" * 64}, "fingerprint", "fingerprint=aaaaaaaaaaaa…"),
        ({"precision": "bf16"}, "precision", "precision=bf16"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_runs_that_differ_otherwise_are_not_pooled_and_the_difference_is_named(
    changes: dict[str, Any], key: str, told: str, tmp_path: Path
) -> None:
    for seed in range(2):
        write_run(tmp_path, seed=seed, num_images=30)
    write_run(tmp_path, "mixup", num_images=30, **changes)
    most, other = groups(tmp_path)
    assert labels(most) == {"baseline": [0, 1]}, "the larger group comes first"
    assert labels(other) == {"mixup": [0]}
    assert key in most.differs
    assert most.differs[key] != other.differs[key]
    assert told in other.title.split(" · ")
    assert told not in most.title.split(" · ")
    assert most.title != other.title


def test_equal_values_in_all_groups_are_not_named(tmp_path: Path) -> None:
    for lr in (0.1, 0.2):
        write_run(tmp_path, optim=Optim(lr=lr), augment=Augment(flip=0.5), num_images=30)
    for group in groups(tmp_path):
        assert set(group.differs) == {"optim.lr"}
        assert "augment" not in group.title


def test_the_size_is_no_trick_but_its_schedule_is(tmp_path: Path) -> None:
    for schedule in ("fixed", "progressive"):
        for size in (32, 64):
            resize = Resize(schedule=schedule, size=size)  # type: ignore[arg-type]
            write_run(tmp_path, resize=resize, num_images=30)
    found = groups(tmp_path)
    assert sorted(group.values["resize.size"] for group in found) == [32, 64]
    for group in found:
        assert labels(group) == {"baseline": [0], "progressive_resizing": [0]}


def test_how_it_was_computed_is_no_difference(tmp_path: Path) -> None:
    write_run(tmp_path, num_images=30, threads=1)
    write_run(tmp_path, "mixup", num_images=30, threads=4)
    assert len(groups(tmp_path)) == 1


def test_nothing_is_no_group() -> None:
    assert group_runs([]) == []


# ── Labels ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("tricks", "label"),
    [
        ((), "baseline"),
        (("mixup",), "mixup"),
        (("normalize", "mixup"), "normalize + mixup"),
        (FIVE, "all"),
        *((tuple(name for name in FIVE if name != trick), f"all but {trick}") for trick in FIVE),
        ((*FIVE, "cutmix"), " + ".join((*FIVE, "cutmix"))),
        (("cutmix",), "cutmix"),
    ],
)
def test_labels(tricks: tuple[str, ...], label: str) -> None:
    assert trick_label(tricks) == label


def test_two_kinds_of_one_trick_are_distinguishable_by_what_differs(tmp_path: Path) -> None:
    for alpha in (0.2, 0.4):
        write_run(tmp_path, mixup=Mixup(probability=1.0, alpha=alpha), num_images=30)
    write_run(tmp_path, "label_smoothing", num_images=30)
    (group,) = groups(tmp_path)
    assert labels(group) == {
        "label_smoothing": [0], "mixup (mixup.alpha=0.2)": [0], "mixup (mixup.alpha=0.4)": [0],
    }  # fmt: skip


def test_two_kinds_of_tta_look_at_one_training(tmp_path: Path) -> None:
    for seed, tta in ((0, Tta(flip=True)), (1, Tta(flip=True)), (1, Tta(crops=3))):
        write_run(tmp_path, tta=tta, seed=seed, num_images=30)
    (group,) = groups(tmp_path)
    found = labels(group)
    assert found.pop("baseline") == [0, 1], "the plain view of the runs with TTA"
    assert sorted(found.values()) == [[0, 1], [1]]
    assert all(label.startswith("tta (") and "tta.crops=" in label for label in found)


def test_long_values_that_begin_alike_do_not_make_labels_alike(tmp_path: Path) -> None:
    for blue in (0.44653091, 0.1):
        normalize = Normalize(mean=(0.49139968, 0.48215841, blue), std=(0.2, 0.2, 0.2))
        write_run(tmp_path, normalize=normalize, num_images=30)
    (group,) = groups(tmp_path)
    assert len(labels(group)) == 2


def test_a_value_that_only_one_run_knows_still_tells_them_apart(tmp_path: Path) -> None:
    write_run(tmp_path, "mixup", name="a", num_images=30)
    folder = write_run(tmp_path, "mixup", seed=1, name="b", num_images=30)
    content = json.loads((folder.path / "run.json").read_text())
    content["values"]["mixup"]["new_key"] = 1
    (folder.path / "run.json").write_text(json.dumps(content))
    (group,) = groups(tmp_path)
    assert len(labels(group)) == 2


def test_a_name_of_two_arms_is_refused(tmp_path: Path) -> None:
    for alpha in (0.2, 0.4):
        write_run(tmp_path, mixup=Mixup(probability=1.0, alpha=alpha), num_images=30)
    (group,) = groups(tmp_path)
    with pytest.raises(ConfigError, match="2 kinds of runs") as caught:
        group.find("mixup")
    for label in ("mixup (mixup.alpha=0.2)", "mixup (mixup.alpha=0.4)"):
        assert f"--baseline '{label}'" in caught.value.fix
        found = group.find(label)
        assert found is not None
        assert found.label == label


def test_an_arm_is_found_by_its_label_and_by_its_tricks(tmp_path: Path) -> None:
    write_run(tmp_path, num_images=30)
    write_run(tmp_path, "mixup", "tta", num_images=30)
    write_run(tmp_path, *FIVE, num_images=30)
    (group,) = groups(tmp_path)
    for name, label in {
        "baseline": "baseline", "mixup": "mixup", "mixup + tta": "mixup + tta",
        "mixup+tta": "mixup + tta", "tta+mixup": "mixup + tta", "all": "all", "+".join(FIVE): "all",
        "all but tta": "all but tta",
    }.items():  # fmt: skip
        arm = group.find(name)
        assert arm is not None, name
        assert arm.label == label
    assert group.find("cutmix") is None
    assert group.find("") is None


# ── TTA and plain views of one run ─────────────────────────────────────────────────────────────


def test_a_run_with_tta_counts_as_its_plain_arm_too(tmp_path: Path) -> None:
    write_run(tmp_path, "mixup", "tta", seed=0, accuracy=0.5, tta_accuracy=0.6, num_images=30)
    (group,) = groups(tmp_path)
    assert labels(group) == {"mixup": [0], "mixup + tta": [0]}
    plain, tta = group.arms
    assert (plain.view, tta.view) == ("plain", "tta")
    assert plain.metric("accuracy") == {0: 0.5}
    assert tta.metric("accuracy") == {0: 0.6}
    assert plain.training == tta.training
    assert group.any_run.seed == 0


def test_of_equal_trainings_the_one_without_tta_counts_as_plain(tmp_path: Path) -> None:
    write_run(tmp_path, "tta", name="a", accuracy=0.5, tta_accuracy=0.6, num_images=30, is_old=True)
    write_run(tmp_path, name="z", accuracy=0.8, num_images=30)
    (group,) = groups(tmp_path)
    assert {arm.label: arm.metric("accuracy")[0] for arm in group.arms} == {
        "baseline": 0.8, "tta": 0.6,
    }  # fmt: skip
