"""Idea files as they are read: what is refused, with its line, before anything of them runs."""

import inspect
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from runner.config.idea import SEAMS, blamed, read_idea
from runner.errors import ConfigError
from runner.tricks.idea import Idea

LOSS = "def loss(logits, targets):\n    return logits.sum()\n"


def write(folder: Path, text: str | bytes, name: str = "my_idea.py") -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def refused(folder: Path, text: str | bytes) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read_idea(write(folder, text))
    assert caught.value.where == f"code={folder / 'my_idea.py'}"
    assert caught.value.fix
    return caught.value


def test_a_file_is_read_with_its_hash_and_its_functions(tmp_path: Path) -> None:
    text = (
        f"import torch\nfrom torch import nn\n\nSIDE = 3\n\ndef _help(x):\n    return x\n\n{LOSS}"
    )
    text += "\nclass Head(nn.Module):\n    def images(self):\n        pass\n"
    text += "\ndef images(images, generator, progress=0.0):\n    return images\n"
    found = read_idea(write(tmp_path, text))
    assert found.lines == {"images": 16, "loss": 9}  # in the order in which they act
    assert found.content == text.encode()
    # As sha256sum says.
    other = read_idea(write(tmp_path, LOSS, "b.py"))
    assert other.sha256 == "d4eb005d2717aad478a7c47fdf7e5798a4ede6995c60edc3c311d2df29102a0a"
    assert other.facts == {"file": "b.py", "sha256": other.sha256, "functions": ["loss"]}
    assert other.place("loss") == "b.py:1, in loss"


def test_nothing_of_it_runs(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    read_idea(write(tmp_path, f"open({str(canary)!r}, 'w')\n{LOSS}"))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("", "none of the functions", "def loss(logits, targets):"),
        ("def _loss(logits, targets): pass", "none of the functions", "def loss("),
        ("import os\n\ndef image(images): pass", "my_idea.py:3: unknown function image (did you",
         "the functions are images, targets, loss"),
        (f"{LOSS}\ndef helper(x): pass", "my_idea.py:4: unknown function helper", "starts with _"),
        ("def loss(logits, y): pass", "my_idea.py:1: loss takes (logits, targets), not (logits, y)",
         "def loss(logits, targets):"),
        ("def loss(targets, logits): pass", "not (targets, logits)", "def loss("),
        ("def loss(logits): pass", "not (logits)", "def loss("),
        ("def loss(logits, targets, *more): pass", "not (logits, targets, *more)", "def loss("),
        ("def loss(logits, *, targets): pass", "not (logits, *, targets)", "def loss("),
        ("async def loss(logits, targets): pass", "must be a plain function", "def loss("),
        (f"{LOSS}\nmodel = 3", "my_idea.py:4: model is not a function", "def model(model):"),
        (f"{LOSS}\nfrom torch import optim as optimizer", "optimizer is not a function", "def opt"),
        (f"{LOSS}\nclass images: pass", "images is not a function", "def images("),
        ("if True:\n    def loss(logits, targets): pass", "loss is not a function", "def loss"),
        ("\ndef loss(logits, targets:\n", "my_idea.py:2: ", "a file that Python accepts"),
        (f"{LOSS}\nreturn 3", "my_idea.py:4: 'return' outside function", "accepts"),
        (b"def loss(logits, targets): '\xff'", "my_idea.py", "accepts"),
        (b"\0", "null", "accepts"),
        (f"{LOSS}#{'x' * 2**20}", "more than 1,048,576", "the functions alone"),
        (f"from . import helper\n{LOSS}", "my_idea.py:1: imports .", "put what"),
        (f"import near.part\n{LOSS}", "my_idea.py:1: imports near.part", "put what my_idea.py"),
        (f"def _f():\n    from near import x\n{LOSS}", "my_idea.py:2: imports near", "put what"),
        (f"from folder.part import x\n{LOSS}", "my_idea.py:1: imports folder.part", "put what"),
        (f"import built\n{LOSS}", "my_idea.py:1: imports built", "put what"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, text: str | bytes, what: str, fix: str) -> None:
    (tmp_path / "near.py").touch()
    (tmp_path / "folder").mkdir()  # Python imports from folders without __init__.py, too
    (tmp_path / f"built{EXTENSION_SUFFIXES[0]}").touch()
    error = refused(tmp_path, text)
    assert what in error.what
    assert fix in error.fix


def test_a_check_of_a_file_warns_of_nothing(tmp_path: Path) -> None:
    file = tmp_path / "my_idea.py"
    file.write_text(f"PATTERN = '\\d'\n{LOSS}")
    read_idea(str(file))  # warnings are errors here


def test_names_inside_of_a_comprehension_are_its_own(tmp_path: Path) -> None:
    file = tmp_path / "my_idea.py"
    file.write_text(f"SQUARES = [images**2 for images in range(3)]\n{LOSS}")
    assert list(read_idea(str(file)).lines) == ["loss"]


def test_a_message_names_the_word_that_named_the_file(tmp_path: Path) -> None:
    for word in ("code=", "--code "):
        with pytest.raises(ConfigError) as caught:
            read_idea(str(tmp_path / "none.py"), word)
        assert caught.value.where == f"{word}{tmp_path / 'none.py'}"
        assert caught.value.fix.startswith(f"{word}FILE")


def test_all_problems_are_told_in_the_order_of_their_lines(tmp_path: Path) -> None:
    error = refused(
        tmp_path, "def los(logits, targets): pass\ndef images(image): pass\nmodel = 1\n"
    )
    lines = error.what.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"my_idea.py:{n}" for n in (1, 2, 3)]


@pytest.mark.parametrize("name", ["nowhere.py", "", ".", "folder", "null\0"])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="cannot read the file"):
        read_idea(str(tmp_path / name) if name else name)


def test_each_function_is_a_method_with_its_meaning() -> None:
    for name, seam in SEAMS.items():
        method = getattr(Idea, name)
        # Without what the program itself gives, as the loss to take where the file has none.
        own = {"self", "ours"}
        parameters = [each for each in inspect.signature(method).parameters if each not in own]
        assert tuple(each.replace("keyed", "generator") for each in parameters) == seam.parameters
        assert inspect.getdoc(method)


def test_other_errors_are_nobody_s() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        1 / 0  # noqa: B018
    assert blamed(caught.value) is None
