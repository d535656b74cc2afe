"""The reader's own functions in the training: what they are given, what they may return, exactness.

Small networks and in-process trainings; the commands are tried in ``tests/test_code.py``.
"""

import copy
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import small_config, small_dataset, small_learner, small_network, weights
from torch import nn

from runner.config.idea import SEAMS, blamed, read_idea
from runner.config.schema import Augment, Data, Mixup, Optim, RunConfig, Smoothing, Tta
from runner.errors import CodeError, ConfigError, TrainingError
from runner.machine.processes import ALONE, Processes
from runner.models import build_model, changes_of, layer_groups
from runner.records import checkpoint
from runner.training.loop import Training
from runner.training.predicting import evaluate
from runner.training.schedule import plan
from runner.training.step import code_generator
from runner.tricks.idea import NO_IDEA, Idea, load_idea

NEUTRAL = """
import torch
import torch.nn.functional as F

def images(images, generator, progress):
    torch.rand(images.shape, generator=generator)
    return images

def targets(targets, generator, progress):
    return targets

def loss(logits, targets):
    return F.cross_entropy(logits, targets)

def model(model):
    torch.rand(3)
    return model

def optimizer(groups, lr):
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, fused=True)

def after_step(model, progress):
    torch.rand(3)

def predictions(logits):
    return torch.softmax(logits, dim=1)
"""
NOISE = """
import torch

def images(images, generator, progress):
    return images + 0.1 * torch.randn(images.shape, generator=generator)

def targets(targets, generator, progress):
    noise = torch.rand(targets.shape, generator=generator)
    return torch.lerp(targets, noise / noise.sum(1, keepdim=True), 0.3 * progress)

def loss(logits, targets):
    return (-(targets * logits.log_softmax(1)).sum(1)) ** 1.5

def after_step(model, progress):
    for weight in model.parameters():
        weight.clamp_(-1, 1)
"""
EVERYTHING = Mixup(probability=0.7)


@pytest.fixture
def load(tmp_path):
    def load_text(text, name="my_idea.py"):
        (tmp_path / name).write_text(text)
        return load_idea(read_idea(str(tmp_path / name)))

    return load_text


def small(**more):
    return small_config(
        mixup=EVERYTHING,
        smoothing=Smoothing(0.1),
        augment=Augment(min_scale=0.75, flip=0.5),
        optim=Optim(name="sgd", lr=0.05),
        **more,
    )


def a_training(idea=NO_IDEA, config=None, *, seed=0):
    dataset, config = small_dataset(), config or small()
    learner = small_learner(small_network(seed=seed), idea=idea)
    training = Training(learner, dataset, plan(config, len(dataset.train)), config)
    return training, learner


def losses_of(training):
    return [float(step.loss) for step in training]


def trained(idea=NO_IDEA, config=None):
    """The losses of a whole training, and all that it changed."""
    training, learner = a_training(idea, config)
    return losses_of(training), weights(learner.model)


# ── Exactness ──────────────────────────────────────────────────────────────────────────────────


def test_a_neutral_file_changes_no_bit(load):
    idea = load(NEUTRAL)
    assert set(idea.functions) == set(SEAMS)
    losses, end = trained()
    own_losses, own_end = trained(idea)
    assert losses == own_losses
    assert torch.equal(end, own_end)
    plain = replace(small_learner(small_network()), idea=NO_IDEA)
    found = [evaluate(each, small_dataset(), small(), with_tta=True)
             for each in (plain, replace(plain, idea=idea))]  # fmt: skip
    assert (found[0].tta == found[1].tta).all()


@pytest.mark.parametrize("name", SEAMS)
def test_each_function_acts(load, name):
    """The negative control of the one above."""
    if name == "model":  # acts when a network is built: below
        return
    text = {
        "images": "return images * 0.9",
        "targets": "return targets * 0.9",
        "loss": "return (logits - targets).square().sum(1)",
        "optimizer": "import torch\n    return torch.optim.Adam(groups, lr=lr)",
        "after_step": "next(model.parameters()).mul_(0.9)",
        "predictions": "return (logits * 0.5).softmax(1)",
    }[name]
    idea = load(f"{SEAMS[name].definition(name)}\n    {text}\n")
    if name == "predictions":
        learner = small_learner(small_network())
        found = [evaluate(replace(learner, idea=each), small_dataset(), small(), with_tta=False)
                 for each in (NO_IDEA, idea)]  # fmt: skip
        assert (found[0].plain != found[1].plain).any()
        assert torch.equal(trained(idea)[1], trained()[1])
    else:
        assert not torch.equal(trained(idea)[1], trained()[1])


def test_a_training_stopped_after_any_step_goes_on_to_the_bit(load, tmp_path):
    idea = load(NOISE)
    expected, end = trained(idea)
    assert expected != trained()[0]
    saving, _ = a_training(idea)
    found = []
    for step in saving:
        checkpoint.write(tmp_path / "saved", "id", step.done, saving.tensors(), {})
        found.append(checkpoint.newest(tmp_path / "saved", "id"))
    assert len(found) == saving.total > 5
    for each in found:
        training, learner = a_training(idea, seed=1)
        training.restore(each.done, each.tensors)
        assert losses_of(training) == expected[each.done :]
        assert torch.equal(weights(learner.model), end)


@pytest.mark.parametrize("optimizer", [
    "torch.optim.AdamW(groups, lr=lr)", "torch.optim.NAdam(groups, lr=lr)",
    "torch.optim.SGD(groups, lr=lr)", "torch.optim.RMSprop(groups, lr=lr, momentum=0.9)",
    "torch.optim.Adagrad(groups, lr=lr)", "torch.optim.RAdam(groups, lr=lr)",
])  # fmt: skip
def test_an_optimizer_of_one_s_own_goes_on_to_the_bit(load, tmp_path, optimizer):
    idea = load(f"import torch\ndef optimizer(groups, lr):\n    return {optimizer}\n")
    expected, end = trained(idea)
    saving, _ = a_training(idea)
    steps = iter(saving)
    for _ in range(3):
        next(steps)
    checkpoint.write(tmp_path / "saved", "id", 3, saving.tensors(), {})
    steps.close()
    found = checkpoint.newest(tmp_path / "saved", "id")
    training, learner = a_training(idea, seed=1)
    training.restore(3, found.tensors)
    assert losses_of(training) == expected[3:]
    assert torch.equal(weights(learner.model), end)
    if "SGD" not in optimizer:  # which has no state without momentum
        training, learner = a_training(idea, seed=1)  # negative control
        training.restore(3, {**found.tensors, "optimizer": {}})
        assert losses_of(training) != expected[3:]


def test_the_schedule_drives_rate_and_momentum(load):
    kinds = {"SGD(groups, lr=lr)": None, "SGD(groups, lr=lr, momentum=0.5)": "momentum",
             "AdamW(groups, lr=lr)": "betas"}  # fmt: skip
    for kind, driven in kinds.items():
        idea = load(f"import torch\ndef optimizer(groups, lr):\n    return torch.optim.{kind}\n")
        training, _ = a_training(idea)
        for step in training:
            for group in training._in_stage[1].param_groups:
                assert group["lr"] == step.moment.lr * group["lr_factor"]
                if driven == "betas":
                    assert group["betas"] == (step.moment.momentum, 0.999)
                else:
                    assert group["momentum"] == (step.moment.momentum if driven else 0)
                if driven is None:
                    assert group["weight_decay"] in (0.0, 0.01)


def test_the_number_of_workers_changes_nothing(load):
    idea = load(NOISE)
    ends = [trained(idea, small(data=Data(batch_size=8, default_size=16, num_workers=n)))
            for n in (0, 2)]  # fmt: skip
    assert ends[0][0] == ends[1][0]
    assert torch.equal(ends[0][1], ends[1][1])


# ── What the functions are given ───────────────────────────────────────────────────────────────


def test_generators_are_keyed_by_seed_function_epoch_and_step():
    learner = small_learner(small_network())
    training, _ = a_training()
    moments = [step.moment for step in training]
    second = replace(learner, processes=replace(ALONE, rank=1, count=2))

    def draw(learner, seed, now, name):
        return torch.rand((), generator=code_generator(learner, seed, now, name)).item()

    keys = [
        (seed, now, name) for seed in (0, 1) for now in moments for name in ("images", "targets")
    ]
    draws = [draw(each, *key) for each in (learner, second) for key in keys]
    assert len(set(draws)) == len(draws)
    assert [draw(learner, *key) for key in keys] == draws[: len(keys)]


def test_the_order_and_shapes_of_what_is_given(load):
    idea = load(NEUTRAL)
    seen = []

    def spy(name):
        def spied(*given):
            found = idea.functions[name](*given)
            seen.append((name, given, copy.deepcopy(found) if name == "targets" else found))
            return found

        return spied

    spied = Idea(idea.file, {name: spy(name) for name in SEAMS})
    training, learner = a_training(spied)
    step = next(iter(training))
    assert [name for name, *_ in seen] == ["optimizer", "images", "targets", "loss", "after_step"]
    given = {name: values for name, values, _ in seen}
    pixels, generator, progress = given["images"]
    assert pixels.shape == (8, 3, 16, 16)
    assert 0 <= pixels.min() < pixels.max() <= 1
    assert progress == step.moment.progress == 0.0
    assert generator.device == pixels.device
    targets = given["targets"][0]
    assert targets.shape == (8, 3)
    assert torch.allclose(targets.sum(1), torch.ones(8))
    assert targets.min() > 0  # smoothed
    assert ((targets > 0.1).sum(1) > 1).any()  # mixed
    assert given["loss"][0].requires_grad
    assert torch.equal(given["loss"][1], targets)
    assert given["after_step"] == (learner.model, 0.0)


@pytest.mark.parametrize(("name", "are_equal"), [("after_step", True), ("loss", False)])
def test_processes_draw_alike_where_their_weights_must_stay_equal(
    load, monkeypatch, name, are_equal
):
    """Each process makes its own update, and nothing compares the weights afterwards."""
    monkeypatch.setattr(Processes, "share", lambda self, count: np.arange(count))
    drawn = {0: [], 1: []}
    for rank, found in drawn.items():
        idea = load("def after_step(model, progress): pass\ndef loss(logits, targets): pass")
        functions = {
            "after_step": lambda model, progress, found=found: found.append(float(torch.rand(1)))
        }
        if name == "loss":  # negative control: each has images of its own there

            def loss(logits, targets, found=found):
                found.append(float(torch.rand(1)))
                return torch.nn.functional.cross_entropy(logits, targets)

            functions = {"loss": loss}
        training, learner = a_training(replace(idea, functions=functions))
        training._learner = replace(learner, processes=Processes(rank=rank, count=1))
        losses_of(training)
    assert len(drawn[0]) == len(drawn[1]) > 1
    assert (drawn[0] == drawn[1]) == are_equal


def test_after_step_is_without_gradients(load):
    load_text = (
        "import torch\ndef after_step(model, progress):\n    assert not torch.is_grad_enabled()\n"
    )
    trained(load(load_text))


# ── The network ────────────────────────────────────────────────────────────────────────────────

HEAD = """
from torch import nn

def model(model):
    model.head.append(nn.Linear(3, 3))
    return model
"""


def test_new_layers_draw_from_the_seed_and_the_others_stay(load):
    idea = load(HEAD)

    def build(seed, idea=NO_IDEA):
        changes = changes_of(RunConfig(), idea)
        return build_model(
            "xresnet", "xresnet18", 3, seed=seed, changes=changes, idea=idea
        ).state_dict()

    before = torch.random.get_rng_state()
    plain, first, again, other = build(5), build(5, idea), build(5, idea), build(6, idea)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], value) for name, value in plain.items())
    new = sorted(first.keys() - plain.keys())
    assert len(new) == 2
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in new)


def test_only_what_matters_to_the_network_is_a_change(load):
    assert changes_of(RunConfig(), NO_IDEA) == changes_of(RunConfig(), load(NOISE)) == ()
    (change,) = changes_of(RunConfig(), load(NEUTRAL))
    assert change.name == "code"
    assert change.values["functions"] == ["model", "predictions"]
    (change,) = changes_of(RunConfig(), load(HEAD))
    assert change.values["functions"] == ["model"]


def test_a_changed_network_has_layer_groups(load):
    model = load(HEAD).model(build_model("xresnet", "xresnet18", 3, seed=0))
    assert sum(map(len, layer_groups(model))) == len(list(model.parameters()))


# ── What is wrong with what they return or do ──────────────────────────────────────────────────


def failing(load, body, name, config=None):
    """The error of a training with such a function."""
    idea = load(f"import torch\n\n{SEAMS[name].definition(name)}\n    {body}\n")
    training, _ = a_training(idea, config)
    with pytest.raises(CodeError) as caught:
        losses_of(training)
    return caught.value


@pytest.mark.parametrize(
    ("name", "body", "what"),
    [
        ("images", "images.mul_(0.5)\n    return None", "images must return (8, 3, 16, 16) float32 "
         "on cpu, and returned nothing"),
        ("images", "return images[:4]", "returned (4, 3, 16, 16) float32 on cpu"),
        ("images", "return images.double()", "returned (8, 3, 16, 16) float64 on cpu"),
        ("images", "return images.numpy()", "returned ndarray"),
        ("images", "return images / 0", "finite numbers, and returned some that are not finite"),
        ("targets", "return targets.argmax(1)", "targets must return (8, 3) float32 on cpu, and "
         "returned (8,) int64"),
        ("loss", "return 0.5", "loss must return a tensor () or (8,), and returned float"),
        ("loss", "return logits", "returned (8, 3) float32 on cpu"),
        ("loss", "return (logits.argmax(1) - targets.argmax(1)).abs()", "floating point on cpu"),
        ("loss", "return targets.sum()", "a function of the logits, which has a gradient"),
        ("loss", "return logits.sum() / 0", "and returned values that are not finite"),
        ("optimizer", "return 3", "must return a torch.optim.Optimizer, and returned int"),
        ("optimizer", "return torch.optim.SGD(groups[:1], lr=lr)", "of all parameters"),
        ("optimizer", "return torch.optim.SGD([p for g in groups for p in g['params']], lr=lr)",
         "groups without lr_factor"),
        ("after_step", "return model", "nothing; it changes the model in place"),
    ],
)  # fmt: skip
def test_wrong_values_are_told_with_their_line(load, name, body, what):
    error = failing(load, body, name)
    assert what in error.what
    assert error.where.startswith(f"my_idea.py:3, in {name}")
    assert name == "optimizer" or error.where.endswith("epoch 1, step 1, lr 0.002")
    assert error.exit_code == 5
    assert error.fix


def test_a_training_that_diverges_is_not_the_loss_s_fault(load):
    idea = load("def loss(logits, targets):\n    return (logits - targets).square().sum(1)\n")
    config = small_config(optim=Optim(name="sgd", schedule="constant", lr=1e30))
    with pytest.raises(TrainingError, match="not finite") as caught:
        losses_of(a_training(idea, config)[0])
    assert not isinstance(caught.value, CodeError)
    assert "optim.lr=1e+29" in caught.value.fix


@pytest.mark.parametrize("name", ["images", "targets", "loss", "optimizer", "after_step"])
def test_an_exception_is_told_with_its_line(load, name):
    text = (
        f"def _inner():\n    raise KeyError('x')\n\n{SEAMS[name].definition(name)}\n    _inner()\n"
    )
    training, _ = a_training(load(text))
    with pytest.raises(KeyError) as caught:
        losses_of(training)
    told = blamed(caught.value)
    assert told.what == "the code of the run failed: KeyError: 'x'"
    place = "" if name == "optimizer" else ", epoch 1, step 1, lr 0.002"
    assert told.where == f"my_idea.py:2, in _inner{place}"


@pytest.mark.parametrize(
    ("keep", "told"),
    [("self.state[p]['count'] = 1", "state count (int)"),
     ("group['k'] = group.get('k', 0) + 1", "group value k")],
)  # fmt: skip
def test_an_optimizer_that_no_checkpoint_can_hold_is_refused(load, keep, told):
    text = f"""
import torch

class Own(torch.optim.Optimizer):
    def __init__(self, groups, lr):
        super().__init__(groups, dict(lr=lr))

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                {keep}

def optimizer(groups, lr):
    return Own(groups, lr)
"""
    with pytest.raises(CodeError, match=re.escape(told)) as caught:
        losses_of(a_training(load(text))[0])
    assert caught.value.where.startswith("Own")
    assert losses_of(a_training(load(text.replace(keep, "self.state[p]['x'] = p.clone()")))[0])


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("return logits", "rows that are negative or do not sum to 1"),
        ("return logits.exp()", "rows that are negative or do not sum to 1"),
        ("return logits.softmax(1)[:, :2]", "returned (8, 2) float32"),
        ("return logits.softmax(1).double()", "float64"),
    ],
)
def test_predictions_that_are_none(load, body, what):
    learner = small_learner(small_network())
    idea = load(f"def predictions(logits):\n    {body}\n")
    config = replace(small(tta=Tta(flip=True)), eval=replace(small().eval, batch_size=8))
    with pytest.raises(CodeError) as caught:
        evaluate(replace(learner, idea=idea), small_dataset(), config, with_tta=True)
    assert what in caught.value.what
    assert caught.value.where == "my_idea.py:1, in predictions"


def test_a_network_that_gives_no_logits(load):
    text = "from torch import nn\n\ndef model(model):\n    return {}\n"
    with pytest.raises(CodeError, match=r"returned int") as caught:
        load(text.format("3")).model(nn.Linear(1, 1))
    assert caught.value.where == "my_idea.py:3, in model"
    idea = load(text.format("nn.Sequential(model, nn.Linear(3, 2))"))
    learner = small_learner(small_network(), idea=idea)
    learner = replace(learner, model=idea.model(learner.model))
    with pytest.raises(CodeError, match=r"a network that returns \(4, 2\) float32"):
        learner.logits(torch.rand(4, 3, 16, 16))


# ── Loading ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("first", "what", "where"),
    [
        ("x = 1 / 0", "ZeroDivisionError: division by zero", "my_idea.py:1, in <module>"),
        ("import nowhere_to_be_found", "ModuleNotFoundError", "my_idea.py:1, in <module>"),
        ("raise SystemExit(3)", "SystemExit: 3", "my_idea.py:1, in <module>"),
        ("globals()['model'] = 3", "model is not a function", "my_idea.py"),
        ("globals()['targets'] = print", "targets is not a function", "my_idea.py"),
    ],
)
def test_a_file_that_cannot_be_run(load, first, what, where):
    with pytest.raises(ConfigError) as caught:
        load(f"{first}\ndef loss(logits, targets):\n    return logits.sum()\n")
    assert what in caught.value.what
    assert caught.value.where == where


def test_what_runs_is_what_was_read(tmp_path):
    path = tmp_path / "my_idea.py"
    path.write_text("def loss(logits, targets):\n    return logits.sum()\n")
    read = read_idea(str(path))
    path.write_text("raise RuntimeError\n")
    assert load_idea(read).loss(torch.ones(2, 3), torch.ones(2, 3)) == 6


def test_decorators_and_dataclasses_work(load):
    idea = load(
        "from __future__ import annotations\nimport functools, torch\n"
        "from dataclasses import dataclass\n\n@dataclass\nclass _Knobs:\n    rate: float = 2.0\n\n"
        "@functools.wraps(torch.clone)\ndef _unused(x):\n    pass\n\n"
        "@torch.no_grad()\ndef after_step(model, progress):\n    model.weight.mul_(_Knobs().rate)\n"
    )
    model = nn.Linear(1, 1)
    before = model.weight.detach().clone()
    idea.after_step(model, 0.0)
    assert torch.equal(model.weight, 2 * before)


def test_one_loss_per_image_is_averaged(load):
    idea = load(
        "def loss(logits, targets):\n    return -(targets * logits.log_softmax(1)).sum(1)\n"
    )
    logits, targets = torch.randn(5, 3), torch.rand(5, 3)
    assert torch.allclose(idea.loss(logits, targets), F.cross_entropy(logits, targets))


def test_files_of_one_name_do_not_mix(load):
    first = load("def loss(logits, targets):\n    return logits.sum()\n")
    second = load("def loss(logits, targets):\n    return logits.sum() * 2\n")
    logits = torch.ones(1, 2)
    assert (first.loss(logits, logits), second.loss(logits, logits)) == (2, 4)


def test_the_page_has_the_table_of_the_functions():
    page = (Path(__file__).parents[2] / "docs" / "adding-a-trick.md").read_text()
    for name, seam in SEAMS.items():
        row = f"| `{name}({', '.join(seam.parameters)})` | {seam.acts} | {seam.returns} |"
        assert row in page
