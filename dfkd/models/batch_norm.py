"""Batch norm: its layers in a network, what they see of a batch, and L_bn.

Forward hooks read it. They are attached once for a run, and gone when its block ends.
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
    """Every batch-norm layer of a network, whatever it norms, in the order of its modules."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


class Taps(Closing, Generic[T]):
    """Hooks that read something off modules at each forward pass; a context that removes them."""

    def __init__(
        self, modules: Iterable[nn.Module], reading: Callable[[nn.Module, Tensor, Tensor], T]
    ) -> None:
        """`reading` gets a module, its input and its output."""
        self._found: dict[int, T] = {}
        self._handles = [
            module.register_forward_hook(self._hook(number, reading))
            for number, module in enumerate(modules)
        ]

    def _hook(self, number: int, reading: Callable[[nn.Module, Tensor, Tensor], T]) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._found[number] = reading(module, inputs[0], output)

        return hook

    @property
    def read(self) -> list[T]:
        """What the last pass gave, in the order of the modules."""
        return [self._found[number] for number in range(len(self._handles))]

    def close(self) -> None:
        """Remove the hooks, and forget what they read."""
        for handle in self._handles:
            handle.remove()
        self._found.clear()


@dataclass(frozen=True)
class Moments:
    """Of a batch-norm layer's input, float32 [C]: of this batch, and what training left."""

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


def moments(module: nn.Module, seen: Tensor, output: Tensor) -> Moments:
    """`Moments` of what a batch-norm layer has seen [N, C, ...]; its output does not matter.

    The variance is biased, as in the published code.
    """
    layer: Any = module
    values = seen.float().transpose(0, 1).flatten(1)
    variance, mean = torch.var_mean(values, dim=1, correction=0)
    return Moments(mean, variance, layer.running_mean, layer.running_var)


def batch_norm_loss(read: Sequence[Moments], first_layer_factor: float = 1.0) -> Tensor:
    """L_bn of DeepInversion: the distances of all layers, summed; a scalar.

    It is a property of a batch: each image's gradient depends on all others.
    """
    distances = torch.stack([moments.distance for moments in read])
    return distances.sum() + (first_layer_factor - 1) * distances[0]
