"""Train image classifiers and learn, with evidence, whether a training trick helps on your data."""

__version__ = "0.1.0"
