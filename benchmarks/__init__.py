"""How fast trick-runner is, compared with its peers and with the limit of the machine.

    python -m benchmarks.throughput --data FOLDER_OR_ARCHIVE --json FILE

Every benchmark is a module that prints a table and writes JSON with the versions and the machine.
``python -m benchmarks.peers FOLDER`` makes the environments of the peers; ``--peers FOLDER``
measures the peers too. ``NOTES.md`` holds what was predicted, tried and found.
"""
