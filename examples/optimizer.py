"""Lion (Chen et al. 2023, arXiv:2302.06675): each weight moves by the sign of its momentum.

Lion needs a rate some ten times lower than AdamW, and more decay. So compare each optimizer at the
rate that suits it, and read the answer:

    python -m runner.train -m code=null seed=0,1,2,3,4
    python -m runner.train -m code=examples/optimizer.py optim.lr=3e-4 seed=0,1,2,3,4
    python -m runner.report --by code --by optim.lr
"""

import torch


class _Lion(torch.optim.Optimizer):
    """A checkpoint keeps the tensors in ``state``, so nothing else may be remembered."""

    def __init__(self, groups, lr):
        super().__init__(groups, {"lr": lr, "betas": (0.9, 0.99), "weight_decay": 0.0})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            rate, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                direction = torch.lerp(weight.grad, state["momentum"], beta1).sign_()
                weight.mul_(1 - rate * decay).sub_(direction, alpha=rate)
                state["momentum"].lerp_(weight.grad, 1 - beta2)


def optimizer(groups, lr):
    """Take the parameters in groups, each with its weight decay, and return an optimizer of them.

    Before each step, the schedule sets the rate of each group, and the first of its betas.
    """
    return _Lion(groups, lr)
