"""What a teacher's layers see of a batch: batch-norm statistics, L_bn, and features on the way.

Forward hooks read it. They are attached once for a run, and gone when its block ends.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfkd.teacher import Teacher, require_batch_norm

T = TypeVar("T")


class Taps(Generic[T]):
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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


def batch_norm_taps(teacher: Teacher, what: str) -> Taps[Moments]:
    """Taps on every batch-norm layer of the image tower, in the order of the forward pass.

    Raises:
        ManifestError: the tower has none, so that L_bn of the method (`what`) would be nothing.
    """
    require_batch_norm(teacher, what)
    visual: Any = teacher.model.visual
    layers = [module for module in visual.modules() if isinstance(module, _BatchNorm)]
    return Taps(layers, moments)


def moments(module: nn.Module, seen: Tensor, output: Tensor) -> Moments:
    """The variance is biased, as in the published code."""
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


def stage_taps(teacher: Teacher) -> Taps[Tensor]:
    """Taps on the mean over positions [N, C] of what enters each stage of a ResNet tower.

    Of a tower without stages, what enters each batch-norm layer.
    """
    visual: Any = teacher.model.visual
    named = list(visual.named_modules())
    stages = [module for name, module in named if re.fullmatch(r"(.*\.)?layer\d", name)]
    layers = [module for _, module in named if isinstance(module, _BatchNorm)]
    return Taps(stages or layers, lambda module, seen, output: seen.float().flatten(2).mean(dim=2))


def embedding_taps(teacher: Teacher) -> Taps[Tensor]:
    """A tap on the image embedding [N, E] before it is normalised."""
    visual: Any = teacher.model.visual
    return Taps([visual], lambda module, seen, output: output.float())
