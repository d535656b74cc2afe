"""The runs of all folds as one run, and what a report says of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fabricated import write_run

from runner.errors import ArtefactError, ConfigError
from runner.records.run_folder import packed
from runner.report.answer import answer
from runner.report.measured import Measured, digest
from runner.report.metric import METRICS
from runner.report.pooled import pool_folds
from runner.report.runs import find_runs
from runner.report.scores import ScoreBook
from runner.report.text import markdown, to_json


def found_in(outputs):
    found = find_runs([outputs])
    pool_folds(found)
    return found


def write_folds(outputs, *tricks, seed=0, num_folds=3, **keys):
    return [
        write_run(outputs, *tricks, seed=seed, fold=(number, num_folds), **keys)
        for number in range(num_folds)
    ]


def report(outputs, metric="accuracy", margin=0.05):
    book = ScoreBook(outputs / "cache" / "report.npz")
    return answer(found_in(outputs), book, margin, metric=METRICS[metric])


def test_the_runs_of_all_folds_predict_every_image_once(tmp_path):
    folders = write_folds(tmp_path, seed=4, seconds=12.0)

    (run,) = found_in(tmp_path).runs

    assert (run.num_val, run.seed, len(run.parts)) == (180, 4, 3)
    assert run.fingerprint == "f" * 64
    predictions = run.predictions()
    assert predictions.folds.tolist() == [0, 1, 2] * 60
    for number, folder in enumerate(folders):
        own = folder.predictions()
        assert np.array_equal(predictions.labels[number::3], own["labels"])
        assert np.array_equal(predictions.views["plain"][number::3], own["plain"])
    accuracy = predictions.correct("plain").mean()
    assert run.metrics["plain"]["accuracy"] == pytest.approx(accuracy)
    assert run.budget["seconds"] == 12.0
    assert [row["epoch"] for row in run.epochs] == [1, 2, 3]


def test_a_report_says_the_folds_and_counts_pairs(tmp_path):
    for seed in range(2):
        write_folds(tmp_path, seed=seed, accuracy=0.7)
        write_folds(tmp_path, "mixup", seed=seed, accuracy=0.9)

    found = report(tmp_path)

    (group,) = found.groups
    (one,) = group.comparisons
    assert (one.seeds, one.num_folds, one.num_pairs) == ((0, 1), 3, 6)
    assert (one.found.n, one.found.is_of_folds) == (3, True)
    assert one.found.mean == pytest.approx(0.2)
    assert one.verdict == "helps"
    text = markdown(found)
    assert "3 folds" in group.group.title
    assert "| mixup | 6 | 90.00" in text
    assert "each of the 180 images is predicted once per seed" in text
    content = json.loads(to_json(found))
    assert content["groups"][0]["arms"][0]["num_folds"] == 3
    assert len(content["groups"][0]["runs"]) == 12


def test_one_seed_of_three_folds_has_a_verdict_and_two_folds_have_none(tmp_path):
    write_folds(tmp_path / "three", accuracy=0.6)
    write_folds(tmp_path / "three", "mixup", accuracy=0.9)
    write_folds(tmp_path / "two", num_folds=2, accuracy=0.6)
    write_folds(tmp_path / "two", "mixup", num_folds=2, accuracy=0.9)

    assert report(tmp_path / "three").groups[0].comparisons[0].verdict == "helps"
    assert "| two folds: no verdict |" in markdown(report(tmp_path / "two"))


@pytest.mark.parametrize("metric", ["ece", "auroc", "log_loss"])
def test_the_difference_is_that_of_the_values(tmp_path, metric):
    write_folds(tmp_path, accuracy=0.5)
    write_folds(tmp_path, "mixup", accuracy=0.9)

    (group,) = report(tmp_path, metric).groups

    values = [row.metrics[metric].mean for row in group.rows]
    assert group.comparisons[0].found.mean == pytest.approx(values[1] - values[0], abs=1e-6)


def test_auroc_of_a_fold_of_one_class_is_refused(tmp_path):
    for trick in ((), ("mixup",)):
        write_folds(tmp_path / "two", *trick, classes=("one", "two"))
        for number in range(3):  # the last fold has one image
            size = 1 if number == 2 else 2
            write_run(
                tmp_path / "few", *trick, fold=(number, 3), num_images=size, classes=("one", "two")
            )

    assert report(tmp_path / "two", "auroc").groups
    with pytest.raises(ConfigError, match="all images of fold 2 are of class one"):
        report(tmp_path / "few", "auroc")


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_can_be_compared(tmp_path, metric):
    for seed in range(2):
        write_folds(tmp_path, seed=seed, accuracy=0.5)
        write_folds(tmp_path, "mixup", seed=seed, accuracy=0.9)

    (one,) = report(tmp_path, metric).groups[0].comparisons

    low, high = one.found.over_both
    assert low < one.found.mean < high
    if metric != "ece":  # the drawn probabilities are not calibrated
        assert one.verdict == "helps"


def test_seeds_without_all_folds_are_left_out_and_named(tmp_path):
    for tricks in ((), ("mixup",)):
        write_folds(tmp_path, *tricks, seed=0)
    write_folds(tmp_path, seed=1)
    for number in (0, 2):
        write_run(tmp_path, "mixup", seed=1, fold=(number, 3))

    found = found_in(tmp_path)

    assert len(found.runs) == 3
    reasons = {one.reason for one in found.unranked}
    assert reasons == {"seed 1 has no run of fold 1 of 3; only seeds with all folds are compared"}
    assert len(found.unranked) == 2
    assert report(tmp_path).groups[0].comparisons[0].seeds == (0,)


def test_a_failed_fold_fails_its_seed_and_stays_in_the_report(tmp_path):
    for seed in range(2):
        write_folds(tmp_path, seed=seed, accuracy=0.7)
    write_folds(tmp_path, "mixup", seed=0, accuracy=0.9)
    for number in (0, 2):
        write_run(tmp_path, "mixup", seed=1, fold=(number, 3))
    lost = write_run(tmp_path, "mixup", seed=1, fold=(1, 3), finish=False)
    lost.write_status("failed", "the loss is not finite", "DivergedError")
    gone = write_run(tmp_path, "normalize", seed=0, fold=(1, 3), finish=False)
    gone.write_status("failed", "the loss is not finite", "DivergedError")

    (group,) = report(tmp_path).groups

    (row,) = [row for row in group.rows if row.label == "mixup"]
    assert (row.seeds, row.failed) == ((0,), {1: "the loss is not finite"})
    text = markdown(report(tmp_path))
    assert "| mixup | 3 (+1 seed failed) |" in text
    assert "1 of 2 seeds failed" in text
    assert "the only seed failed" in text, "an arm without a whole seed is named"


def test_failed_folds_of_other_data_stay_with_their_data(tmp_path):
    write_folds(tmp_path)
    for number in range(2):
        other = write_run(
            tmp_path, seed=number, fold=(0, 3), fingerprint="e" * 64, finish=number == 0
        )
    other.write_status("failed", "the loss is not finite", "DivergedError")

    found = found_in(tmp_path)

    assert [(run.seed, run.fingerprint) for run in found.failed] == [(1, "0" + "e" * 63)]


def test_what_a_difference_is_computed_from_has_the_folds():
    scores = np.arange(6) % 2
    one = Measured(0.5, scores == 1, scores, (0.4, 0.6))
    folds = np.arange(6) % 3

    assert digest([[one]], folds) == digest([[replace(one)]], folds.copy())
    assert digest([[one]], folds) != digest([[one]], folds[::-1].copy())
    assert digest([[one]], folds) != digest([[replace(one, of_folds=(0.5, 0.5))]], folds)


def test_the_legend_says_what_n_counts(tmp_path):
    for tricks in ((), ("mixup",)):
        write_folds(tmp_path / "folds", *tricks)
        write_run(tmp_path / "seeds", *tricks)

    assert "n: seeds, or pairs of seed and fold" in markdown(report(tmp_path / "folds"))
    assert "or three folds" in markdown(report(tmp_path / "folds"))
    assert "n: seeds. " in markdown(report(tmp_path / "seeds"))


def test_a_file_that_claims_many_folds_does_no_harm(tmp_path):
    folder = write_folds(tmp_path)[0]
    write_run(tmp_path, seed=1, fold=(0, 3))
    path = folder.path / "result.json"
    content = json.loads(path.read_text())
    content["data"]["folds"]["num_folds"] = 90_000
    path.write_text(json.dumps(content))
    assert all(len(one.reason) < 150 for one in found_in(tmp_path).unranked)
    content["data"]["folds"]["num_folds"] = 10**12
    path.write_text(json.dumps(content))
    assert "unreadable" in {one.status for one in found_in(tmp_path).unranked}


def test_one_fold_alone_is_a_plain_split(tmp_path):
    for seed in range(3):
        for tricks in ((), ("mixup",)):
            write_run(tmp_path, *tricks, seed=seed, fold=(1, 5))

    found = report(tmp_path)

    assert found.groups[0].comparisons[0].seeds == (0, 1, 2)
    assert not found.groups[0].comparisons[0].found.is_of_folds
    assert not found.unranked


def test_other_numbers_of_folds_are_other_groups(tmp_path):
    write_folds(tmp_path, num_folds=3)
    write_folds(tmp_path, num_folds=2, fingerprint="e" * 64)

    titles = [group.group.title for group in report(tmp_path).groups]

    assert len(titles) == 2
    assert sum("3 folds" in title for title in titles) == 1


def test_evaluations_with_tta_are_pooled(tmp_path):
    write_folds(tmp_path, "tta", accuracy=0.6, tta_accuracy=0.9)

    found = report(tmp_path)

    (one,) = found.groups[0].comparisons
    assert one.label == "tta"
    assert one.found.mean == pytest.approx(0.3)


def test_predictions_that_are_not_of_each_image_once_are_refused(tmp_path):
    folder = write_folds(tmp_path)[1]
    own = folder.predictions()
    folder.write_bytes("predictions.npz", packed(**{**own, "places": own["places"] - 1}))

    (run,) = found_in(tmp_path).runs

    with pytest.raises(ArtefactError, match="not for each image once"):
        run.predictions()
