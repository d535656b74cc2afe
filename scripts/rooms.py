"""Count the rooms of the package, the arrows between rooms, and the floors.

    python scripts/rooms.py [ROOT]

ROOT is a checkout of this repository, of any age (default: this checkout); its files are read, not
imported. A room is a folder of ``runner/``, a module at its root, or the ``__main__`` of a folder.
An arrow leads from a room to another room that it imports, anywhere in its files. A room lies one
floor above the highest room that it imports; rooms of a circle share a floor. An arrow is upward if
it does not lead to a lower floor of ``FLOORS`` in ``tests/test_architecture.py``.
"""

import argparse
import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

PACKAGE = "runner"

Arrows = Mapping[str, set[str]]
"""The rooms that each room imports."""


def imports(path: Path, *, top_level_only: bool = False) -> list[str]:
    """The dotted names that a file imports, as in ``runner.data.store`` or ``runner.errors``.

    Args:
        path: a source file without relative imports.
        top_level_only: leave out the imports inside functions, classes and conditions.
    """
    tree = ast.parse(path.read_bytes())
    names: list[str] = []
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            assert node.level == 0, f"{path}: relative import of {module}"
            if module == PACKAGE:  # imports rooms, not names of a module
                names += [f"{PACKAGE}.{alias.name}" for alias in node.names]
            else:
                names.append(module)
    return names


def room(name: str) -> str:
    """The room of a module: ``runner.data.store`` is in ``data``; see the head of this file."""
    parts = name.split(".")
    return ".".join(parts[1:]) if parts[-1] == "__main__" else parts[:2][-1]


def module_name(path: Path, root: Path) -> str:
    """``runner/data/__init__.py`` below ``root`` is ``runner.data``."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_arrows(root: Path) -> dict[str, set[str]]:
    """Return the arrows of a checkout, by room, including rooms without arrows."""
    modules = {module_name(path, root): path for path in sorted((root / PACKAGE).rglob("*.py"))}
    del modules[PACKAGE]  # __init__: the version, imported by anyone
    arrows: dict[str, set[str]] = {room(name): set() for name in modules}
    for name, path in modules.items():
        known = {room(other) for other in imports(path) if other.startswith(f"{PACKAGE}.")}
        arrows[room(name)] |= (known & arrows.keys()) - {room(name)}
    return arrows


def circles(arrows: Arrows) -> list[set[str]]:
    """Sets of rooms that import one another, directly or through other rooms."""
    reached = {start: set(_reachable(start, arrows)) for start in arrows}
    found = {frozenset(b for b in reached[a] if a in reached[b]) for a in arrows}
    return sorted((set(circle) for circle in found if circle), key=sorted)


def _reachable(start: str, arrows: Arrows) -> Iterator[str]:
    """Yield the rooms that a path of one or more arrows from ``start`` leads to."""
    seen: set[str] = set()
    waiting = [*arrows[start]]
    while waiting:
        if (here := waiting.pop()) not in seen:
            seen.add(here)
            waiting += arrows[here]
            yield here


def floors(arrows: Arrows) -> dict[str, int]:
    """Return the floor of each room, from 1."""
    peers = {name: circle for circle in circles(arrows) for name in circle}
    found: dict[str, int] = {}

    def floor(name: str) -> int:
        if name not in found:
            own = peers.get(name, {name})
            below = {other for peer in own for other in arrows[peer]} - own
            found.update(dict.fromkeys(own, 1 + max(map(floor, below), default=0)))
        return found[name]

    return {name: floor(name) for name in arrows}


def upward(arrows: Arrows, declared: Sequence[Iterable[str]]) -> list[tuple[str, str]]:
    """Return the arrows that do not lead to a lower floor.

    Args:
        arrows: the arrows of all rooms.
        declared: the rooms of each floor, lowest first.

    Raises:
        KeyError: a room has no floor.
    """
    number = {name: floor for floor, names in enumerate(declared) for name in names}
    return [
        (start, end)
        for start, ends in sorted(arrows.items())
        for end in sorted(ends)
        if number[end] >= number[start]
    ]


def declared_floors(root: Path) -> list[set[str]] | None:
    """``FLOORS`` in the architecture test of a checkout; None if the test does not have it."""
    path = root / "tests" / "test_architecture.py"
    for node in ast.parse(path.read_bytes()).body if path.is_file() else []:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS":
            return [set(names) for names in ast.literal_eval(node.value)]
    return None


def table(root: Path) -> str:
    """Return the counts, and a line per room, highest floor first."""
    arrows = read_arrows(root)
    number, declared = floors(arrows), declared_floors(root)
    lines = [
        f"rooms    {len(arrows)}",
        f"arrows   {sum(map(len, arrows.values()))}",
        f"floors   {max(number.values())}",
        f"circles  {', '.join(' ↔ '.join(sorted(circle)) for circle in circles(arrows)) or 'none'}",
    ]
    if declared is not None:
        found = [f"{start} → {end}" for start, end in upward(arrows, declared)]
        lines.append(f"upward   {len(found)}{': ' if found else ''}{', '.join(found)}")
    lines += ["", f"floor  {'room':<16} imports"]
    for name in sorted(arrows, key=lambda name: (-number[name], name)):
        lines.append(f"{number[name]:>5}  {name:<16} {', '.join(sorted(arrows[name]))}".rstrip())
    return "\n".join(lines)


def main() -> None:
    """Run the command; see ``--help``."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parents[1])
    print(table(parser.parse_args().root))


if __name__ == "__main__":
    main()
