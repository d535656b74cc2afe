"""What a run is: equal for equal results, another for others; new keys change no old run."""

import dataclasses
import itertools
import re
from collections.abc import Callable

import pytest

from runner.config import schema
from runner.config.schema import RunConfig, option
from runner.machine import hardware
from runner.records import identity as identities
from runner.records.identity import evaluation_identity

Composed = Callable[..., RunConfig]


def identity(config: RunConfig, fingerprint: str = "f") -> str:
    return str(identities.identity(config, 10, 28, fingerprint)["identity"])


SAME = [
    "outputs=elsewhere", "device=cpu", "precision=fp32", "threads=3", "force=true",
    "data.num_workers=2", "data.cache_gb=0", "eval.batch_size=7", "eval.every=3", "run_dir=there",
    "checkpoint.minutes=0",
    "logger=tensorboard", "logger=wandb logger.project=p logger.online=true", "logger.folder=f",
    # spelled out
    "resize.size=28", "eval.size=28", "model.num_outputs=10", "optim.lr=0.003", "data.presize=28",
    # without effect
    "mixup.alpha=0.2", "mixup=beta mixup.alpha=0", "mixup=beta mixup.until=0",
    "mixup=cutmix mixup.cutmix_alpha=0", "resize.delay=0.1",
    "data.default_size=64 resize.size=28",
    # of the evaluation, which has an identity of its own
    "tta.beta=0.5", "tta=flip", "tta.scales=[1.5]", "+trick=tta",
]  # fmt: skip
DIFFERENT = [
    "seed=1", "precision=bf16", "device=cuda precision=fp32", "optim.lr=0.1", "mixup=beta",
    "resize.size=32", "eval.size=32", "model.num_outputs=1000", "augment.flip=0.1",
    "model=xresnet34", "budget.epochs=6",
]  # fmt: skip


@pytest.fixture(autouse=True)
def cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def kind(device: str) -> str:
        return device.partition(":")[0].replace("auto", "cpu")

    for module in (identities, hardware):
        monkeypatch.setattr(module, "device_kind", kind)
    monkeypatch.setattr(hardware, "cpu_flags", frozenset)


@pytest.mark.parametrize("words", SAME)
def test_what_cannot_change_a_result_is_not_in_the_identity(composed: Composed, words: str) -> None:
    assert identity(composed(*words.split(" "))) == identity(composed())


@pytest.mark.parametrize(
    ("flags", "precision"), [({"avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16"), ({"avx2"}, "fp32")]
)
def test_the_precision_that_the_processor_chose_is_in_the_identity(
    composed: Composed, monkeypatch: pytest.MonkeyPatch, flags: set[str], precision: str
) -> None:
    other = {"bf16": "fp32", "fp32": "bf16"}[precision]
    monkeypatch.setattr(hardware, "cpu_flags", lambda: frozenset(flags))
    chosen = identities.identity(composed(), 10, 28, "f")
    assert chosen["values"]["precision"] == precision
    assert chosen == identities.identity(composed(f"precision={precision}"), 10, 28, "f")
    assert chosen["identity"] != identity(composed(f"precision={other}"))


def test_the_precision_that_the_named_gpu_chose_is_in_the_identity(
    composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_gpus", lambda: ((9, 0), (7, 5)))
    chosen = [
        identities.identity(composed(f"device={device}"), 10, 28, "f")["values"]
        for device in ("cuda", "cuda\\:0", "cuda\\:1")
    ]
    assert [(each["device"], each["precision"]) for each in chosen] == [
        ("cuda", "bf16"), ("cuda", "bf16"), ("cuda", "fp32"),
    ]  # fmt: skip


@pytest.mark.parametrize("words", DIFFERENT)
def test_what_can_change_a_result_is_in_the_identity(composed: Composed, words: str) -> None:
    assert identity(composed(*words.split(" "))) != identity(composed())


def test_identities_differ_among_the_views_of_tta(composed: Composed) -> None:
    spellings = ["tta.scales=[1.5]", "tta.scales=[1.5] tta.beta=0.25", "tta=flip", "tta=book",
                 "tta=flip tta.reduce=max", "tta=ten_crop"]  # fmt: skip
    configs = [composed(*words.split(" ")) for words in spellings]
    assert len({evaluation_identity(config) for config in configs}) == len(spellings)
    assert all(config.tricks == ["tta"] for config in configs)


@pytest.mark.parametrize(
    ("words", "others"),
    [
        ("tta=flip", "tta.flip=true"),
        ("tta=flip", "tta=flip tta.corner_scale=0.5"),  # without effect
        ("tta=book", "tta=book seed=3 mixup=beta"),
        ("tta=none", "tta.beta=0.5"),
    ],
)
def test_spellings_of_one_tta_are_one_evaluation(
    composed: Composed, words: str, others: str
) -> None:
    found = {evaluation_identity(composed(*each.split(" "))) for each in (words, others)}
    assert len(found) == 1
    assert (found == {None}) == (words == "tta=none")


def test_data_and_record_version_are_in_the_identity(
    composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed()
    before = identity(config)
    assert identity(config, "other") != before
    assert identities.identity(config, 10, 56, "f")["identity"] != before
    assert identities.identity(config, 11, 28, "f")["identity"] != before
    monkeypatch.setattr(identities, "VERSION", identities.VERSION + 1)
    assert identity(config) != before


@pytest.mark.parametrize("words", [["trick=mixup"], ["+trick=[mixup]"], ["mixup=beta"]])
def test_spellings_of_one_experiment_are_one_run(composed: Composed, words: list[str]) -> None:
    assert identity(composed(*words)) == identity(composed("+trick=mixup"))


def test_what_a_run_is_says_all_that_decides_its_result(composed: Composed) -> None:
    what = identities.identity(composed("+trick=mixup", "outputs=there"), 10, 28, "f")
    assert set(what) == {"identity", "fingerprint", "values"}
    assert re.fullmatch("[0-9a-f]{16}", what["identity"])
    assert what["fingerprint"] == "f"
    values = what["values"]
    assert values["mixup"]["alpha"] == 0.4
    assert (values["resize"]["size"], values["model"]["num_outputs"]) == (28, 10)
    assert (values["device"], values["data"]["presize"]) == ("cpu", 28)
    assert not {"outputs", "run_dir", "threads", "force", "checkpoint"} & set(values)


@pytest.mark.parametrize("key", ["size", "crop"])
def test_values_that_are_neutral_in_one_run_only_are_distinguishable(
    composed: Composed, key: str
) -> None:
    # What null means for the one depends on the other: no pair of them may meet another pair.
    sizes = (28, 32, 56)
    configs = [
        composed(f"resize.size={size}", f"eval.{key}={other if key == 'size' else other / 56}")
        for size, other in itertools.product(sizes, sizes)
    ]
    assert len({identity(config) for config in configs}) == len(configs)


def test_the_users_code_is_in_the_identity(composed: Composed) -> None:
    found = [identities.identity(composed(), 10, 28, "f", code=code) for code in (None, "a", "b")]
    assert len({what["identity"] for what in found}) == 3
    assert [what["values"]["code"] for what in found] == [None, "a", "b"]
    assert found[0] == identities.identity(composed(), 10, 28, "f")


# ── Keys and groups that come later ────────────────────────────────────────────────────────────

WORDS = ["", "+trick=all", "optim=sgd model=xresnet34 resize.size=32", "tta=flip augment=none"]
GROUPS = [
    item.name for item in dataclasses.fields(RunConfig) if item.default is dataclasses.MISSING
]
NEUTRAL, OTHER = 0.5, 0.25


def with_key(group: str) -> type[RunConfig]:
    """A configuration whose ``group`` has one more key; a new group if there is none so called."""
    kind = type(getattr(RunConfig(), group, None) or object())
    wider = dataclasses.make_dataclass(
        f"Wider{group.title()}",
        [("new_key", float, option(NEUTRAL, "new"))],
        bases=() if kind is object else (kind,),
        frozen=True,
    )
    return dataclasses.make_dataclass(
        "Wider",
        [(group, wider, dataclasses.field(default_factory=wider))],
        bases=(RunConfig,),
        frozen=True,
    )


def in_kind(config: RunConfig, kind: type[RunConfig], group: str, value: float) -> RunConfig:
    """``config`` as the wider ``kind``, with ``value`` as its new key."""
    values = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    old = values.get(group)
    inner = {item.name: getattr(old, item.name) for item in dataclasses.fields(old)} if old else {}
    values[group] = type(getattr(kind(), group))(**inner, new_key=value)
    return kind(**values)


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("group", sorted({*GROUPS, "zoo"} - schema.evaluation_groups()))
def test_a_new_key_with_a_neutral_default_changes_no_identity(
    composed: Composed, group: str, words: str
) -> None:
    config, kind = composed(*words.split()), with_key(group)
    before = identity(config)
    same = in_kind(config, kind, group, NEUTRAL)
    assert identities.identity(same, 10, 28, "f")["values"][group]["new_key"] == NEUTRAL
    assert identity(same) == before
    assert identity(in_kind(config, kind, group, OTHER)) != before


@pytest.mark.parametrize(
    "name",
    [item.name for item in dataclasses.fields(RunConfig) if item.name in ("seed", "compile")],
)
def test_a_key_that_an_older_program_lacked_changes_no_identity(
    composed: Composed, name: str
) -> None:
    values = identities.identity(composed(), 10, 28, "f")["values"]
    neutral = identities.neutral_values()
    before = identities.hash_of(values, neutral, "f")
    older = {key: value for key, value in values.items() if key != name}
    assert identities.hash_of(older, neutral, "f") == before
    assert identities.hash_of({**values, name: "another"}, neutral, "f") != before


# ── Values of runs of any age ──────────────────────────────────────────────────────────────────


def test_what_an_older_run_lacks_is_at_its_default(composed: Composed) -> None:
    values = identities.identity(composed("+trick=all"), 10, 28, "f")["values"]
    older = {key: value for key, value in values.items() if key not in ("smoothing", "code")}
    older["mixup"] = {key: value for key, value in values["mixup"].items() if key != "cutmix"}
    filled = identities.with_defaults(older)
    assert filled["smoothing"] == {"epsilon": 0.0}
    assert filled["mixup"] == values["mixup"]
    assert filled["code"] is None
    tta = identities.NEUTRAL["tta"]
    assert {**filled, "smoothing": values["smoothing"]} == {**values, "tta": tta}
    assert identities.with_defaults(values) == {**values, "tta": tta}


def test_what_only_another_version_knows_is_kept() -> None:
    filled = identities.with_defaults({"mixup": {"new_key": 3}, "zoo": {"size": 1}, "data": 7})
    assert filled["mixup"] == {**identities.neutral_values()["mixup"], "new_key": 3}
    assert (filled["zoo"], filled["data"]) == ({"size": 1}, 7)


def test_folder_names_are_legible_and_stay_inside(composed: Composed) -> None:
    config = composed("+trick=[mixup,tta]", "seed=3")
    assert identities.folder_name(config, "0123456789abcdef") == (
        "fashion-xresnet18-mixup-seed3-01234567"
    )
    hostile = dataclasses.replace(config, model=schema.Model("timm", "../../x"))
    assert "/" not in identities.folder_name(hostile, "0" * 16)
