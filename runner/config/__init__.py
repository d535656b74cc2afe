"""Words in, a checked ``RunConfig`` out. Nothing here knows torch."""
