"""The architectures of a comparison, looked up in their libraries before anything is trained."""

import itertools
import shlex
from collections.abc import Iterator

from runner.compare.plan import Planned, is_finished
from runner.compare.question import joined_words
from runner.config import compose
from runner.config.model import Model
from runner.errors import ConfigError
from runner.jobs.architectures import unknown_architectures
from runner.records.comparison_folder import BASE


def check_architectures(plan: Planned) -> None:
    """Refuse the architectures of the baseline, of arms and of the search that no library has.

    An architecture of which a run is finished is not looked up.

    Raises:
        ConfigError: naming every such architecture, and the first arm or value that it is of.
    """
    named, known = dict[Model, str](), set[Model]()
    for model, chosen, is_known in _models(plan):
        named.setdefault(model, chosen)
        known |= {model} if is_known else set()
    unknown = unknown_architectures(model for model in named if model not in known)
    problems: dict[tuple[str, str], str] = {}
    for model, chosen in named.items():
        if (error := unknown.get((model.source, model.name))) is not None:
            text = f"{error.what}  [{chosen}]" if chosen else error.what
            problems.setdefault((model.source, model.name), text)
    if problems:
        first = unknown[next(iter(problems))]
        raise ConfigError("\n".join(problems.values()), where=first.where, fix=first.fix)


def _models(plan: Planned) -> Iterator[tuple[Model, str, bool]]:
    """Yield each network, the words that choose it, and whether a run of it is finished.

    If the network is tuned, baseline and arms train those of the search alone.
    """
    question = plan.question
    tuned = [
        [f"{key}={value}" for value in values]
        for key, values in question.tune
        if key.partition(".")[0] == "model"
    ]
    changes = [(BASE, (), question.base), *((a.label, a.words, a.config) for a in question.arms)]
    for label, words, config in changes:
        if not tuned:
            chosen = f"--try {shlex.join(words)}" if words else ""
            yield config.model, chosen, any(map(is_finished, plan.folders[label].values()))
        for one in itertools.product(*tuned) if tuned else ():
            joined = joined_words(joined_words(question.base_words, words), one)
            chosen = f"--tune {shlex.join(one)}"
            yield compose.config_of(joined, question.config_dir).model, chosen, False
