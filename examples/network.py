"""Squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507): each block weighs its channels.

Does it help? Train with and without it over a few seeds, and read the answer:

    python -m runner.train -m code=null,examples/network.py seed=0,1,2,3,4
    python -m runner.report --by code

The weights of such a network fit this network alone, so whoever uses it must name this file:

    python -m runner.predict outputs/RUN photo.jpg --code examples/network.py
"""

from torch import nn

REDUCTION = 4  # channels per hidden unit


class _Excite(nn.Module):
    """Scale each channel by a number in 0..1 that depends on the mean of all channels."""

    def __init__(self, channels):
        super().__init__()
        self.weigh = nn.Sequential(
            nn.Linear(channels, channels // REDUCTION),
            nn.ReLU(),
            nn.Linear(channels // REDUCTION, channels),
            nn.Sigmoid(),
        )

    def forward(self, features):
        weights = self.weigh(features.mean(dim=(2, 3)))
        return features * weights[:, :, None, None]


def model(model):
    """Take the network as it was built, and return it with a new layer at the end of each block.

    The new layers draw their first weights from the seed of the run; all others stay as they are.
    """
    # The blocks of an xresnet return relu(residual(x) + identity(x)).
    blocks = [module for module in model.modules() if hasattr(module, "residual")]
    if not blocks:
        raise ValueError("this network has no blocks such as those of model=xresnet18")
    for block in blocks:
        convolutions = [each for each in block.residual.modules() if isinstance(each, nn.Conv2d)]
        block.residual.append(_Excite(convolutions[-1].out_channels))
    return model
