"""One question as one command: a baseline, arms, and rounds of seeds until each is decided."""

from runner.callable_module import make_callable

make_callable(__name__)
