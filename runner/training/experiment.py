"""An experiment: everything that decides the numbers of one run, in one value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.config.requested import Requested
from runner.config.schema import RunConfig
from runner.data.dataset import Dataset
from runner.models import Weights
from runner.tricks.idea import NO_IDEA, Idea


@dataclass(frozen=True)
class Experiment:
    """One configuration with the data, the weights and the code that it names.

    Attributes:
        config: configuration of the run, adapted to ``weights``.
        dataset: the data set that ``config`` names.
        identity: ``identity`` (a hash), ``fingerprint`` and ``values``; see
            :mod:`runner.records.identity`.
        overrides: words of the command line.
        weights: pretrained weights to start from; None to start from random ones.
        idea: functions of the user's code.
        others: further evaluations of the run that other jobs request, with their words.
    """

    config: RunConfig
    dataset: Dataset
    identity: Mapping[str, Any]
    overrides: Sequence[str] = ()
    weights: Weights | None = None
    idea: Idea = NO_IDEA
    others: tuple[Requested, ...] = ()
