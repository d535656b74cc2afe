"""Pixels to weights, to predictions, to a result: steps, their loop, and one run of it."""
