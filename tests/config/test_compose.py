"""The border: what is accepted, what each spelling means, and what is refused with which words."""

import dataclasses
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from small import go_together

from runner.config import checks, compose, options, schema
from runner.config.options import CONF_DIR, GROUPS
from runner.config.overlays import all_tricks, chosen_options, words_without_effect
from runner.config.overrides import checked_words
from runner.config.schema import Mixup, Normalize, RunConfig, Smoothing, Tta
from runner.errors import ConfigError
from runner.tricks.resize import first_size

Composed = Callable[..., RunConfig]


def groups_of(path: Path) -> list[str]:
    """The groups that an overlay chooses an option of, or sets a key of."""
    content = yaml.safe_load(path.read_text()) or {}
    keys = [key for key in content if key != "defaults"]
    return [*chosen_options(path.parent.name, path.stem), *keys]


OVERLAYS = {path.stem: groups_of(path) for path in sorted((CONF_DIR / "trick").iterdir())}
OPTIONS = sorted(
    (path.parent.name, path.stem)
    for path in CONF_DIR.glob("*/*.yaml")
    if path.parent.name not in options.OVERLAYS
)


def in_conf(path: Path) -> str:
    return str(path.relative_to(CONF_DIR))


def changed_groups(config: RunConfig, baseline: RunConfig) -> list[str]:
    names = [item.name for item in dataclasses.fields(RunConfig)]
    return [name for name in names if getattr(config, name) != getattr(baseline, name)]


def test_the_baseline_has_no_trick(composed: Composed) -> None:
    config = composed()
    assert config.tricks == []
    assert config.normalize == Normalize()
    assert config.resize.schedule == "fixed"
    assert config.mixup.probability == 0
    assert config.smoothing == Smoothing()
    assert config.tta == Tta()


def test_all_are_the_five_tricks_of_the_book() -> None:
    five = {"normalize", "progressive_resizing", "tta", "mixup", "label_smoothing"}
    assert all_tricks() == five
    assert {*OVERLAYS["all"]} == {group for name in five for group in OVERLAYS[name]}
    assert OVERLAYS["baseline"] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_changes_its_own_groups_only(composed: Composed, overlay: str) -> None:
    changed = changed_groups(composed(f"+trick={overlay}"), composed())
    assert sorted(changed) == sorted(OVERLAYS[overlay])


@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if name not in ("baseline", "all")])
def test_the_trick_is_named_by_its_values(composed: Composed, overlay: str) -> None:
    assert composed(f"+trick={overlay}").tricks == [overlay]


def is_quick_pair(first: str, second: str) -> bool:
    """Whether a pair is tested by default.

    Such are pairs that change one group, and otherwise each overlay with the next, in both orders.
    """
    names = [*OVERLAYS]
    distance = (names.index(first) - names.index(second)) % len(names)
    shared = {*OVERLAYS[first]} & {*OVERLAYS[second]}
    return distance in (1, len(names) - 1) or bool(shared and "all" not in (first, second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(*pair, marks=[pytest.mark.slow] * (not is_quick_pair(*pair)))
        for pair in itertools.permutations(OVERLAYS, 2)
        if go_together(*pair)
    ],
)
def test_pairs_of_overlays_add_up_in_any_order(composed: Composed, first: str, second: str) -> None:
    both = composed(f"+trick=[{first},{second}]")
    expected = sorted({*OVERLAYS[first], *OVERLAYS[second]})
    assert sorted(changed_groups(both, composed())) == expected


@pytest.mark.parametrize(
    "words",
    [
        ["+trick=mixup"],
        ["trick=mixup"],
        ["+trick=[mixup]"],
        ["mixup=beta"],
    ],
)
def test_spellings_of_one_experiment_are_one_run(composed: Composed, words: list[str]) -> None:
    config = composed(*words)
    assert config.mixup == Mixup(probability=1.0)
    assert config == composed("+trick=mixup")


@pytest.mark.parametrize("order", list(itertools.permutations(["mixup=cutmix", "+trick=mixup"])))
def test_a_choice_on_the_command_line_beats_an_overlay(
    composed: Composed, order: tuple[str, ...]
) -> None:
    assert composed(*order).mixup.cutmix == 1.0


@pytest.mark.parametrize("order", list(itertools.permutations(["mixup.alpha=0.2", "+trick=all"])))
def test_a_value_on_the_command_line_beats_an_overlay(
    composed: Composed, order: tuple[str, ...]
) -> None:
    assert composed(*order).mixup.alpha == 0.2


@pytest.mark.parametrize("recipe", ["book", "small", "speedrun"])
def test_recipes_compose_with_tricks(composed: Composed, recipe: str) -> None:
    config = composed(f"+recipe={recipe}", "+trick=[mixup,label_smoothing]")
    assert {"mixup", "label_smoothing"} <= set(config.tricks)
    assert config.data.name == "imagenette"


def test_the_book_recipe_is_the_chapter(composed: Composed) -> None:
    config = composed("+recipe=book")
    assert (config.model.name, config.data.variant, config.data.presize) == (
        "xresnet50",
        "full",
        460,
    )
    assert (first_size(config.size, config.resize), config.size) == (128, 224)
    assert (config.resize.first_batch_size, config.data.batch_size) == (128, 64)
    assert (config.resize.first_lr, config.optim.lr) == (3e-3, 1e-3)
    assert config.normalize.mean == (0.485, 0.456, 0.406)
    assert (config.tta.passes, config.tta.beta) == (4, 0.25)


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_option_composes_and_sets_only_what_is_read(
    composed: Composed, group: str, name: str
) -> None:
    words = [f"{group}={name}"]
    if group == "data" and name in ("folder", "table"):
        words.append("data.root=somewhere")
    config = composed(*words)
    assert checks.without_effect(config) == []
    assert set(changed_groups(config, composed())) <= {group}


@pytest.mark.parametrize("path", sorted(CONF_DIR.glob("*/*.yaml")), ids=in_conf)
def test_option_files_start_with_what_they_are(path: Path) -> None:
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(len(line) > 8 and "@package" not in line for line in comments)


@pytest.mark.parametrize("path", sorted(CONF_DIR.rglob("*.yaml")), ids=in_conf)
def test_conf_holds_data_and_nothing_that_runs(path: Path) -> None:
    assert not re.search(r"_target_|_partial_|_args_", path.read_text())
    yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", sorted(CONF_DIR.glob("*/*.yaml")), ids=in_conf)
def test_our_option_files_refer_to_no_other_key(path: Path) -> None:
    assert "$" not in repr(yaml.safe_load(path.read_text())), (
        "compose.followers looks for references elsewhere only"
    )


def test_every_group_has_a_neutral_option_by_default(composed: Composed) -> None:
    defaults = yaml.safe_load((CONF_DIR / "config.yaml").read_text())["defaults"]
    chosen = {}
    for entry in defaults:
        if isinstance(entry, dict):
            chosen.update(entry)
    assert chosen["normalize"] == chosen["mixup"] == chosen["smoothing"] == chosen["tta"] == "none"
    assert chosen["resize"] == "fixed"
    assert {group for group in chosen if not group.startswith("override")} == set(GROUPS)


WRONG = {
    "+mixup.alpah=1": ["mixup.alpah", "did you mean mixup.alpha"],
    "+triks=mixup": ["triks", "did you mean trick"],
    "+epoch=5": ["epoch", "did you mean budget.epochs"],
    "+lr=1": ["lr", "did you mean optim.lr"],
    "smoothing.epsilon=2": ["smoothing.epsilon=2", "≥ 0 and ≤ 1"],
    "smoothing.epsilon=-0.1": ["smoothing.epsilon=-0.1", "≥ 0"],
    "smoothing.epsilon=nan": ["smoothing.epsilon", "finite"],
    "mixup.alpha=-1": ["mixup.alpha=-1", "≥ 0"],
    "mixup.until=1.5": ["mixup.until=1.5", "≤ 1"],
    "budget.epochs=0": ["budget.epochs=0", "≥ 1"],
    "budget.epochs=2.5": ["budget.epochs=2.5", "whole number"],
    "budget.epochs=many": ["budget.epochs=many", "whole number"],
    "resize.size=0": ["resize.size=0", "≥ 8"],
    "resize.size=-64": ["resize.size=-64", "≥ 8"],
    "resize.initial_scale=0": ["resize.initial_scale=0", "> 0"],
    "optim.lr=-1": ["optim.lr=-1", "> 0"],
    "data.batch_size=0": ["data.batch_size=0", "≥ 1"],
    "data.num_workers=-1": ["data.num_workers=-1", "≥ 0"],
    "data.label_noise=7": ["data.label_noise=7", "0, 1, 5, 25, 50"],
    "seed=-1": ["seed=-1", "≥ 0"],
    "precision=fp16": ["precision=fp16", "auto, fp32, bf16"],
    "normalize.std=[0,1,1]": ["normalize.std", "> 0"],
    "normalize.mean=[0.5]": ["normalize.mean", "RGB"],
    "normalize.mean=0.5": ["normalize.mean=0.5", "list"],
    "tta.reduce=median": ["tta.reduce=median", "mean, max, logit_mean, geometric"],
    "mixup.fold=3": ["mixup.fold=3", "true or false"],
    "data.root=x": ["data.root=x", "embedded"],
    "device=tpu": ["device=tpu", "device=auto"],
    "model.name=resnet50": ["model.name=resnet50", "model=torchvision model.name=resnet50"],
    "model.source=torchvisoin": ["model.source=torchvisoin", "fix: model.source=torchvision"],
    "data=folder": ["data.root=null"],
    "mixup=beta mixup.alpha=high": ["mixup.alpha=high", "a number"],
    "resize=progressive resize.delay=0.9": ["resize.delay=0.9", "resize.finish"],
    "resize=progressive resize.size=63": ["resize.size=63", "resize.multiple=4"],
    "resize=book resize.first_size=128": ["resize.first_size=128", "28"],
    "resize=book resize.size=224 optim=flat_cosine": ["optim.schedule=flat_cosine"],
    "resize=progressive optim=fine_tune": ["resize.schedule=progressive"],
    "+trick=[rand_augment,trivial_augment]": ["auto_augment=rand", "+trick=rand_augment, or"],
    "auto_augment=rand auto_augment.magnitude=31": ["auto_augment.magnitude=31", "≤ 30"],
    "auto_augment.policy=trivial_augment": ["auto_augment.policy", "none, trivial, rand"],
    "erasing=random erasing.min_area=0.5": ["erasing.min_area=0.5", "erasing.max_area=0.33"],
    "erasing=random erasing.max_ratio=0.5": ["erasing.max_ratio=0.5", "≥ 1"],
    "erasing=random erasing.fill=red": ["erasing.fill=red", "mean, zero, noise"],
    "clip.norm=0": ["clip.norm=0", "> 0"],
    "clip=norm clip.norm=-1": ["clip.norm=-1", "> 0"],
    "sam.rho=-0.1": ["sam.rho=-0.1", "≥ 0"],
    "+trick=sam sam.every=0": ["sam.every=0", "≥ 1"],
    "accumulate.steps=0": ["accumulate.steps=0", "≥ 1"],
    "accumulate=four compile=reduce-overhead": ["accumulate.steps=4", "fix: compile=default"],
    "stochastic_depth.probability=1": ["stochastic_depth.probability=1", "< 1"],
    "stochastic_depth.probability=-1": ["stochastic_depth.probability=-1", "≥ 0"],
    "blurpool.layers=max": ["blurpool.layers=max", "none, pooling, all"],
    "sampling.power=11": ["sampling.power=11", "≤ 10"],
    "loss.kind=mse": ["loss.kind=mse", "cross_entropy, bce"],
    "tta=book tta.flip=true": ["tta.passes=4"],
    "tta=book tta.reduce=max": ["tta.beta=0.25", "tta.reduce=max"],
    "tta.corners=true tta.crops=2": ["tta.corners=true"],
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_values_are_refused_with_key_value_and_range(composed: Composed, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(*words.split(" "))
    assert caught.value.exit_code == 2
    for expected in WRONG[words]:
        assert expected in str(caught.value)


def test_all_mistakes_are_told_at_once(composed: Composed) -> None:
    with pytest.raises(ConfigError) as caught:
        composed("+triks=x", "smoothing.epsilon=2", "+mixup.alpah=1")
    for key in ("triks", "smoothing.epsilon=2", "mixup.alpah"):
        assert key in str(caught.value)


@pytest.mark.parametrize(
    "words",
    ["seed=7", "precision=bf16", "mixup=beta mixup.alpha=0", "resize.size=null", "optim.lr=1"],
)
def test_right_values_pass(composed: Composed, words: str) -> None:
    composed(*words.split(" "))


@pytest.mark.parametrize("seed", [0, 1])
def test_an_option_without_effect_is_told(composed: Composed, seed: int) -> None:
    assert checks.without_effect(composed(f"seed={seed}", "mixup.alpha=0.2")) == ["mixup.alpha=0.2"]
    assert checks.without_effect(composed("mixup=beta", "mixup.alpha=0.2")) == []
    assert checks.without_effect(composed("+recipe=small", "data.root=somewhere")) == []


def test_a_mixup_that_mixes_nothing_is_no_trick(composed: Composed) -> None:
    for words in (["mixup=beta", "mixup.alpha=0"], ["mixup=beta", "mixup.until=0"]):
        assert composed(*words).tricks == []
    assert composed("mixup=cutmix").tricks == ["cutmix"]
    assert composed("mixup=switch").tricks == ["mixup", "cutmix"]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("+trick=../../evil", "not a path"),
        ("trick=[../../evil]", "not a path"),
        ("mixup=/etc/passwd", "not a path"),
        ("trick=null", "trick=[]"),
        ("mixup=null", "mixup=none"),
        ("mixup=0.4", "mixup=beta mixup.alpha=0.4"),
        ("smoothing=0.1", "smoothing.epsilon=0.1"),
        ("tta=true", "tta=book"),
        ("model=1", "by name"),
        ("data=/my/images", "data=folder data.root=/my/images"),
    ],
)
def test_arguments_that_hydra_would_take_are_refused(argument: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked_words([argument])
    assert expected in str(caught.value)


@pytest.mark.parametrize("argument", ["data.root=/data/x", "data.root=../x", "+trick=mixup"])
def test_ordinary_arguments_pass(argument: str) -> None:
    checked_words([argument])


def test_schema_round_trip(composed: Composed) -> None:
    config = composed("+trick=all", "seed=5")
    assert checks.from_dict(schema.to_dict(config)) == config


def test_every_field_says_what_it_means() -> None:
    for key in checks.known_keys():
        kind: type = RunConfig
        *groups, name = key.split(".")
        for group in groups:
            kind = type(getattr(RunConfig(), group))
        assert kind.__dataclass_fields__[name].metadata["help"], key


@pytest.mark.parametrize(
    ("word", "note"),
    [
        ("mixup.alpha=0.4", "mixup=beta mixup.alpha=0.4"),
        ("mixup.alpha=0.2", "mixup=beta mixup.alpha=0.2"),
        ("mixup.cutmix_alpha=1.0", "mixup=cutmix mixup.cutmix_alpha=1.0"),
        ("data.variant=160", "data=imagenette data.variant=160"),
    ],
)
def test_a_typed_key_that_nothing_reads_is_reported_with_what_would_read_it(
    composed: Composed, word: str, note: str
) -> None:
    (found,) = words_without_effect(composed(word), [word])
    assert found == f"{word} has no effect in this configuration: {note}"
    assert words_without_effect(composed(), []) == []


def test_every_key_that_an_option_reads_is_proposed_with_one(composed: Composed) -> None:
    config = composed()
    words = [f"{group}.{key}=1" for group, key in checks.ignored(config)]
    notes = [note for word in words for note in words_without_effect(config, [word])]
    assert len(notes) == len(words) > 10
    # Others are read only together with a further value, such as data.root.
    assert sum(not note.endswith("configuration") for note in notes) > 8, notes


def test_an_option_that_would_not_help_is_not_proposed(composed: Composed) -> None:
    words = ["loss.class_weights=effective", "loss.beta=0"]
    notes = words_without_effect(composed(*words), words)
    assert notes == [f"{word} has no effect in this configuration" for word in words]


@pytest.mark.parametrize(
    ("words", "decides"),
    [
        (["+trick=rand_augment", "auto_augment=trivial"], "auto_augment=trivial"),
        (["+trick=[ema,rand_augment]", "auto_augment=none"], "auto_augment=none"),
        (["+trick=class_weights", "loss.class_weights=none"], "loss.class_weights=none"),
        (["+trick=rand_augment", "auto_augment.magnitude=5"], None),
        (["+trick=all", "tta=none"], None),
        (["+trick=baseline"], None),
    ],
)
def test_an_overlay_whose_trick_is_off_is_reported_with_what_decides(
    composed: Composed, words: list[str], decides: str | None
) -> None:
    notes = [note for note in words_without_effect(composed(*words), words) if "+" in note]
    lost = re.findall(r"rand_augment|class_weights", words[0])
    said = f"+trick={''.join(lost)} has no effect in this configuration: {decides} decides"
    assert notes == ([said] if decides else [])


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("value", ["true", "on", "yes", "True", "ON", "false", "off", "no", "null"])
def test_a_switch_is_answered_with_options(group: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked_words([f"{group}={value}"])
    fix = caught.value.fix
    assert re.match(rf"\+?{group}=", fix)
    is_on = value.lower() in ("true", "on", "yes")
    assert not (is_on and fix.endswith(("=none", "=fixed")))
    if not is_on and (CONF_DIR / group / "none.yaml").exists():
        assert fix == f"{group}=none"


TEXT_KEYS = ("data.root", "outputs", "run_dir", "code", "data.label_column", "model.name")


@pytest.mark.parametrize("text", ["1.10", "1e3", "1_000", "true", "nan", "on", "007", "-1"])
def test_text_is_the_text_that_was_typed(text: str) -> None:
    compose.register()
    (job, other) = compose.jobs(
        [f"{key}={text}" for key in TEXT_KEYS[1:]] + [f"data.root={text},2.0"]
    )
    assert other != job
    for words in (checked_words([f"{key}={text}" for key in TEXT_KEYS]), job):
        with compose.opened():
            composed = compose.composed(words)
        for key in TEXT_KEYS:
            found = composed
            for part in key.split("."):
                found = found[part]
            assert found == text, key


def test_null_is_no_text_where_there_can_be_none() -> None:
    compose.register()
    with compose.opened():
        found = compose.composed(checked_words(["run_dir=null", "outputs=null"]))
    assert (found.run_dir, found.outputs) == (None, "null")


@pytest.mark.parametrize("word", ["data.root=[a,b]", "outputs={a: 1}", "outputs=choice(1.1,2)"])
def test_a_list_is_no_text(word: str) -> None:
    with pytest.raises(ConfigError, match="quotes"):
        checked_words([word])


def test_a_path_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(ConfigError, match="UTF-8"):
        checked_words([f"data.root={os.fsdecode(bytes([0xE9]))}"])
