"""Words of the command line, changed by chance: a configuration, or one error with its reason.

Whatever is typed, the composing border raises nothing else, ends, writes nothing and runs nothing.
``-s`` prints the counts.
"""

import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from runner.config import checks, compose
from runner.config.complaints import translated
from runner.config.options import GROUPS, OVERLAYS, option_names
from runner.config.overrides import checked_words
from runner.errors import RunnerError
from runner.terminal.usage import WordsParser

KEYS = [*checks.known_keys(), *GROUPS, "hydra/launcher", "hydra.launcher.n_jobs", "hydra", "a.b"]
VALUES = [
    "1", "-1", "0.5", "1e3", "1_000", "nan", "-inf", "1e999", "null", "true", "on", "", "none", "x",
    "[1,2]", "[[1],[2]]", "{a: 1}", "{_target_: os.getcwd}", "1,2,3", "range(3)", "range(0,1,0.1)",
    "choice(1,2)", "glob(*)", "sort(2,1)", "shuffle(range(3))", "int(1.5)", "str(1)",
    "interval(0,1)",
    "tag(a,1)", "json_str({a:1})", "${seed}", "${oc.env:HOME}", "${hydra:runtime.cwd}", "${a.b}",
    "${outputs}", "'${seed}'", "???", "'a b'", '"a b"', "a\\,b", "/etc/passwd", "../x", "~/x",
    "żółw", "😀", "\ud800", "a\x00b", "\x1b[31m", "\u202e",
    "a" * 10_000, "9" * 400, "[" * 40 + "]" * 40,
    "{a:" * 40 + "1" + "}" * 40, "(" * 50, "${" * 30, "'" * 51, "\\" * 51, "%s%n", "`id`",
    "$(id)", "\n",
]  # fmt: skip
OPTIONS = ["-m", "--cfg", "job", "--cfg=all", "--resolve", "--config-dir", "nowhere", "--exp",
           "--", "-cd", "-c", "--help=1", "-", "--epochs", "--epochs=1", "--no-such",
           "-x", "-mx"]  # fmt: skip
SYMBOLS = "=,.:;@+~-_/\\'\"[]{}()$#%&*!?|<> \t\n\x00aA0é😀"
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.system", "subprocess.Popen", "os.exec",
          "os.posix_spawn", "pickle.find_class", "import"}  # fmt: skip


def word(draw: random.Random) -> str:
    """A word: mostly near to a right one, sometimes anything."""
    key = draw.choice(KEYS)
    if key in GROUPS and draw.random() < 0.6:
        value = draw.choice(option_names(key))
    else:
        value = draw.choice(VALUES)
    sign = (
        "+"
        if key in OVERLAYS and draw.random() < 0.8
        else draw.choice(["", "", "", "+", "++", "~"])
    )
    text = f"{sign}{key}={value}"
    for _ in range(draw.choice([0, 0, 0, 1, 2, 5])):
        place = draw.randrange(len(text) + 1)
        change = draw.choice(["insert", "cut", "double", "value"])
        if change == "insert":
            text = text[:place] + draw.choice(SYMBOLS) + text[place:]
        elif change == "cut":
            text = text[:place] + text[place + 1 :]
        elif change == "double":
            text += text[place : place + 20]
        else:
            text = text[:place] + draw.choice(VALUES) + text[place:]
    return text


def outcome(words: Sequence[str]) -> str:
    """What becomes of ``words`` in every mode: how the composing ends.

    Raises:
        Exception: anything but an error of ours.
    """
    try:
        arguments = WordsParser("train").parse_intermixed_args(words)
        checked = checked_words(arguments.words)
        with compose.opened():
            composed = compose.composed(checked, is_sweep=arguments.multirun)
            compose.run_config(composed)
        if arguments.multirun:
            compose.jobs(arguments.words)
    except SystemExit as end:
        return "usage" if end.code == 2 else f"exit {end.code}"
    except Exception as error:
        known = error if isinstance(error, RunnerError) else translated(error)
        if known is None:
            raise
        assert known.exit_code == 2
        assert known.what.strip()
        return "refused"
    return "configuration"


def fuzz(seconds: float, seed: int, capsys: pytest.CaptureFixture[str]) -> Counter[str]:
    """The counts of outcomes after so many seconds."""
    compose.register()
    outcome(["seed=1"])  # what is imported once
    touched: list[tuple[str, str]] = []
    is_on = True

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if is_on and event in EVENTS:
            is_read = event == "open" and not (
                isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
            )
            if not is_read and event != "import":
                touched.append((event, str(arguments[0])))

    sys.addaudithook(hear)  # cannot be removed, so it is turned off below
    draw = random.Random(seed)  # noqa: S311
    counts = Counter[str]()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        words = [word(draw) for _ in range(draw.choice([1, 1, 1, 2, 3]))]
        words = [each.replace("\x00", "") if draw.random() < 0.9 else each for each in words]
        if draw.random() < 0.2:
            words.insert(draw.randrange(len(words) + 1), draw.choice(OPTIONS))
        before = time.monotonic()
        try:
            counts[outcome(words)] += 1
        except Exception as error:
            is_on = False
            raise AssertionError(f"{words!r}: {error!r}") from error
        assert time.monotonic() - before < 20, words
        assert not touched, (words, touched)
    is_on = False
    capsys.readouterr()
    with capsys.disabled():
        print(f"\n{sum(counts.values()):,} command lines, seed {seed}: {dict(counts)}")
    return counts


@pytest.mark.parametrize(
    ("seconds", "seed"),
    [
        (3, 0),
        pytest.param(10, 142074, marks=pytest.mark.whole, id="a-while"),
        pytest.param(240, time.time_ns() % 10**6 + 1, marks=pytest.mark.slow, id="long"),
    ],
)
def test_words_are_a_configuration_or_an_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: float,
    seed: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = dict(os.environ)
    counts = fuzz(seconds, seed, capsys)
    assert {*counts} <= {"refused", "usage", "configuration"}
    assert counts["refused"] > 0
    assert list(tmp_path.iterdir()) == []
    assert dict(os.environ) == environment
