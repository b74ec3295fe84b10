"""The student inside a method: it is trained while images are made and guides their synthesis.

The methods share the steps of training below; each one has its losses in its own module.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from dfkd.config.distillation import Distillation
from dfkd.models.student import build
from dfkd.synthesis.inversion.run import Classifier, RunContext

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps the logits of student and teacher, [N, M] each, to a scalar."""

ARCHITECTURE = "resnet18"
"""The torchvision ResNet that the temporary student of dfad, cmi and pre is."""
MOMENTUM = 0.9
"""Momentum of SGD in all three publications."""


class InnerStudentTrainer:
    """Trains the student of a run, whose outputs are logits."""

    def __init__(
        self,
        classifier: Classifier,
        context: RunContext,
        loss: Loss,
        rate: float,
        decay: float,
    ) -> None:
        """Build the student.

        Args:
            classifier: the teacher.
            context: determines image size and seed.
            loss: the training loss.
            rate: learning rate of SGD.
            decay: weight decay of SGD.
        """
        config = Distillation(student=ARCHITECTURE, weights="none", warmup_epochs=0)
        seed = context.seed_of("student")
        student = build(config, len(classifier.texts), context.image_size, seed)
        self.student, self.loss = student.to(classifier.texts.device).train(), loss
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), lr=rate, momentum=MOMENTUM, weight_decay=decay
        )

    def student_logits(self, pixels: Tensor) -> Tensor:
        """Logits [N, M] of pixels [N, 3, H, W] in [0, 1]; gradients flow to the pixels only."""
        self.student.requires_grad_(False)
        logits: Tensor = self.student(pixels)
        self.student.requires_grad_(True)
        return logits

    def train_step(self, pixels: Tensor, taught: Tensor) -> None:
        """Take one step on pixels [N, 3, H, W] and the teacher's logits [N, M] for them."""
        minimise(self.loss(self.student(pixels), taught), self.optimizer)


def minimise(loss: Tensor, *optimizers: Optimizer) -> None:
    """Take one step of each optimiser down the gradient of `loss`, a scalar."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters of an optimiser."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def cosine_factor(done: float) -> float:
    """Factor of the learning rate, from 1 to 0, after a share `done` of the run."""
    return (1 + math.cos(math.pi * done)) / 2
