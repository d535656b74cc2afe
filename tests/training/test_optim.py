"""The optimizer against explicit formulas and fastai, and what freezing leaves alone."""

import copy

import numpy as np
import pytest
import torch
from small import small_learner, small_network
from torch import nn

from runner.config.schema import Optim
from runner.training.optim import (
    build_optimizer,
    freeze_body,
    optimizer_tensors,
    restore_optimizer,
    set_rates,
    skip_unless,
)

# (learning rate, momentum) of a few steps, as a cycle changes them.
RATES = [(1e-3, 0.95), (1e-2, 0.9), (3e-2, 0.85), (1e-2, 0.9), (1e-3, 0.95)]


def parameters():
    """A weight, which is decayed, and a bias, which is not."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, dtype=torch.float64, generator=random)
    bias = torch.randn(4, dtype=torch.float64, generator=random)
    return [nn.Parameter(weight), nn.Parameter(bias)]


def gradients(step):
    random = torch.Generator().manual_seed(100 + step)
    return [
        torch.randn(4, 3, dtype=torch.float64, generator=random),
        torch.randn(4, dtype=torch.float64, generator=random),
    ]


def trained(optim):
    """Weight and bias after the steps of ``RATES``, by our optimizer."""
    ours = parameters()
    optimizer = build_optimizer([ours], optim, [1.0])
    for step, (lr, momentum) in enumerate(RATES):
        set_rates(optimizer, lr, momentum)
        for parameter, gradient in zip(ours, gradients(step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [parameter.detach().numpy() for parameter in ours]


def adamw(value, decay, which, optim, *, decoupled=True, rates=RATES):
    """Loshchilov & Hutter 2019, in numpy, with β1 and lr of each step."""
    first, second = np.zeros_like(value), np.zeros_like(value)
    for step, (lr, beta1) in enumerate(rates):
        gradient = gradients(step)[which].numpy()
        if decoupled:
            value = value - lr * decay * value
        else:
            gradient = gradient + decay * value
        first = beta1 * first + (1 - beta1) * gradient
        second = optim.beta2 * second + (1 - optim.beta2) * gradient**2
        unbiased_first = first / (1 - beta1 ** (step + 1))
        unbiased_second = second / (1 - optim.beta2 ** (step + 1))
        value = value - lr * unbiased_first / (np.sqrt(unbiased_second) + optim.eps)
    return value


def sgd(value, decay, which, *, nesterov):
    velocity = np.zeros_like(value)
    for step, (lr, momentum) in enumerate(RATES):
        gradient = gradients(step)[which].numpy() + decay * value
        velocity = momentum * velocity + gradient
        value = value - lr * (gradient + momentum * velocity if nesterov else velocity)
    return value


# ── Parameter groups ───────────────────────────────────────────────────────────────────────────


def test_norms_and_biases_are_not_decayed():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Flatten(),
        nn.LayerNorm(16), nn.Linear(16, 2),
    )  # fmt: skip
    optimizer = build_optimizer([list(model.parameters())], Optim(weight_decay=0.3), [1.0])
    decay = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    found = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
    assert {name for name, value in found.items() if value == 0.3} == {"0.weight", "5.weight"}
    assert {value for name, value in found.items() if name not in ("0.weight", "5.weight")} == {0}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_each_parameter_is_in_one_group_at_the_rate_of_its_layers(name):
    model = small_network()
    learner = small_learner(model, layer_groups=3)
    optimizer = build_optimizer(learner.groups, Optim(name=name), (0.01, 0.1, 1.0))
    members = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters())

    set_rates(optimizer, 0.5, 0.8)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for layers, rate in zip(learner.groups, (0.005, 0.05, 0.5), strict=True):
        assert [rates[id(p)] for p in layers] == pytest.approx([rate] * len(layers))


def test_factors_must_fit_the_groups():
    with pytest.raises(ValueError, match="zip"):
        build_optimizer([parameters()], Optim(), (0.1, 1.0))


# ── Updates ────────────────────────────────────────────────────────────────────────────────────


def test_adamw_equals_the_formula():
    optim = Optim(weight_decay=0.1, beta2=0.97, eps=1e-3)
    for which, (ours, start) in enumerate(zip(trained(optim), parameters(), strict=True)):
        value, decay = start.detach().numpy(), (0.1, 0.0)[which]
        np.testing.assert_allclose(ours, adamw(value, decay, which, optim), rtol=1e-12)


def test_the_formula_notices_other_adams():
    optim = Optim(weight_decay=0.1, beta2=0.97, eps=1e-3)
    ours, value = trained(optim)[0], parameters()[0].detach().numpy()
    constant_momentum = [(lr, 0.9) for lr, _ in RATES]
    for other in (
        adamw(value, 0.1, 0, optim, decoupled=False),
        adamw(value, 0.0, 0, optim),
        adamw(value, 0.1, 0, Optim(beta2=0.99, eps=1e-3)),
        adamw(value, 0.1, 0, Optim(beta2=0.97, eps=1e-8)),
        adamw(value, 0.1, 0, optim, rates=constant_momentum),
    ):
        assert np.abs(ours - other).max() > 1e-5


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_equals_the_formula(nesterov):
    optim = Optim(name="sgd", weight_decay=0.1, nesterov=nesterov)
    for which, (ours, start) in enumerate(zip(trained(optim), parameters(), strict=True)):
        value, decay = start.detach().numpy(), (0.1, 0.0)[which]
        np.testing.assert_allclose(ours, sgd(value, decay, which, nesterov=nesterov), rtol=1e-12)
        other = sgd(value, decay, which, nesterov=not nesterov)
        assert np.abs(ours - other).max() > 1e-5


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")
def test_adamw_equals_fastai():
    fastai = pytest.importorskip("fastai.optimizer")
    theirs = parameters()
    optimizer = fastai.Adam(theirs, lr=0.0, mom=0.9, sqr_mom=0.99, eps=1e-5, wd=0.1)
    optimizer.state[theirs[1]]["do_wd"] = False  # as fastai's Learner does with every bias
    for step, (lr, momentum) in enumerate(RATES):
        optimizer.set_hypers(lr=lr, mom=momentum)
        for parameter, gradient in zip(theirs, gradients(step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    ours = trained(Optim(weight_decay=0.1))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other.detach().numpy(), rtol=1e-6)
    assert np.abs(trained(Optim(weight_decay=0.0))[0] - theirs[0].detach().numpy()).max() > 1e-4


# ── Freezing ───────────────────────────────────────────────────────────────────────────────────


def train_a_little(model, groups, factors=(0.1, 0.1, 1.0)):
    optimizer = build_optimizer(groups, Optim(weight_decay=0.1), factors)
    random = torch.Generator().manual_seed(3)
    model.train()
    for _ in range(3):
        set_rates(optimizer, 0.05, 0.9)
        images = torch.rand(6, 3, 12, 12, generator=random)
        loss = nn.functional.cross_entropy(model(images), torch.arange(6) % 3)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return optimizer


def moved(before, after):
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def test_a_frozen_body_stands_still_but_for_its_batch_norms():
    model = small_network()
    groups = small_learner(model, layer_groups=3).groups
    before = copy.deepcopy(model.state_dict())

    freeze_body(model, groups, frozen=True)
    train_a_little(model, groups)
    everything = set(model.state_dict())
    convolutions = {"0.0.weight", "0.0.bias", "1.0.weight", "1.0.bias"}
    assert moved(before, model.state_dict()) == everything - convolutions

    freeze_body(model, groups, frozen=False)
    assert all(parameter.requires_grad for parameter in model.parameters())
    train_a_little(model, groups)
    assert moved(before, model.state_dict()) == everything


def test_one_layer_group_has_nothing_to_freeze():
    model = small_network()
    groups = small_learner(model).groups
    freeze_body(model, groups, frozen=True)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_every_optimizer_starts_with_fresh_state():
    model = small_network()
    groups = small_learner(model, layer_groups=3).groups
    used = train_a_little(model, groups)
    assert len(used.state) == len(list(model.parameters()))
    assert not build_optimizer(groups, Optim(), (0.1, 0.1, 1.0)).state


# ── State that is kept ─────────────────────────────────────────────────────────────────────────


def model_and_optimizer(name, *, seed=0, layer_groups=1):
    """Convolutions in channels-last memory, as a run has them."""
    model = small_network(seed=seed).to(memory_format=torch.channels_last).train()
    assert not model[1][0].weight.is_contiguous()
    groups = small_learner(model, layer_groups=layer_groups).groups
    return model, build_optimizer(groups, Optim(name=name, weight_decay=0.1), [1.0] * len(groups))


def make_steps(model, optimizer, numbers):
    for number in numbers:
        random = torch.Generator().manual_seed(number)
        images = torch.rand(6, 3, 12, 12, generator=random).to(memory_format=torch.channels_last)
        set_rates(optimizer, *RATES[number % len(RATES)])
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(images), torch.arange(6) % 3).backward()
        optimizer.step()


def as_in_a_file(tensors):
    """Without strides, and nothing shared."""
    return {name: value.detach().clone(memory_format=torch.contiguous_format)
            for name, value in tensors.items()}  # fmt: skip


def everything(model, optimizer):
    return {**model.state_dict(), **optimizer_tensors(optimizer)}


def differs(found, expected):
    assert found.keys() == expected.keys()
    return {name for name, value in found.items() if not torch.equal(value, expected[name])}


def gone_on(name, stop, restore, *, layer_groups=1):
    """All tensors after eight steps, once interrupted after ``stop``, and once without a break."""
    model, optimizer = model_and_optimizer(name, layer_groups=layer_groups)
    make_steps(model, optimizer, range(stop))
    weights, state = as_in_a_file(model.state_dict()), as_in_a_file(optimizer_tensors(optimizer))
    make_steps(model, optimizer, range(stop, 8))

    fresh, fresh_optimizer = model_and_optimizer(name, seed=1, layer_groups=layer_groups)
    fresh.load_state_dict(weights)
    restore(fresh_optimizer, state)
    make_steps(fresh, fresh_optimizer, range(stop, 8))
    return everything(fresh, fresh_optimizer), everything(model, optimizer)


def restore_without_layout(optimizer, tensors):
    """What ``restore_optimizer`` would be if it took tensors as a file gives them."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in tensors.items():
        number, name = key.split(".")
        optimizer.state[parameters[int(number)]][name] = value.clone()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("layer_groups", [1, 3])
@pytest.mark.parametrize("stop", [0, 1, 3, 7, 8])
def test_a_restored_optimizer_goes_on_to_the_bit(name, layer_groups, stop):
    found, expected = gone_on(name, stop, restore_optimizer, layer_groups=layer_groups)
    assert differs(found, expected) == set()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize(
    ("restore", "changed"),
    [(lambda optimizer, tensors: None, "2.2.weight"), (restore_without_layout, "1.0.weight")],
    ids=["no state", "state in another layout"],
)
def test_the_comparison_notices_other_restores(name, restore, changed):
    found, expected = gone_on(name, 3, restore)
    assert changed in differs(found, expected)


@pytest.mark.parametrize(
    ("name", "kinds"), [("adamw", {"step", "exp_avg", "exp_avg_sq"}), ("sgd", {"momentum_buffer"})]
)
def test_the_state_is_named_by_number_and_kind(name, kinds):
    model, optimizer = model_and_optimizer(name)
    assert optimizer_tensors(optimizer) == {}
    make_steps(model, optimizer, range(1))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(parameters) == 10
    state = optimizer_tensors(optimizer)
    assert set(state) == {f"{number}.{kind}" for number in range(10) for kind in kinds}
    for number, parameter in enumerate(parameters):
        for kind in kinds - {"step"}:
            assert state[f"{number}.{kind}"].shape == parameter.shape


def test_a_restored_state_is_laid_out_as_its_parameter_and_shares_nothing():
    model, optimizer = model_and_optimizer("adamw")
    make_steps(model, optimizer, range(2))
    state = as_in_a_file(optimizer_tensors(optimizer))
    kept = copy.deepcopy(state)
    fresh, fresh_optimizer = model_and_optimizer("adamw")
    restore_optimizer(fresh_optimizer, state)
    for parameter in fresh.parameters():
        for kind in ("exp_avg", "exp_avg_sq"):
            assert fresh_optimizer.state[parameter][kind].stride() == parameter.stride()
        assert fresh_optimizer.state[parameter]["step"].shape == ()
    make_steps(fresh, fresh_optimizer, range(2, 4))
    assert differs(state, kept) == set()


def test_parameters_that_stood_still_have_no_state():
    model, _ = model_and_optimizer("adamw", layer_groups=3)
    groups = small_learner(model, layer_groups=3).groups
    freeze_body(model, groups, frozen=True)
    optimizer = build_optimizer(groups, Optim(), (0.1, 0.1, 1.0))
    make_steps(model, optimizer, range(2))
    state = optimizer_tensors(optimizer)
    assert len({key.split(".")[0] for key in state}) == 6  # of ten: four BatchNorms' and the head's
    again = build_optimizer(groups, Optim(), (0.1, 0.1, 1.0))
    restore_optimizer(again, state)
    assert differs(optimizer_tensors(again), state) == set()


def test_the_state_of_other_parameters_is_refused():
    model, optimizer = model_and_optimizer("adamw")
    make_steps(model, optimizer, range(1))
    state = optimizer_tensors(optimizer)
    other = build_optimizer([[nn.Parameter(torch.zeros(3))]], Optim(), [1.0])
    with pytest.raises(LookupError):
        restore_optimizer(other, state)


def test_channels_last_on_the_cpu_is_updated_without_copies_and_alike():
    """The same numbers as contiguous weights get, whose gradients the kernel does not copy."""
    random = torch.Generator().manual_seed(0)
    values = [torch.randn(6, 5, 3, 3, generator=random), torch.randn(4, 1, 1, 1, generator=random)]
    plain = [nn.Parameter(value.clone()) for value in values]
    last = [nn.Parameter(v.contiguous(memory_format=torch.channels_last)) for v in values]
    optimizers = [build_optimizer([group], Optim(), [1.0]) for group in (plain, last)]
    for step in range(3):
        for group, optimizer in zip((plain, last), optimizers, strict=True):
            random.manual_seed(step)
            for parameter in group:
                drawn = torch.randn(parameter.shape, generator=random)
                parameter.grad = torch.empty_like(parameter).copy_(drawn)
            set_rates(optimizer, 1e-2, 0.9)
            with torch.profiler.profile() as profile:
                optimizer.step()
            copies = sum(event.name == "aten::clone" for event in profile.events())
            assert copies == 0
    for ours, theirs in zip(last, plain, strict=True):
        assert ours.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    kept, expected = map(optimizer_tensors, reversed(optimizers))
    assert kept["0.exp_avg"].shape == (6, 5, 3, 3)
    torch.testing.assert_close(kept, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_step_that_is_skipped_changes_nothing(name):
    ours, like_ours = parameters(), parameters()
    optimizer = build_optimizer([ours], Optim(name=name), [1.0])
    plain = build_optimizer([like_ours], Optim(name=name), [1.0])
    for step, (lr, momentum) in enumerate(RATES):
        for each, members in ((optimizer, ours), (plain, like_ours)):
            set_rates(each, lr, momentum)
            for parameter, gradient in zip(members, gradients(step), strict=True):
                parameter.grad = gradient.clone()
        skip_unless(optimizer, torch.tensor(True))
        optimizer.step()
        plain.step()
        assert all(map(torch.equal, ours, like_ours))

        before = copy.deepcopy((ours, optimizer.state_dict()["state"]))
        for parameter in ours:
            parameter.grad.fill_(torch.nan)
        skip_unless(optimizer, torch.tensor(False))
        optimizer.step()
        after = optimizer.state_dict()["state"]
        assert all(map(torch.equal, ours, before[0]))
        for key, values in before[1].items():
            assert all(torch.equal(after[key][name], old) for name, old in values.items())
    skip_unless(optimizer, torch.tensor(True))  # negative control
    optimizer.step()
    assert all(parameter.isnan().all() for parameter in ours)
