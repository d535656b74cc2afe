"""Every option of every group, and every overlay, trains for real on tiny data."""

import itertools
import json
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
from small import go_together, small_preprocess

from runner import train
from runner.config.options import CONF_DIR, OVERLAYS
from runner.config.overlays import all_tricks
from runner.config.schema import RunConfig
from runner.models import build_model
from runner.records import evaluations, tensor_files
from runner.records.identity import evaluation_identity
from runner.records.run_folder import RunFolder

# Deeper than the others and of the same code, seconds each.
SLOW = {("model", "xresnet101"), ("model", "xresnet152")}
OPTIONS = sorted(
    (path.parent.name, path.stem)
    for path in CONF_DIR.glob("*/*.yaml")
    # Data sets have tests of their own; the others are overlays, paired below.
    if path.parent.name not in ("data", "budget", *OVERLAYS)
)
# By default, tricks train as overlays, which choose from these groups.
OF_TRICKS = {name for name, group in RunConfig().groups.items() if group.TRICKS and group.TRAINS}
TRICKS = sorted(path.stem for path in (CONF_DIR / "trick").iterdir())

Composed = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def trained(
    composed: Composed, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, object]]:
    outputs = tmp_path_factory.mktemp("outputs")
    os.environ.setdefault("COLUMNS", "100")

    @cache
    def train_words(*words: str) -> dict[str, object]:
        is_of_the_network = any(word.startswith("model=") for word in words)
        network = () if is_of_the_network else ("model=timm", "model.name=test_resnet")
        config = composed(
            "data=folder", f"data.root={tiny_folder}", "data.batch_size=24", "resize.size=16",
            "resize.first_batch_size=24", "resize.first_epochs=1", "budget.epochs=1", "threads=1",
            f"outputs={outputs}", *network, *words,
        )  # fmt: skip
        summary = train.run(config, list(words))
        run = RunFolder(Path(summary["folder"]))
        name = evaluation_identity(config)
        evaluation = None if name is None else evaluations.read(run, name)
        result = run.result()
        assert result is not None
        return evaluations.joined(result, evaluation)

    return train_words


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights that says what it was trained with."""
    path = tmp_path_factory.mktemp("weights") / "own.safetensors"
    description = json.dumps({"preprocess": small_preprocess(mean=(0.5, 0.5, 0.5)).to_dict()})
    tensors = build_model("timm", "test_resnet", 3, seed=1).state_dict()
    path.write_bytes(tensor_files.to_bytes(tensors, {tensor_files.DESCRIPTION: description}))
    return path


@pytest.mark.parametrize(
    ("group", "name"),
    [
        pytest.param(
            *option,
            marks=[
                *[pytest.mark.slow] * (option in SLOW),
                *[pytest.mark.whole] * (option[0] in OF_TRICKS),
            ],
        )
        for option in OPTIONS
    ],
)
def test_every_option_trains(
    trained: Callable[..., dict[str, object]], weights: Path, group: str, name: str
) -> None:
    words = [f"{group}={name}"]
    if (group, name) == ("normalize", "pretrained"):  # there is none without weights
        words.append(f"model.weights={weights}")
    result = trained(*words)
    assert set(result["metrics"]) == {"plain", "tta"} if result["tricks"] == ["tta"] else {"plain"}
    for metrics in result["metrics"].values():
        assert 0 <= metrics["accuracy"] <= 1
        assert metrics["log_loss"] >= 0
    assert result["budget"]["steps"] >= 2


def check_tricks(trained: Callable[..., dict[str, object]], names: Sequence[str]) -> None:
    """Overlays together turn on their tricks, and those change what they should."""
    # A tenth of a training of two steps is no step.
    longer = ["ema.span=1"] if "ema" in names else []
    result = trained(f"+trick=[{','.join(names)}]", *longer)
    expected = set(names) - {"all", "baseline"}
    if "all" in names:
        expected |= all_tricks()
    assert set(result["tricks"]) == expected
    # What a trick changes is seen in the numbers, not only in the list of names.
    plain, baseline = result["metrics"]["plain"], trained()["metrics"]["plain"]
    # The classes of the tiny data have equal sizes, so that their weights are equal too.
    trains_differently = bool(expected - {"tta", "class_weights"})
    assert (plain["log_loss"] != baseline["log_loss"]) == trains_differently
    assert ("tta" in result["metrics"]) == ("tta" in expected)
    if "tta" in expected:
        assert result["metrics"]["tta"]["log_loss"] != plain["log_loss"]


@pytest.mark.parametrize("name", TRICKS)
def test_every_overlay_trains(trained: Callable[..., dict[str, object]], name: str) -> None:
    check_tricks(trained, [name])


@pytest.mark.slow
@pytest.mark.parametrize(
    "pair",
    [pair for pair in itertools.combinations(TRICKS, 2) if go_together(*pair)],
    ids="+".join,
)
def test_every_pair_of_overlays_trains(
    trained: Callable[..., dict[str, object]], pair: tuple[str, str]
) -> None:
    check_tricks(trained, pair)


def test_tta_changes_no_plain_metric_and_no_weight(
    trained: Callable[..., dict[str, object]],
) -> None:
    plain, tta = trained("tta=none"), trained("tta=flip")
    assert plain["metrics"]["plain"] == tta["metrics"]["plain"]
    assert plain["metrics"]["plain"]["log_loss"] != tta["metrics"]["tta"]["log_loss"]


def test_the_book_has_three_stages_and_says_what_it_cost(
    trained: Callable[..., dict[str, object]],
) -> None:
    fixed, book = trained("resize=fixed"), trained("resize=book")
    assert book["budget"]["epochs"] == 3 * fixed["budget"]["epochs"]
    assert book["budget"]["images"] == 3 * fixed["budget"]["images"]


@pytest.mark.parametrize("num_outputs", [3, 1000])
def test_more_outputs_than_classes(
    trained: Callable[..., dict[str, object]], num_outputs: int
) -> None:
    result = trained(f"model.num_outputs={num_outputs}", "smoothing=standard")
    assert result["model"]["num_outputs"] == num_outputs
    assert set(result["metrics"]["plain"]["per_class"]) == {"blue", "green", "red"}
