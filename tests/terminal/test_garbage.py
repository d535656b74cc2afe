"""A command seldom looks for garbage among what it has had for long."""

import subprocess
import sys

CYCLES = """
import gc, weakref
from runner.terminal.command import command

class Cycle:
    pass

def body():
    died = []
    for _ in range(5_000):
        one = Cycle()
        one.itself = one
        weakref.finalize(one, died.append, 1)
    print(len(died), *gc.get_threshold())

before = gc.get_threshold()
command(body)
print(*before)
"""


def test_a_command_seldom_looks_through_old_objects_for_garbage() -> None:
    done = subprocess.run([sys.executable, "-c", CYCLES], capture_output=True, text=True)
    inside, before = (list(map(int, line.split())) for line in done.stdout.splitlines())
    died, new, newer, old = inside
    assert died > 4_000  # cycles die young, as before
    assert [new, newer] == before[:2]
    assert old > 100 * before[2]
