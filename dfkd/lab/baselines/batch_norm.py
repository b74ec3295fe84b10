"""L_bn: the distance of a batch's statistics from those of the teacher's batch norm.

It makes images whose features have the mean and the variance that the teacher's training data had,
which batch norm has stored. Forward hooks compute the statistics, because the inputs of inner
layers are visible nowhere else.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dfkd.errors import ManifestError
from dfkd.models.teacher import Teacher
from dfkd.utils.progress import Closing

Measure = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Maps a module, its input and its output to what `Taps` keeps of a pass."""


def layers(network: nn.Module) -> list[_BatchNorm]:
    """All batch-norm layers of a network, of any dimension, in the order of its modules."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def require_batch_norm(teacher: Teacher, what: str) -> None:
    """Raise `ManifestError` if the teacher's image tower has no batch norm.

    The loss of a method that needs it would be silently zero.

    Args:
        what: the method, for the message.
    """
    if not layers(teacher.visual):
        raise ManifestError(
            "teacher.model",
            f"{what} needs an image tower with batch norm",
            teacher.name,
            "choose a ResNet teacher such as RN50-quickgelu",
        )


class Taps(Closing):
    """Forward hooks that compute a tensor of each module; a context manager.

    The tensors are part of the autograd graph of the pass, so losses on them have gradients.
    """

    def __init__(self, modules: Iterable[nn.Module], measure: Measure) -> None:
        self._values: dict[int, Tensor] = {}
        self._handles = [
            module.register_forward_hook(partial(self._keep, number, measure))
            for number, module in enumerate(modules)
        ]

    def _keep(
        self,
        number: int,
        measure: Measure,
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        output: Tensor,
    ) -> None:
        """Called by torch after the forward pass of module `number`."""
        self._values[number] = measure(module, inputs[0], output)

    @property
    def values(self) -> list[Tensor]:
        """The tensors of the last forward pass, in the order of the modules."""
        return [self._values[number] for number in range(len(self._handles))]

    def close(self) -> None:
        """Remove the hooks and their tensors."""
        for handle in self._handles:
            handle.remove()
        self._values.clear()


def statistics_distance(module: nn.Module, images: Tensor, output: Tensor) -> Tensor:
    """||mean - running mean||_2 + ||variance - running variance||_2 at a batch-norm layer.

    Mean and variance are those of this batch, the running ones those of the training data.

    Args:
        module: the layer.
        images: its input [N, C, ...].
        output: not used; `Taps` passes it.

    Returns:
        A float32 scalar.
    """
    layer: Any = module
    values = images.float().transpose(0, 1).flatten(1)
    # The variance is biased, as in the published code.
    variance, mean = torch.var_mean(values, dim=1, correction=0)
    means: Tensor = torch.linalg.vector_norm(mean - layer.running_mean)
    variances: Tensor = torch.linalg.vector_norm(variance - layer.running_var)
    return means + variances


def batch_norm_loss(distances: Sequence[Tensor], first_layer_factor: float = 1.0) -> Tensor:
    """L_bn, DeepInversion's R_feature: the sum of the layers' `statistics_distance`, a scalar.

    L_bn is a property of a batch, so the gradient of each image depends on all other images.

    Args:
        distances: of the layers, in their order.
        first_layer_factor: weight of the first layer's distance in the sum.
    """
    stacked = torch.stack(list(distances))
    return stacked.sum() + (first_layer_factor - 1) * stacked[0]


def batch_norm_taps(teacher: Teacher, what: str) -> Taps:
    """Hooks for the `statistics_distance` of all batch-norm layers of the image tower, in order.

    Args:
        what: the method, for the message.

    Raises:
        ManifestError: the tower has no batch norm.
    """
    require_batch_norm(teacher, what)
    return Taps(layers(teacher.visual), statistics_distance)
