"""One question as one command: a baseline, arms, and rounds of seeds until each is decided."""
