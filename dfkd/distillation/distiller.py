"""Distillation: L1 loss on the teacher's distances, in two phases (equations 4-5). Torch only."""

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
from dfkd.utils.device import CPU, autocast, seeded

MOMENTUM = 0.9
"""Momentum of SGD, from A.2 of the paper. The paper names no weight decay."""

TargetFunction = Callable[[Tensor], Tensor]
"""Maps views [B, 3, H, W] float32 in [0, 1] to the teacher's distances [B, M] float32."""

Distribute = Callable[[nn.Module], nn.Module]
"""Wraps a module so that its gradients are averaged over all ranks; the identity with one rank."""


@dataclass(frozen=True)
class Schedule:
    """The number of steps of each phase, and the learning rate of each step."""

    steps_per_epoch: int
    warmup: int
    """Steps of the first phase, in which the backbone is frozen."""
    total: int
    """Steps of both phases."""

    @classmethod
    def of(cls, config: Training, steps_per_epoch: int) -> "Schedule":
        """The schedule of `warmup_epochs` epochs of warm-up and then `epochs` epochs."""
        warmup = config.warmup_epochs * steps_per_epoch
        return cls(steps_per_epoch, warmup, warmup + config.epochs * steps_per_epoch)

    def rate(self, config: Training, step: int) -> float:
        """The learning rate of `step` (from 0); a cosine decays to zero within each phase."""
        warming = step < self.warmup
        start, end = (0, self.warmup) if warming else (self.warmup, self.total)
        peak = config.learning_rate * (1.0 if warming else config.finetune_factor)
        if config.schedule == "constant":
            return peak
        return peak * 0.5 * (1 + math.cos(math.pi * (step - start) / (end - start)))


MIN_STD = 1e-6
"""Least standard deviation that distances are divided by: those of one image may be equal."""


@dataclass(frozen=True)
class LabelScale:
    """Rescaling of targets, (distance - mean) / std; the finished head undoes it."""

    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def of(cls, standardise: bool | tuple[float, float], mean: float, std: float) -> "LabelScale":
        """The scale that `distillation.standardise` asks for.

        Args:
            standardise: mean and standard deviation of the targets; true stands for (0, 1), false
                leaves the distances as they are.
            mean: the mean of the version's distances.
            std: their standard deviation.
        """
        if standardise is False:
            return cls()
        target_mean, target_std = (0.0, 1.0) if standardise is True else standardise
        # (d - mean) / std * target_std + target_mean, written as one shift and one division.
        factor = max(std, MIN_STD) / target_std
        return cls(mean - factor * target_mean, factor)


@dataclass(frozen=True)
class StepMetrics:
    """Figures of one step on this rank, as tensors so that the step does not wait for the GPU."""

    loss: Tensor
    """L1 loss on the (standardised) distances, a scalar."""
    agreement: Tensor
    """Fraction of the images that student and teacher put into the same class, a scalar."""


class Distiller:
    """A student in training. `state()` holds everything that `advance` depends on.

    The warm-up uses the backbone as a feature extractor: its weights are frozen and it runs in
    evaluation mode, so batch norm keeps its initial statistics and drop-path is off. The second
    phase trains everything in training mode.

    The randomness of a step (augmentation, and drop-path of some students) is derived from (seed,
    step, rank), so a resumed run repeats it without a stored generator state.
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
        """Start at step 0.

        Args:
            student: moved to `device` and trained in place.
            label: computes the targets from the views; None uses the distances stored with the
                images.
            weight: this rank's images in a step divided by the mean over ranks. With it the mean
                of the ranks' gradients is the gradient of the whole batch.
        """
        self.weight = weight
        self.config, self.schedule, self.seed, self.label = config, schedule, seed, label
        self.scale, self.device, self.rank, self.distribute = scale, device, rank, distribute
        self.student = student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.step = 0
        self._enter_phase()

    def _enter_phase(self) -> None:
        """Freeze or unfreeze the backbone, with a new optimizer: phases share no momentum."""
        self.model: nn.Module | None = None
        # The old DDP wrapper must be gone: its hooks would go on reducing the head's gradients.
        gc.collect()
        finetuning = self.step >= self.schedule.warmup
        self.student.train(finetuning)
        self.student.backbone.requires_grad_(finetuning)
        trained = [p for p in self.student.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.config, trained)
        self.model = self.distribute(self.student)

    @property
    def epoch(self) -> int:
        """The epoch of the next step, counted from 0 over both phases."""
        return self.step // self.schedule.steps_per_epoch

    @property
    def done(self) -> bool:
        """Whether no step is left."""
        return self.step >= self.schedule.total

    def advance(self, batch: Batch) -> StepMetrics:
        """Do one optimizer step on this rank's part of a batch."""
        assert self.model is not None  # noqa: S101 - for the type checker
        views = self.view(batch)
        distances = self._distances(views, batch)
        with seeded(self._own_seed, self.device), autocast(self.device, self.config.precision):
            outputs = self.model(views)
        # L1 of standardised distances has unit scale, whatever the spread of the distances.
        targets = (distances - self.scale.mean) / self.scale.std
        loss = F.l1_loss(outputs.float(), targets)  # equation 5
        self.optimizer.zero_grad(set_to_none=True)
        (self.weight * loss).backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.config, self.step)
        self.optimizer.step()
        self.step += 1
        # Change phase now, so that `state()` after the last warm-up step is of the second phase.
        if self.step == self.schedule.warmup:
            self._enter_phase()
        agreement = (outputs.detach().argmin(1) == distances.argmin(1)).float().mean()
        return StepMetrics(loss.detach(), agreement)

    def view(self, batch: Batch) -> Tensor:
        """The next step's augmented images, float32 [B, 3, H, W] in [0, 1]; same at each call."""
        pixels = batch.pixels.to(self.device, non_blocking=True).float().div_(255)
        if self.config.augmentation:
            generator = torch.Generator(self.device).manual_seed(self._own_seed)
            pixels = augment(pixels, self.config.augmentation, generator)
        return pixels.contiguous(memory_format=torch.channels_last)

    @property
    def _own_seed(self) -> int:
        """The seed of this step's randomness on this rank."""
        return derive_seed("step", self.seed, self.step, self.rank)

    @torch.no_grad()
    def _distances(self, pixels: Tensor, batch: Batch) -> Tensor:
        if self.label is None:
            return batch.distances.to(self.device, non_blocking=True)
        return self.label(pixels)

    def state(self) -> dict[str, Tensor]:
        """Everything `restore` needs as CPU tensors: student.*, optimizer.INDEX.NAME and step."""
        tensors = {f"student.{key}": value for key, value in self.student.state_dict().items()}
        tensors |= moments(self.optimizer)
        tensors["step"] = torch.tensor(self.step)
        return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a `state()`, possibly of another world size.

        Raises:
            CorruptionError: the state is of another student or schedule.
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
    """A new SGD or AdamW optimizer; the caller sets the learning rate at every step.

    `fused` updates all parameters in one kernel.
    """
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.learning_rate,
            momentum=MOMENTUM,
            fused=True,
        )
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0, fused=True)
