"""``compare --confirm-on test``: refused before a training, made once, and printed again."""

from pathlib import Path

import pytest
from small import Command

MODULE = "runner.compare"


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["--confirm-on", "test"], 3, "the data has no test part"),
        (["--confirm-on", "test", "--plan"], 3, "the data has no test part"),
        (["--confirm-on", "val"], 2, "--confirm-on test"),
    ],
)
def test_a_confirmation_without_test_images_is_refused_before_training(
    command: Command, tmp_path: Path, tiny_words: tuple[str, ...],
    words: list[str], code: int, what: str,
) -> None:  # fmt: skip
    done = command(*tiny_words, "--try", "mixup=beta", *words, module=MODULE)
    assert done.returncode == code
    assert what in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("outputs/*/run.json"))
    assert not list(tmp_path.glob("outputs/comparisons"))
