"""CMI (Fang et al. 2021b): inversion in which every image is to be told apart from all others.

For each batch of classes y the generator is drawn anew and trained together with latents z, and
what it gives at the lowest loss is the batch. With x' a lightly and x'' a strongly cropped view:

    L = w_bn L_bn(x') + w_class CE(T(x'), y) - w_adv KL(T(x') || S(x')) [S and T agree] + w_cr L_cr

    L_cr = -log exp(s(x'', x') / tau) / sum over all images j of exp(s(x'', x'_j) / tau)

s is the cosine of what a head (two layers, trained along, and kept from batch to batch) makes of
the teacher's features: the means of what enters each stage. The other images are those of the batch
and `negatives` from the memory bank; L_cr is the mean over the batch plus that over the bank, and
x' is taken as given in it, so that views come nearer through x''. Between batches the student S
learns by softened KL from all images of the run so far; a run of one batch has it untrained, and an
empty bank. Logits as in `Classifier`: CE, KL and the temperature are a softmax's.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd.batch_norm import Moments, Taps, batch_norm_loss
from dfkd.inversion.crops import cropped, shifted
from dfkd.inversion.features import stage_taps
from dfkd.inversion.inner import Learner, divergence, softened
from dfkd.inversion.network import GeneratorNetwork, built, normal
from dfkd.inversion.run import Classifier, Run, synthesised
from dfkd.inversion.settings import Inversion
from dfkd.pixels import from_bytes, to_bytes
from dfkd.synthesis import OnStep, Synthesised
from dfkd.teacher import batch_norm_taps

BETAS = (0.5, 0.999)


def invert(
    classifier: Classifier, run: Run, settings: Inversion, on_step: OnStep | None = None
) -> Synthesised:
    """Make the images of a run batch after batch; bank, head and student go along."""
    size, count = settings.cmi.batch_size, len(run.seeds)
    with (
        batch_norm_taps(classifier.teacher, "cmi") as moments,
        stage_taps(classifier.teacher) as features,
    ):
        inverter = _Inverter(classifier, run, settings, moments, features)
        losses = []
        for start in range(0, count, size):
            losses.append(inverter.add(run.labels[start : start + size], on_step))
            if start + size < count:
                inverter.teach()
    return synthesised(torch.cat(inverter.pixels), torch.cat(losses), settings.cmi.steps)


class _Inverter:
    """What a run carries from batch to batch; `pixels` are its images, uint8 [B, H, W, 3] each."""

    def __init__(
        self,
        classifier: Classifier,
        run: Run,
        settings: Inversion,
        moments: Taps[Moments],
        features: Taps[Tensor],
    ) -> None:
        self.classifier, self.config = classifier, settings.cmi
        self.moments, self.features = moments, features
        self.device, self.draws = run.labels.device, run.draws("cmi")
        self.pixels: list[Tensor] = []
        self.bank = Bank(self.config.bank)
        kl = partial(softened, temperature=self.config.student_temperature)
        self.learner = Learner(settings.student, run, len(classifier.texts), kl)
        latent, width, side = self.config.latent, self.config.width, run.image_size
        seeds = run.seed("generator"), run.seed("head")
        self.generator = built(lambda: GeneratorNetwork(latent, width, side), seeds[0], self.device)
        with torch.no_grad():
            seen = self._features(torch.zeros(1, 3, side, side, device=self.device))[1]
        self.head = built(lambda: head(seen.shape[1], self.config.head), seeds[1], self.device)
        self.improver = torch.optim.Adam(self.head.parameters(), self.config.learning_rate)

    def add(self, labels: Tensor, on_step: OnStep | None) -> Tensor:
        """Make a batch of these classes [B]; returns the losses [B], all alike, of its step."""
        self.learner.student.eval()
        normal(self.generator, self.draws)
        latents = torch.randn(len(labels), self.config.latent, generator=self.draws)
        latents = latents.to(self.device).requires_grad_()
        optimizer = torch.optim.Adam(
            [*self.generator.parameters(), latents], self.config.learning_rate, BETAS
        )
        lowest, best, known = torch.inf, to_bytes(self.generator(latents)), None
        for step in range(self.config.steps):
            images = self.generator(latents)
            loss, seen = self._loss(images, labels)
            if on_step is not None:
                on_step(step, loss.detach()[None])
            if loss.item() < lowest:
                lowest, best, known = loss.item(), to_bytes(images), seen
            for trained in (optimizer, self.improver):
                trained.zero_grad(set_to_none=True)
            loss.backward()
            for trained in (optimizer, self.improver):
                trained.step()
        if known is not None:
            self.bank.add(known)
        self.pixels.append(best)
        return torch.full((len(labels),), lowest)

    def _loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """L of a batch, and its features [B, 2F] for the bank."""
        config, light = self.config, shifted(images, self.draws)
        logits, whole = self._features(light)
        # Read now: the pass over the crops, which is the next, overwrites what the taps hold.
        statistics = batch_norm_loss(self.moments.read)
        _, local = self._features(cropped(images, self.draws))
        student = disagreement(self.learner.judge(light), logits).mean()
        loss = (
            config.batch_norm_weight * statistics
            + config.class_weight * F.cross_entropy(logits, labels)
            + config.adversarial_weight * student
            + config.contrast_weight * self._contrast(local, whole)
        )
        return loss, torch.cat([local, whole], dim=1).detach()

    def _features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, M] and what instances are told apart by [B, F]."""
        logits = self.classifier.logits(pixels)
        return logits, torch.cat(self.features.read, dim=1)

    def _contrast(self, local: Tensor, whole: Tensor) -> Tensor:
        own = len(local)
        remembered = self.bank.draw(self.config.negatives, self.draws)
        if remembered is not None:
            others = remembered.to(self.device).chunk(2, dim=1)
            local, whole = torch.cat([local, others[0]]), torch.cat([whole, others[1]])
        near, far = F.normalize(self.head(torch.cat([local, whole])), dim=1).chunk(2)
        return contrast(near, far, own, self.config.temperature)

    def teach(self) -> None:
        """Train the student on views of the run's images so far."""
        self.learner.student.train()
        pool = torch.cat(self.pixels)
        for _ in range(self.config.student_steps):
            rows = torch.randint(len(pool), (self.config.batch_size,), generator=self.draws)
            pixels = from_bytes(pool[rows].to(self.device))
            with torch.no_grad():
                pixels = shifted(pixels, self.draws)
                taught = self.classifier.logits(pixels)
            self.learner.learn(pixels, taught)


def head(features: int, dimensions: int) -> nn.Module:
    """Two layers, the first as wide as the features."""
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, dimensions))


class Bank:
    """The memory: features [N, 2F] of the run's images (x'', then x'); the oldest leave first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.features: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """Remember features [N, 2F]."""
        known = [] if self.features is None else [self.features]
        self.features = torch.cat([*known, features.detach().cpu()])[-self.capacity :]

    def draw(self, count: int, draws: torch.Generator) -> Tensor | None:
        """At most `count` different rows; None if there is none to draw."""
        if self.features is None or count == 0:
            return None
        return self.features[torch.randperm(len(self.features), generator=draws)[:count]]


def contrast(local: Tensor, whole: Tensor, own: int, temperature: float) -> Tensor:
    """L_cr: a scalar.

    Args:
        local: unit vectors [N, D] of strongly cropped views, the batch's `own` rows first.
        whole: of the lightly cropped ones, in the same order; they get no gradient.
    """
    logits = local @ whole.detach().T / temperature
    losses = F.cross_entropy(
        logits, torch.arange(len(logits), device=logits.device), reduction="none"
    )
    return losses[:own].mean() + (losses[own:].mean() if len(losses) > own else 0)


def disagreement(student: Tensor, taught: Tensor) -> Tensor:
    """-KL(teacher || student) of logits [N, M], over images of which both take one class: [N]."""
    agree = (student.argmax(dim=1) == taught.argmax(dim=1)).float()
    return -divergence(student, taught) * agree
