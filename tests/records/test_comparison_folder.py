"""A comparison on disk: what is read is checked, and a question that was changed is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.errors import ArtefactError, BusyError, ConfigError, StorageError
from runner.records.comparison_folder import (
    ArmPlan,
    ComparisonFolder,
    ComparisonPlan,
    PairedRun,
    Tuned,
    place,
)

MIXUP = ArmPlan("mixup", ("+trick=mixup",), identity="m" * 16)
TTA = ArmPlan("tta", ("+trick=tta",), identity="t" * 16)
PLAN = ComparisonPlan(
    name="",
    base_words=("data=fashion", "budget=smoke"),
    values={"data": {"name": "fashion"}, "model": {"name": "xresnet"}, "seed": 0, "ema": 0.1},
    fingerprint="f" * 64,
    num_val=1500,
    arms=(MIXUP, TTA),
    margin=0.005,
    metric="accuracy",
    is_fixed=False,
    max_seeds=6,
    looks=(3, 4, 5, 6),
)
RUNS = {
    "base": {0: PairedRun("base-seed0"), 1: PairedRun(None, None, "not finite", True)},
    "mixup": {0: PairedRun("mixup-seed0")},
    "tta": {0: PairedRun("base-seed0", "0123456789abcdef")},
}
TUNED = {
    label: Tuned(("optim.lr=1e-2",), {("optim.lr=1e-2",): {7: PairedRun(f"{label}-seed7")}})
    for label in RUNS
}


def begun(outputs: Path, plan: ComparisonPlan = PLAN, name: str | None = None) -> ComparisonFolder:
    """A comparison with everything that one can have."""
    found = place(outputs, plan, name)
    with found.folder.locked():
        found.folder.begin(found.plan)
        found.folder.write_tuning(dict.fromkeys(("base", *plan.labels), TUNED["base"]))
        found.folder.write_runs({label: RUNS.get(label, {}) for label in ("base", *plan.labels)})
        found.folder.write_answer({"verdict": "helps", "interval": [0.01, 0.02]})
    return found.folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tuned = replace(PLAN, tune=(("optim.lr", ("1e-2", "1e-3")),))
    found = place(tmp_path, tuned)
    assert not found.folder.exists
    assert ComparisonFolder.all_in(tmp_path) == []
    with found.folder.locked():
        found.folder.begin(found.plan)
        assert not found.folder.is_begun
        assert found.folder.runs() == {"base": {}, "mixup": {}, "tta": {}}
        assert found.folder.tuning() is None
        assert found.folder.answer() is None
        assert found.folder.is_running
    folder = begun(tmp_path, tuned)
    assert [one.name for one in ComparisonFolder.all_in(tmp_path)] == [folder.name]
    assert folder.plan() == replace(tuned, name=folder.name)
    assert folder.name.startswith("fashion-xresnet-")
    assert folder.runs() == RUNS
    assert folder.chosen() == dict.fromkeys(RUNS, ("optim.lr=1e-2",))
    assert folder.answer() == {"verdict": "helps", "interval": [0.01, 0.02]}
    assert folder.is_begun
    assert not folder.is_running


def test_equal_comparisons_have_equal_files(tmp_path: Path) -> None:
    one, other = begun(tmp_path / "a"), begun(tmp_path / "b")
    for name in ("comparison.json", "runs.json", "tuning.json", "answer.json"):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes()


def test_a_second_process_is_told_of_the_first(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    second = ComparisonFolder(folder.path).locked()
    with folder.locked(), pytest.raises(BusyError) as refused, second:
        pass
    assert refused.value.exit_code == 75


def test_a_process_that_lost_the_lock_writes_no_more(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    with folder.locked():
        folder.lock.unlink()
        with pytest.raises(StorageError, match="lock"):
            folder.write_runs(RUNS)


# ── Edited and damaged files ───────────────────────────────────────────────────────────────────

FILES: dict[str, Callable[[ComparisonFolder], Any]] = {
    "comparison.json": ComparisonFolder.plan,
    "runs.json": ComparisonFolder.runs,
    "tuning.json": ComparisonFolder.tuning,
    "answer.json": ComparisonFolder.answer,
}


def problem(read: Callable[[ComparisonFolder], Any], folder: ComparisonFolder) -> Any:
    """The error of reading, if any."""
    try:
        read(folder)
    except ArtefactError as error:
        return error
    return None


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_whatever_the_damage(tmp_path: Path, name: str) -> None:
    """Cut, emptied, replaced, with other bytes: an ArtefactError that names the file."""
    folder = begun(tmp_path)
    path, read = folder.path / name, FILES[name]
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    damaged = [b"", b"[]", b"{}", b"null", b"\xff\xfe", b"[" * 200_000, b'{"format": 1}']
    for _ in range(40):
        at = int(draw.integers(len(whole) - 2))
        damaged += [whole[:at], whole[:at] + whole[at + 1 :]]
        damaged.append(
            whole[:at] + bytes([whole[at] ^ (1 << int(draw.integers(7)))]) + whole[at + 1 :]
        )
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        error = problem(read, folder)
        if error is None:  # only the white space between values differs
            assert json.loads(content) == json.loads(whole)
        else:
            assert error.where == str(path)
            assert error.fix
            refused += 1
    assert refused > len(damaged) * 0.7
    path.write_bytes(whole)
    assert read(folder)


def leaf_paths(content: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value that is no object or list."""
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        return [path for key, item in items for path in leaf_paths(item, (*prefix, key))]
    return [prefix]


@pytest.mark.parametrize("name", FILES)
def test_an_edited_value_is_noticed(tmp_path: Path, name: str) -> None:
    folder = begun(tmp_path)
    path = folder.path / name
    whole = json.loads(path.read_text())
    for places in leaf_paths(whole):
        edited = json.loads(path.read_text()) if not places else json.loads(json.dumps(whole))
        inner = edited
        for key in places[:-1]:
            inner = inner[key]
        old = inner[places[-1]]
        inner[places[-1]] = old + 1 if isinstance(old, int | float) else f"{old}x"
        path.write_text(json.dumps(edited))
        with pytest.raises(ArtefactError):
            FILES[name](folder)


def sealed(folder: ComparisonFolder, name: str, content: dict[str, Any]) -> None:
    """Write a file with a right hash, as an older or newer program might."""
    from runner.records import comparison_folder

    question = "" if name == "comparison.json" else comparison_folder.identity_of(folder.plan())
    rest = {key: value for key, value in content.items() if key != "identity"}
    rest["identity"] = comparison_folder.hash_of([rest, question])
    (folder.path / name).write_text(json.dumps(rest))


@pytest.mark.parametrize(
    ("name", "places", "value"),
    [
        ("comparison.json", ("format",), 2),
        ("comparison.json", ("design",), "both"),
        ("comparison.json", ("metric",), "loss"),
        ("comparison.json", ("looks",), [3, 6, 4]),
        ("comparison.json", ("looks",), [3, 4]),
        ("comparison.json", ("looks",), []),
        ("comparison.json", ("max_seeds",), 0),
        ("comparison.json", (), {"max_seeds": 2, "looks": [2]}),
        ("comparison.json", (), {"max_seeds": 21, "looks": [3, 21]}),
        ("comparison.json", ("margin",), 1.5),
        ("comparison.json", ("margin",), float("nan")),
        ("comparison.json", ("arms",), []),
        ("comparison.json", ("arms", 0, "label"), "base"),
        ("comparison.json", ("arms", 0, "label"), "tta"),
        ("comparison.json", ("arms", 0, "label"), "\x1b[2J"),
        ("comparison.json", ("arms", 0, "seed_offset"), -1),
        ("comparison.json", ("name",), "../../home"),
        ("comparison.json", ("base", "num_val"), 0),
        ("runs.json", ("runs", "base", "0", "run"), "../other"),
        ("runs.json", ("runs", "base", "0", "run"), ".."),
        ("runs.json", ("runs", "base", "0", "run"), ""),
        ("runs.json", ("runs", "tta", "0", "evaluation"), "../../x"),
        ("runs.json", ("runs", "tta", "0", "evaluation"), 3),
        ("runs.json", ("runs", "base", "1", "is_diverged"), "yes"),
        ("runs.json", ("runs", "base", "6"), {"run": "a", "evaluation": None}),
        ("runs.json", ("runs", "base", "-1"), {"run": "a", "evaluation": None}),
        ("runs.json", ("runs", "base", "x"), {"run": "a", "evaluation": None}),
        ("runs.json", ("runs", "other"), {}),
        ("tuning.json", ("tuning", "other"), {}),
        ("tuning.json", ("tuning", "base", "chosen"), "optim.lr=1"),
        ("answer.json", ("answer",), []),
    ],
)  # fmt: skip
def test_an_impossible_value_is_refused_even_with_a_right_hash(
    tmp_path: Path, name: str, places: tuple[Any, ...], value: Any
) -> None:
    folder = begun(tmp_path)
    content = json.loads((folder.path / name).read_text())
    sealed(folder, name, content)
    FILES[name](folder)  # the control: the hash is right
    inner: Any = content
    for key in places[:-1]:
        inner = inner[key]
    inner.update({places[-1]: value} if places else value)
    sealed(folder, name, content)
    with pytest.raises(ArtefactError):
        FILES[name](folder)


def test_a_file_of_another_comparison_is_refused(tmp_path: Path) -> None:
    one, other = begun(tmp_path), begun(tmp_path, replace(PLAN, margin=0.01), "other")
    for name in ("runs.json", "tuning.json", "answer.json"):
        (one.path / name).write_bytes((other.path / name).read_bytes())
        with pytest.raises(ArtefactError, match="belongs to another comparison"):
            FILES[name](one)


def test_a_damaged_question_stops_its_comparison_until_it_is_moved(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    (folder.path / "comparison.json").write_text("{}")
    with pytest.raises(ArtefactError) as refused:
        place(tmp_path, PLAN)
    assert refused.value.fix.startswith("mv ")


def test_another_question_that_is_damaged_is_left_out_with_a_note(tmp_path: Path) -> None:
    other = begun(tmp_path, name="other")
    assert place(tmp_path, PLAN).folder.name == "other", "the negative control"
    (other.path / "comparison.json").write_text("{}")
    found = place(tmp_path, PLAN)
    assert not found.folder.exists
    (note,) = found.notes
    assert note.startswith("comparison other is ignored")
    with pytest.raises(ArtefactError):
        place(tmp_path, PLAN, "other")


# ── Which comparison a question belongs to ─────────────────────────────────────────────────────

EQUAL = {
    "the same": PLAN,
    "arms in another order": replace(PLAN, arms=(TTA, MIXUP)),
    "arms in other words": replace(
        PLAN, arms=(replace(MIXUP, label="m", words=("mixup.alpha=0.4",)), TTA)
    ),
    "the base in other words": replace(PLAN, base_words=("budget=smoke",)),
    "another seed among the values": replace(PLAN, values={**PLAN.values, "seed": 3}),
}


@pytest.mark.parametrize("case", EQUAL)
def test_an_equal_question_continues(tmp_path: Path, case: str) -> None:
    folder = begun(tmp_path)
    found = place(tmp_path, EQUAL[case])
    assert found.folder.exists
    assert found.folder.path == folder.path
    assert found.plan == folder.plan()
    found.folder.begin(found.plan)


CHANGED = {
    "arms added: cutmix": replace(PLAN, arms=(*PLAN.arms, ArmPlan("cutmix", ("+trick=cutmix",)))),
    "arms left out: tta": replace(PLAN, arms=(MIXUP,)),
    "arms changed: tta": replace(PLAN, arms=(MIXUP, replace(TTA, identity="0" * 16))),
    "max_seeds: 6 → 8": replace(PLAN, max_seeds=8, looks=(3, 4, 5, 6, 8)),
    "margin: 0.5 points → 1 points": replace(PLAN, margin=0.01),
    "design: sequential → fixed": replace(PLAN, is_fixed=True, looks=(6,)),
    "tune: nothing → optim.lr=1,2": replace(PLAN, tune=(("optim.lr", ("1", "2")),)),
    "first_seed: 0 → 5": replace(PLAN, first_seed=5),
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_changed_question_is_refused_and_a_name_starts_anew(tmp_path: Path, change: str) -> None:
    folder = begun(tmp_path)
    with pytest.raises(ConfigError) as refused:
        place(tmp_path, CHANGED[change])
    assert refused.value.exit_code == 2
    assert change in refused.value.what
    assert folder.name in refused.value.what
    assert "--name" in refused.value.fix
    named = place(tmp_path, CHANGED[change], "another")
    assert not named.folder.exists
    assert named.folder.name == "another"
    assert named.plan.shares_runs_with == (folder.name,)
    begun(tmp_path, CHANGED[change], "another")
    again = place(tmp_path, CHANGED[change], "another")
    assert again.folder.exists
    assert again.plan == named.plan
    assert place(tmp_path, CHANGED[change]).folder.exists, (
        "it has a comparison, so it needs no name"
    )
    assert place(tmp_path, PLAN).folder.path == folder.path


FRESH = {
    "no arm is shared": replace(PLAN, arms=(ArmPlan("cutmix", ("+trick=cutmix",)),)),
    "another base": replace(PLAN, values={**PLAN.values, "ema": 0.2}),
    "other data": replace(PLAN, fingerprint="0" * 64),
    "an arm with other code": replace(
        PLAN, arms=(replace(MIXUP, identity="0" * 16), replace(TTA, identity="1" * 16))
    ),
    "no seed is shared": replace(PLAN, first_seed=6),
}


@pytest.mark.parametrize("case", FRESH)
def test_a_question_without_common_runs_is_new(tmp_path: Path, case: str) -> None:
    folder = begun(tmp_path)
    found = place(tmp_path, FRESH[case])
    assert not found.folder.exists
    assert found.folder.path != folder.path
    assert found.plan.shares_runs_with == ()


def test_a_comparison_that_has_not_begun_forbids_nothing(tmp_path: Path) -> None:
    found = place(tmp_path, PLAN)
    found.folder.begin(found.plan)
    assert place(tmp_path, CHANGED["arms left out: tta"]).plan.shares_runs_with == ()
    found.folder.write_runs(RUNS)
    with pytest.raises(ConfigError):
        place(tmp_path, CHANGED["arms left out: tta"])


def test_the_name_of_another_comparison_is_refused(tmp_path: Path) -> None:
    begun(tmp_path, PLAN, "mine")
    with pytest.raises(ConfigError, match="margin"):
        place(tmp_path, replace(PLAN, margin=0.01), "mine")
    with pytest.raises(ConfigError, match="another baseline"):
        place(tmp_path, FRESH["other data"], "mine")


@pytest.mark.parametrize(
    "name", ["", "../x", "/x", "a/b", ".x", "-x", "a b", "a\n", "ä", "x" * 101]
)
def test_a_name_that_is_no_name_of_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        place(tmp_path, PLAN, name)
    assert place(tmp_path, PLAN, "v1.0_b-2").folder.name == "v1.0_b-2"


def test_order_of_words_counts_for_one_key_only() -> None:
    first = ArmPlan("a", ("mixup.alpha=1", "ema=0.1", "mixup.alpha=2"))
    assert first.key == ArmPlan("b", ("ema=0.1", "mixup.alpha=1", "mixup.alpha=2")).key
    assert first.key != ArmPlan("c", ("mixup.alpha=2", "mixup.alpha=1", "ema=0.1")).key
    assert first.key != replace(first, seed_offset=1000).key
