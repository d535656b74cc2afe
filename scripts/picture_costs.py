"""Print what each figure of a finished run costs: ``python scripts/picture_costs.py RUN``.

The seconds of a figure are those until its path is printed, with what it is the first to import.
"""

import argparse
import time
from pathlib import Path


def main() -> None:
    """Draw the figures, and print seconds and size of each."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    run = parser.parse_args().run
    begin = last = time.perf_counter()
    from runner.look.finished import draw

    print(f"{time.perf_counter() - last:5.1f} s           imports")
    last = time.perf_counter()

    def say(line: str) -> None:
        nonlocal last
        now, path = time.perf_counter(), Path(line)
        size = f"{path.stat().st_size / 1000:6.0f} kB" if path.is_file() else " " * 9
        print(f"{now - last:5.1f} s {size} {path.name if path.is_file() else line}")
        last = now

    draw(run, say=say)
    print(f"{time.perf_counter() - begin:5.1f} s           in all")


if __name__ == "__main__":
    main()
