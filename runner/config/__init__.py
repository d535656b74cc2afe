"""The words of a command become a checked ``RunConfig``. Nothing here imports torch."""
