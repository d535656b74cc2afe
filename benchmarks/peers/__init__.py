"""The peers: other systems that train the same thing, each a process in its own environment."""
