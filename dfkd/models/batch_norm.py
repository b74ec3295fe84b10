"""Batch norm: a network's layers, the statistics of their inputs, and the loss L_bn.

Forward hooks read the statistics. They are attached once for a run and removed at its end.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfkd.utils.progress import Closing

T = TypeVar("T")


def layers(network: nn.Module) -> list[_BatchNorm]:
    """All batch-norm layers of a network, of any dimension, in the order of its modules."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


class Taps(Closing, Generic[T]):
    """Hooks that compute a value of each module in every forward pass; a context manager."""

    def __init__(
        self, modules: Iterable[nn.Module], measure: Callable[[nn.Module, Tensor, Tensor], T]
    ) -> None:
        """`measure` maps a module, its input and its output to the value."""
        self._values: dict[int, T] = {}
        self._handles = [
            module.register_forward_hook(self._hook(number, measure))
            for number, module in enumerate(modules)
        ]

    def _hook(self, number: int, measure: Callable[[nn.Module, Tensor, Tensor], T]) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._values[number] = measure(module, inputs[0], output)

        return hook

    @property
    def read(self) -> list[T]:
        """The values of the last forward pass, in the order of the modules."""
        return [self._values[number] for number in range(len(self._handles))]

    def close(self) -> None:
        """Remove the hooks and their values."""
        for handle in self._handles:
            handle.remove()
        self._values.clear()


@dataclass(frozen=True)
class Moments:
    """Mean and variance of a batch-norm layer's input, each float32 [C].

    `mean` and `variance` are those of this batch, the running ones those of the training data.
    """

    mean: Tensor
    variance: Tensor
    running_mean: Tensor
    running_variance: Tensor

    @property
    def distance(self) -> Tensor:
        """||mean - running mean||_2 + ||variance - running variance||_2, a scalar."""
        means: Tensor = torch.linalg.vector_norm(self.mean - self.running_mean)
        variances: Tensor = torch.linalg.vector_norm(self.variance - self.running_variance)
        return means + variances


def moments(module: nn.Module, images: Tensor, output: Tensor) -> Moments:
    """`Moments` of the input [N, C, ...] of a batch-norm layer; `output` is not used.

    The variance is biased, as in the published code.
    """
    layer: Any = module
    values = images.float().transpose(0, 1).flatten(1)
    variance, mean = torch.var_mean(values, dim=1, correction=0)
    return Moments(mean, variance, layer.running_mean, layer.running_var)


def batch_norm_loss(read: Sequence[Moments], first_layer_factor: float = 1.0) -> Tensor:
    """L_bn of DeepInversion: the sum of the layers' `Moments.distance`, a scalar.

    The first layer's distance is multiplied by `first_layer_factor`. L_bn is a property of a batch,
    so the gradient of each image depends on all other images.
    """
    distances = torch.stack([moments.distance for moments in read])
    return distances.sum() + (first_layer_factor - 1) * distances[0]
