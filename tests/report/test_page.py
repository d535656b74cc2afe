"""The page in a real browser: what a reader sees, hears and presses, and what must not happen."""

import csv
import gzip
import hashlib
import io
import json
import os
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fabricated import write_comparison, write_run
from PIL import Image

from runner.config.schema import Data, Model, Normalize, Optim, Smoothing
from runner.report.answer import Answer, answer
from runner.report.comparison_words import verdict_line
from runner.report.found_comparisons import find_comparisons
from runner.report.page import comparison_page
from runner.report.page import page as render
from runner.report.runs import find_runs
from runner.report.scores import ScoreBook
from runner.terminal.console import printable

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Route

SEEDS = (0, 1, 2)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run",
)  # fmt: skip
SVG_TAGS = {"svg", "g", "defs", "path", "use", "text", "clipPath", "rect", "line", "circle"}
HOSTILE = (
    "<img src=x onerror=hacked=1>",
    "<script>hacked=1</script>",
    "</script><script>hacked=1</script>",
    "</svg><svg onload=hacked=1>",
    '" onmouseover="hacked=1',
    "' onfocus='hacked=1",
    "$x^2$",
    "{{ 7*7 }}",
    "</style><b>&amp;",
    "\x1b[31mred",
    "\u202egnp.exe",
)


# Pages -------------------------------------------------------------------------------------------


def evaluated(outputs: Path) -> Answer:
    book = ScoreBook(outputs / "report.npz")
    compared = find_comparisons([outputs], book)
    return answer(find_runs([outputs]), book, 0.005, comparisons=compared)


@dataclass(frozen=True)
class Made:
    """A page on disk, and the answer that it shows."""

    path: Path
    found: Answer

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")


def make(root: Path) -> Made:
    """The page of the runs below ``root / "outputs"``."""
    found = evaluated(root / "outputs")
    path = root / "page.html"
    path.write_text(render(found), encoding="utf-8")
    return Made(path, found)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Every verdict, a combination, one seed, unequal budgets, three groups, a series."""
    root = tmp_path_factory.mktemp("full")
    outputs = root / "outputs"

    def write(*tricks: str, accuracy: float, seed: int, **changes: Any) -> None:
        words = (f"+trick=[{','.join(tricks)}]", "data.root=/my images/it's ü", f"seed={seed}")
        changes = {"num_images": 1200, "words": words, **changes}
        write_run(outputs, *tricks, accuracy=accuracy, seed=seed, **changes)

    for seed in SEEDS:
        write(accuracy=0.7, seed=seed)
        write("normalize", accuracy=0.9, seed=seed)
        write("mixup", accuracy=0.5, seed=seed)
        write("tta", accuracy=0.7, seed=seed)  # the same predictions: no difference
        write("label_smoothing", accuracy=(0.70, 0.76, 0.69)[seed], seed=seed)
        write("mixup", "label_smoothing", accuracy=0.55, seed=seed)
        write("progressive_resizing", accuracy=0.6, seed=seed, pixels=540_000)
    write(accuracy=0.71, seed=0, smoothing=Smoothing(epsilon=0.3))
    for seed in SEEDS[:2]:
        write(accuracy=0.6, seed=seed, optim=Optim(lr=0.01))
        write("normalize", accuracy=0.62, seed=seed, optim=Optim(lr=0.01))
    many = tuple(f"class {number}" for number in range(21))
    for tricks in ((), ("normalize",)):
        write(*tricks, accuracy=0.5, seed=0, classes=many, fingerprint="e" * 64)
    for name in ("run 9", "run 10", "another"):
        write_run(outputs, seed=9, name=name, finish=False)
    (outputs / "notes").mkdir()
    return make(root)


def write_manifest(run: Path, names: list[str], contents: list[bytes]) -> None:
    """``split.csv.gz`` of a run whose validation images are these."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["split", "image", "label", "sha256"])
    for name, content in zip(names, contents, strict=True):
        writer.writerow(["val", name, "label", hashlib.sha256(content).hexdigest()])
    (run / "split.csv.gz").write_bytes(gzip.compress(text.getvalue().encode()))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Seven arms with three seeds of ten classes; the images are noise, the worst to shrink."""
    root = tmp_path_factory.mktemp("large")
    classes = tuple(f"class-{number}" for number in range(10))
    rng = np.random.default_rng(0)
    names, contents = [], []
    for number in range(60):
        name = f"val/{classes[number % 10]}/{number:02d}.png"
        for path in (root / "images" / name, root / "images" / name.replace("val", "train")):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (80, 96, 3), np.uint8)).save(path)
        names.append(name)
        contents.append((root / "images" / name).read_bytes())
    tricks = ("normalize", "progressive_resizing", "mixup", "label_smoothing", "tta")
    for combination in ((), *((trick,) for trick in tricks), ("mixup", "label_smoothing")):
        for seed in SEEDS:
            folder = write_run(
                root / "outputs", *combination, seed=seed, accuracy=0.7, classes=classes,
                data=Data(name="folder", root=str(root / "images")),
            )  # fmt: skip
            write_manifest(folder.path, names, contents)
    return make(root)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two comparisons, one of them ended, and single runs beside them."""
    root = tmp_path_factory.mktemp("compared")
    outputs = root / "outputs"
    write_comparison(
        outputs,
        {
            "mixup": (0.62, 0.61, 0.60, 0.63),
            "normalize": (0.80, 0.86, 0.82, 0.84),
            "tta": (0.90, 0.91, 0.905, 0.9),
            "progressive_resizing": ("the loss was not finite",) * 3,
            "the same again": (0.80, 0.82, 0.79, 0.80),
        },
        base=(0.8, 0.81, 0.79, 0.8),
        offsets={"the same again": 100},
    )
    write_comparison(
        outputs, {"mixup+label_smoothing": [0.6] * 3}, base=(0.8, 0.81, 0.79), name="ended",
        max_seeds=3,
    )  # fmt: skip
    for seed in SEEDS:
        write_run(outputs, "label_smoothing", seed=seed, accuracy=0.7, num_images=400)
    return make(root)


def write_named(root: Path, names: tuple[str, ...]) -> Made:
    """Runs whose classes, images, tricks, model, command and notes are called ``names``."""
    outputs = root / "outputs"
    images = [f"{number}/{''.join(names)}" for number in range(3 * len(names))]
    for place, name in enumerate(("", *names)):
        folder = write_run(
            outputs, name=f"run{place}", classes=names, num_images=len(images), accuracy=0.5,
            normalize=Normalize(mean=((1 + place) / 100,) * 3), model=Model(name=names[0]),
            words=(f"data.root={name}", "seed=0"),
        )  # fmt: skip
        write_manifest(folder.path, images, [b""] * len(images))
        result = folder.path / "result.json"
        content = json.loads(result.read_text())
        content["tricks"] = [name] if name else []
        content["environment"]["device"] = name or "cpu"
        result.write_text(json.dumps(content))
    for name in names:
        (outputs / name.replace("/", "∕")).mkdir()
    labels = {
        name if name.isprintable() else f"arm {place}": [name] * 3
        for place, name in enumerate(names)
    }  # a label is printable
    write_comparison(outputs, labels, base=[names[0]] * 3)
    killed = write_run(outputs, name="killed", seed=5, finish=False)
    killed.write_status("failed", reason=" ".join(names))
    return make(root)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return write_named(tmp_path_factory.mktemp("hostile"), HOSTILE)


# The browser -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[pytest.param("browser", marks=pytest.mark.whole)])
def browser() -> "Iterator[Browser]":
    """Chromium; tests are skipped without it, unless RUNNER_BROWSER says that it must be there."""
    give_up = pytest.fail if os.environ.get("RUNNER_BROWSER") else pytest.skip
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        give_up("needs Playwright: pip install playwright")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        give_up(f"needs one of {', '.join(BROWSERS)}")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield started
        started.close()


@dataclass
class Visit:
    """A page in the browser, what it complained of and what it asked for."""

    page: "Page"
    heard: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def table(self, caption: str) -> "Locator":
        """The first table with that caption."""
        return self.page.locator("table", has=self.page.locator("caption", has_text=caption)).first

    def unfold(self) -> None:
        self.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")


Open = Callable[..., Visit]


@pytest.fixture
def visit(browser: "Browser") -> Iterator[Open]:
    """Open a page; a complaint or a request fails the test, unless it is ``expected``."""
    quiet: list[tuple[Visit, str]] = []
    contexts = []

    def opened(path: Path, *, expected: bool = False, **options: Any) -> Visit:
        context = browser.new_context(**options)
        contexts.append(context)
        # Console, as pages without JavaScript have no listener for violations of the policy.
        found = Visit(context.new_page())
        found.page.on("console", lambda message: found.heard.append(message.text))
        found.page.on("pageerror", lambda error: found.heard.append(str(error)))
        context.on("request", lambda request: found.requests.append(request.url))
        address = path.as_uri()
        found.page.goto(address)
        if not expected:
            quiet.append((found, address))
        return found

    yield opened
    try:
        for found, address in quiet:
            assert found.heard == []
            assert [url for url in found.requests if not url.startswith("data:")] == [address]
    finally:
        for context in contexts:
            context.close()


# What is on it -----------------------------------------------------------------------------------


def test_page_of_runs_is_quiet_and_complete(visit: Open, full: Made) -> None:
    shown = visit(full.path)
    assert "Does it help?" in shown.page.title()
    verdicts = shown.page.locator(".verdicts").first.locator("li")
    assert verdicts.count() == len(full.found.groups[0].comparisons) == 7
    classes = {verdicts.nth(number).get_attribute("class") for number in range(7)}
    assert classes == {"helps", "hurts", "no-difference", "cannot-tell"}


def test_page_without_runs(visit: Open, tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    shown = visit(make(tmp_path).path)
    assert "There are no finished runs." in shown.page.locator("main").inner_text()


def test_comparisons_come_before_single_runs(visit: Open, compared: Made) -> None:
    shown = visit(compared.path)
    sections = shown.page.locator("main > section")
    ended, other = compared.found.comparisons
    assert (ended.is_ended, other.is_ended) == (True, False)
    titles = sections.locator("h2").all_inner_texts()
    assert titles[0].startswith("comparison ended: 1 arm against the baseline, up to 3 seeds")
    assert titles[1].startswith("comparison question (not ended): 5 arms")
    assert "folder" in titles[2]
    assert shown.page.title() == f"Does it help? {titles[0]}"
    section = sections.nth(1)
    assert section.evaluate("s => s.querySelector('figure, ul, table, details, h3').tagName") == (
        "FIGURE"
    )
    lines = section.locator(".verdicts li")
    for place, one in enumerate(other.standings):
        assert verdict_line(one, 0.01) in lines.nth(place).inner_text()
    assert [lines.nth(place).get_attribute("class") for place in (0, 1, 3)] == [
        "hurts", "cannot-tell", "failed",
    ]  # fmt: skip
    shown.unfold()
    rows = section.locator("table", has_text="every look, with").locator("tbody tr")
    assert rows.count() == len(other.looks)
    forest = section.locator("figure [aria-label^='Forest plot'] .wide svg").first
    drawn = " ".join(forest.locator("text").all_text_contents())
    for one in other.standings:
        assert (one.label in drawn) == (one.mean is not None)
    assert section.locator("h3").all_inner_texts() == [
        "Verdicts", "The price", "Look by look", "Who is ahead when",
        "Can the confidence be trusted?", "What is taken for what", "Class by class",
        "Misclassified images", "Seed by seed", "Runs, and how to repeat them",
    ]  # fmt: skip
    assert [row.label for row in compared.found.groups[0].rows] == ["baseline", "label_smoothing"]


def test_page_of_one_comparison(visit: Open, compared: Made) -> None:
    path = compared.path.with_name("one.html")
    ended, group = compared.found.comparisons[0], compared.found.compared_runs[0]
    assert group is not None
    path.write_text(comparison_page(ended, group), encoding="utf-8")
    shown = visit(path)
    assert shown.page.locator("main > section > h2").count() == 2
    assert "Who is ahead when" in shown.page.locator("h3").all_inner_texts()
    path.write_text(comparison_page(ended, None), encoding="utf-8")
    assert "Who is ahead when" not in visit(path).page.locator("h3").all_inner_texts()


def test_forest_comes_first_then_the_rest_in_order(visit: Open, full: Made) -> None:
    shown = visit(full.path)
    section = shown.page.locator("main > section").first
    assert section.evaluate("s => s.querySelector('figure, ul, table, details, h3').tagName") == (
        "FIGURE"
    )
    label = section.locator("figure [role=img]").first.get_attribute("aria-label")
    assert label is not None
    assert label.startswith("Forest plot")
    assert section.locator("h3").all_inner_texts() == [
        "Verdicts",
        "Inside combinations",
        "One yardstick, and the price",
        "Who is ahead when",
        "Can the confidence be trusted?",
        "What is taken for what",
        "Class by class",
        "Misclassified images",
        "Seed by seed",
        "Runs, and how to repeat them",
    ]
    assert shown.page.locator("main > section > h2").all_inner_texts()[-2:] == [
        "Not compared",
        "How to read this",
    ]


@pytest.mark.parametrize(("width", "drawing"), [(1200, ".wide svg"), (390, ".narrow svg")])
def test_forest_has_a_line_and_a_mark_per_comparison(
    visit: Open, full: Made, width: int, drawing: str
) -> None:
    shown = visit(full.path, viewport={"width": width, "height": 800})
    section, group = shown.page.locator("main > section").first, full.found.groups[0]
    for place, compared in enumerate((group.comparisons, group.contributions)):
        forest = section.locator(f"figure [aria-label^='Forest plot'] {drawing}").nth(place)
        assert forest.is_visible()
        # A long label has two lines, each a text of its own.
        said, at = " ".join(forest.locator("text").all_text_contents()), 0
        for one in compared:
            assert one.label in said[at:]
            at = said.index(one.label, at) + len(one.label)
        colour = shown.page.evaluate("getComputedStyle(document.body).color")
        marks = forest.evaluate(
            """(svg, ink) => [...svg.querySelectorAll("use, circle")]
            .filter(mark => getComputedStyle(mark).fill === ink)
            .map(mark => mark.getBoundingClientRect())
            .filter(box => box.width > 3 && box.height > 3)
            .map(box => [box.x + box.width / 2, box.y + box.height / 2])
            .sort((a, b) => a[1] - b[1])""",
            colour,
        )
        assert len(marks) == len(compared)
        means = [one.found.mean for one in compared]
        # From left to right as from the worst to the best, and to scale.
        x = [mark[0] for mark in marks]
        slope, start = np.polyfit(means, x, 1) if len(set(means)) > 1 else (1.0, x[0])
        assert slope > 0
        np.testing.assert_allclose(x, start + slope * np.array(means), atol=1)
        box = forest.bounding_box()
        assert box is not None
        assert all(box["x"] <= one <= box["x"] + box["width"] for one in x)


def test_commands_are_those_of_the_runs(visit: Open, full: Made) -> None:
    shown = visit(full.path)
    for place, group in enumerate(full.found.groups):
        section = shown.page.locator("main > section").nth(place)
        told = [shlex.split(text) for text in section.locator("td code").all_text_contents()]
        assert told == [
            list(run.command) for arm in group.group.arms for _, run in sorted(arm.runs.items())
        ]
        more = section.locator(".verdicts pre code").all_text_contents()
        assert more == [runs.command for one in group.comparisons for runs in one.more]
        assert all("data.root=/my images/it's ü" in shlex.split(words) for words in more)
    assert shown.page.locator(".verdicts pre code").count() > 0


def test_size(large: Made) -> None:
    assert large.text.count("data:image/jpeg;base64,") == 36
    assert large.path.stat().st_size < 800_000


def test_thumbnails_are_small_and_named(visit: Open, large: Made) -> None:
    images = visit(large.path).page.locator("img")
    assert images.count() == 36
    for image in images.all():
        assert image.evaluate("i => i.complete && Math.max(i.naturalWidth, i.naturalHeight)") == 72
        alt = image.get_attribute("alt") or ""
        assert re.fullmatch(r"class-(\d), taken for class-(?!\1)\d", alt)


# Misclassified images ----------------------------------------------------------------------------


def misclassified(shown: Visit) -> "Locator":
    return shown.page.locator(".images-by").first


def visible(block: "Locator") -> list[tuple[str, str]]:
    """Label and counts by arm of the images that are visible."""
    items = block.locator("li").filter(visible=True)
    return items.evaluate_all("lis => lis.map(li => [li.dataset.label, li.dataset.arms])")  # type: ignore[no-any-return]


def test_images_are_filtered_by_label_and_arm(visit: Open, large: Made) -> None:
    shown = visit(large.path)
    block = misclassified(shown)
    everything = visible(block)
    assert len(everything) == 36
    assert block.get_by_role("status").inner_text() == "36 of 36 images"

    block.locator("[data-by=label]").select_option("class-3")
    of_class = visible(block)
    assert of_class == [one for one in everything if one[0] == "class-3"]
    assert 0 < len(of_class) < 36

    arms = [arm.label for arm in large.found.groups[0].group.arms]
    names = block.locator("[data-by=arm]").locator("option").all_inner_texts()
    assert names == ["any", *arms]
    place = arms.index("mixup")
    block.locator("[data-by=arm]").select_option("mixup")
    both = visible(block)
    expected = [one for one in of_class if not one[1].split()[place].startswith("0/")]
    assert sorted(both) == sorted(expected)
    block.locator("[data-by=label]").select_option("")
    of_arm = visible(block)
    expected = [one for one in everything if not one[1].split()[place].startswith("0/")]
    assert sorted(of_arm) == sorted(expected)
    assert len(both) < len(of_arm) < 36
    # First those that other arms get right.
    shares = [[share_of(one) for one in counts.split()] for _, counts in of_arm]
    excess = [share[place] - fmean(share) for share in shares]
    assert excess == pytest.approx(sorted(excess, reverse=True))
    assert excess[0] > 0 > excess[-1]
    status = block.get_by_role("status").inner_text()
    assert status == f"{len(of_arm)} of 36 images, first those that other runs get right"
    said = block.locator("li").filter(visible=True).first.inner_text()
    assert f"here wrong in {of_arm[0][1].split()[place].replace('/', ' of ')}" in said
    block.locator("[data-by=arm]").select_option("any")
    assert visible(block) == everything


def share_of(text: str) -> float:
    wrong, runs = text.split("/")
    return int(wrong) / int(runs)


def test_counts_by_arm_are_those_of_the_runs(large: Made) -> None:
    group = large.found.groups[0].group
    shown = re.findall(r'<li data-label="([^"]+)" data-arms="([^"]+)"', large.text)
    names = re.findall(r'<span class="path">([^<]+)</span>', large.text)[: len(shown)]
    manifest = gzip.decompress((group.any_run.path / "split.csv.gz").read_bytes()).decode()
    rows = [row["image"] for row in csv.DictReader(io.StringIO(manifest))]
    for name, (_, counts) in zip(names, shown, strict=True):
        row = rows.index(name)
        expected = []
        for arm in group.arms:
            found = [run.predictions() for run in arm.runs.values()]
            wrong = sum(int(one.views[arm.view][row].argmax() != one.labels[row]) for one in found)
            expected.append(f"{wrong}/{len(found)}")
        assert counts.split() == expected


def test_images_are_filtered_by_keyboard_on_a_dark_phone(visit: Open, large: Made) -> None:
    shown = visit(
        large.path, viewport={"width": 390, "height": 800}, color_scheme="dark", has_touch=True
    )
    block = misclassified(shown)
    select = block.locator("[data-by=label]")
    select.focus()
    shown.page.keyboard.press("ArrowDown")
    shown.page.keyboard.press("Enter")
    assert {label for label, _ in visible(block)} == {"class-0"}
    for control in block.locator("select").all():
        box = control.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert box["height"] >= 24  # WCAG 2.2, 2.5.8
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_without_javascript_all_images_are_shown_and_no_filter(visit: Open, large: Made) -> None:
    block = misclassified(visit(large.path, java_script_enabled=False))
    assert block.locator("li").filter(visible=True).count() == 36
    assert not block.locator("select").first.is_visible()


# Figures of runs ---------------------------------------------------------------------------------


def test_figures_that_exist_are_linked(visit: Open, tmp_path: Path) -> None:
    outputs = tmp_path / "out puts#1"
    for seed in SEEDS[:2]:
        folder = write_run(outputs, seed=seed)
    (folder.path / "figures").mkdir()
    for name in ("curves.svg", "gradcam.png", "other.svg"):
        (folder.path / "figures" / name).write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    book = ScoreBook(outputs / "report.npz")
    found = answer(find_runs([outputs]), book, 0.005)
    (tmp_path / "pages").mkdir()
    path = tmp_path / "pages" / "page.html"
    path.write_text(render(found, path.parent), encoding="utf-8")
    shown = visit(path)
    shown.unfold()
    links = shown.page.locator("td.path a")
    assert links.all_inner_texts() == ["curves", "gradcam"]
    addresses = links.evaluate_all("links => links.map(a => [a.getAttribute('href'), a.href])")
    for name, (written, followed) in zip(("curves.svg", "gradcam.png"), addresses, strict=True):
        assert written.startswith("../out%20puts%231/")
        assert followed == (folder.path / "figures" / name).as_uri()
    # A page that is printed has no place: its links name the files of this machine.
    assert f'href="{(folder.path / "figures" / "curves.svg").as_uri()}"' in render(found)


# Sorting -----------------------------------------------------------------------------------------


def column(table: "Locator", name: str) -> list[str]:
    heads = [text.split(" ↕")[0].strip() for text in table.locator("thead th").all_inner_texts()]
    place = heads.index(name) + 1
    return [
        text.strip() for text in table.locator(f"tbody tr > :nth-child({place})").all_inner_texts()
    ]


def press(table: "Locator", name: str) -> str | None:
    head = table.locator("thead th").filter(has=table.page.get_by_role("button", name=name))
    head.get_by_role("button", name=name, exact=True).click()
    return head.get_attribute("aria-sort")


def test_sorting_by_number_keeps_empty_cells_last(visit: Open, full: Made) -> None:
    table = visit(full.path).table(full.found.groups[0].group.title)
    assert table.locator("[aria-sort]").count() == 0
    before = column(table, "points")
    numbers = sorted(float(cell) for cell in before if cell)
    assert before.count("") == 1
    assert press(table, "points") == "ascending"
    assert [float(cell) for cell in column(table, "points")[:-1]] == numbers
    assert column(table, "points")[-1] == ""
    assert press(table, "points") == "descending"
    assert [float(cell) for cell in column(table, "points")[:-1]] == numbers[::-1]
    assert column(table, "points")[-1] == ""


def test_sorting_moves_whole_rows(visit: Open, full: Made) -> None:
    table = visit(full.path).table(full.found.groups[0].group.title)
    rows = {tuple(row.split("\t")) for row in table.locator("tbody tr").all_inner_texts()}
    press(table, "points")
    assert {tuple(row.split("\t")) for row in table.locator("tbody tr").all_inner_texts()} == rows


def test_sorting_by_interval_goes_by_its_lower_end(visit: Open, full: Made) -> None:
    table = visit(full.path).table(full.found.groups[0].group.title)
    press(table, "over seeds and images")
    ends = [
        float(cell.strip("[]").split(",")[0])
        for cell in column(table, "over seeds and images")
        if cell
    ]
    assert len(ends) == 7
    assert ends == sorted(ends)
    assert ends[0] < -10 < 0 < ends[-1]


def test_sorting_by_word_and_then_by_another_column(visit: Open, full: Made) -> None:
    table = visit(full.path).table(full.found.groups[0].group.title)
    labels = sorted(column(table, "trick"))
    assert press(table, "trick") == "ascending"
    assert column(table, "trick") == labels
    assert press(table, "trick") == "descending"
    assert column(table, "trick") == labels[::-1]
    assert press(table, "verdict") == "ascending"
    assert table.locator("[aria-sort]").count() == 1
    verdicts = column(table, "verdict")
    assert verdicts[:-1] == sorted(verdicts[:-1])
    assert verdicts[-1] == ""


def test_sorting_words_with_numbers(visit: Open, full: Made) -> None:
    table = visit(full.path).table("not compared")
    assert press(table, "run") == "ascending"
    assert column(table, "run") == ["another", "run 9", "run 10"]


def test_sorting_by_keyboard(visit: Open, full: Made) -> None:
    shown = visit(full.path)
    table = shown.table(full.found.groups[0].group.title)
    button = table.get_by_role("button", name="points", exact=True)
    for _ in range(60):
        shown.page.keyboard.press("Tab")
        if button.evaluate("b => b === document.activeElement"):
            break
    outline = button.evaluate("b => parseFloat(getComputedStyle(b).outlineWidth)")
    assert outline >= 2
    shown.page.keyboard.press("Enter")
    numbers = [float(cell) for cell in column(table, "points") if cell]
    assert numbers == sorted(numbers)
    shown.page.keyboard.press("Space")
    numbers = [float(cell) for cell in column(table, "points") if cell]
    assert numbers == sorted(numbers, reverse=True)
    assert button.evaluate("b => b === document.activeElement")


# Themes ------------------------------------------------------------------------------------------

COLOURS = """() => [
    getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
    getComputedStyle(document.querySelector(".wide svg text")).fill]"""
LIGHT = ["rgb(253, 253, 252)", "rgb(27, 31, 36)", "rgb(27, 31, 36)"]
DARK = ["rgb(20, 23, 27)", "rgb(232, 234, 237)", "rgb(232, 234, 237)"]


def test_theme_follows_the_system(visit: Open, full: Made) -> None:
    shown = visit(full.path, color_scheme="dark")
    assert shown.page.evaluate(COLOURS) == DARK
    assert shown.page.locator("#theme").inner_text() == "Light theme"
    shown.page.emulate_media(color_scheme="light")
    assert shown.page.evaluate(COLOURS) == LIGHT
    assert shown.page.locator("#theme").inner_text() == "Dark theme"


@pytest.mark.parametrize(("system", "colours"), [("light", (LIGHT, DARK)), ("dark", (DARK, LIGHT))])
def test_theme_button_switches_both_ways(
    visit: Open, full: Made, system: str, colours: tuple[list[str], list[str]]
) -> None:
    shown = visit(full.path, color_scheme=system)
    button = shown.page.locator("#theme")
    for expected in (*colours, *colours):
        assert shown.page.evaluate(COLOURS) == expected
        assert button.inner_text() == ("Dark theme" if expected == LIGHT else "Light theme")
        button.click()


# Every visible text with its contrast to what is behind it (WCAG 2.2, 1.4.3).
CONTRASTS = """() => {
  const parse = (colour) => {
    const [r, g, b, a] = colour.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a ?? 1];
  };
  const over = (top, below) => top.slice(0, 3).map((c, i) => c * top[3] + below[i] * (1 - top[3]));
  const luminance = (colour) => {
    const [r, g, b] = colour.map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    return over(parse(getComputedStyle(element).backgroundColor), behind(element.parentElement));
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const words = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE)
      .map((node) => node.textContent.trim()).join(" ").trim();
    if (!words || element.tagName === "SCRIPT" || !element.checkVisibility()) continue;
    const isDrawn = element.tagName === "text";
    const style = getComputedStyle(element);
    const below = behind(isDrawn ? element.closest("div") : element);
    const [a, b] = [over(parse(isDrawn ? style.fill : style.color), below), below].map(luminance);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const name = `${element.tagName} ${element.className.baseVal ?? element.className}`;
    found.push([`${name}: ${words}`, ratio]);
  }
  return found;
}"""


@pytest.mark.parametrize(("system", "width"), [("light", 1200), ("dark", 1200), ("dark", 390)])
def test_contrast(visit: Open, full: Made, system: str, width: int) -> None:
    shown = visit(full.path, color_scheme=system, viewport={"width": width, "height": 800})
    shown.unfold()
    found = dict(shown.page.evaluate(CONTRASTS))
    assert [name for name, ratio in found.items() if ratio < 4.5] == []
    for one in ("B : helps", "B : hurts", "B : cannot tell", "B : no difference larger than 0.5"):
        assert one in found
    assert any(name.startswith("text") for name in found)
    assert any(name.startswith("TD hit-9") for name in found)
    # And the measure measures: this ink is faint.
    shown.page.evaluate("document.documentElement.style.setProperty('--ink', '#777')")
    assert min(ratio for _, ratio in shown.page.evaluate(CONTRASTS)) < 4.5


@pytest.mark.parametrize("system", ["light", "dark"])
def test_contrast_in_every_shade_of_a_confusion_matrix(
    visit: Open, full: Made, system: str
) -> None:
    shown = visit(full.path, color_scheme=system)
    shown.unfold()
    shown.page.evaluate(
        """() => {
        const cells = [...document.querySelectorAll(".confusion td")].slice(1, 19);
        cells.forEach((cell, i) => {
          cell.textContent = "50"; cell.className = `${i < 9 ? "hit" : "miss"}-${1 + i % 9}`;
        });
        }"""
    )
    found = shown.page.evaluate(CONTRASTS)
    shades = {name: ratio for name, ratio in found if re.match(r"TD (hit|miss)-\d: 50", name)}
    assert len(shades) == 18
    assert min(shades.values()) >= 4.5
    assert len(set(shades.values())) > 10


# Phone, paper, no script -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "width"), [("full", 390), ("large", 320), ("hostile", 320), ("compared", 390)]
)
def test_phone(visit: Open, request: pytest.FixtureRequest, which: str, width: int) -> None:
    made: Made = request.getfixturevalue(which)
    shown = visit(made.path, viewport={"width": width, "height": 800})
    shown.unfold()
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    wide = shown.page.evaluate(
        """() => [...document.querySelectorAll("table")].map(table => {
        const region = table.closest(".scroll");
        return [table.offsetWidth > region.clientWidth, region.scrollWidth > region.clientWidth,
                getComputedStyle(region).overflowX, region.getBoundingClientRect().right];
        })"""
    )
    assert any(is_wide for is_wide, *_ in wide)
    for is_wide, scrolls, overflow, right in wide:
        assert is_wide == scrolls
        assert overflow == "auto"
        assert right <= width


def test_forest_is_readable_on_a_phone_without_scrolling(visit: Open, full: Made) -> None:
    shown = visit(full.path, viewport={"width": 390, "height": 800})
    region = shown.page.locator("main > section").first.locator(".scroll").first
    assert region.evaluate("r => r.scrollWidth <= r.clientWidth")
    texts = region.locator("text").filter(visible=True)
    assert texts.count() > len(full.found.groups[0].comparisons) + 2  # the axis has some
    for text in texts.all():
        size, box = text.evaluate(
            "t => [parseFloat(getComputedStyle(t).fontSize), t.getBoundingClientRect()]"
        )
        assert size >= 12
        assert 0 <= box["left"] < box["right"] <= 390
        assert box["height"] >= 12  # as shown, not as written


def test_tables_are_wide_enough_for_their_words_on_a_phone(visit: Open, full: Made) -> None:
    shown = visit(full.path, viewport={"width": 390, "height": 800})
    lines = (
        shown.page.locator("main > section")
        .first.locator("table")
        .first.evaluate(
            "t => Math.max(...[...t.tBodies[0].rows].map(r => r.offsetHeight)) / "
            "parseFloat(getComputedStyle(t).lineHeight)"
        )
    )
    assert lines < 4


def test_print_unfolds_everything_and_folds_it_again(visit: Open, full: Made) -> None:
    shown = visit(full.path, color_scheme="dark")
    page = shown.page
    folded = "document.querySelectorAll('details:not([open])').length"
    count = page.evaluate(folded)
    assert count > 5
    page.locator("summary").first.click()
    page.evaluate(f"addEventListener('beforeprint', () => {{ window.atPrint = {folded}; }})")
    page.pdf()
    assert page.evaluate("window.atPrint") == 0
    assert page.evaluate(folded) == count - 1  # what the reader opened stays open


@pytest.mark.parametrize("which", ["full", "large"])
def test_print_is_light_without_buttons_and_fits_the_sheet(
    visit: Open, request: pytest.FixtureRequest, which: str
) -> None:
    made: Made = request.getfixturevalue(which)
    shown = visit(
        made.path, color_scheme="light", viewport={"width": 718, "height": 1000}
    )  # A4 in Chromium
    page = shown.page
    page.locator("#theme").click()
    assert page.evaluate(COLOURS) == DARK
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert not page.locator("#theme").is_visible()
    assert page.evaluate(COLOURS)[1:] == LIGHT[1:]
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    assert page.locator(".wide").first.is_visible()
    assert page.locator("td code").first.is_visible()


def test_without_javascript(visit: Open, full: Made) -> None:
    shown = visit(full.path, java_script_enabled=False)
    page = shown.page
    assert not page.locator("#theme").is_visible()
    assert page.locator("th button").count() == 0
    text = page.locator("main").inner_text()
    assert "normalize: helps" in text
    assert page.locator(".wide svg").first.is_visible()
    page.locator("summary", has_text="The command of each run").first.click()
    assert page.locator("td code").first.is_visible()


# For those who hear or press it ------------------------------------------------------------------


@pytest.mark.parametrize("which", ["large", "hostile", "compared"])
def test_structure(visit: Open, request: pytest.FixtureRequest, which: str) -> None:
    page = visit(request.getfixturevalue(which).path).page
    assert page.locator("html").get_attribute("lang") == "en"
    for landmark in ("body > header", "body > main", "body > footer", "h1"):
        assert page.locator(landmark).count() == 1, landmark
    levels = page.locator("h1, h2, h3, h4, h5, h6").evaluate_all("hs => hs.map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(text.strip() for text in page.locator("h1, h2, h3").all_inner_texts())
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    assert page.locator("svg:not([aria-hidden=true])").count() == 0
    labels = page.locator("svg").evaluate_all(
        "svgs => svgs.map(s => s.closest('[role=img]')?.getAttribute('aria-label'))"
    )
    assert labels
    assert all(labels)


@pytest.mark.parametrize("which", ["full", "compared"])
def test_identifiers_are_met_once_and_lead_somewhere(
    visit: Open, request: pytest.FixtureRequest, which: str
) -> None:
    page = visit(request.getfixturevalue(which).path).page
    ids = page.locator("[id]").evaluate_all("es => es.map(e => e.id)")
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    referred = page.evaluate(
        """() => [...document.querySelectorAll("[aria-labelledby], a[href^='#'], use")].map(e =>
        e.getAttribute("aria-labelledby") ??
        (e.getAttribute("href") ?? e.getAttribute("xlink:href")).slice(1))"""
    )
    assert set(referred) <= set(ids)


@pytest.mark.parametrize("which", ["full", "hostile", "compared"])
def test_tables_and_regions_are_named(
    visit: Open, request: pytest.FixtureRequest, which: str
) -> None:
    shown = visit(request.getfixturevalue(which).path)
    shown.unfold()
    tables = shown.page.locator("table").evaluate_all(
        """tables => tables.map(t => ({
        caption: t.caption?.textContent.trim(), rows: t.tBodies[0].rows.length,
        heads: t.querySelectorAll("tbody tr > th:first-child").length,
        scopes: [...t.querySelectorAll("th")].map(th => th.scope),
        places: [...t.querySelectorAll("th")].map(th => th.closest("thead") ? "col" : "row"),
        }))"""
    )
    assert len(tables) > 5
    for table in tables:
        assert table["caption"]
        assert table["heads"] == table["rows"] > 0
        assert table["scopes"] == table["places"] != []
    regions = shown.page.locator(".scroll").evaluate_all(
        """regions => regions.map(r => { r.focus();
        return [r.getAttribute("role"), r.ariaLabel?.trim(), document.activeElement === r]; })"""
    )
    assert len(regions) > 5
    for role, label, is_focused in regions:
        assert role == "region"
        assert label
        assert is_focused
    # Nothing scrolls that is no region.
    shown.page.set_viewport_size({"width": 390, "height": 800})
    other = shown.page.evaluate(
        """() => [...document.querySelectorAll("body *:not(.scroll)")].filter(e =>
        ["auto", "scroll"].includes(getComputedStyle(e).overflowX)).map(e => e.outerHTML)"""
    )
    assert other == []


def test_skip_link_is_the_first_stop(visit: Open, full: Made) -> None:
    page = visit(full.path).page
    page.keyboard.press("Tab")
    link = page.locator("a.skip")
    assert link.evaluate("a => a === document.activeElement")
    box = link.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main"


def test_verdicts_are_told_without_colour(visit: Open, full: Made) -> None:
    page = visit(full.path).page
    symbols = (
        page.locator(".verdicts")
        .first.locator("li")
        .evaluate_all(
            "lis => lis.map(li => [li.className, li.querySelector('.symbol').textContent])"
        )
    )
    assert len(dict(map(tuple, symbols))) == len({symbol for _, symbol in symbols}) == 4


# Hostile names and the policy --------------------------------------------------------------------


def test_hostile_names_stay_text(visit: Open, hostile: Made) -> None:
    shown = visit(hostile.path)
    shown.unfold()
    page = shown.page
    for locator in page.locator("summary, th button").all()[:3]:
        locator.hover()
    assert page.evaluate("window.hacked") is None
    paths = page.locator("figcaption .path").all_text_contents()
    assert len(paths) == 17
    assert all(path.endswith(printable("".join(HOSTILE))) for path in paths)
    for name in HOSTILE:
        shared = printable(name)
        assert page.locator(".wide text").get_by_text(shared, exact=True).count() == 1  # a trick
        assert page.locator("tbody th").get_by_text(shared, exact=True).count() > 1
        assert page.locator(".confusion thead th").get_by_text(shared, exact=True).count() >= 1
    told = [shlex.split(text) for text in page.locator("td code").all_text_contents()]
    assert {words[3] for words in told if words[0] == "python"} >= {
        f"data.root={name}" for name in HOSTILE if name.isprintable()
    }
    assert not any(character in hostile.text for character in "\x1b\u202e")
    assert any(HOSTILE[0] in title for title in page.locator("h2").all_text_contents())
    assert page.title().startswith("Does it help? comparison question")
    for name in HOSTILE:
        if name.isprintable():
            assert page.locator(".verdicts li").get_by_text(f"{name} failed: ").count() >= 1
    reason = page.locator("tr", has_text="killed").locator("td").last.inner_text()
    assert reason == printable(" ".join(HOSTILE))


def test_hostile_names_make_no_element(visit: Open, hostile: Made, tmp_path: Path) -> None:
    tame = write_named(tmp_path, tuple(f"name {number:02d}" for number in range(len(HOSTILE))))
    tags = [
        Counter(
            visit(made.path).page.evaluate(
                "[...document.querySelectorAll('*')].filter(e => !e.closest('svg'))"
                ".map(e => e.tagName + ' ' + e.getAttributeNames().sort().join(' '))"
            )
        )
        for made in (hostile, tame)
    ]
    assert tags[0] == tags[1]
    drawn = visit(hostile.path).page.evaluate(
        "[...document.querySelectorAll('svg, svg *')].map(e => e.tagName)"
    )
    assert set(drawn) <= SVG_TAGS


INJECTED = """() => {
  const script = document.createElement("script");
  script.textContent = "window.hacked = 1";
  document.body.append(script);
  const image = document.createElement("img");
  image.src = "http://elsewhere.test/x.png";
  image.setAttribute("onerror", "window.handled = 1");
  document.body.append(image);
  return fetch("http://elsewhere.test/data").then(() => "fetched", () => "refused");
}"""


def inject(shown: Visit) -> tuple[str, list[str], list[bool]]:
    """What became of ``fetch``, which addresses were reached, whether script and handler ran."""
    reached: list[str] = []

    def fulfil(route: "Route") -> None:
        reached.append(route.request.url)
        route.fulfill(body="", headers={"Access-Control-Allow-Origin": "*"})

    shown.page.route("http://elsewhere.test/**", fulfil)
    shown.page.evaluate(
        """() => { window.violations = []; addEventListener("securitypolicyviolation",
        event => window.violations.push(event.effectiveDirective)); }"""
    )
    fetched = shown.page.evaluate(INJECTED)
    shown.page.wait_for_timeout(100)
    ran = [shown.page.evaluate(f"window.{name} === 1") for name in ("hacked", "handled")]
    return fetched, sorted(reached), ran


def test_policy_stops_scripts_and_requests(visit: Open, full: Made, tmp_path: Path) -> None:
    guarded = visit(full.path, expected=True)
    assert inject(guarded) == ("refused", [], [False, False])
    assert set(guarded.page.evaluate("window.violations")) >= {
        "script-src-elem", "script-src-attr", "img-src", "connect-src",
    }  # fmt: skip
    assert any("Content Security Policy" in complaint for complaint in guarded.heard)
    # It is the policy that stops them: without it they run and get through.
    bare = tmp_path / "bare.html"
    bare.write_text(re.sub(r"<meta http-equiv=[^>]*>", "", full.text, count=1), encoding="utf-8")
    addresses = ["http://elsewhere.test/data", "http://elsewhere.test/x.png"]
    assert inject(visit(bare, expected=True)) == ("fetched", addresses, [True, True])


def test_policy_names_the_one_script_and_no_place(full: Made) -> None:
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', full.text)
    assert found is not None
    rules = dict(rule.strip().split(" ", 1) for rule in found[1].replace("&#39;", "'").split(";"))
    assert rules["default-src"] == "'none'"
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", rules["script-src"])
    assert full.text.count("<script") == 1
    assert not re.search(r"https?://(?!www\.w3\.org/)", full.text)
    assert full.text.index("Content-Security-Policy") < full.text.index("<style")
