"""Words of a command as a user can paste them: quoted for the shell, and for Hydra inside."""

import re
import shlex

# What Hydra's grammar reads as text without quotes: no number, and no word with a meaning.
_PLAIN = re.compile(r"(?!(true|false|null|nan|inf)$)[A-Za-z/_.][\w/.-]*", re.ASCII | re.IGNORECASE)


def override(key: str, value: object) -> str:
    """Write ``key=value`` for the command line of a training, with any characters in ``value``."""
    text = str(value)
    if not _PLAIN.fullmatch(text):
        # A backslash counts only before a quote; those before the closing one are doubled.
        inner = re.sub(r"(\\*)'", r"\1\1\\'", text)
        inner = re.sub(r"(\\+)$", r"\1\1", inner)
        text = f"'{inner}'"
    return shlex.quote(f"{key}={text}")
