"""Write the page of the configuration: ``python -m scripts.configuration_page``.

Every group, key, option, overlay and launcher, from the schema and ``conf/``. A test compares the
page with what this script writes.
"""

from pathlib import Path

from runner.config.describe import (
    Key,
    Option,
    group_keys,
    group_options,
    group_summary,
    launchers,
    top_keys,
)
from runner.config.options import GROUPS, OVERLAYS
from runner.config.schema import RunConfig

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "configuration.md"
_HEAD = """\
# Configuration

Every group, key and option, written by `python -m scripts.configuration_page` from
`runner/config/` and `conf/`. `python -m runner.train --help GROUP` says the same in the terminal.

A word chooses an option, `mixup=beta`, or sets a key, `mixup.alpha=0.2`. A key that you set beats
the option that you choose, and both beat an overlay such as `+trick=mixup`.
`python -m runner.train +trick=mixup --cfg job` prints the whole configuration. Options of your own
are files in a folder: `DIR/mixup/gentle.yaml` is `--config-dir DIR mixup=gentle`. In a sweep
(`-m`), values separated by commas are combined. Defaults are neutral: they leave the training as it
is without the key.
"""


def page() -> str:
    """The whole page."""
    parts = [_HEAD, "## Keys without a group\n", _keys(top_keys())]
    parts += ["## Overlays\n"]
    for overlay in OVERLAYS:
        parts += [
            f"### +{overlay}\n",
            f"{group_summary(overlay)}\n",
            _options(group_options(overlay)),
        ]
    parts += ["## Groups\n"]
    for group in [name for name in RunConfig().groups if name in GROUPS]:
        parts += [f"### {group}\n", f"{group_summary(group)}{_tricks(group)}\n"]
        parts += [_keys(group_keys(group)), _options(group_options(group))]
    for group in [name for name in RunConfig().groups if name not in GROUPS]:
        parts += [f"### {group}\n", f"{group_summary(group)}\n", _keys(group_keys(group))]
    parts += [
        "## Launchers of sweeps\n",
        "[Sweeps](sweeps.md) explains them.\n",
        _options(launchers()),
    ]
    return "\n".join(parts)


def _tricks(group: str) -> str:
    """Links to the pages of the tricks that a group turns on."""
    names = [
        option.words.partition("=")[2]
        for option in group_options("trick")
        if any(word.startswith((f"{group}=", f"{group}.")) for word in option.sets)
    ]
    pages = [name for name in names if (ROOT / "docs" / "tricks" / f"{name}.md").is_file()]
    links = ", ".join(f"[{name}](tricks/{name}.md)" for name in pages)
    return f" See {links}." if links else ""


def _keys(keys: list[Key]) -> str:
    rows = [
        _row(f"`{key.name}`", f"`{key.default}`", _kind(key), _cell(key.meaning)) for key in keys
    ]
    return _table("key", "default", "type and range", "meaning", rows=rows)


def _kind(key: Key) -> str:
    return _cell(", ".join(filter(None, [key.kind, key.limits])))


def _options(options: list[Option]) -> str:
    rows = [
        _row(f"`{one.words}`", _cell(one.meaning), " ".join(f"`{word}`" for word in one.sets))
        for one in options
    ]
    return _table("option", "what it is", "sets", rows=rows)


def _table(*columns: str, rows: list[str]) -> str:
    return "\n".join([_row(*columns), "|" + "---|" * len(columns), *rows, ""])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())
    print(PAGE)


if __name__ == "__main__":
    main()
