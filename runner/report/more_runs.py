"""Commands that train more seeds, built from the commands of the runs that are there."""

import re
import shlex
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path

from runner.report.factors import CODE
from runner.report.groups import Arm
from runner.report.runs import FinishedRun, content_with_digest


@dataclass(frozen=True)
class MoreRuns:
    """A command for other seeds.

    Attributes:
        words: the words of a run's command, except its seed.
        seeds: the seeds to run.
    """

    words: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def command(self) -> str:
        """The command as text to paste."""
        first, last = self.seeds[0], self.seeds[-1]
        spelled = ",".join(map(str, self.seeds))
        if len(self.seeds) > 2 and last - first == len(self.seeds) - 1:
            spelled = f"range({first},{last + 1})"
        sweep = ["-m"] if len(self.seeds) > 1 else []
        return shlex.join([*self.words[:3], *sweep, *self.words[3:], f"seed={spelled}"])


def more_runs(arm: Arm, reference: Arm, wanted: int) -> tuple[MoreRuns, ...]:
    """Return the runs that both sides still need for ``wanted`` common seeds.

    A seed that failed would fail again, or else its training continues by its own command.
    """
    failed = {*arm.failed, *reference.failed}
    common = sorted(set(arm.runs) & set(reference.runs))
    begun = sorted((set(arm.runs) ^ set(reference.runs)) - failed)
    fresh = (seed for seed in count() if seed not in {*common, *begun} | failed)
    seeds = sorted(islice(chain(begun, fresh), wanted - len(common)))
    more = []
    for side in (arm, reference):
        missing = tuple(seed for seed in seeds if seed not in side.runs)
        words = words_but_seed(side.runs[min(side.runs)])
        if missing and words:
            more.append(MoreRuns(words, missing))
    return tuple(dict.fromkeys(more))


def words_but_seed(run: FinishedRun) -> tuple[str, ...]:
    """Return a run's command without seed, run_dir and force; empty if not of runner.train."""
    if run.command[:3] != ("python", "-m", "runner.train"):
        return ()
    own = ("seed=", "run_dir=", "force=")
    words = [word for word in run.command if not word.lstrip("+").startswith(own)]
    for at, word in enumerate(words):
        if word.lstrip("+").startswith(f"{CODE}=") and run.values.get(CODE) is not None:
            path = _path_of_code(run, str(run.values[CODE]))
            if path is None:
                return ()
            words[at] = word if path == run.config.get(CODE) else f"{CODE}={_hydra_text(path)}"
    return tuple(words)


def _path_of_code(run: FinishedRun, sha256: str) -> str | None:
    """Return the code file of a run: as it was named, or the run's copy if that file has changed.

    None where neither has that content.
    """
    named = run.config.get(CODE)
    if isinstance(named, str):
        with suppress(RuntimeError):  # the home folder of ~ is unknown
            if content_with_digest(Path(named).expanduser(), sha256) is not None:
                return named
    copy = run.path / "code.py"
    return str(copy) if content_with_digest(copy, sha256) is not None else None


def _hydra_text(text: str) -> str:
    """Quote a text for the command line of Hydra, which splits and evaluates bare text."""
    if re.fullmatch(r"[\w./+@%:-]+", text, re.ASCII):
        return text
    return "'" + text.replace("'", "\\'") + "'"
