"""The student within a method: it disagrees with the teacher, and learns while images are made."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.config.distillation import Distillation
from dfkd.config.inversion import InnerStudent
from dfkd.models.student import build
from dfkd.synthesis.inversion.run import Classifier, RunContext

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of the student's and the teacher's logits [N, M]: a scalar."""

MOMENTUM = 0.9
"""Of SGD in all three publications."""


class InnerStudentTrainer:
    """A student of a run, in training; its outputs are logits."""

    def __init__(
        self,
        classifier: Classifier,
        context: RunContext,
        shape: InnerStudent,
        loss: Loss,
        rate: float,
        decay: float,
    ) -> None:
        """`rate` and `decay` are SGD's learning rate and weight decay."""
        config = Distillation(
            student=shape.architecture, stem=shape.stem, weights="none", warmup_epochs=0
        )
        seed = context.seed_of("student")
        student = build(config, len(classifier.texts), context.image_size, seed)
        self.student, self.loss = student.to(classifier.texts.device).train(), loss
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), lr=rate, momentum=MOMENTUM, weight_decay=decay
        )

    def student_logits(self, pixels: Tensor) -> Tensor:
        """Logits of pixels [N, 3, H, W], through which gradients reach the pixels alone."""
        self.student.requires_grad_(False)
        logits: Tensor = self.student(pixels)
        self.student.requires_grad_(True)
        return logits

    def train_step(self, pixels: Tensor, taught: Tensor) -> None:
        """One step on pixels [N, 3, H, W] and the teacher's logits of them."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.student(pixels), taught).backward()
        self.optimizer.step()


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameters of an optimizer this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def cosine_factor(done: float) -> float:
    """The factor of a rate when a share of the run is done: from 1 to 0."""
    return (1 + math.cos(math.pi * done)) / 2


def l1_loss(logits: Tensor, taught: Tensor) -> Tensor:
    """Mean absolute difference of logits: the discrepancy of DFAD."""
    return F.l1_loss(logits, taught)


def softened_kl(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """The mean of `kl_divergence`."""
    return kl_divergence(logits, taught, temperature).mean()


def kl_divergence(logits: Tensor, taught: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of each image [N], softened, times the squared temperature."""
    ours = F.log_softmax(logits / temperature, dim=1)
    theirs = F.softmax(taught / temperature, dim=1)
    return F.kl_div(ours, theirs, reduction="none").sum(dim=1) * temperature**2
