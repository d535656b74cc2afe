"""Image classifiers by name, and their parameters in groups from input to output."""

from runner.models.build import build_model, layer_groups, own_drop_rate
from runner.models.changes import changes_of
from runner.models.convolutions import suit_convolutions
from runner.models.global_norm import share_batch_norm
from runner.models.pretrained import Loaded, Weights, find_weights, fitted, load_weights
from runner.models.xresnet import xresnet

__all__ = [
    "Loaded",
    "Weights",
    "build_model",
    "changes_of",
    "find_weights",
    "fitted",
    "layer_groups",
    "load_weights",
    "own_drop_rate",
    "share_batch_norm",
    "suit_convolutions",
    "xresnet",
]
