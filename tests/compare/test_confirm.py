"""``compare --confirm-on test``: refused before a training, made once, and printed again."""

import json
import shutil
from pathlib import Path

import pytest
from small import Command, add_test_part

from runner.compare.asked import Asked
from runner.compare.confirm import plan_lines, read_test_part
from runner.compare.question import Question, question
from runner.errors import DataError
from runner.terminal.display import Display

MODULE = "runner.compare"


@pytest.fixture(scope="module")
def with_test(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny folder with a part ``test`` of five images per class."""
    root = tmp_path_factory.mktemp("with_test") / "data"
    shutil.copytree(tiny_folder, root)
    add_test_part(root)
    return root


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["--confirm-on", "test"], 3, "the data has no test part"),
        (["--confirm-on", "test", "--plan"], 3, "the data has no test part"),
        (["--confirm-on", "val"], 2, "--confirm-on test"),
    ],
)
def test_a_confirmation_without_test_images_is_refused_before_training(
    command: Command, tmp_path: Path, tiny_words: tuple[str, ...],
    words: list[str], code: int, what: str,
) -> None:  # fmt: skip
    done = command(*tiny_words, "--try", "mixup=beta", *words, module=MODULE)
    assert done.returncode == code
    assert what in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("outputs/*/run.json"))
    assert not list(tmp_path.glob("outputs/comparisons"))


def asked_of(root: Path, words: tuple[str, ...], metric: str = "accuracy") -> Question:
    kept = (*(word for word in words if not word.startswith("data.root=")), f"data.root={root}")
    return question(Asked(words=kept, tries=(("mixup=beta",),), metric=metric))


def test_leaked_test_images_are_counted_and_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    tiny_words: tuple[str, ...], with_test: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    root = shutil.copytree(with_test, tmp_path / "leaking")
    (folder,) = (root / "train").glob("red")
    one, other = sorted(folder.iterdir())[:2]
    shutil.copy(one, root / "test" / "red" / "seen.png")
    shutil.copy(other, root / "test" / "red" / "seen too.png")
    for place, num_leaked in ((with_test, 0), (root, 2)):
        asked = asked_of(place, tiny_words)
        with Display(quiet=True) as display:
            part = read_test_part(asked, display)
        assert part.num_leaked == num_leaked
        text = "\n".join(plan_lines((asked, part)))
        assert ("2 test images are in training or validation too" in text) == bool(num_leaked)


def test_a_metric_that_the_test_part_leaves_undefined_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    tiny_words: tuple[str, ...], with_test: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    root = shutil.copytree(with_test, tmp_path / "lacking")
    shutil.rmtree(root / "test" / "red")
    with Display(quiet=True) as display:
        with pytest.raises(
            DataError, match=r"AUROC is not defined .* class red has no test images"
        ):
            read_test_part(asked_of(root, tiny_words, "auroc"), display)
        assert read_test_part(asked_of(root, tiny_words, "macro_f1"), display).num_images == 10


@pytest.mark.whole
def test_an_ended_comparison_is_confirmed_once(
    command: Command, tmp_path: Path, tiny_words: tuple[str, ...], with_test: Path
) -> None:
    words = [word for word in tiny_words if not word.startswith("data.root=")]
    words += [f"data.root={with_test}", "--try", "mixup=beta", "--try", "tta=flip", "--seeds", "3"]
    first = command(*words, module=MODULE)
    assert first.returncode == 0, first.stderr
    (folder,) = (tmp_path / "outputs" / "comparisons").iterdir()
    files = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    assert "confirmation.json" not in files
    verdicts = first.stdout.partition("comparison ")[2]
    asked = command(*words, "--confirm-on", "test", module=MODULE)
    assert asked.returncode == 0, asked.stderr
    assert "confirming on 15 test images: 9 runs" in asked.stdout
    assert "on the 15 test images, which no training and no verdict used" in asked.stdout
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert verdicts.splitlines()[:3] == asked.stdout.partition("comparison ")[2].splitlines()[:3]
    kept = sorted(tmp_path.glob("outputs/*/evaluations/test/*.npz"))
    assert len(kept) == 9, "a view of each run, and the plain view of those with TTA"
    times = [path.stat().st_mtime_ns for path in kept]
    again = command(*words, "--confirm-on", "test", "--json", "-", module=MODULE)
    content = json.loads(again.stdout)["confirmation"]
    assert [one["label"] for one in content["arms"]] == ["mixup=beta", "tta=flip"]
    assert [*content["base"]["values"]] == ["0", "1", "2"]
    assert "confirming" not in again.stderr
    assert [path.stat().st_mtime_ns for path in kept] == times
    plain = command(*words, "--json", "-", module=MODULE)
    assert json.loads(plain.stdout)["confirmation"] == content, "it is recorded"
    (folder / "confirmation.json").unlink()
    remade = command(*words, "--confirm-on", "test", "--json", "-", module=MODULE)
    assert json.loads(remade.stdout)["confirmation"] == content
    assert [path.stat().st_mtime_ns for path in kept] == times, "predictions are used again"
