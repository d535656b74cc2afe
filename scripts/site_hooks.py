"""Hooks of mkdocs: the pages link to files of the repository, which are not part of the site.

On a page of the site, such a link becomes its text. A link to a file that does not exist fails the
build, as a broken link between pages does.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace links that leave the documentation by their text.

    Raises:
        PluginError: such a link leads to no file.
    """
    return without_outer_links(markdown, Path(page.file.abs_src_path))


def without_outer_links(markdown: str, source: Path) -> str:
    """Return ``markdown`` of the page ``source`` without its links to files outside ``docs/``.

    Raises:
        PluginError: such a link leads to no file of the repository.
    """

    def replaced(link: re.Match[str]) -> str:
        target = link["target"]
        path = (source.parent / target).resolve()
        if "://" in target or path.is_relative_to(ROOT / "docs"):
            return link[0]
        if not path.exists() or not path.is_relative_to(ROOT):
            raise PluginError(f"{source.relative_to(ROOT)}: no such file: {target}")
        return link["text"]

    return _LINK.sub(replaced, markdown)
