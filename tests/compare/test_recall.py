"""The folder of a comparison that has ended, found by its words; never that of another question."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from runner.compare import recall
from runner.compare.asked import Asked
from runner.compare.plan import planned
from runner.compare.question import question
from runner.records.comparison_folder import ComparisonFolder, place
from runner.terminal.display import Display

ASKED = Asked(words=("budget=smoke",), tries=(("mixup=beta",), ("code=idea.py",)))
IDEA = "def images(images, generator, progress):\n    return images\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ComparisonFolder:
    """A comparison of ``ASKED`` that has ended, and is remembered."""
    monkeypatch.chdir(tmp_path)
    Path("idea.py").write_text(IDEA)
    asked = question(ASKED)
    with Display(quiet=True) as display:
        found = place(asked.outputs, planned(asked, display).comparison)
    with found.folder.locked():
        found.folder.begin(found.plan)
        recall.remember(ASKED, asked, found.folder)
        assert not Path("outputs/cache/asked").exists(), "it has not ended"
        found.folder.write_answer({"is_ended": True})
    recall.remember(ASKED, asked, found.folder)
    return found.folder


def ended(asked: Asked) -> Path | None:
    with Display(quiet=True) as display:
        found = recall.ended(asked, display)
    return found and found.path.absolute()


@pytest.mark.whole
def test_a_comparison_is_found_by_equal_words_alone(folder: ComparisonFolder) -> None:
    assert ended(ASKED) == folder.path.absolute()
    assert ended(replace(ASKED, budget="1h")) == folder.path.absolute()
    for other in (
        replace(ASKED, words=("budget=smoke", "optim.lr=1")),
        replace(ASKED, words=("budget=smoke", "outputs=elsewhere")),
        replace(ASKED, tries=ASKED.tries[:1]),
        replace(ASKED, margin="1"),
        replace(ASKED, max_seeds="5"),
        replace(ASKED, name="second"),
        replace(ASKED, config_dir=Path()),
    ):
        assert ended(other) is None
    Path("idea.py").write_text(IDEA + "# another\n")
    assert ended(ASKED) is None
    Path("idea.py").write_text(IDEA)
    assert ended(ASKED) is not None
    (kept,) = Path("outputs/cache/asked").iterdir()
    content = json.loads(kept.read_text())
    content["data"]["val_fraction"] = 0.3
    kept.write_text(json.dumps(content))
    assert ended(ASKED) is not None, "embedded data have a split of their own"
    for damaged in ("", "{}", "[]", json.dumps({**content, "comparison": "../x"})):
        kept.write_text(damaged)
        assert ended(ASKED) is None


@pytest.mark.parametrize("word", ["code=idea.py", "++code=idea.py", "code='idea.py'"])
def test_the_content_of_a_code_file_is_a_part_of_the_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = Asked(tries=((word,),))
    assert recall._name(asked) is None, "there is no such file"
    Path("idea.py").write_text(IDEA)
    before = recall._name(asked)
    Path("idea.py").write_text(IDEA + "# another\n")
    assert None is not before != recall._name(asked)


@pytest.mark.parametrize(
    "word", ["model.weights=DEFAULT", "normalize=pretrained", "outputs='a b'", "outputs=[a]"]
)
def test_words_that_do_not_say_it_all_are_not_remembered(word: str) -> None:
    assert ended(Asked(words=(word,))) is None
    if "outputs" not in word:
        assert recall._name(Asked(tune=(word,))) is None
