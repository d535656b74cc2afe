"""The words that commands with a configuration take, and their ``--help``."""

import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runner import __version__
from runner.config.checks import known_keys, nearest_key
from runner.config.options import GROUPS, OVERLAYS, option_names
from runner.errors import ConfigError
from runner.terminal.arguments import Parser

_REFUSED = {
    "--experimental-rerun": ("would execute code from a pickle file", "the command of that run"),
    "--config-path": ("would replace every option file", "--config-dir DIR adds option files"),
    "--config-name": ("would replace the baseline", "--config-dir DIR adds option files"),
    "--package": ("would print a part of the configuration", "--cfg job"),
    "--info": ("would describe Hydra", "--cfg hydra"),
    "--hydra-help": ("would describe Hydra", "--help"),
    "--shell-completion": ("is Hydra's", "docs/completion.md has another way"),
    "--detach": ("belongs to sweeps on Slurm", "python -m runner.train -m --detach …"),
    "--run": ("is what happens anyway", "leave it out"),
}
"""Options of programs that use Hydra, each with a reason and a way out. None of them exists here:
to check for an option after Hydra has parsed it would depend on every spelling of it."""


_SWITCH = 2  # options of a group that is on or off; several such groups share a line
_NO_BREAK = "\N{NO-BREAK SPACE}"
_WIDTH = 80


class KeysParser(Parser):
    """Knows that an option that does not exist is perhaps a key or a group of the configuration."""

    def unknown_option(self, option: str, following: Sequence[str]) -> ConfigError:
        """Return the error for an unknown option, which may have been meant as a key or group."""
        name, separator, value = option.partition("=")
        refused = [known for known in _REFUSED if known not in self.options()]
        full = next((known for known in refused if known.startswith(name)), None)
        if full is not None and len(name) > 3:
            reason, fix = _REFUSED[full]
            return ConfigError(f"{full} {reason}: there is no such option", where=option, fix=fix)
        key = name.lstrip("-").replace("-", "_")
        meant = self.meant(key)
        if not name.startswith("--") or meant is None:
            return super().unknown_option(option, following)
        if not separator:
            value = following[0] if following and "=" not in following[0] else "VALUE"
        return ConfigError(
            f"no such option: {name}; keys are set as KEY=VALUE",
            where=f"{option} {value}" if not separator and value != "VALUE" else option,
            fix=shlex.quote(f"{meant}={value}"),
        )

    def meant(self, key: str) -> str | None:
        """Return the words before ``=`` that someone who typed ``--KEY`` probably meant, if any."""
        if key in OVERLAYS:
            return f"+{key}"
        if key in GROUPS or key in known_keys():
            return key
        guess = nearest_key(key)
        return f"+{guess}" if guess in OVERLAYS else guess


class WordsParser(KeysParser):
    """Parses options around the words of a configuration.

    Args:
        prog: how the command was called.
        can_sweep: whether the command takes ``-m``; then it takes ``--detach`` as well.
    """

    def __init__(self, prog: str, *, can_sweep: bool = True) -> None:
        super().__init__(prog=prog, add_help=False)
        self.add_argument("words", nargs="*")
        self.add_argument("--help", "-h", action="store_true")
        self.add_argument("--version", action="version", version=f"trick-runner {__version__}")
        self.add_argument("--multirun", "-m", action="store_true")
        self.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
        self.add_argument("--resolve", action="store_true")
        self.add_argument("--config-dir", "-cd", type=Path, metavar="DIR")
        self.set_defaults(detach=False)
        if can_sweep:
            self.add_argument("--detach", action="store_true")


@dataclass(frozen=True)
class Usage:
    """What ``--help`` says of a command that takes a configuration.

    Attributes:
        summary: one sentence on what the command does.
        examples: words, and what they do.
        can_sweep: whether the command takes ``-m``.
        notes: the last paragraphs.
    """

    summary: str
    examples: Sequence[tuple[str, str]]
    can_sweep: bool
    notes: str

    def text(self, called: str, folder: Path | None) -> str:
        """Return the whole text.

        Args:
            called: how the command was called.
            folder: with option files of the user's own; None if there is none.
        """
        width = max(len(words) for words, _ in self.examples)
        lines = [*textwrap.wrap(self.summary, _WIDTH), ""]
        lines += [f"  {called} {words:<{width}}  {what}" for words, what in self.examples]
        lines += ["", "Groups, chosen as GROUP=OPTION", ""]
        switches = list[str]()
        for group in GROUPS:
            found = {*option_names(group)}
            if folder is not None:
                found |= {path.stem for path in (folder / group).glob("*.yaml")}
            plus = "+" if group in OVERLAYS else ""
            line = f"{plus}{group}: {', '.join(sorted(found))}"
            if len(found) == _SWITCH:
                switches.append(line)
            else:
                lines += _wrapped(line)
        whole = "; ".join(line.replace(" ", _NO_BREAK) for line in switches)
        lines += [line.replace(_NO_BREAK, " ") for line in _wrapped(whole)]
        keys = [line for line in _KEYS if self.can_sweep or not line.startswith(_OF_SWEEPS)]
        return "\n".join([*lines, "", *keys, "", self.notes])


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(
        line, _WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False
    )


_KEYS = [
    "Keys, set as KEY=VALUE: seed, device, precision, threads, outputs, force, code,",
    "and those of each group, such as optim.lr=1e-3 budget.epochs=20 resize.size=64",
    "  --help GROUP     its keys and options with their meanings; also --help KEY",
    "  --cfg job        print the whole configuration of a command, without running",
    "  -m               run every combination of comma-separated values",
    "  --detach         with -m on Slurm: submit the jobs and end; see runner.show",
    "  --config-dir DIR add your own options: DIR/mixup/mine.yaml is mixup=mine",
]
_OF_SWEEPS = ("  -m ", "  --detach ")
EXIT_CODES = """\
Exit codes: 0 done, 2 usage, 3 data, 4 storage or network, 5 training failed,
6 sweep with failed jobs, 7 file refused, 75 run owned by another process,
129 terminal closed, 130 interrupted, 143 terminated."""
