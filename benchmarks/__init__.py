"""How fast trick-runner is, beside its peers and beside the limit of the machine.

    python -m benchmarks.throughput --data FOLDER_OR_ARCHIVE --json FILE

Every benchmark is a module of its own; each prints a table and writes JSON with versions and the
machine. ``python -m benchmarks.peers FOLDER`` makes the peers' environments, ``--peers FOLDER``
measures them too. What was predicted, tried and found is in ``NOTES.md``.
"""
