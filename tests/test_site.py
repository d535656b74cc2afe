"""Links of the documents lead somewhere, and the site is built from pages without outside help."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from mkdocs.exceptions import PluginError

from scripts.site_hooks import without_outer_links

ROOT = Path(__file__).parent.parent
OUTSIDE_DOCS = [*ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
LOADED = re.compile(r"<(?:script|img|source|iframe)[^>]*(?:src|srcset)=\"?(https?:)?//|@import")
STYLED = re.compile(r"<link[^>]*rel=\"?(?:stylesheet|preconnect|preload)[^>]*(https?:)?//")


def broken_links(text: str, page: Path) -> list[str]:
    """The relative links of a page that lead to no file, or to no heading of it."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    links = [one or other for one, other in LINK.findall(prose)]
    return [link for link in links if "://" not in link and not leads_somewhere(link, page)]


def leads_somewhere(link: str, page: Path) -> bool:
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    if not target.exists():
        return False
    headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE) if anchor else []
    # As GitHub makes anchors of headings.
    anchors = {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}
    return not anchor or anchor in anchors


@pytest.mark.parametrize("page", OUTSIDE_DOCS, ids=lambda page: page.name)
def test_links_of_pages_that_mkdocs_does_not_see(page: Path) -> None:
    assert not broken_links(page.read_text(encoding="utf-8"), page)


def test_a_broken_link_is_found() -> None:
    text = (
        "[a](docs/data.md) [b](docs/none.md) [c](docs/statistics.md#none) [d](#the-tricks)\n"
        '[e](docs/sweeps.md#when-is-parallel-faster) <img src="docs/none.svg"> `[f](none)`\n'
    )
    found = broken_links(text, ROOT / "README.md")
    assert found == ["docs/none.md", "docs/statistics.md#none", "docs/none.svg"]


def test_links_to_files_of_the_repository_are_text_on_the_site() -> None:
    page = ROOT / "docs" / "speed.md"
    text = "[Notes](../benchmarks/NOTES.md#x), [GPU](gpu.md#a), [torch](https://pytorch.org)"
    found = without_outer_links(text, page)
    assert found == "Notes, [GPU](gpu.md#a), [torch](https://pytorch.org)"
    with pytest.raises(PluginError, match=r"docs/speed\.md: no such file: \.\./none\.md"):
        without_outer_links("[none](../none.md)", page)


def build(config: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Build a site as ``.ci/run`` does."""
    words = ["-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(target)]
    return subprocess.run([sys.executable, *words], capture_output=True, text=True)


@pytest.mark.whole
def test_the_site_asks_other_sites_for_nothing(tmp_path: Path) -> None:
    built = build(ROOT / "mkdocs.yml", tmp_path / "site")
    assert built.returncode == 0, built.stderr
    pages = [*(tmp_path / "site").rglob("*.html")]
    assert len(pages) > len([*(ROOT / "docs").rglob("*.md")])  # and the page of errors
    for page in pages:
        html = page.read_text(encoding="utf-8")
        assert not LOADED.search(html), page.name
        assert not STYLED.search(html), page.name
    assert LOADED.search('<script src="https://unpkg.com/x.js">')
    assert STYLED.search('<link rel="stylesheet" href="https://fonts.googleapis.com/css">')


@pytest.mark.whole
@pytest.mark.parametrize(
    ("link", "message"),
    [
        ("index.md#start", ""),
        ("none.md", "none.md"),
        ("index.md#none", "no such anchor"),
        ("/index.md", "absolute link"),
    ],
)
def test_a_broken_link_fails_the_build(tmp_path: Path, link: str, message: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Start\n\n[somewhere]({link})\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(
        f"INHERIT: {ROOT / 'mkdocs.yml'}\n"
        "docs_dir: docs\nhooks: []\nextra_css: []\nnav: [index.md]\n"
    )
    built = build(config, tmp_path / "site")
    assert built.returncode == (1 if message else 0), built.stderr
    assert message in built.stderr
