"""The student within a method: it disagrees with the teacher, and learns while images are made."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.inversion.run import Run
from dfkd.inversion.settings import InnerStudent
from dfkd.student import build
from dfkd.training import Distillation

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of the student's and the teacher's logits [N, M]: a scalar."""


class Learner:
    """A student of a run, in training; its outputs are logits."""

    def __init__(self, config: InnerStudent, run: Run, classes: int, loss: Loss) -> None:
        shape = Distillation(
            student=config.architecture, stem=config.stem, weights="none", warmup_epochs=0
        )
        student = build(shape, classes, run.image_size, run.seed("student"))
        self.student, self.loss = student.to(run.labels.device).train(), loss
        self.optimizer = torch.optim.SGD(
            self.student.parameters(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )

    def judge(self, pixels: Tensor) -> Tensor:
        """Logits of pixels [N, 3, H, W], through which gradients reach the pixels alone."""
        self.student.requires_grad_(False)
        logits: Tensor = self.student(pixels)
        self.student.requires_grad_(True)
        return logits

    def learn(self, pixels: Tensor, taught: Tensor) -> None:
        """One step on pixels [N, 3, H, W] and the teacher's logits of them."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.student(pixels), taught).backward()
        self.optimizer.step()


def absolute(logits: Tensor, taught: Tensor) -> Tensor:
    """Mean absolute difference of logits: the discrepancy of DFAD."""
    return F.l1_loss(logits, taught)


def softened(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """The mean of `divergence`."""
    return divergence(logits, taught, temperature).mean()


def divergence(logits: Tensor, taught: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of each image [N], softened, times the squared temperature."""
    ours = F.log_softmax(logits / temperature, dim=1)
    theirs = F.softmax(taught / temperature, dim=1)
    return F.kl_div(ours, theirs, reduction="none").sum(dim=1) * temperature**2
