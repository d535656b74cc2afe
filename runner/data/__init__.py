"""Data sets: where they come from and how images reach the training loop."""
