"""Private names of libraries, and the rest that docs/private-names.md lists: still as we use it."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hydra
import pytest
import torch
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from small import small_config, small_dataset
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from runner.config import compose
from runner.config.complaints import translated
from runner.config.options import CONF_DIR
from runner.errors import ProcessError, first_line
from runner.models import pretrained
from runner.models.convolutions import CpuConv2d, suit_convolutions
from runner.models.global_norm import GlobalBatchNorm2d
from runner.training import session
from runner.training.experiment import Experiment

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "private-names.md").read_text()
NAMES, SENTENCES = (
    [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in part.splitlines()
        if line.startswith("| `")
    ]
    for part in PAGE.split("## Sentences")
)
OWN = {"runner", "hydra_plugins"}
PUBLIC = {"os._exit", "folder._write", "config.hydra.launcher._target_"}


def foreign_names(source: str) -> Iterator[str]:
    """What ``source`` takes from libraries beyond their public names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom | ast.Import):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names = [f"{module}{alias.name}" for alias in node.names]
            yield from (name for name in names if re.search(r"(^|\.)_(?!_)", name))
        elif isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr):
            if (owner := ast.unparse(node.value)) not in ("self", "cls"):
                yield f"{owner}.{node.attr}"
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if node.attr == "__class__":
                yield "__class__ ="
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if re.match(r"warnings\.(simple|reset|filter)", name):
                yield name


def test_every_use_is_listed() -> None:
    found = {
        (str(path.relative_to(ROOT)), name)
        for folder in OWN
        for path in (ROOT / folder).rglob("*.py")
        for name in foreign_names(path.read_text())
        if name not in PUBLIC
    }
    assert found == {(file, name) for file, name, *_ in NAMES}


@pytest.mark.parametrize(
    "source",
    [
        "from torch._dynamo import reset", "from torch.optim.adamw import _single", "import a._b",
        "torch._C._jit()", "model.__class__ = Other", "warnings.filterwarnings('ignore')",
    ],
)  # fmt: skip
def test_the_scan_notices(source: str) -> None:
    assert list(foreign_names(source))


def test_the_scan_passes_what_is_ours() -> None:
    assert not list(foreign_names("from a import b\nself._c()\ntype(d).__name__\nd.__class__"))


def test_every_entry_has_its_test() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for *_, name in [*NAMES, *SENTENCES]:
        assert f"def {name}(" in sources, name
    for file, *_ in SENTENCES:
        assert (ROOT / file).is_file()


# ── Hydra ──────────────────────────────────────────────────────────────────────────────────────


def test_hydra_still_makes_the_grid() -> None:
    compose.register()
    assert [*inspect.signature(BasicSweeper.split_arguments).parameters] == [
        "overrides", "max_batch_size",
    ]  # fmt: skip
    assert compose.jobs(["seed=1,2", "optim.lr=0.1,0.2"]) == [
        ["seed=1", "optim.lr=0.1"], ["seed=1", "optim.lr=0.2"],
        ["seed=2", "optim.lr=0.1"], ["seed=2", "optim.lr=0.2"],
    ]  # fmt: skip


def test_hydra_still_calls_nothing() -> None:
    assert Callbacks().callbacks == []


# What happens in a job's process: Singleton.set_state finds the plugins anew.
JOB = """
import sys
from pathlib import Path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from runner.config import compose
from runner.terminal.start import hydra_context

compose.register()
with compose.opened():
    words = ["hydra/launcher=submitit_local", compose.own_options(Path(sys.argv[1]))]
    config = compose.composed(words, is_sweep=True)
    context = hydra_context()
    Singleton.set_state(Singleton.get_state())
    is_ours = sys.argv[2] == "ours"
    loader = context.config_loader if is_ours else GlobalHydra.instance().config_loader()
    print(loader.load_sweep_config(config, ["seed=7"]).seed)
"""


@pytest.mark.parametrize("loader", ["ours", pytest.param("Hydra's", marks=pytest.mark.whole)])
def test_own_option_files_reach_jobs_in_processes_of_their_own(loader: str, tmp_path: Path) -> None:
    code = [sys.executable, "-c", JOB, str(tmp_path), loader]
    done = subprocess.run(code, capture_output=True, text=True, timeout=60)
    if loader == "ours":
        assert (done.stdout, done.returncode) == ("7\n", 0), done.stderr
    else:
        assert "Merge error" in done.stderr, "Hydra's own would do: ours can go"


COMPLAINTS = {
    "an unknown key": (["optim.lrr=1"], {}, "optim.lrr"),
    "a key that exists": (["+seed=1"], {}, "+seed"),
    "several values": (["seed=1,2"], {"from_shell": False}, "seed=1,2"),
    "several values in a shell": (["seed=1,2"], {"from_shell": True}, "seed=1,2"),
    "a group twice": (["+trick=mixup", "+trick=tta"], {}, "+trick"),
}


@pytest.mark.parametrize(("words", "how", "where"), COMPLAINTS.values(), ids=COMPLAINTS)
def test_hydra_still_says_it_in_these_words(
    words: list[str], how: dict[str, bool], where: str
) -> None:
    compose.register()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        loader = GlobalHydra.instance().config_loader()
        with pytest.raises(ConfigCompositionException) as caught:
            loader.load_configuration("config", words, RunMode.RUN, **how)
    found = translated(caught.value)
    assert found is not None
    assert found.where == where
    assert found.what != first_line(caught.value), "passed on as it came"


# ── Torch ──────────────────────────────────────────────────────────────────────────────────────


def test_every_batch_norm_still_has_one_parent() -> None:
    kinds = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm]
    assert all(issubclass(kind, _BatchNorm) for kind in kinds)
    assert not any(issubclass(kind, _BatchNorm) for kind in (nn.LayerNorm, nn.GroupNorm))


def test_adamw_still_gathers_its_tensors() -> None:
    """That copies are spared and numbers alike, tests/training/test_optim.py says."""
    parameters = [*inspect.signature(torch.optim.AdamW._init_group).parameters]
    assert parameters == [
        "self", "group", "params_with_grad", "grads", "exp_avgs", "exp_avg_sqs",
        "max_exp_avg_sqs", "state_steps",
    ]  # fmt: skip


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_norms_of_many_tensors_still_show_what_is_not_finite(bad: float) -> None:
    tensors = [torch.tensor([[3.0, -4.0]]), torch.tensor([1e30, 1e30]), torch.tensor(0.0)]
    found = torch._foreach_norm(tensors, 1)
    assert [float(norm) for norm in found] == pytest.approx([7.0, 2e30, 0.0])
    tensors[1][0] = bad
    assert [bool(norm.isfinite()) for norm in torch._foreach_norm(tensors, 1)] == [
        True, False, True,
    ]  # fmt: skip


def test_a_convolution_still_takes_another_class() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    layer, before = model[0], {name: id(value) for name, value in model.named_parameters()}
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = model(images)
    suit_convolutions(model)
    assert type(layer) is CpuConv2d
    assert model[0] is layer
    assert {name: id(value) for name, value in model.named_parameters()} == before
    assert torch.equal(model(images), expected)
    assert [*inspect.signature(nn.Conv2d.forward).parameters] == ["self", "input"]


def test_a_batch_norm_still_takes_another_class() -> None:
    layer = nn.BatchNorm2d(3).eval()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected, names = layer(images), [*layer.state_dict()]
    layer.__class__ = GlobalBatchNorm2d
    assert torch.equal(layer(images), expected)
    assert [*layer.state_dict()] == names
    assert [*inspect.signature(nn.BatchNorm2d.forward).parameters] == ["self", "input"]


READ_ONLY = """
import sys, warnings
import numpy as np, torch
warnings.simplefilter("error")
if sys.argv[1] == "ours":
    import runner.data.batches
torch.from_numpy(np.broadcast_to(np.uint8(0), 3))
"""


@pytest.mark.slow
def test_read_only_arrays_still_give_no_warning() -> None:
    def ended(who: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", READ_ONLY, who], cwd=ROOT, capture_output=True, text=True
        )

    assert ended("ours").returncode == 0
    assert "not writable" in ended("nobody").stderr  # negative control: torch does warn


def test_torch_still_says_that_memory_ran_out() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**62, dtype=torch.uint8)
    experiment = Experiment(small_config(), small_dataset(), {})
    problem = session._user_error(caught.value, experiment)
    assert isinstance(problem, ProcessError)
    assert problem.what == "out of memory"
    assert session._user_error(RuntimeError("another"), experiment) is None  # negative control


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("harm",)


def test_torch_still_names_what_a_file_asks_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"weight": _Harmful()}, tmp_path / "weights.pth")
    with pytest.raises(Exception, match="weights_only") as caught:
        torch.load(tmp_path / "weights.pth", weights_only=True)
    reason = pretrained._reason(caught.value)
    assert reason.startswith("it needs ")
    assert "print" in reason
    assert capsys.readouterr().out == ""
