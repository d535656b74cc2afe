"""The configurations of many jobs: those that Hydra composes of each, and refused as there."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from runner.config import compose
from runner.config.schema import RunConfig
from runner.errors import ConfigError
from runner.jobs import architectures
from runner.jobs.checks import check_jobs
from runner.machine.children import answer_of_child
from runner.terminal.start import hydra_context

JOBS = [
    "seed=0",
    "seed=1",
    "seed=2 +trick=mixup",
    "seed=3 +trick=mixup mixup.alpha=0.7",
    "mixup.alpha=0.7 mixup=beta",
    "seed=1 optim.lr=1e-3 normalize.source=given 'normalize.mean=[0.1,0.2,0.3]'",
    "seed=1 seed=4",
    'data.root="1.10"',
    "data.root='a b'",
    "code=null compile=null",
    "seed=4 budget.epochs=2.0",
    "outputs=elsewhere run_dir=null",
    # Left to Hydra, which sees all words.
    "seed=3 budget.epochs=${seed}",
    "budget=smoke +seed=3",
    "++seed=5",
    "~seed",
    r"data.root=a\,b",
    # Refused.
    "seed=one",
    "seed=0.5",
    "mixup.alpha=-1",
    "mixup.alpha=[1,2]",
    "normalize.mean={a:1}",
    "seed=3 mixup=nothing",
    "seed=3 tta.views=9 model.name=null",
    "seed=???",
    "model.nothing=3",
    "~optim optim.lr=1",
]  # fmt: skip


@pytest.fixture
def command() -> Iterator[tuple[DictConfig, ConfigLoader]]:
    compose.register()
    with compose.opened():
        config = compose.composed(["seed=0,1", "threads=1"], is_sweep=True)
        yield config, hydra_context().config_loader


def _words(job: str) -> list[str]:
    quotes = str.maketrans({"'": ""})
    return ["data.root='a b'"] if "'a b'" in job else job.translate(quotes).split()


def _found(config_of: Callable[[list[str]], RunConfig], job: str) -> RunConfig | tuple[type, str]:
    try:
        return config_of(_words(job))
    except Exception as error:
        return type(error), str(error)


def _check(
    quick: list[RunConfig | tuple[type, str]], slow: list[RunConfig | tuple[type, str]]
) -> None:
    for job, one, other in zip(JOBS, quick, slow, strict=True):
        assert one == other, job
    assert sum(isinstance(one, RunConfig) for one in quick) >= 12
    assert sum(isinstance(one, tuple) for one in quick) >= 9, "errors are compared, too"


def test_each_job_has_the_configuration_that_hydra_composes(
    command: tuple[DictConfig, ConfigLoader],
) -> None:
    config, loader = command
    configs = compose.job_configs(config)

    def composed(words: list[str]) -> RunConfig:
        return compose.run_config(loader.load_sweep_config(config, words))

    _check([_found(configs.of, job) for job in JOBS], [_found(composed, job) for job in JOBS])


def test_words_have_the_configuration_that_hydra_composes() -> None:
    def composed(words: list[str]) -> RunConfig:
        checked = compose.words_to_compose(words, None)
        with compose.opened():
            return compose.run_config(compose.composed(checked))

    compose.register()
    quick = [_found(compose.config_of, job) for job in JOBS]
    _check(quick, [_found(composed, job) for job in JOBS])


def test_hydra_composes_each_choice_of_options_of_words_once() -> None:
    compose.register()
    compose._with_our_options.cache_clear()  # what other tests have composed
    compose.config_of(["mixup=beta"])
    with mock.patch.object(ConfigLoaderImpl, "load_configuration", side_effect=KeyError("now")):
        for epochs in range(1, 20):
            config = compose.config_of([f"budget.epochs={epochs}", "mixup=beta"])
            assert config.budget.epochs == epochs
        with pytest.raises(ConfigError, match="now"):
            compose.config_of(["mixup=beta", "tta=book"])


def test_option_files_of_the_user_may_change(tmp_path: Path) -> None:
    compose.register()
    option = tmp_path / "mixup" / "mine.yaml"
    option.parent.mkdir()
    for alpha in (0.3, 0.7):
        option.write_text(f"alpha: {alpha}\n")
        assert compose.config_of(["mixup=mine"], tmp_path).mixup.alpha == alpha


def test_hydra_composes_each_choice_of_options_once(
    command: tuple[DictConfig, ConfigLoader], tmp_path: Path
) -> None:
    config, _ = command
    kind = type(GlobalHydra.instance().config_loader())
    with mock.patch.object(
        kind, "load_sweep_config", autospec=True, side_effect=kind.load_sweep_config
    ) as composing:
        configs = compose.job_configs(config)
        for trick in ("baseline", "mixup"):
            for seed in range(50):
                words = [f"+trick={trick}", f"seed={seed}", f"outputs={tmp_path}"]
                assert configs.of(words).seed == seed
        assert composing.call_count == 2
        configs.of(["seed=3", "budget.epochs=${seed}"])
        assert composing.call_count == 4, "what refers to another value is left to Hydra"


def test_a_check_that_takes_long_says_what_it_does(
    command: tuple[DictConfig, ConfigLoader],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, loader = command
    jobs = [[f"seed={seed}"] for seed in range(1100)]
    monkeypatch.setattr("runner.jobs.checks._PATIENCE_SECONDS", 60)
    assert len(check_jobs(jobs[:3], loader, config)) == 3
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("runner.jobs.checks._PATIENCE_SECONDS", 0)
    check_jobs(jobs, loader, config)
    assert capsys.readouterr() == ("", "checking 1,100 jobs …\n")


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The answers of the processes that looked architectures up."""
    answers = list[str]()

    def answer(ask: Callable[[], str]) -> str:
        answers.append(answer_of_child(ask))
        return answers[-1]

    monkeypatch.setattr(architectures, "answer_of_child", answer)
    return answers


TYPO = ["model=timm", "model.name=test_resnett"]


def test_an_architecture_that_no_library_has_is_refused_before_any_job(
    command: tuple[DictConfig, ConfigLoader], lookups: list[str]
) -> None:
    config, loader = command
    good = ["model=timm", "model.name=test_resnet"]
    jobs = [good, TYPO, [*TYPO, "seed=1"], ["model=torchvision", "model.name=resnet1888"], []]
    with pytest.raises(ConfigError) as refused:
        check_jobs(jobs, loader, config)
    assert refused.value.what.splitlines() == [
        "timm has no model called 'test_resnett'  [model=timm model.name=test_resnett]",
        "timm has no model called 'test_resnett'  [model=timm model.name=test_resnett seed=1]",
        "torchvision has no classifier called 'resnet1888'  "
        "[model=torchvision model.name=resnet1888]",
    ]
    assert refused.value.where == "model.name=test_resnett"
    assert refused.value.fix.startswith("did you mean model.name=test_resnet")
    assert len(lookups) == 1, "the libraries are imported once"
    assert len(check_jobs([good, ["seed=1"]], loader, config)) == 2


@pytest.mark.parametrize(
    "jobs", [[TYPO], [["seed=0"], ["seed=1"]]], ids=["a job alone", "networks of our own"]
)
def test_no_library_is_imported_for_nothing(
    command: tuple[DictConfig, ConfigLoader], lookups: list[str], jobs: list[list[str]]
) -> None:
    config, loader = command
    assert len(check_jobs(jobs, loader, config)) == len(jobs)
    assert lookups == []


def test_an_architecture_of_a_finished_job_is_not_looked_up(
    command: tuple[DictConfig, ConfigLoader], lookups: list[str]
) -> None:
    config, loader = command
    jobs = [[*TYPO, f"seed={seed}"] for seed in range(3)]
    check_jobs(jobs, loader, config, lambda configs: [{"status": "skipped"}, None, None])
    assert lookups == []
    with pytest.raises(ConfigError, match="no model called"):
        check_jobs(jobs, loader, config, lambda configs: [None] * len(configs))


def test_what_cannot_be_looked_up_is_left_to_the_jobs(
    command: tuple[DictConfig, ConfigLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, loader = command
    monkeypatch.setattr(architectures, "_refused", lambda named: os._exit(9))
    assert len(check_jobs([TYPO, ["seed=1"]], loader, config)) == 2
