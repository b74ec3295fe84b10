"""CMI (Fang et al. 2021b): inversion with a contrastive loss that separates every two images.

For each batch of classes y a new generator is initialised and trained together with latents z; its
output at the lowest loss is the batch. With x' a lightly and x'' a strongly cropped view:

    L = w_bn L_bn(x') + w_class CE(T(x'), y) - w_adv KL(T(x') || S(x')) [S and T agree] + w_cr L_cr

    L_cr = -log exp(s(x'', x') / tau) / sum over all images j of exp(s(x'', x'_j) / tau)

s is the cosine of projected features. The features are the spatial means of the inputs of the
teacher's stages, and a head of two layers, trained at the same time, projects them. The other
images are those of the batch and `NEGATIVES` from the memory bank. L_cr is the mean over the batch
plus the mean over the bank. No gradient flows through x', so only x'' is moved towards it. After
each batch the student S is trained with softened KL on all images of the run so far; its learning
rate falls by a cosine over the run.

Bank, head and student are kept through the whole run, as published. So parts are made one after the
other by one worker at a time, and that worker holds all images of the run (150 KB each at 224 px:
3.2 GB for the 21,000 of PACS). The state between two parts is the bank, the head and the student:
up to 600 MB with RN50's features. Images of earlier parts are read from their shards.

Losses, weights and order of the steps are those of `datafree/synthesis/contrastive.py` in
zju-vipa/CMI, with the options of its script for CIFAR-10.

There are three differences to the publication. Logits are those of `Classifier`. A batch holds
equally many images of each class, as a data set does here, and not random classes. And a part is
cut into even batches.
"""

from bisect import bisect
from collections.abc import Callable, Mapping
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd.lab.baselines.batch_norm import batch_norm_loss, batch_norm_taps
from dfkd.lab.baselines.crops import random_crop, random_shift
from dfkd.lab.baselines.inverter import (
    Classifier,
    InnerStudentTrainer,
    Inverter,
    PartRequest,
    RunContext,
    cosine_factor,
    even_batches,
    minimise,
    set_rate,
    stage_taps,
)
from dfkd.lab.baselines.networks import CmiGenerator, init_normal
from dfkd.lab.baselines.settings import Cmi
from dfkd.synthesis.image_source import Synthesised, synthesised
from dfkd.utils.pixels import from_bytes, to_bytes

LEARNING_RATE, BETAS = 1e-3, (0.5, 0.999)
"""Adam's learning rate of generator, latents and head (the script for CIFAR-10); its momenta for
the first two."""
BATCH_NORM_WEIGHT, CLASS_WEIGHT, ADVERSARIAL_WEIGHT, CONTRAST_WEIGHT = 1.0, 1.0, 0.5, 0.8
CONTRAST_TEMPERATURE, HEAD_DIMENSIONS = 0.2, 256
"""Temperature of L_cr, and the dimensions of the projected features."""
BANK_CAPACITY, NEGATIVES = 40960, 4096
"""Images whose features the bank holds, and the number of them that is drawn at each step."""
STUDENT_RATE, STUDENT_DECAY, STUDENT_TEMPERATURE = 0.1, 1e-4, 20.0
"""The student's initial learning rate, its weight decay, and the temperature of its loss."""


class CmiInverter(Inverter):
    """Makes batch after batch and carries the bank, the head and the student along."""

    name = "cmi"

    def __init__(self, classifier: Classifier, context: RunContext, settings: Cmi) -> None:
        super().__init__(classifier, context)
        self.config, side = settings, context.image_size
        self.latent = settings.latent
        self.bank, self.pool = FeatureBank(BANK_CAPACITY), ImagePool()
        self.learner = InnerStudentTrainer(
            classifier, context, student_loss, STUDENT_RATE, STUDENT_DECAY
        )
        self.generator = self.new_network(
            lambda: CmiGenerator(self.latent, settings.width, side), "generator"
        )
        # The width of the features depends on the teacher, so one image is passed through it.
        with torch.no_grad(), stage_taps(classifier.teacher) as self.stage_taps:
            width = self._features(torch.zeros(1, 3, side, side, device=self.device))[1].shape[1]
        self.head = self.new_network(lambda: projection_head(width, HEAD_DIMENSIONS), "head")
        self.head_optimizer = torch.optim.Adam(self.head.parameters(), LEARNING_RATE)
        self.networks = {"head": self.head, "student": self.learner.student}
        self.optimizers = {"head": self.head_optimizer, "student": self.learner.optimizer}

    def state(self) -> dict[str, Tensor]:
        """Networks, optimisers and bank."""
        return super().state() | {"bank": self.bank.features.cpu().clone()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Networks, optimisers and bank; see `Inverter.restore`."""
        super().restore(state)
        self.bank.features = state["bank"].to(self.device)

    def images(self, request: PartRequest) -> Synthesised:
        """Make a part batch after batch."""
        self.rng = request.make_rng("cmi")
        # The previous part is read back from its shards, because JPEG changes pixels. A resumed run
        # then trains the student on the same pixels as an uninterrupted one.
        self.pool.keep(self.context.earlier, request.part)
        pixels, losses, before = [], [], request.before
        with (
            batch_norm_taps(self.classifier.teacher, self.name) as self.batch_norm_taps,
            stage_taps(self.classifier.teacher) as self.stage_taps,
        ):
            for rows in even_batches(len(request.seeds), self.config.batch_size):
                images, lowest = self.batch(request.labels[rows])
                pixels.append(images)
                losses.append(torch.full((len(images),), lowest))
                # After the last batch of the run no image needs the student any more.
                if before + len(images) < self.context.images:
                    self.teach(before / self.context.images)
                before += len(images)
        return synthesised(torch.cat(pixels), torch.cat(losses), self.config.steps)

    def batch(self, labels: Tensor) -> tuple[Tensor, float]:
        """Make a batch of images.

        Args:
            labels: class of each image, int64 [B].

        Returns:
            The images, uint8 [B, H, W, 3], and their loss, the lowest of all steps.
        """
        self.learner.student.eval()
        # A new generator for each batch: one that has made other images would repeat them.
        init_normal(self.generator, self.rng)
        latents = torch.randn(len(labels), self.latent, generator=self.rng)
        latents = latents.to(self.device).requires_grad_()
        optimizer = torch.optim.Adam([*self.generator.parameters(), latents], LEARNING_RATE, BETAS)
        lowest, best, best_features = torch.inf, self.generator(latents).detach(), None
        for _ in range(self.config.steps):
            images = self.generator(latents)
            loss, features = self._loss(images, labels)
            if (value := loss.item()) < lowest:
                lowest, best, best_features = value, images.detach(), features
            # The head learns to tell images apart, and the generator to make images that it can
            # tell apart: both minimise the same loss.
            minimise(loss, optimizer, self.head_optimizer)
        # If no loss was finite, the batch has diverged and has no features.
        if best_features is not None:
            self.bank.add(best_features)
        made = to_bytes(best)
        self.pool.add(made)
        return made, lowest

    def _loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """L of a batch of images [B, 3, S, S], and its features [B, 2F] for the bank."""
        light = random_shift(images, self.rng)
        logits, light_features = self._features(light)
        # The taps are read now, because the next pass, over the crops, overwrites them.
        statistics = batch_norm_loss(self.batch_norm_taps.values)
        _, crop_features = self._features(random_crop(images, self.rng))
        adversarial = disagreement(self.learner.student_logits(light), logits).mean()
        loss = (
            BATCH_NORM_WEIGHT * statistics
            + CLASS_WEIGHT * F.cross_entropy(logits, labels)
            + ADVERSARIAL_WEIGHT * adversarial
            + CONTRAST_WEIGHT * self._contrast(crop_features, light_features)
        )
        return loss, torch.cat([crop_features, light_features], dim=1).detach()

    def _features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, M] and features [B, F] of pixels [B, 3, S, S]."""
        logits = self.classifier.logits(pixels)
        return logits, torch.cat(self.stage_taps.values, dim=1)

    def _contrast(self, crops: Tensor, light: Tensor) -> Tensor:
        """L_cr of the features [B, F] of both views, with negatives from the bank."""
        batch_size = len(crops)
        remembered = self.bank.draw(NEGATIVES, self.rng)
        if len(remembered):
            # The bank stores the features before the head, which has changed since then.
            others = remembered.chunk(2, dim=1)
            crops, light = torch.cat([crops, others[0]]), torch.cat([light, others[1]])
        crops, light = F.normalize(self.head(torch.cat([crops, light])), dim=1).chunk(2)
        return contrastive_loss(crops, light, batch_size, CONTRAST_TEMPERATURE)

    def teach(self, done: float) -> None:
        """Train the student on views of all images of the run so far.

        Args:
            done: the share of the run before the newest batch; it determines the learning rate.
        """
        set_rate(self.learner.optimizer, STUDENT_RATE * cosine_factor(done))
        self.learner.student.train()
        for _ in range(self.config.student_steps):
            pixels = from_bytes(self.pool.draw(self.config.batch_size, self.rng).to(self.device))
            with torch.no_grad():
                pixels = random_shift(pixels, self.rng)
                teacher_logits = self.classifier.logits(pixels)
            self.learner.train_step(pixels, teacher_logits)


def projection_head(features: int, dimensions: int) -> nn.Module:
    """Two linear layers with a ReLU between them; the first is as wide as the features."""
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, dimensions))


class FeatureBank:
    """The memory bank: features [N, 2F] of the run's images (x'', then x'), on their device."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.features = torch.empty(0, 0)

    def add(self, features: Tensor) -> None:
        """Append features [N, 2F]; the oldest beyond the capacity leave."""
        new = features.detach()
        earlier = [self.features] if len(self.features) else []
        self.features = torch.cat([*earlier, new])[-self.capacity :]

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Draw at most `count` rows without replacement."""
        rows = torch.randperm(len(self.features), generator=rng)[:count]
        return self.features[rows.to(self.features.device)]


class ImagePool:
    """The images of the run so far, in tensors uint8 [N, H, W, 3].

    Images of finished parts are those that the shards hold.
    """

    def __init__(self) -> None:
        self.stored: list[Tensor] = []
        self.fresh: list[Tensor] = []

    def keep(self, earlier: Callable[[int], Tensor], parts: int) -> None:
        """Read the missing ones of the first `parts` parts, and drop the fresh images."""
        self.fresh = []
        self.stored += [earlier(part) for part in range(len(self.stored), parts)]

    def add(self, images: Tensor) -> None:
        """Add a batch of the part that is being made."""
        self.fresh.append(images)

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Draw `count` images with replacement."""
        tensors = [*self.stored, *self.fresh]
        ends = list(accumulate(map(len, tensors)))
        images = []
        for row in torch.randint(ends[-1], (count,), generator=rng).tolist():
            number = bisect(ends, row)
            images.append(tensors[number][row - ends[number]])  # negative: from the tensor's end
        return torch.stack(images)


def contrastive_loss(crops: Tensor, light: Tensor, batch_size: int, temperature: float) -> Tensor:
    """L_cr: a scalar.

    Args:
        crops: unit vectors [N, D] of strongly cropped views; the first `batch_size` rows are the
            batch, the others come from the bank.
        light: unit vectors [N, D] of lightly cropped views in the same order, without gradient.
        batch_size: number of images in the batch.
        temperature: tau.
    """
    # Row i is a classification over all lightly cropped views, whose correct answer is view i.
    logits = crops @ light.detach().T / temperature
    losses = F.cross_entropy(
        logits, torch.arange(len(logits), device=logits.device), reduction="none"
    )
    bank_losses = losses[batch_size:]
    return losses[:batch_size].mean() + (bank_losses.mean() if len(bank_losses) else 0)


def disagreement(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """-KL(teacher || student) float32 [N] of logits [N, M]; 0 for images that the two put into
    different classes.
    """
    # An image counts only while both agree, so it is driven until the student decides differently,
    # and no further ("decision adversarial distillation" in the published code).
    agree = (student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1)).float()
    return -kl_divergence(student_logits, teacher_logits) * agree


def student_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The student's training loss on logits [N, M]: the mean of the softened KL, a scalar."""
    return kl_divergence(student_logits, teacher_logits, STUDENT_TEMPERATURE).mean()


def kl_divergence(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL(teacher || student) of softened logits [N, M], times temperature squared: [N]."""
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(log_student, teacher, reduction="none").sum(dim=1) * temperature**2
