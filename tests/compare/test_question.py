"""Words become a baseline and arms; every mistake is named with its arm before anything happens."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from runner.compare.asked import Asked, separate_words
from runner.compare.question import AGAIN, AGAIN_OFFSET, Question, joined_words, question
from runner.config import compose
from runner.config.overlays import all_tricks
from runner.config.schema import RunConfig
from runner.errors import ConfigError, RunnerError
from runner.records.identity import decisive_values

BETA = (("mixup=beta",),)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ask(*words: str, tries: tuple[tuple[str, ...], ...] = BETA, **options: str) -> Question:
    return question(Asked(words=words, tries=tries, **options))  # type: ignore[arg-type]


SEPARATED = {
    "mixup=beta": 1,
    "mixup=beta optim.lr=1e-2": 2,
    " mixup=beta   smoothing=standard ": 2,
    "+trick=mixup optim.lr=1e-2 tta=book": 3,
    "code=my file.py": 1,
    "+trick=[mixup, tta]": 1,
    "data.root='a b'": 1,
    "mixup=beta code='a b.py'": 2,
    "'mixup=beta": 1,
    "mixup": 1,
    "mixup beta": 1,
    "a=b c": 1,
    "": 1,
    " ": 1,
    "=": 1,
    "= =": 1,
    "x=\ty=2": 2,
}


@pytest.mark.parametrize("argument", SEPARATED)
def test_an_argument_is_several_words_only_where_each_piece_is_one(argument: str) -> None:
    found = separate_words(argument)
    assert len(found) == SEPARATED[argument]
    if len(found) == 1:
        assert found == [argument]


JOINED = {
    (("optim.lr=1",), ("mixup=beta",)): ("optim.lr=1", "mixup=beta"),
    (("optim.lr=1", "mixup=uniform"), ("mixup=beta",)): ("optim.lr=1", "mixup=beta"),
    (("+trick=mixup",), ("+trick=tta",)): ("+trick=[mixup,tta]",),
    (("+trick=[mixup,tta]",), ("+trick=[tta, ema]",)): ("+trick=[mixup,tta,ema]",),
    (("+recipe=small",), ("+trick=tta",)): ("+recipe=small", "+trick=tta"),
    (("+trick=mixup",), ("trick=[]",)): ("trick=[]",),
    (("seed=1",), ("seed=2",)): ("seed=2",),
    (("++optim.lr=1",), ("optim.lr=2",)): ("optim.lr=2",),
    ((), ()): (),
}


@pytest.mark.parametrize(("base", "words"), JOINED)
def test_the_words_of_an_arm_change_those_of_the_baseline(
    base: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert joined_words(base, words) == JOINED[base, words]


def test_overlays_of_baseline_and_arm_are_both_on() -> None:
    found = ask("+trick=mixup", tries=(("+trick=tta",), ("mixup=none",)))
    assert [arm.config.tricks for arm in found.arms] == [["mixup", "tta"], []]
    assert found.base.tricks == ["mixup"]


# Base words, the words after each --try, and what becomes of them: words of the baseline, the
# labels of the arms, and their words.
TABLE: list[tuple[str, list[str], str, dict[str, str]]] = [
    ("", ["mixup=beta"], "", {"mixup=beta": "mixup=beta"}),
    ("", ["+trick=mixup"], "", {"mixup": "+trick=mixup"}),
    ("", ["'+trick=[mixup,tta]'"], "", {"mixup+tta": "'+trick=[mixup,tta]'"}),
    ("", ["code=a/my_loss.py"], "", {"my_loss.py": "code=a/my_loss.py"}),
    (
        "",
        ["code=a/my_loss.py", "code=b/my_loss.py"],
        "",
        {"code=a/my_loss.py": "code=a/my_loss.py", "code=b/my_loss.py": "code=b/my_loss.py"},
    ),
    (
        "budget=smoke",
        ["'+trick=mixup optim.lr=1e-2'", "smoothing=standard data=fashion seed=3"],
        "budget=smoke data=fashion",
        {
            "mixup optim.lr=1e-2": "+trick=mixup optim.lr=1e-2",
            "smoothing=standard": "smoothing=standard",
        },
    ),
    ("", ["'mixup=beta tta=book'"], "", {"mixup=beta tta=book": "mixup=beta tta=book"}),
    ("", ["''", "mixup=beta"], "", {AGAIN: "", "mixup=beta": "mixup=beta"}),
    ("", ["mixup=beta device=cpu threads=1 outputs=x"], "device=cpu threads=1 outputs=x",
     {"mixup=beta": "mixup=beta"}),
    ("", ["data.batch_size=32"], "", {"data.batch_size=32": "data.batch_size=32"}),
    ("", ["mixup=beta hydra/launcher=basic"], "", {"mixup=beta": "mixup=beta"}),
]  # fmt: skip


@pytest.mark.parametrize(("base", "tries", "words", "arms"), TABLE)
def test_words_become_a_baseline_and_arms(
    base: str, tries: list[str], words: str, arms: dict[str, str], tmp_path: Path
) -> None:
    for number, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        body = f"def images(images, generator, progress):\n    return images + {number}\n"
        (tmp_path / folder / "my_loss.py").write_text(body)
    before = sorted(tmp_path.rglob("*"))
    found = ask(*shlex.split(base), tries=tuple(tuple(shlex.split(one)) for one in tries))
    assert found.base_words == tuple(shlex.split(words))
    assert {arm.label: shlex.join(arm.words) for arm in found.arms} == {
        label: shlex.join(shlex.split(own)) for label, own in arms.items()
    }
    assert sorted(tmp_path.rglob("*")) == before


def test_what_an_arm_trains_is_what_its_words_say(composed: Callable[..., RunConfig]) -> None:
    found = ask("seed=3", "optim.lr=1", tries=(("+trick=mixup optim.lr=1e-2",),))
    (arm,) = found.arms
    assert arm.config == composed("seed=3", "+trick=mixup", "optim.lr=1e-2")
    assert found.base == composed("seed=3", "optim.lr=1")
    assert (found.first_seed, found.base_words) == (3, ("optim.lr=1",))


def test_words_that_could_be_of_the_arm_or_of_the_baseline_are_asked_about() -> None:
    with pytest.raises(ConfigError) as caught:
        ask(tries=(("mixup=beta",), ("optim.lr=1", "budget=smoke", "model=xresnet34")))
    assert caught.value.what == "is budget=smoke a part of this arm, or of the baseline?"
    assert caught.value.where == "--try optim.lr=1 budget=smoke model=xresnet34"
    assert caught.value.fix == (
        "--try 'optim.lr=1 budget=smoke model=xresnet34' for the arm; or for the baseline, and so "
        "for all arms, budget=smoke model=xresnet34 --try optim.lr=1"
    )


def test_without_a_try_each_trick_is_an_arm() -> None:
    found = ask(tries=())
    assert {arm.label for arm in found.arms} == all_tricks()
    assert len(found.arms) == 5
    for arm in found.arms:
        assert arm.config.tricks == [arm.label]
    # A trick that the baseline has is none to try.
    assert {arm.label for arm in ask("+trick=tta", tries=()).arms} == all_tricks() - {"tta"}


def test_the_baseline_again_has_seeds_of_its_own() -> None:
    (arm,) = ask("seed=5", tries=(("",),)).arms
    assert (arm.label, arm.words, arm.seed_offset) == (AGAIN, (), AGAIN_OFFSET)
    assert AGAIN_OFFSET >= 100  # more than any comparison has seeds
    assert decisive_values(arm.config) == decisive_values(ask().base) | {"seed": 5}


@pytest.mark.parametrize(
    ("name", "label"),
    [("base", "code='base'"), ("baseline", "code='baseline'"), ("a\x1b\n.py", r"a\x1b\n.py")],
)
def test_labels_are_legible_and_none_is_that_of_the_baseline(
    tmp_path: Path, name: str, label: str
) -> None:
    (tmp_path / name).write_text("def images(images, generator, progress):\n    return images\n")
    (arm,) = ask(tries=((f"code='{name}'",),)).arms
    assert arm.label == label


def test_the_launcher_is_for_all() -> None:
    words = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    found = ask("budget=smoke", *words)
    assert (found.launcher, found.base_words) == (words, ("budget=smoke",))


def test_options_of_the_user_are_known_to_all(tmp_path: Path) -> None:
    (tmp_path / "mine" / "mixup").mkdir(parents=True)
    (tmp_path / "mine" / "mixup" / "gentle.yaml").write_text("probability: 1.0\nalpha: 0.1\n")
    asked = Asked(tries=(("mixup=gentle",),), config_dir=tmp_path / "mine")
    assert question(asked).arms[0].config.mixup.alpha == 0.1
    with pytest.raises(ConfigError, match="no option gentle"):
        question(Asked(tries=(("mixup=gentle",),)))


def test_an_option_of_the_user_that_refers_to_the_seed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine" / "mixup").mkdir(parents=True)
    option = tmp_path / "mine" / "mixup" / "own.yaml"
    asked = Asked(tries=(("mixup=own",),), config_dir=tmp_path / "mine")
    option.write_text("probability: 1.0\nalpha: ${seed}\n")
    with pytest.raises(ConfigError, match=r"mixup\.alpha refers to seed"):
        question(replace(asked, words=("seed=1",)))
    option.write_text("probability: 1.0\nalpha: ${budget.epochs}\n")
    assert question(asked).arms[0].config.mixup.alpha == RunConfig().budget.epochs


def test_references_to_other_keys_hold_for_every_seed() -> None:
    found = ask("optim.lr=${budget.epochs}", "budget.epochs=2", tries=(("budget.epochs=1",),))
    assert (found.base.optim.lr, found.arms[0].config.optim.lr) == (2, 1)


def test_keys_without_effect_are_reported_once() -> None:
    tries = (("smoothing=standard mixup.alpha=0.5",), ("ema=standard",))
    found = ask("tta.beta=0.2", tries=tries)
    base, arm = found.notes
    assert base.startswith("tta.beta=0.2 has no effect")
    assert arm.startswith("smoothing=standard mixup.alpha=0.5: mixup.alpha=0.5 has no effect")


SECONDS = {
    "2h": 7200, "90m": 5400, "45s": 45, "1h30m": 5400, "1d": 86_400, "1.5h": 5400, "1h 30m": 5400,
    " 2H ": 7200, "1d2h3m4s": 93_784,
}  # fmt: skip


@pytest.mark.parametrize("text", SECONDS)
def test_a_budget_is_a_time(text: str) -> None:
    assert ask(budget=text).budget == SECONDS[text]


def test_the_design_is_as_asked() -> None:
    found = ask()
    assert (found.max_seeds, found.is_fixed, found.margin) == (10, False, 0.005)
    found = ask(seeds="5", margin="2")
    assert (found.max_seeds, found.is_fixed, found.margin) == (5, True, 0.02)
    assert ask(max_seeds="20").max_seeds == 20


def test_a_grid_has_the_values_of_each_key() -> None:
    asked = Asked(tries=BETA, tune=("optim.lr=1e-3,3e-3", "mixup.alpha=0.2,0.4", "optim=sgd,adamw"))
    assert question(asked).tune == (
        ("optim.lr", ("0.001", "0.003")),
        ("mixup.alpha", ("0.2", "0.4")),
        ("optim", ("sgd", "adamw")),
    )


# What is wrong: base words, words after each --try, other options; and what the message says.
Wrong = tuple[str, list[str], dict[str, str], list[str]]
WRONG: dict[str, Wrong] = {
    "a typo in an arm": ("", ["mixup=beta", "mixup.alpah=1"], {},
        ["did you mean mixup.alpha?", "[--try mixup.alpah=1]", "fix: mixup.alpha=1"]),
    "an added typo": ("", ["+triks=mixup"], {}, ["did you mean trick", "[--try +triks=mixup]"]),
    "typos in two arms": ("", ["mixup.alpah=1", "optim.lrr=1"], {},
        ["mixup.alpha", "[--try optim.lrr=1]"]),
    "a typo in the base": ("epoch=3", ["mixup=beta"], {}, ["did you mean budget.epochs"]),
    "an unknown option": ("", ["+trick=mixpu"], {}, ["did you mean mixup?"]),
    "a value out of range": ("", ["smoothing.epsilon=2"], {}, ["≥ 0 and ≤ 1", "--try"]),
    "a contradiction": ("", ["data.window=[1,0]"], {}, ["data.window"]),
    "a trick's name": ("", ["mixup"], {}, ["fix: +trick=mixup"]),
    "a file's name": ("", ["my_loss.py"], {}, ["fix: code=my_loss.py"]),
    "no such file": ("", ["code=nowhere.py"], {}, ["No such file", "[--try code=nowhere.py]"]),
    "two equal arms": ("", ["mixup=beta", "mixup=beta"], {}, ["equal to the arm mixup=beta"]),
    "arms with one meaning": ("", ["mixup=beta", "+trick=mixup"], {}, ["equal to the arm"]),
    "an arm as the base": ("", ["mixup=none"], {}, ["equal to the baseline", "--try ''"]),
    "a default": ("", ["resize.size=28"], {}, ["equal to the baseline"]),
    "a key without effect": ("", ["mixup.alpha=0.3"], {},
        ["equal to the baseline", "has no effect in this configuration: mixup=beta"]),
    "the baseline twice": ("", ["''", "''"], {}, ["tried twice"]),
    "an empty --try": ("", [""], {}, ["one or more words", "--try ''"]),
    "a blank word": ("", ["' '"], {}, ["nothing to compare"]),
    "a sweep of arms": ("", ["mixup=beta,none"], {}, ["--try mixup=VALUE for each value"]),
    "a sweep of the base": ("mixup=beta,none", ["tta=book"], {}, ["no sweep", "--try mixup="]),
    "seeds as a sweep": ("seed=0,1,2", ["tta=book"], {}, ["--max-seeds"]),
    "a range of seeds": ("seed=range(3)", ["tta=book"], {}, ["--max-seeds"]),
    "a seed as an arm": ("", ["seed=3"], {}, ["no change", "--try ''"]),
    "other images": ("", ["data=cifar10"], {}, ["decides the images"]),
    "other images by overlay": ("", ["+recipe=small"], {}, ["other images", "before the first"]),
    "another root": ("data=folder data.root=a", ["mixup=beta data.root=b"], {},
        ["data.root has two values"]),
    "two seeds": ("seed=1", ["mixup=beta seed=2"], {}, ["seed has two values"]),
    "a place as an arm": ("", ["threads=2"], {}, ["changes no result"]),
    "a folder of one run": ("run_dir=x", ["mixup=beta"], {}, ["run_dir", "outputs=FOLDER"]),
    "force": ("force=true", ["mixup=beta"], {}, ["force=true", "outputs=ANOTHER_FOLDER"]),
    "a large seed": ("seed=3000000000", ["mixup=beta"], {}, ["the first seed", "seed=0"]),
    "all tricks are on": ("+trick=all", [], {}, ["all tricks already", "--try"]),
    "no value": ("mixup=", ["tta=book"], {}, ["mixup="]),
    "a secret": ("", ["code=${oc.env:TOKEN}"], {}, ["secrets"]),
    "a path as an option": ("", ["mixup=../x"], {}, ["not a path"]),
    "hydra's own": ("hydra.run.dir=x", ["mixup=beta"], {}, ["Hydra's own"]),
    "no such launcher": ("hydra/launcher=nowhere", ["mixup=beta"], {}, ["nowhere"]),
    "a bad bracket": ("", ["'optim.betas=[1'"], {}, ["quotes of its own"]),
    "no margin": ("", ["mixup=beta"], {"margin": "0"}, ["margin", "--margin 0.5"]),
    "a margin of all": ("", ["mixup=beta"], {"margin": "100"}, ["below 100"]),
    "no number": ("", ["mixup=beta"], {"margin": "nan"}, ["where: --margin nan"]),
    "a word as margin": ("", ["mixup=beta"], {"margin": "small"}, ["--margin small"]),
    "few seeds": ("", ["mixup=beta"], {"max_seeds": "2"}, ["fewer than three", "--max-seeds 3"]),
    "many seeds": ("", ["mixup=beta"], {"max_seeds": "21"}, ["from 3 to 20"]),
    "many fixed seeds": ("", ["mixup=beta"], {"seeds": "101"}, ["from 3 to 100"]),
    "no seeds": ("", ["mixup=beta"], {"seeds": "-1"}, ["from 3 to 100"]),
    "half a seed": ("", ["mixup=beta"], {"seeds": "3.5"}, ["whole number"]),
    "both numbers": ("", ["mixup=beta"], {"seeds": "3", "max_seeds": "5"}, ["one of the two"]),
    "a budget without a unit": ("", ["mixup=beta"], {"budget": "90"}, ["--budget 90m"]),
    "no budget": ("", ["mixup=beta"], {"budget": "0h"}, ["above 0"]),
    "an empty budget": ("", ["mixup=beta"], {"budget": ""}, ["--budget 1h30m"]),
    "a budget backwards": ("", ["mixup=beta"], {"budget": "30m1h"}, ["--budget 1h30m"]),
    "another metric": ("", ["mixup=beta"], {"metric": "nll"}, ["accuracy, balanced"]),
    "a path as a name": ("", ["mixup=beta"], {"name": "../x"}, ["--name"]),
    "a tuned typo": ("", ["mixup=beta"], {"tune": "optim.lrr=1,2"},
        ["did you mean optim.lr?", "fix: --tune optim.lr=1,2"]),
    "one value": ("", ["mixup=beta"], {"tune": "optim.lr=1"}, ["two or more"]),
    "one value twice": ("", ["mixup=beta"], {"tune": "optim.lr=1e-3,0.001"}, ["two or more"]),
    "no values": ("", ["mixup=beta"], {"tune": "optim.lr"}, ["--tune optim.lr=1e-3"]),
    "a tuned seed": ("", ["mixup=beta"], {"tune": "seed=1,2"}, ["seeds of its own"]),
    "tuned tricks": ("", ["mixup=beta"], {"tune": "+trick=mixup,tta"}, ["cannot be tuned"]),
    "a wrong value": ("", ["mixup=beta"], {"tune": "optim.lr=-1,1"}, ["> 0", "--tune"]),
    "tuned without effect": ("", ["tta=book"], {"tune": "mixup.alpha=0.1,0.2"}, ["no effect"]),
    "a fold per seed": ("data=folder data.root=a data.num_folds=5 'data.fold=${seed}'",
        ["mixup=beta"], {}, ["data.fold refers to seed", "where: data.fold=${seed}", "--folds N"]),
    "a folder per seed": ("data=folder 'data.root=a/${seed}'", ["mixup=beta"], {},
        ["data.root refers to seed", "fix: data.root=VALUE"]),
    "a setting per seed": ("", ["mixup=beta", "'optim.weight_decay=${seed}'"], {},
        ["optim.weight_decay refers to seed"]),
    "by another key": ("'optim.lr=${budget.epochs}' 'budget.epochs=${seed}' seed=1",
        ["mixup=beta"], {}, ["optim.lr refers to seed"]),
    "a setting per fold": ("data=folder data.root=a", ["'optim.weight_decay=${data.fold}'"],
        {"folds": "5"}, ["optim.weight_decay refers to seed or data.fold"]),
    "a tuned setting per seed": ("", ["mixup=beta"],
        {"tune": "optim.weight_decay=0.5,${seed}"}, ["optim.weight_decay refers to seed"]),
    "a tuned arm": ("", ["optim.lr=1"], {"tune": "optim.lr=1e-3,1e-2"}, ["would replace"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_explained_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    base, tries, options, said = WRONG[case]
    if tune := options.get("tune"):
        options = {**options, "tune": (tune,)}  # type: ignore[dict-item]
    with pytest.raises(RunnerError) as caught:
        ask(*shlex.split(base), tries=tuple(tuple(shlex.split(one)) for one in tries), **options)
    assert caught.value.exit_code == 2
    assert caught.value.where
    for part in said:
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


ODD = [
    "=",
    "==",
    "=x",
    "+=x",
    "~",
    "~mixup",
    "~data.name",
    "++mixup=beta",
    "mixup@x=beta",
    "a.b.c=1",
    "mixup.=1",
    ".mixup=1",
    "mixup=beta=x",
    "mixup='",
    "mixup=[",
    "mixup={a:1}",
    "code=",
    "code=''",
    "code=null",
    "optim.lr=1e400",
    "optim.lr=nan",
    "optim.lr=" + "9" * 400,
    "\x00=1",
    "mixup=\x1b[31m",
    "\udcff=1",
    "é=1",
    "+trick=[]",
    "+trick=[mixup,]",
    "+trick=",
    "+trick=mixup,tta",
    "trick=mixup",
    "-",
    "--",
    "a b=c d",
    "[" * 300,
    "resize.size=" + "[" * 500,
    "hydra",
    "hydra=1",
    "hydra/x=1",
    "model.name=${model}",
    "budget.epochs=0x10",
    "+recipe=[small,book]",
    "mixup= beta",
    "x" * 5000 + "=1",
]


@pytest.mark.slow
@pytest.mark.parametrize("word", ODD)
def test_odd_words_are_words_or_mistakes_and_no_bug(word: str, tmp_path: Path) -> None:
    for base, tries in (((word,), BETA), ((), ((word,), ("tta=book",)))):
        try:
            found = ask(*base, tries=tries)
        except ConfigError:
            continue
        assert len({arm.label for arm in found.arms}) == len(found.arms)
    assert list(tmp_path.iterdir()) == []


def test_hydra_can_be_used_again_after_a_mistake(composed: Callable[..., RunConfig]) -> None:
    with pytest.raises(ConfigError):
        ask("mixup=nowhere")
    compose.register()
    assert ask().base == composed()
