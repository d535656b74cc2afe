"""Everything on disk: run folders, checkpoints, bundles, sweeps."""
