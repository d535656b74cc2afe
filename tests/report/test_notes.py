"""What holds for all comparisons of a group: failed seeds, the number of tests, the images."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated import write_run

from runner.config.schema import Optim, Smoothing
from runner.report import text
from runner.report.answer import Answer, GroupAnswer, answer
from runner.report.family import Outlook
from runner.report.page import page
from runner.report.runs import find_runs
from runner.report.scores import ScoreBook

MARGIN = 0.02
DIVERGED = "the loss or a gradient is not finite"


def ask(outputs: Path, *by: str, margin: float = MARGIN) -> Answer:
    return answer(find_runs([outputs]), ScoreBook(Path("/nowhere/x.npz")), margin, (), by)


def only(found: Answer) -> GroupAnswer:
    (group,) = found.groups
    return group


def fail(
    outputs: Path, *tricks: str, seed: int, reason: str = DIVERGED, status: str = "failed",
    **changes: Any,
) -> Path:  # fmt: skip
    folder = write_run(outputs, *tricks, seed=seed, finish=False, **changes)
    kind = "DivergedError" if reason.startswith(DIVERGED) else "MemoryError"
    folder.write_status(status, reason, kind)
    return folder.path


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Baseline and mixup with five seeds, of which some failed; TTA of the baseline's runs."""
    outputs = tmp_path_factory.mktemp("diverged")
    for seed in range(4):
        write_run(outputs, "tta", seed=seed, accuracy=0.6 + 0.02 * (seed % 2), num_images=200)
    for seed in range(3):
        write_run(outputs, "mixup", seed=seed, accuracy=0.7, num_images=200)
    fail(outputs, seed=4)
    fail(outputs, "mixup", seed=3, reason=f"{DIVERGED}; the last finite loss was 2.3 in step 7")
    fail(outputs, "mixup", seed=4, reason="cuda out of memory\nmore")
    fail(outputs, "mixup", seed=1, name="again")  # it has finished, too
    fail(outputs, "mixup", seed=9, status="interrupted")
    for seed in range(2):
        fail(outputs, "label_smoothing", seed=seed)
    fail(outputs, "mixup", seed=5, optim=Optim(lr=0.125))  # of no group
    (fail(outputs, "mixup", seed=6, name="broken") / "run.json").write_text("{}")
    return outputs


def test_failed_seeds_are_counted_in_the_row_of_their_arm(diverged: Path) -> None:
    found = ask(diverged)
    group = only(found)
    rows = {row.label: row for row in group.rows}
    assert rows["baseline"].failed == {4: DIVERGED}
    assert rows["tta"].failed == {4: DIVERGED}, "the same training"
    assert rows["mixup"].failed == {3: DIVERGED, 4: "cuda out of memory"}
    counts = {row[0]: row[1] for row in text.answer_table(group, MARGIN).rows}
    assert counts == {"baseline": "4 (+1 failed)", "tta": "4 (+1 failed)", "mixup": "3 (+2 failed)"}
    notes = [note for note in group.notes if "failed" in note]
    kept = "its results are for the seeds that finished"
    assert notes == [
        f"baseline: 1 of 5 seeds failed ({DIVERGED}): {kept}",
        f"mixup: 2 of 5 seeds failed ({DIVERGED}; cuda out of memory): {kept}",
        f"tta: 1 of 5 seeds failed ({DIVERGED}): {kept}",
        f"smoothing.epsilon=0.1: all 2 seeds failed ({DIVERGED}); nothing is known of it",
    ]
    lines = list(csv.DictReader(io.StringIO(text.csv(found), newline="")))
    assert {line["arm"]: line["failed_seeds"] for line in lines} == {
        "baseline": "1", "mixup": "2", "tta": "1",
    }  # fmt: skip
    said = json.loads(text.to_json(found))["groups"][0]
    (mixup,) = [arm for arm in said["arms"] if arm["label"] == "mixup"]
    assert mixup["failed"] == {"3": DIVERGED, "4": "cuda out of memory"}
    for content in (text.markdown(found), page(found)):
        assert "3 (+2 failed)" in content
        assert "mixup: 2 of 5 seeds failed" in content
    assert len(found.unranked) == 9, "each is still listed with its reason"


def test_commands_for_more_seeds_leave_out_those_that_failed(tmp_path: Path) -> None:
    for seed in (0, 1, 3):
        write_run(tmp_path, seed=seed, num_images=60)
    for seed in (0, 1):
        write_run(tmp_path, "mixup", seed=seed, num_images=60)
    fail(tmp_path, seed=2)
    fail(tmp_path, "mixup", seed=3)
    (one,) = only(ask(tmp_path)).comparisons
    assert [more.seeds for more in one.more] == [(4, 5, 6), (4, 5, 6)]


@pytest.mark.parametrize("by", [("optim.lr",), ("all",)])
def test_failed_seeds_of_values_too(by: tuple[str, ...], tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, seed=seed, num_images=60)
        write_run(tmp_path, seed=seed, num_images=60, optim=Optim(lr=0.125))
    fail(tmp_path, seed=3, optim=Optim(lr=0.125))
    fail(tmp_path, seed=3, optim=Optim(lr=0.125), smoothing=Smoothing(epsilon=0.3), name="other")
    rows = {row.label: row.failed for row in only(ask(tmp_path, *by)).rows}
    assert [failed for label, failed in rows.items() if "0.125" in label] == [{3: DIVERGED}]
    assert sum(map(len, rows.values())) == 1


def test_a_run_without_a_configuration_is_listed(tmp_path: Path) -> None:
    write_run(tmp_path, num_images=60)
    path = fail(tmp_path, seed=3)
    for content in ("[", "a: &a [*a]", "- 1", "\0"):
        (path / "config.yaml").write_text(content)
        assert only(ask(tmp_path)).rows[0].failed == {3: DIVERGED}
        assert len(ask(tmp_path, "optim.lr").unranked) == 1


# ── The family ─────────────────────────────────────────────────────────────────────────────────


def about_tests(group: GroupAnswer) -> list[str]:
    return [note for note in group.notes if "p-values" in note]


def test_the_family_is_stated(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, seed=seed, num_images=60)
        write_run(tmp_path, "mixup", seed=seed, num_images=60, accuracy=0.7)
    write_run(tmp_path, "normalize", num_images=60)
    group = only(ask(tmp_path))
    assert group.family.num_tested == 1
    assert about_tests(group) == []
    for seed in range(3):
        write_run(tmp_path, "label_smoothing", seed=seed, num_images=60, accuracy=0.75)
    (note,) = about_tests(only(ask(tmp_path)))
    assert note == (
        "the p-values are corrected for 2 comparisons, all of this group; the largest of several "
        "differences overstates its size"
    )
    for seed in range(3):
        write_run(tmp_path, "mixup", "label_smoothing", seed=seed, num_images=60)
    found = ask(tmp_path)
    assert only(found).family.num_tested == 5
    (note,) = about_tests(only(found))
    assert "5 comparisons, all of this group, those of both tables" in note
    assert json.loads(text.to_json(found))["groups"][0]["num_tested"] == 5
    for content in (text.markdown(found), page(found)):
        assert "corrected for 5 comparisons" in content


def test_the_legend_says_what_a_verdict_is_for() -> None:
    assert "over all comparisons of a group" in text.LEGEND
    assert "the interval over seeds and images leaves out zero" in text.LEGEND
    assert "a number of seeds fixed beforehand" in text.LEGEND
    assert "described, not tested" in text.LEGEND


def test_commands_for_more_seeds_come_with_what_they_do_to_the_verdict(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, seed=seed, num_images=60, accuracy=0.5)
        write_run(tmp_path, "mixup", seed=seed, num_images=60, accuracy=0.55 + 0.05 * (seed % 2))
    found = ask(tmp_path)
    assert only(found).comparisons[0].more
    remarks = list(text.remarks(only(found), MARGIN))
    place = remarks.index(text.SEQUENTIAL)
    assert text.is_command(remarks[place + 1])
    assert "python -m runner.compare" in text.SEQUENTIAL
    assert text.SEQUENTIAL in page(found)


def test_other_measures_have_numbers_and_no_marks(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, seed=seed, num_images=60, accuracy=0.5)
        write_run(tmp_path, "mixup", seed=seed, num_images=60, accuracy=0.9 + 0.01 * seed)
    found = ask(tmp_path)
    (one,) = only(found).comparisons
    assert all(mean.interval and mean.interval[1] < 0 for mean in [one.others["log_loss"]]), (
        "a control"
    )
    cells = [cell for row in text.price_table(only(found)).rows for cell in row]
    assert not {"↓", "↑"} & set("".join(cells))


# ── The images ─────────────────────────────────────────────────────────────────────────────────


def noisy(outputs: Path, num_images: int, *tricks: str) -> None:
    for seed in range(3):
        for some in ((), *((trick,) for trick in tricks)):
            write_run(
                outputs, *some, seed=seed, num_images=num_images,
                accuracy=0.6 + 0.01 * ((seed + len(some)) % 2),
            )  # fmt: skip


def test_the_smallest_margin_is_said_once_for_the_group(tmp_path: Path) -> None:
    noisy(tmp_path, 100, "mixup", "label_smoothing", "normalize")
    found = ask(tmp_path)
    group = only(found)
    smallest = np.median(
        [
            1.6449 * np.sqrt(one.found.seed_deviation**2 / 10 + one.found.image_error**2)
            for one in group.comparisons
        ]
    )
    assert group.family.smallest_margin == pytest.approx((smallest, 10), rel=1e-4)
    assert smallest > MARGIN
    (note,) = [note for note in group.notes if "too few" in note]
    assert note == (
        "100 images are too few to show no difference larger than 2 points: even equal accuracies "
        f"show it with 10 seeds only for margins from about {100 * smallest:.2g} points"
    )
    out_of_reach = Outlook("no difference", None, 12_345)
    compared = tuple(replace(one, outlook=out_of_reach) for one in group.comparisons)
    for margin, times in ((MARGIN, 0), (0.5, 3)):
        remarks = list(text.remarks(replace(group, comparisons=compared), margin))
        assert sum("12,345" in remark for remark in remarks) == times, "not for each arm"
    said = json.loads(text.to_json(found))["groups"][0]
    assert said["smallest_margin"] == pytest.approx(smallest, rel=1e-4)
    for content in (text.markdown(found), page(found)):
        assert content.count("too few to show no difference") == 1
    assert not any("too few" in note for note in only(ask(tmp_path, margin=0.5)).notes)


def test_groups_of_images_are_stated(tmp_path: Path) -> None:
    groups = np.arange(60) // 4
    for seed in range(3):
        for tricks in ((), ("mixup",)):
            folder = write_run(tmp_path, *tricks, seed=seed, num_images=60)
            stored = folder.predictions()
            folder.write_predictions(stored["labels"], stored["plain"], groups)
    found = ask(tmp_path)
    group = only(found)
    assert group.family.image_groups == 15
    (note,) = [note for note in group.notes if "groups" in note]
    assert note == (
        "the 60 images are of 15 groups, which were resampled whole, since images of one group "
        "are alike; the intervals of single accuracies and the McNemar p still take images for "
        "independent"
    )
    assert json.loads(text.to_json(found))["groups"][0]["image_groups"] == 15
    assert note in page(found)
