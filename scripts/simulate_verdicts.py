"""Print how often verdicts are right, in simulated tables whose truth is known.

The arms are as unequal as real ones; ``tests/simulated.py`` says how they are drawn. Each table is
drawn once without effects, and judged without, and with effects added. "Before" is Holm's
correction of each arm's own p-value, without what the arms say about each other's spread.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import simulated

_SEEDS = (3, 5, 10)
_ARMS = {7: "mixed", 1: "one", 3: "three", 15: "fifteen"}
_MARGIN = 0.02
_COLUMNS = (
    "arms", "images", "seeds", "interval holds the truth (worst arm)",
    "no effects: any helps or hurts (before)", "+1 found (before)", "+2", "+3",
    "+3 in the most volatile arm", "effects of 2: any \"no difference\"",
    "no effect: \"no difference\"",
)  # fmt: skip


def fixed(num_tables: int) -> str:
    """The rates of tables at a number of seeds that was chosen beforehand, as Markdown."""
    errors = [_error(rate, num_tables) for rate in (0.05, 0.5)]
    lines = [
        f"Percent of {num_tables:,} tables per row; one standard error is {errors[0]} at 5 % and "
        f"{errors[1]} at 50 %. Effects are in points, and so is the margin, {100 * _MARGIN:g}.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|" + "---:|" * len(_COLUMNS),
    ]
    for num_arms, profile in _ARMS.items():
        arms = [simulated.ARMS[name] for name in simulated.PROFILES[profile]]
        for num_images in simulated.NUM_IMAGES:
            many = simulated.draw_tables(num_arms, num_tables, num_images, arms, _SEEDS)
            for n, tables in many.items():
                cells = [str(num_arms), f"{num_images:,}", str(n), *_rates(tables)]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _rates(tables: simulated.Tables) -> list[str]:
    now, before = simulated.judged, simulated.judged_alone
    covered = simulated.covered(tables)
    power = {
        effect: [simulated.found(tables, rule, effect / 100) for rule in (now, before)]
        for effect in (1, 2, 3)
    }
    return [
        f"{_percent(covered.mean())} ({_percent(covered.min())})",
        _both(*(simulated.any_false(tables, rule) for rule in (now, before))),
        *(_both(*(float(rates.mean()) for rates in both)) for both in power.values()),
        _both(*(float(rates.min()) for rates in power[3])),
        _both(*(simulated.any_false_equal(tables, rule, _MARGIN) for rule in (now, before))),
        _both(*(simulated.found_equal(tables, rule, _MARGIN) for rule in (now, before))),
    ]


def _both(now: float, before: float) -> str:
    return f"{_percent(now)} ({_percent(before)})"


def _percent(rate: float) -> str:
    if round(rate, 3) in (0, 1):
        return f"{100 * rate:.0f}"
    return f"{100 * rate:.1f}" if min(rate, 1 - rate) < 0.095 else f"{100 * rate:.0f}"


def _error(rate: float, num_tables: int) -> str:
    return f"{100 * float(np.sqrt(rate * (1 - rate) / num_tables)):.1f}"


PARTS: dict[str, Callable[[int], str]] = {"fixed": fixed}


def main() -> None:
    """Run the command; see ``--help``."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=PARTS, help="which verdicts")
    parser.add_argument("--tables", type=int, default=4000, help="number of tables per row")
    found = parser.parse_args()
    print(PARTS[found.part](found.tables))


if __name__ == "__main__":
    main()
