"""Focal loss (Lin et al. 2017, arXiv:1708.02002): images that are easy count less.

Does it help? Train with and without it over a few seeds, and read the answer:

    python -m runner.train -m code=null,examples/loss.py seed=0,1,2,3,4
    python -m runner.report --by code
"""

GAMMA = 2.0  # 0 would be plain cross entropy


def loss(logits, targets):
    """Take logits (N, K) and targets (N, K), and return (N,) losses, which are averaged."""
    log_probabilities = logits.log_softmax(dim=1)
    hardness = (1 - log_probabilities.exp()) ** GAMMA  # near 0 for a class that is certain
    return -(targets * hardness * log_probabilities).sum(dim=1)
