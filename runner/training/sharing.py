"""What the jobs of a sweep share: the process that forks them imports torch and reads the data.

The parent computes nothing with torch: its children would lack the threads, see
:func:`runner.machine.children.in_child`.
"""

import gc
from contextlib import suppress
from pathlib import Path

from runner.config.schema import RunConfig
from runner.machine.environment import revision
from runner.training.finished import finished_before, refuse_work

_is_frozen = False


def prepare(config: RunConfig) -> None:
    """Do what the job of ``config`` has in common with later jobs; call it before the fork.

    Data that must be downloaded, hashed or decoded first is left to the job, which displays the
    progress; so is any error. If the run is finished, torch, which takes seconds to import, is not
    needed; to know that of a run with pretrained weights takes torch.
    """
    from runner.data.shared import keep_dataset

    global _is_frozen
    cache = Path(config.outputs).expanduser() / "cache"
    with suppress(Exception):  # the job itself reports any error
        keep_dataset(config.data, config.largest_size, cache, refuse_work)
    if _is_frozen or not (config.names_weights or finished_before([config]) == [None]):
        return
    with suppress(Exception):
        import_what_trains(config.model.source)
    revision()
    gc.freeze()  # a collection in a child would copy all that it shares with this process
    _is_frozen = True


def import_what_trains(source: str) -> None:
    """Import torch and what trains a network of this ``model.source``.

    Raises:
        ConfigError: timm is needed and not installed.
    """
    import torch

    import runner.training.session  # noqa: F401
    from runner.models.build import import_timm

    # The first optimizer of a process imports torch's compiler, which takes a second.
    torch.optim.SGD([torch.nn.Parameter(torch.empty(0))])
    if source == "timm":
        import_timm()
