"""Steepest descent in strides of a set length, for optimisations of a few steps.

Adam moves every number of a latent by about its rate, however little the loss depends on it. That
is robust over hundreds of steps; in the first few most of the way is spent on numbers that do not
matter. Here the gradient alone says how a latent moves, and the rate how far.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class NormalisedDescent(torch.optim.Optimizer):
    """z <- z - rate * g / rms(g), where rms is over the numbers of one latent.

    Each row of a parameter [B, ...] is moved on its own: the root mean square of its change is the
    rate. A row without a gradient, or whose gradient is no number, stays as it is.
    """

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        """`lr` is the rate, which may be changed in `param_groups`."""
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(group["lr"] * _direction(parameter.grad))


def _direction(gradient: Tensor) -> Tensor:
    """The gradient [B, ...] with a root mean square of 1 in each row; zeros where it has none."""
    rms = gradient.flatten(1).square().mean(dim=1).sqrt().view(-1, *[1] * (gradient.dim() - 1))
    return torch.where((rms > 0) & rms.isfinite(), gradient / rms, 0.0)
