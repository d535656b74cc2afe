"""What the page shows beyond the verdicts, each against a plain loop over the predictions."""

import csv
import gzip
import io
import json
import os
import shutil
import tracemalloc
import zipfile
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fabricated import write_run
from PIL import Image
from small import COLOURS

from runner.config.schema import Augment, Budget, Data, Mixup, Optim
from runner.data import download, sources
from runner.data.dataset import load_dataset
from runner.records import evaluations
from runner.records.run_folder import RunFolder
from runner.report.details import GroupDetails, Pictures, Series, find_series
from runner.report.groups import RunGroup, group_runs
from runner.report.runs import FinishedRun, find_runs

CLASSES = tuple(COLOURS)


def groups_of(outputs: Path) -> list[RunGroup]:
    found = find_runs([outputs])
    assert not found.unranked
    return group_runs(found.runs)


def only_group(outputs: Path) -> RunGroup:
    (group,) = groups_of(outputs)
    return group


def draw(
    folder: RunFolder, labels: Sequence[int], *, outputs: int = 3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give a run other predictions, of classes often confused; labels, plain and TTA."""
    rng = np.random.default_rng(seed)
    array = np.array(labels)
    plain, tta = (
        rng.dirichlet(np.full(outputs, 0.6), len(array)).astype(np.float32) for _ in range(2)
    )
    folder.write_predictions(array, plain)
    for name in evaluations.names(folder):
        evaluations.write(folder, name, {**(evaluations.read(folder, name) or {})}, tta)
    return array, plain, tta


# Reliability -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_images", [60, 57, 4])
def test_reliability_is_that_of_a_loop(tmp_path: Path, num_images: int) -> None:
    labels = [i % 3 for i in range(num_images)]
    folders = [write_run(tmp_path, seed=seed, num_images=num_images) for seed in (0, 1)]
    drawn = [draw(folder, labels, seed=seed) for seed, folder in enumerate(folders)]
    predictions = []
    for array, plain, _ in drawn:
        for label, row in zip(array, plain, strict=True):
            best = max(range(3), key=lambda k: row[k])
            predictions.append((row[best], best == label))
    predictions.sort(key=lambda one: one[0])
    total, bins = len(predictions), []
    sizes = [total // 10 + (place < total % 10) for place in range(10)]
    start = 0
    for size in filter(None, sizes):
        part = predictions[start : start + size]
        bins.append((sum(float(c) for c, _ in part) / size, sum(right for _, right in part) / size))
        start += size
    assert start == total
    confidence, accuracy = GroupDetails(only_group(tmp_path)).reliability()["baseline"]
    np.testing.assert_allclose(confidence, [c for c, _ in bins], rtol=1e-5)
    np.testing.assert_allclose(accuracy, [a for _, a in bins], rtol=1e-12)


def test_reliability_of_tta_is_that_of_its_own_view(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "tta", num_images=30)
    _, plain, tta = draw(folder, [i % 3 for i in range(30)])
    found = GroupDetails(only_group(tmp_path)).reliability()
    assert set(found) == {"baseline", "tta"}
    for label, view in (("baseline", plain), ("tta", tta)):
        expected = np.sort(view.max(axis=1)).reshape(10, 3).mean(axis=1)
        np.testing.assert_allclose(found[label][0], expected, rtol=1e-6)


# Confusion ---------------------------------------------------------------------------------------


def test_confusion_is_that_of_a_loop(tmp_path: Path) -> None:
    labels = [0, 0, 0, 1, 1, 0, 1, 0, 1, 1, 0, 1] * 5  # and no image of the third class
    folders = [write_run(tmp_path, seed=seed, num_images=60) for seed in (0, 1, 2)]
    counts: dict[tuple[int, int], int] = {}
    totals = [0, 0, 0]
    for seed, folder in enumerate(folders):
        for label, row in zip(*draw(folder, labels, seed=seed)[:2], strict=True):
            taken = int(np.argmax(row))
            counts[label, taken] = counts.get((label, taken), 0) + 1
            totals[label] += 1
    (confusion,) = GroupDetails(only_group(tmp_path)).confusions()
    assert confusion.label == "baseline"
    assert confusion.classes == ("bag", "coat", "dress")
    assert confusion.shares is not None
    for true in range(3):
        for taken in range(3):
            share = confusion.shares[true, taken]
            if totals[true]:
                assert share == pytest.approx(counts.get((true, taken), 0) / totals[true])
            else:
                assert np.isnan(share)
    mistakes = sorted(
        (
            (-counts[true, taken] / totals[true], true, taken)
            for true, taken in counts
            if true != taken
        ),
    )
    expected = [
        (confusion.classes[true], confusion.classes[taken], -share)
        for share, true, taken in mistakes
    ]
    assert [one[:2] for one in confusion.largest] == [one[:2] for one in expected]
    np.testing.assert_allclose([one[2] for one in confusion.largest], [x[2] for x in expected])
    assert len(expected) == 4


def test_confusion_with_more_outputs_than_classes(tmp_path: Path) -> None:
    folder = write_run(tmp_path, num_images=60)
    labels, plain, _ = draw(folder, [i % 3 for i in range(60)], outputs=5)
    (confusion,) = GroupDetails(only_group(tmp_path)).confusions()
    assert confusion.shares is not None
    for true in range(3):
        for taken in range(3):
            both = (labels == true) & (plain.argmax(axis=1) == taken)
            assert confusion.shares[true, taken] == pytest.approx(both.sum() / 20)
    assert confusion.shares.sum() < 2.9  # some went to outputs without a name


@pytest.mark.parametrize(("number", "is_small"), [(20, True), (21, False)])
def test_confusion_of_many_classes_is_a_list(tmp_path: Path, number: int, is_small: bool) -> None:
    classes = tuple(f"class {k}" for k in range(number))
    folder = write_run(tmp_path, num_images=200, classes=classes)
    draw(folder, [i % number for i in range(200)], outputs=number)
    (confusion,) = GroupDetails(only_group(tmp_path)).confusions()
    assert (confusion.shares is not None) == is_small
    shares = [share for *_, share in confusion.largest]
    assert len(shares) == 10
    assert shares == sorted(shares, reverse=True)
    assert all(true != taken for true, taken, _ in confusion.largest)


def test_without_mistakes_there_is_no_largest(tmp_path: Path) -> None:
    write_run(tmp_path, accuracy=1.0)
    (confusion,) = GroupDetails(only_group(tmp_path)).confusions()
    assert confusion.largest == ()


# Images ------------------------------------------------------------------------------------------


def test_most_confused_is_that_of_a_loop(tmp_path: Path) -> None:
    labels = [i % 3 for i in range(60)]
    runs = [
        write_run(tmp_path, *tricks, seed=seed, num_images=60)
        for tricks in ((), ("normalize",), ("tta",))
        for seed in (0, 1)
    ]
    drawn = [draw(folder, labels, seed=seed)[1] for seed, folder in enumerate(runs)]
    drawn = drawn[2:]  # the last two are the first two, with an evaluation and other predictions
    ranked = []
    for image, label in enumerate(labels):
        votes: dict[int, list[float]] = {}
        for plain in drawn:
            taken = max(range(3), key=lambda k: plain[image][k])
            votes.setdefault(taken, []).append(float(plain[image][taken]))
        votes.pop(label, None)
        if votes:
            mean = {k: sum(given) / len(given) for k, given in votes.items()}
            worst = min(votes, key=lambda k: (-len(votes[k]), -mean[k]))
            trust = mean[worst]
            ranked.append((-len(votes[worst]), -trust, image, label, worst))
    ranked.sort()
    shown = GroupDetails(only_group(tmp_path)).misclassified()
    assert shown.total == len(ranked) > 12
    found = shown.images[:12]
    assert [(one.wrong, one.name, one.true, one.predicted) for one in found] == [
        (
            -wrong, f"validation image {image}",
            ("bag", "coat", "dress")[label], ("bag", "coat", "dress")[worst],
        )
        for wrong, _, image, label, worst in ranked[:12]
    ]  # fmt: skip
    np.testing.assert_allclose(
        [one.confidence for one in found], [-r[1] for r in ranked[:12]], 1e-5
    )
    assert {one.total for one in found} == {4}
    assert all(one.picture is None for one in found)
    assert found[0].wrong > found[-1].wrong


def test_images_that_all_get_right_are_not_confused(tmp_path: Path) -> None:
    write_run(tmp_path, accuracy=1.0)
    assert GroupDetails(only_group(tmp_path)).misclassified().images == ()


def nothing(what: str, done: int, total: int) -> None:
    pass


def run_on(root: Path, outputs: Path, data: Data | None = None) -> FinishedRun:
    """A run whose data is the folder ``root``; its manifest is a real one."""
    found = load_dataset(Data(name="folder", root=str(root)), 16, outputs.parent / "other", nothing)
    folder = write_run(
        outputs, classes=found.classes, num_images=len(found.val.labels),
        data=data or Data(name="folder", root=str(root)),
    )  # fmt: skip
    folder.write_bytes("split.csv.gz", found.manifest_csv)
    return only_group(outputs).any_run


@pytest.mark.parametrize(
    "content",
    [
        b"",
        gzip.compress(b"split,image,label,sha256\nval,a,b,c\n")[:-12] + bytes(12),
        gzip.compress(b"split,image,label,sha256\n" + bytes(2**26)),  # one long line
        gzip.compress(b"split,image,label,sha256\n" + b"val,a,b,c\n" * 2**20),  # too many rows
        gzip.compress(b"split,image\nval," + b"x" * 200_000 + b"\n"),
        b"\x1f\x8b\x08\x00" + bytes(20) + b"\xff" * 30,
    ],
    ids=["empty", "no checksum", "one long line", "too many rows", "a long cell", "no deflate"],
)
def test_a_table_that_is_damaged_or_unpacks_to_much_names_no_images(
    tiny_folder: Path, tmp_path: Path, content: bytes
) -> None:
    run = run_on(tiny_folder, tmp_path / "outputs")
    assert Pictures(run).name(0) != "validation image 0"  # negative control
    (run.path / "split.csv.gz").write_bytes(content)
    tracemalloc.start()
    assert Pictures(run).name(0) == "validation image 0"
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()
    (run.path / "split.csv.gz").unlink()
    os.mkfifo(run.path / "split.csv.gz")
    assert Pictures(run).name(0) == "validation image 0"


def names_in(run: FinishedRun) -> list[str]:
    text = gzip.decompress((run.path / "split.csv.gz").read_bytes()).decode()
    return [row["image"] for row in csv.DictReader(io.StringIO(text)) if row["split"] == "val"]


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
    }


@pytest.fixture
def images(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data set, to be changed."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "images"))


def test_thumbnail_shows_the_very_image(images: Path, tmp_path: Path) -> None:
    run = run_on(images, tmp_path / "outputs")
    large = Image.new("RGB", (400, 100), (250, 10, 10))
    names = names_in(run)
    large.save(images / names[3])
    run = run_on(images, tmp_path / "again")
    pictures = Pictures(run)
    assert names == names_in(run)
    for row, name in enumerate(names):
        assert pictures.name(row) == name
        address = pictures.thumbnail(row)
        assert address is not None
        head, _, body = address.partition(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(b64decode(body, validate=True))) as shown:
            expected = (72, 18) if row == 3 else (32, 24)
            assert shown.size == expected
            colour = np.asarray(shown.convert("RGB"), float).mean(axis=(0, 1))
        with Image.open(images / name) as image:
            whole = np.asarray(image.convert("RGB"), float).mean(axis=(0, 1))
        np.testing.assert_allclose(colour, whole, atol=6)


def test_images_of_a_run_are_found_by_the_group(images: Path, tmp_path: Path) -> None:
    run = run_on(images, tmp_path / "outputs")
    labels = [CLASSES.index(name.split("/")[1]) for name in names_in(run)]
    draw(RunFolder(run.path), labels)
    found = GroupDetails(only_group(tmp_path / "outputs")).misclassified().images
    assert found
    for one in found:
        assert one.name.startswith("val/")
        assert one.name.split("/")[1] == one.true
        assert one.picture is not None


def test_changed_and_broken_images_are_not_shown(images: Path, tmp_path: Path) -> None:
    run = run_on(images, tmp_path / "outputs")
    names = names_in(run)
    Image.new("RGB", (32, 24)).save(images / names[0])
    (images / names[1]).unlink()
    (images / names[2]).write_bytes(b"no image")
    pictures = Pictures(run)
    shown = [pictures.thumbnail(row) is not None for row in range(len(names))]
    assert shown == [False, False, False] + [True] * (len(names) - 3)


def test_without_the_data_names_are_told_and_no_pictures(images: Path, tmp_path: Path) -> None:
    run = run_on(images, tmp_path / "outputs")
    names = names_in(run)
    shutil.rmtree(images)
    pictures = Pictures(run)
    assert [pictures.name(row) for row in range(len(names))] == names
    assert pictures.thumbnail(0) is None


@pytest.mark.parametrize("damage", ["missing", "cut", "other rows", "other columns", "no gzip"])
def test_without_a_manifest_images_are_numbered(images: Path, tmp_path: Path, damage: str) -> None:
    run = run_on(images, tmp_path / "outputs")
    path = run.path / "split.csv.gz"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "no gzip":
        path.write_bytes(b"split,image\n")
    else:
        lines = gzip.decompress(content).decode().splitlines()
        if damage == "other rows":
            lines.pop()
        else:
            lines[0] = "a,b,c,d"
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
    pictures = Pictures(run)
    assert pictures.name(3) == "validation image 3"
    assert pictures.thumbnail(3) is None


def packed(images: Path) -> Path:
    """The images as an archive; the folder is gone."""
    archive = images.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(images.rglob("*.png")):
            file.write(path, path.relative_to(images))
    shutil.rmtree(images)
    return archive


@pytest.mark.parametrize("beside", [None, "images-0-0", "imagenette2-160-0-0"])
def test_an_archive_is_not_unpacked_for_a_report(
    images: Path, tmp_path: Path, beside: str | None
) -> None:
    outputs = tmp_path / "outputs"
    run = run_on(images, outputs, Data(name="folder", root=str(images.with_suffix(".zip"))))
    packed(images)
    (outputs / "cache").mkdir()
    if beside:  # unpacked from something else, or from an older archive of that name
        (outputs / "cache" / "unpacked" / beside).mkdir(parents=True)
    before = files_below(tmp_path)
    pictures = Pictures(run)
    assert pictures.thumbnail(0) is None
    assert pictures.name(0) == names_in(run)[0]
    assert files_below(tmp_path) == before


def test_an_archive_that_training_unpacked_is_shown(images: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    run = run_on(images, outputs, Data(name="folder", root=str(images.with_suffix(".zip"))))
    data = Data(name="folder", root=str(packed(images)))
    sources.list_images(data, outputs / "cache", 0, nothing)
    before = files_below(outputs / "cache" / "unpacked")
    assert Pictures(run).thumbnail(0) is not None
    assert files_below(outputs / "cache" / "unpacked") == before


@pytest.mark.parametrize("place", [None, "downloads", "unpacked", "unpacked/other-0-0"])
@pytest.mark.parametrize("name", ["imagenette", "cifar10", "fashion_mnist"])
def test_nothing_is_downloaded_for_a_report(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    place: str | None,
) -> None:
    asked: list[str] = []

    def refuse(request: object, **_: object) -> None:
        asked.append(request.full_url)  # type: ignore[attr-defined]
        raise OSError("no network in tests")

    monkeypatch.setattr(download.urllib.request, "urlopen", refuse)
    monkeypatch.setattr(download, "_PAUSE_SECONDS", 0.0)
    outputs = tmp_path / "outputs"
    run = run_on(images, outputs, Data(name=name))
    if place:
        (outputs / "cache" / place).mkdir(parents=True)
    before = files_below(outputs)
    assert Pictures(run).thumbnail(0) is None
    assert asked == []
    assert files_below(outputs) == before


# Values of a key ---------------------------------------------------------------------------------


def test_no_series_in_one_group(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_run(tmp_path, "mixup")
    assert find_series(groups_of(tmp_path)) == []


def points(series: Series, label: str) -> list[tuple[float, float]]:
    return [(value, pytest.approx(mean)) for value, mean, *_ in series.lines[label]]


@pytest.mark.parametrize("key", ["budget.epochs", "optim.lr"])
def test_series_over_a_key(tmp_path: Path, key: str) -> None:
    values = {"budget.epochs": (20, 5, 80), "optim.lr": (1e-3, 3e-4, 1e-2)}[key]
    group, _, field = key.partition(".")
    of = {"budget": Budget, "optim": Optim}[group]
    for place, value in enumerate(values):
        for seed, accuracy in enumerate((0.4, 0.5, 0.6)):
            changes = {group: of(**{field: value})}
            write_run(tmp_path, seed=seed, accuracy=accuracy + place / 10, **changes)
            if place < 2:
                write_run(tmp_path, "mixup", seed=seed, accuracy=0.8, **changes)
    (series,) = find_series(groups_of(tmp_path))
    assert series.key == key
    assert series.title == "folder · xresnet18"
    order = np.argsort(values)
    assert points(series, "baseline") == [(values[i], 0.5 + i / 10) for i in order]
    assert points(series, "mixup") == [(values[i], 0.8) for i in order if i < 2]
    for value, mean, low, high in series.lines["baseline"]:
        half = 4.302653 * 0.1 / 3**0.5  # of Student's t with two degrees of freedom
        assert (low, high) == (pytest.approx(mean - half), pytest.approx(mean + half))
        assert value in values


def test_series_of_one_seed_has_no_interval(tmp_path: Path) -> None:
    for epochs in (1, 2):
        write_run(tmp_path, budget=Budget(epochs=epochs), accuracy=0.5)
    (series,) = find_series(groups_of(tmp_path))
    assert series.lines["baseline"] == [(1.0, 0.5, 0.5, 0.5), (2.0, 0.5, 0.5, 0.5)]


def test_series_over_label_noise_spans_fingerprints(tmp_path: Path) -> None:
    for noise in (0, 5, 50):
        for tricks in ((), ("mixup",)):
            write_run(
                tmp_path, *tricks, data=Data(name="imagenette", label_noise=noise),
                fingerprint=f"{noise:064d}", accuracy=0.8 - noise / 100,
            )  # fmt: skip
    groups = groups_of(tmp_path)
    assert len(groups) == 3
    (series,) = find_series(groups)
    assert series.key == "data.label_noise"
    for label in ("baseline", "mixup"):
        assert points(series, label) == [(0, 0.8), (5, 0.75), (50, 0.3)]


def test_other_data_is_no_series(tmp_path: Path) -> None:
    for epochs in (1, 2):
        write_run(tmp_path, budget=Budget(epochs=epochs), fingerprint=f"{epochs:064d}")
    assert find_series(groups_of(tmp_path)) == []


def test_series_over_two_keys_at_once(tmp_path: Path) -> None:
    for epochs in (1, 2, 4):
        for lr in (0.001, 0.01):
            write_run(
                tmp_path, budget=Budget(epochs=epochs), optim=Optim(lr=lr),
                accuracy=0.5 + epochs / 20 + 10 * lr,
            )  # fmt: skip
    found = find_series(groups_of(tmp_path))
    told = {
        (series.key, tuple((value, round(mean, 3)) for value, mean, *_ in series.lines["baseline"]))
        for series in found
    }
    assert told == {
        ("budget.epochs", ((1, 0.567), (2, 0.617), (4, 0.717))),
        ("budget.epochs", ((1, 0.65), (2, 0.7), (4, 0.8))),
        ("optim.lr", ((0.001, 0.567), (0.01, 0.65))),
        ("optim.lr", ((0.001, 0.617), (0.01, 0.7))),
        ("optim.lr", ((0.001, 0.717), (0.01, 0.8))),
    }
    assert len(found) == 5
    # The title says what tells one from another.
    assert len({(series.key, series.title) for series in found}) == 5


def test_words_and_switches_are_no_series(tmp_path: Path) -> None:
    for name in ("adamw", "sgd"):
        write_run(tmp_path, optim=Optim(name=name))
    write_run(tmp_path, optim=Optim(name="sgd", nesterov=True))
    assert find_series(groups_of(tmp_path)) == []


def test_a_key_of_a_trick_is_no_series(tmp_path: Path) -> None:
    for alpha in (0.2, 0.4):
        write_run(tmp_path, mixup=Mixup(probability=1.0, alpha=alpha))
    groups = groups_of(tmp_path)
    assert len(groups) == 1
    assert find_series(groups) == []


def test_series_of_a_key_that_only_some_groups_have(tmp_path: Path) -> None:
    for flip in (0.0, 0.5):
        write_run(tmp_path, augment=Augment(flip=flip))
    folder = write_run(tmp_path, augment=Augment(flip=1.0), seed=1, name="other")
    path = folder.path / "run.json"
    content = json.loads(path.read_text())
    del content["values"]["augment"]["flip"]
    path.write_text(json.dumps(content))
    (series,) = find_series(groups_of(tmp_path))
    assert [value for value, *_ in series.lines["baseline"]] == [0.0, 0.5]


def test_runs_of_one_name_in_two_places_are_two(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.9, 0.3)):
        write_run(tmp_path / str(seed), seed=seed, accuracy=accuracy, name="run")
    (group,) = group_runs(find_runs([tmp_path / "0", tmp_path / "1"]).runs)
    _, accuracy = GroupDetails(group).reliability()["baseline"]
    assert accuracy.mean() == pytest.approx(0.6, abs=0.01)
