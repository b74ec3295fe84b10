"""Training steps of a student: a loss on what the teacher says (equations 4-5), in two phases.

The warm-up trains the head on a frozen backbone, the second phase trains all layers. This module
knows torch only; `dfkd.cluster.rank` reads the batches and writes the checkpoints.
"""

import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dfkd.config.distillation import MOMENTUM, Distillation
from dfkd.config.hashing import derive_seed
from dfkd.dataset.batch import Batch
from dfkd.distillation.augmentation import augment
from dfkd.distillation.labels import TargetFunction
from dfkd.distillation.objective import RAW_DISTANCES, Objective
from dfkd.errors import CorruptionError
from dfkd.models.student import Student
from dfkd.storage.checkpoints import below, moments, restore_moments
from dfkd.utils.device import CPU, autocast, seeded
from dfkd.utils.pixels import from_batch

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
    def of(cls, config: Distillation, steps_per_epoch: int) -> "Schedule":
        """The schedule with `warmup_epochs` epochs of warm-up, followed by `epochs` epochs."""
        warmup = config.warmup_epochs * steps_per_epoch
        return cls(steps_per_epoch, warmup, warmup + config.epochs * steps_per_epoch)

    def rate(self, config: Distillation, step: int) -> float:
        """The learning rate of `step` (from 0): constant in each phase, or a cosine from its peak.

        A cosine would reach zero one step after the last step of its phase.
        """
        warming = step < self.warmup
        start, end = (0, self.warmup) if warming else (self.warmup, self.total)
        peak = config.learning_rate * (1.0 if warming else config.finetune_factor)
        if config.schedule == "constant":
            return peak
        # Each phase has its own cosine, because the second one trains other weights with a new
        # optimizer: if one cosine spanned both, the backbone would start at a decayed rate.
        return peak * 0.5 * (1 + math.cos(math.pi * (step - start) / (end - start)))


@dataclass(frozen=True)
class StepMetrics:
    """Figures of one step on this rank, as tensors so that the step does not wait for the GPU."""

    loss: Tensor
    """Loss on the (standardised) targets, a scalar."""
    agreement: Tensor
    """Fraction of the images that student and teacher put into the same class, a scalar."""


class Distiller:
    """A student in training. `state()` holds everything that `advance` depends on.

    The warm-up uses the backbone as a feature extractor: its weights are frozen and it runs in
    evaluation mode, so batch norm keeps its initial statistics and drop-path is off. The second
    phase trains all layers in training mode.

    The randomness of a step (augmentation, and drop-path of some students) is derived from (seed,
    step, rank). A resumed run therefore repeats it, and no generator state is stored.
    """

    def __init__(
        self,
        student: Student,
        config: Distillation,
        schedule: Schedule,
        seed: int,
        target_function: TargetFunction | None = None,
        objective: Objective = RAW_DISTANCES,
        device: torch.device = CPU,
        rank: int = 0,
        distribute: Distribute = lambda module: module,
        loss_weight: float = 1.0,
    ) -> None:
        """Start at step 0.

        Args:
            student: moved to `device` and trained in place.
            schedule: number of steps, and the learning rate of each.
            seed: seed of the student; each step's randomness is derived from it.
            target_function: computes the targets from the views; None uses those that are stored
                with the images.
            objective: standardisation of the targets, and the loss on them.
            rank: number of this process, from 0.
            distribute: wraps the student for training with several ranks.
            loss_weight: factor on this rank's loss: its images of a step, divided by the mean over
                the ranks.
        """
        self.loss_weight, self.target_function = loss_weight, target_function
        self.config, self.schedule, self.seed = config, schedule, seed
        self.objective, self.device = objective, device
        self.rank, self.distribute = rank, distribute
        self.student = student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.step = 0
        self.model: nn.Module | None = self.student
        self._enter_phase()

    def _enter_phase(self) -> None:
        """Freeze or unfreeze the backbone, with a new optimizer: phases share no momentum."""
        # The DDP wrapper of the warm-up must be gone, because its hooks on the head's parameters
        # would go on averaging their gradients. It is part of reference cycles, so dropping the
        # reference is not enough.
        if self.model is not self.student:
            self.model = None
            gc.collect()
        finetuning = self.step >= self.schedule.warmup
        self.student.train(finetuning)
        self.student.backbone.requires_grad_(finetuning)
        trained = [p for p in self.student.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.config, trained)
        # Wrapped after the freezing: DDP waits for a gradient of every parameter that was
        # trainable when it was created.
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
        """Do one optimizer step on this rank's part of a batch.

        With several ranks, all of them must call it: the backward pass averages the gradients.
        """
        assert self.model is not None  # noqa: S101 - for the type checker
        views = self.augmented(batch)
        # The teacher's distances [B, M] or embeddings [B, E]: of the views, or stored with images.
        with torch.no_grad():
            if self.target_function is None:
                targets = self.objective.stored(batch).to(self.device).float()
            else:
                targets = self.target_function(views)
        # Not the seed of the views: on a GPU drop-path would draw the numbers of their crops again.
        noise = derive_seed("drop-path", self._step_seed)
        with seeded(noise, self.device), autocast(self.device, self.config.precision):
            outputs = self.model(views)
        loss = self.objective.loss(outputs.float(), targets)
        self.optimizer.zero_grad(set_to_none=True)
        # DDP takes the plain mean of the ranks' gradients, but ranks may hold unequal numbers of
        # images. With the weight that mean is the gradient of the mean over the whole batch.
        (self.loss_weight * loss).backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.config, self.step)
        self.optimizer.step()
        self.step += 1
        # Change phase now and not at the next step, so that a checkpoint after the last warm-up
        # step holds the second phase's optimizer, as `restore` expects at this step.
        if self.step == self.schedule.warmup:
            self._enter_phase()
        student, teacher = self.objective.nearest(outputs.detach(), targets)
        return StepMetrics(loss.detach(), (student == teacher).float().mean())

    def augmented(self, batch: Batch) -> Tensor:
        """The next step's augmented images, float32 [B, 3, H, W] in [0, 1].

        The same batch gives the same views until `advance` has done the step.
        """
        # `non_blocking`: the steps before go on while the images are copied to a GPU.
        pixels = from_batch(batch.pixels, self.device)
        if self.config.augmentation:
            generator = torch.Generator(self.device).manual_seed(self._step_seed)
            pixels = augment(pixels, self.config.augmentation, generator)
        return pixels.contiguous(memory_format=torch.channels_last)

    @property
    def _step_seed(self) -> int:
        """The seed of this step's randomness on this rank."""
        return derive_seed("step", self.seed, self.step, self.rank)

    def state(self) -> dict[str, Tensor]:
        """All that `restore` needs, as CPU tensors: `student.*`, `optimizer.INDEX.NAME` and `step`.

        Buffers are those of this rank. Average the batch-norm statistics over the ranks before
        (`dfkd.distillation.data_parallel.average_buffers`).
        """
        tensors = {f"student.{key}": value for key, value in self.student.state_dict().items()}
        tensors |= moments(self.optimizer)
        tensors["step"] = torch.tensor(self.step)
        return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a `state()`, which may come from another number of ranks.

        Raises:
            CorruptionError: the state belongs to another student or schedule.
        """
        try:
            step = tensors["step"]
            if step.dtype != torch.int64 or step.ndim:
                raise ValueError(f"a step of {step.dtype} with {step.ndim} axes")
            self.step = int(step)
            if not 0 <= self.step <= self.schedule.total:
                raise ValueError(f"step {self.step} of {self.schedule.total}")
            self.student.load_state_dict(below(tensors, "student."))
            # The step decides the phase, and the phase decides which parameters have moments.
            self._enter_phase()
            restore_moments(self.optimizer, tensors)
            if not self.optimizer.state and self.step not in (0, self.schedule.warmup):
                raise ValueError(f"no moments after step {self.step}")
        except (LookupError, ValueError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise CorruptionError(
                f"a checkpoint is not of this student ({reason}); "
                "delete checkpoints/ in the student's folder and run again"
            ) from None


def make_optimizer(config: Distillation, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """A new SGD or AdamW optimizer; the caller sets the learning rate at every step."""
    # `fused` updates all parameters in one kernel.
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, MOMENTUM, weight_decay=decay, fused=True)
    return torch.optim.AdamW(parameters, rate, weight_decay=decay, fused=True)
