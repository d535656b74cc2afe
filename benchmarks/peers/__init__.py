"""The peers: other systems that do the same training, each a process in its own environment."""
