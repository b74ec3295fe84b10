"""What the methods share: requests, the teacher as a classifier, taps, a student, carried state."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchvision.models.resnet import BasicBlock

from dfkd.config.distillation import Distillation
from dfkd.config.hashing import derive_seed
from dfkd.errors import DfkdError
from dfkd.lab.baselines.batch_norm import Taps, layers
from dfkd.models.student import build
from dfkd.models.teacher import Teacher
from dfkd.storage.checkpoints import below, moments, restore_moments
from dfkd.synthesis.image_source import Synthesised
from dfkd.utils.device import seeded
from dfkd.utils.pixels import from_bytes

M = TypeVar("M", bound=nn.Module)

NETWORK_PREFIX, OPTIMIZER_PREFIX = "network.", "optimizer."
"""Prefixes of the names of tensors in a state."""
LABEL_BATCH_SIZE = 64
"""Images in one forward pass of the teacher that labels them."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps the logits of student and teacher, [N, M] each, to a scalar."""

ARCHITECTURE = "resnet18"
"""The torchvision ResNet that the temporary student of dfad, cmi and pre is."""
MOMENTUM = 0.9
"""Momentum of SGD in all three publications."""


@dataclass(frozen=True)
class RunContext:
    """The whole run, which a method makes part after part.

    Attributes:
        seed: seed of everything that the parts share.
        images: number of images of all parts together.
        image_size: side of an image in pixels.
        earlier: returns the stored images of a finished part by its number, uint8 [N, H, W, 3].
    """

    seed: int
    images: int
    image_size: int
    earlier: Callable[[int], Tensor]

    def seed_of(self, purpose: str) -> int:
        """The seed of one network, or of anything else that the parts share."""
        return derive_seed(purpose, self.seed)


@dataclass(frozen=True)
class PartRequest:
    """What a part, or a batch of it, is to hold.

    The images follow from the request, the `RunContext` and the state after the part before.

    Attributes:
        labels: class of each image, int64 [N] on the teacher's device.
        seeds: one for each image; together they seed everything that the images share.
        part: number of the part.
        before: number of images in all earlier parts.
    """

    labels: Tensor
    seeds: Sequence[int]
    part: int = 0
    before: int = 0

    def make_rng(self, purpose: str) -> torch.Generator:
        """A generator for one purpose; on the CPU, so that all devices draw the same numbers."""
        return torch.Generator().manual_seed(derive_seed(purpose, *self.seeds))

    def select(self, rows: slice) -> "PartRequest":
        """The request for a subset of the images."""
        before = self.before + rows.indices(len(self.seeds))[0]
        return PartRequest(self.labels[rows], self.seeds[rows], self.part, before)

    def rounds(self, total: int, context: RunContext) -> range:
        """The rounds of this part, when the images of a run share `total` rounds evenly."""
        first, last = self.before, self.before + len(self.seeds)
        return range(total * first // context.images, total * last // context.images)


def even_batches(count: int, size: int) -> list[slice]:
    """Slices that cut `count` images into the fewest batches of at most `size`, evenly.

    The batches are even, because a small last one would have different batch-norm statistics.
    """
    number = math.ceil(count / size)
    edges = [math.ceil(count * i / number) for i in range(number + 1)]
    return [slice(*pair) for pair in pairwise(edges)]


@dataclass(frozen=True)
class Classifier:
    """CLIP with class texts as a classifier from pixels to logits, which all methods expect.

    Attributes:
        teacher: the frozen teacher.
        texts: unit embeddings [M, E] of the vanilla class prompts.
    """

    teacher: Teacher
    texts: Tensor

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits, float32 [N, M], of pixels [N, 3, H, W] in [0, 1]; differentiable.

        They are `logit_scale * cosine`, on which CLIP's softmax was trained. The distances of Eq 4
        are not logits, and the weights, temperatures and rates of all four methods were published
        for logits. The mean over classes is subtracted for each image. A softmax does not depend on
        it, but a student trained by L1 would have to learn this offset, which carries no class.
        """
        scaled = self.teacher.logit_scale * self.teacher.encode_image(pixels) @ self.texts.T
        return scaled - scaled.mean(dim=1, keepdim=True)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise pixels as the teacher does: subtract its mean, divide by its deviation."""
        return (pixels - self.teacher.mean) / self.teacher.std

    def denormalise(self, normalised: Tensor) -> Tensor:
        """The inverse of `normalise`; the result is in [0, 1] only if the input is in range."""
        return normalised * self.teacher.std + self.teacher.mean

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """The class probabilities [N, M], on the CPU, of pixels uint8 [N, H, W, 3]."""
        batches = (
            from_bytes(each.to(self.texts.device)) for each in images.split(LABEL_BATCH_SIZE)
        )
        return torch.cat([self.logits(pixels).softmax(1).cpu() for pixels in batches])


def stage_taps(teacher: Teacher) -> Taps:
    """Taps on the input of each stage of a ResNet tower, averaged over positions: [N, C].

    In a tower without stages the taps are on the input of each batch-norm layer.
    """
    named = teacher.visual.named_modules()
    stages = [module for name, module in named if re.fullmatch(r"(.*\.)?layer\d", name)]
    tapped = stages or layers(teacher.visual)
    return Taps(tapped, lambda module, entering, output: entering.float().flatten(2).mean(dim=2))


def embedding_taps(teacher: Teacher) -> Taps:
    """A tap on the image embedding [N, E] before it is normalised."""
    return Taps([teacher.visual], lambda module, entering, output: output.float())


class Inverter(ABC):
    """Makes the parts of a run.

    A subclass puts into `networks` and `optimizers` what it carries from each part to the next. A
    method that carries something is chained: it makes the parts in order. Other methods make them
    in any order.
    """

    name: str
    """The name of the method in the manifest."""

    def __init__(self, classifier: Classifier, context: RunContext) -> None:
        self.classifier, self.context = classifier, context
        self.device, self.rng = classifier.texts.device, torch.Generator()
        self.networks: Mapping[str, nn.Module] = {}
        self.optimizers: Mapping[str, Optimizer] = {}

    def new_network(self, make: Callable[[], M], purpose: str) -> M:
        """The network that `make` builds, in training mode; `purpose` seeds its weights."""
        with seeded(self.context.seed_of(purpose)):
            return make().to(self.device).train()

    @abstractmethod
    def images(self, request: PartRequest) -> Synthesised:
        """Make the images of a part; implemented by each method."""

    def make(self, request: PartRequest) -> Synthesised:
        """Make the images of a part, in the order of its labels.

        Raises:
            DfkdError: a chained method has diverged, so that no later part can be made.
        """
        result = self.images(request)
        # Images of an unchained method may diverge: they are made again with other seeds. In a
        # chain the next part would start from broken weights, so it ends here.
        if self.networks and (result.diverged.any() or not self._finite()):
            raise DfkdError(
                f"synthesis.{self.name}: diverged in part {request.part}, on which all later ones "
                "depend; give another seed"
            )
        return result

    def _finite(self) -> bool:
        """Whether all weights of the carried networks are finite."""
        weights = (each for network in self.networks.values() for each in network.parameters())
        return all(bool(each.isfinite().all()) for each in weights)

    def state(self) -> dict[str, Tensor]:
        """The tensors that the next part depends on, copied to the CPU; empty if not chained."""
        tensors: dict[str, Tensor] = {}
        for name, network in self.networks.items():
            tensors |= {
                f"{NETWORK_PREFIX}{name}.{k}": value for k, value in network.state_dict().items()
            }
        for name, optimizer in self.optimizers.items():
            tensors |= {
                f"{OPTIMIZER_PREFIX}{name}.{k}": value for k, value in moments(optimizer).items()
            }
        return {key: value.detach().cpu().clone() for key, value in tensors.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a `state()`."""
        for name, network in self.networks.items():
            network.load_state_dict(below(state, f"{NETWORK_PREFIX}{name}."))
        for name, optimizer in self.optimizers.items():
            restore_moments(optimizer, below(state, f"{OPTIMIZER_PREFIX}{name}."))


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
        config = Distillation(student=(ARCHITECTURE,), weights=("none",), warmup_epochs=0)
        seed = context.seed_of("student")
        student = build(config, len(classifier.texts), context.image_size, seed)
        # The code bases of these methods start from blocks that are not the identity.
        for module in student.modules():
            if isinstance(module, BasicBlock):
                nn.init.ones_(module.bn2.weight)
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

    def train_step(self, pixels: Tensor, teacher_logits: Tensor) -> None:
        """Take one step on pixels [N, 3, H, W] and the teacher's logits [N, M] for them."""
        minimise(self.loss(self.student(pixels), teacher_logits), self.optimizer)


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
