"""Words to paste: the shell and Hydra give back what was put in."""

import shlex

import pytest

from runner.terminal.pasted import override

VALUES = [
    "photos", "/a/b-c_d.e/f", "a b", "a,b", "it's", 'say "x"', "a=b", "[x]", "{y}", "50%", "#1",
    "1e3", "null", "true", "NaN", "~/x", "é", "żółw 🐢", "a\\b", "a\\", "a\\'b", "$HOME", "`x`",
    "a;b", "*", "(x)", "1.10", "a:b",
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_a_pasted_override_has_its_value(value, composed):
    (word,) = shlex.split(override("data.root", value))
    assert composed("data=folder", word).data.root == value
