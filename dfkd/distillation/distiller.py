"""Distillation: L1 on the teacher's distances, in two phases (equations 4-5). Torch only."""

import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd.config.distillation import Distillation, Training
from dfkd.config.plan import derive_seed
from dfkd.dataset.loader import Batch
from dfkd.distillation.augmentation import augment
from dfkd.errors import CorruptionError
from dfkd.models.student import Student
from dfkd.storage.checkpoints import below, moments, restore_moments
from dfkd.utils.device import autocast
from dfkd.utils.seeding import CPU, seeded

MOMENTUM = 0.9
"""Of SGD, as in A.2 of the paper, which names no weight decay."""

TargetFunction = Callable[[Tensor], Tensor]
"""The teacher's distances [B, M] float32 for views [B, 3, H, W] in [0, 1]."""

Distribute = Callable[[nn.Module], nn.Module]
"""Wraps a module so that its gradients are the mean over all ranks; with one rank, the identity."""


@dataclass(frozen=True)
class Schedule:
    """How many steps each phase takes."""

    steps_per_epoch: int
    warmup: int
    """Steps with the backbone frozen."""
    total: int

    @classmethod
    def of(cls, config: Training, steps_per_epoch: int) -> "Schedule":
        """The course of `warmup_epochs` and then `epochs`."""
        warmup = config.warmup_epochs * steps_per_epoch
        return cls(steps_per_epoch, warmup, warmup + config.epochs * steps_per_epoch)

    def rate(self, config: Training, step: int) -> float:
        """The learning rate of 0-based `step`; a cosine runs to zero within each phase."""
        warming = step < self.warmup
        start, end = (0, self.warmup) if warming else (self.warmup, self.total)
        peak = config.learning_rate * (1.0 if warming else config.finetune_factor)
        if config.schedule == "constant":
            return peak
        return peak * 0.5 * (1 + math.cos(math.pi * (step - start) / (end - start)))


@dataclass(frozen=True)
class LabelScale:
    """Labels are (distance - mean) / std while training; the head is folded back at export."""

    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class StepMetrics:
    """What one step measured on this rank; tensors, so that a GPU need not wait for them."""

    loss: Tensor
    """L1 on (standardised) distances."""
    agreement: Tensor
    """Share of the images that student and teacher put into the same class."""


class Distiller:
    """A student in training. `state()` and `restore()` carry everything that `advance` depends on.

    The warm-up takes the backbone as a feature extractor: its weights are frozen and it runs in
    evaluation mode, so that batch norm keeps the statistics it came with and drop-path drops
    nothing. The second phase trains everything in training mode.

    Randomness of a step (augmentation, and drop-path of some students) is derived from (seed, step,
    rank), so a resumed run repeats it without any generator's state.
    """

    def __init__(
        self,
        student: Student,
        config: Distillation,
        schedule: Schedule,
        seed: int,
        label: TargetFunction | None = None,
        scale: LabelScale = LabelScale(),
        device: torch.device = CPU,
        rank: int = 0,
        distribute: Distribute = lambda module: module,
        weight: float = 1.0,
    ) -> None:
        """`label` None trains on the distances stored with the images.

        `weight` is this rank's images in a step over the mean of all ranks', so that the mean of
        the ranks' gradients is that of the whole batch.
        """
        self.weight = weight
        self.config, self.schedule, self.seed, self.label = config, schedule, seed, label
        self.scale, self.device, self.rank, self.distribute = scale, device, rank, distribute
        self.student = student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.step = 0
        self._enter_phase()

    def _enter_phase(self) -> None:
        """Freeze or free the backbone, with a fresh optimizer: the phases share no momentum."""
        self.model: nn.Module | None = None
        # A wrapper that lingers would go on reducing the head's gradients.
        gc.collect()
        whole = self.step >= self.schedule.warmup
        self.student.train(whole)
        self.student.backbone.requires_grad_(whole)
        trained = [p for p in self.student.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.config, trained)
        self.model = self.distribute(self.student)

    @property
    def epoch(self) -> int:
        """Of the next step, counted from 0 over both phases."""
        return self.step // self.schedule.steps_per_epoch

    @property
    def done(self) -> bool:
        """Whether no step is left."""
        return self.step >= self.schedule.total

    def advance(self, batch: Batch) -> StepMetrics:
        """One optimizer step on this rank's share of a batch."""
        assert self.model is not None  # noqa: S101 - for the type checker
        views = self.view(batch)
        distances = self._distances(views, batch)
        with seeded(self._own_seed, self.device), autocast(self.device, self.config.precision):
            outputs = self.model(views)
        targets = (distances - self.scale.mean) / self.scale.std
        loss = F.l1_loss(outputs.float(), targets)  # equation 5
        self.optimizer.zero_grad(set_to_none=True)
        (self.weight * loss).backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.config, self.step)
        self.optimizer.step()
        self.step += 1
        if self.step == self.schedule.warmup:
            self._enter_phase()
        agreement = (outputs.detach().argmin(1) == distances.argmin(1)).float().mean()
        return StepMetrics(loss.detach(), agreement)

    def view(self, batch: Batch) -> Tensor:
        """The augmented images [B, 3, H, W] of this step, float32 in [0, 1]; the same each time."""
        pixels = batch.pixels.to(self.device, non_blocking=True).float().div_(255)
        if self.config.augmentation:
            generator = torch.Generator(self.device).manual_seed(self._own_seed)
            pixels = augment(pixels, self.config.augmentation, generator)
        return pixels.contiguous(memory_format=torch.channels_last)

    @property
    def _own_seed(self) -> int:
        """Of this step on this rank."""
        return derive_seed("step", self.seed, self.step, self.rank)

    @torch.no_grad()
    def _distances(self, pixels: Tensor, batch: Batch) -> Tensor:
        if self.label is None:
            return batch.distances.to(self.device, non_blocking=True)
        return self.label(pixels)

    def state(self) -> dict[str, Tensor]:
        """Flat named tensors: student.*, optimizer.INDEX.NAME and step."""
        tensors = {f"student.{key}": value for key, value in self.student.state_dict().items()}
        tensors |= moments(self.optimizer)
        tensors["step"] = torch.tensor(self.step)
        return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a `state()`, possibly of another world size.

        Raises:
            CorruptionError: it is of another student or course.
        """
        try:
            self._restore(tensors)
        except (LookupError, ValueError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise CorruptionError(
                f"a checkpoint is not of this student ({reason}); "
                "delete checkpoints/ in the student's folder and run again"
            ) from None

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.step = int(tensors["step"])
        if not 0 <= self.step <= self.schedule.total:
            raise ValueError(f"step {self.step} of {self.schedule.total}")
        self.student.load_state_dict(below(tensors, "student."))
        self._enter_phase()
        restore_moments(self.optimizer, tensors)


def make_optimizer(config: Training, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """A fresh one; the rate is set at every step, and `fused` is one kernel for all parameters."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.learning_rate,
            momentum=MOMENTUM,
            fused=True,
        )
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0, fused=True)
