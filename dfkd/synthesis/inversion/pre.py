"""PRE-DFKD (Binici et al. 2022): adversarial images, and a second generator that replays old ones.

Each round the novelty generator takes one step of minimising, over a batch x of what it gives,

    L = w_class CE(T(x), argmax T(x)) + w_entropy sum_m p_m log10 p_m - w_act mean |f(x)| + (1 - JS)

p is the batch's mean class probability, f the teacher's embedding before it is normalised, and JS
the divergence of the student's and the teacher's softened outputs. Then the student takes its
steps: each on a novel batch and an eighth as many replayed images, by L1 on logits, at a rate that
falls by a cosine over the run. After the first of them the memory, a variational autoencoder whose
decoder replays, learns from half of the novel images and, but for the run's first round, from its
own replays; it is to give the same pixels and the same logits of the teacher. Latents of replays
are drawn from N(0, 1) and moved once to lower the class and entropy terms while their mean and
variance stay near 0 and 1. Generators, encoder and student play one game over the whole run: each
part takes its share of the rounds.

Five things are not as published. Logits are those of `Classifier`, which all terms but f were
published for. f is CLIP's embedding, where a ResNet has the pooled feature before its classifier.
The generators start from a map of 7 px at 224 px and double it five times: the published ones start
from a quarter of the side, which at 224 px is 401 million weights in the first layer of each
and, with the encoder, 12 GB of state between parts. A batch has 128 images by default (1,024 of 32
px are published). And, as with DFAD, the result is a data set, a sample of the way
(`SnapshotSampler`), and the student is thrown away, where the published one learns from every image
once and is the result.

Batch-norm statistics do not enter; a teacher without them is refused only so that the rows of Table
5 have the same teachers.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.config.inversion import Inversion
from dfkd.synthesis.inversion.features import embedding_taps
from dfkd.synthesis.inversion.inner_student import (
    InnerStudentTrainer,
    cosine_factor,
    l1_loss,
    set_rate,
)
from dfkd.synthesis.inversion.inverter import Inverter
from dfkd.synthesis.inversion.networks import PreEncoder, PreGenerator, build_seeded
from dfkd.synthesis.inversion.run import Classifier, PartRequest, RunContext
from dfkd.synthesis.inversion.snapshots import SnapshotSampler
from dfkd.synthesis.latents import OnStep, Synthesised

CLASS_WEIGHT, ENTROPY_WEIGHT, ACTIVATION_WEIGHT = 1.0, 5.0, 0.1
STUDENT_RATE, STUDENT_DECAY = 0.1, 5e-4
"""Learning rate of the student at the beginning, and its weight decay."""
JS_TEMPERATURE, MIN_PROBABILITY = 3.0, 0.01
"""Of `agreement`: temperature, and the least probability that counts."""
NOVEL_PER_REPLAY, MEMORY_SLOWDOWN, PRIOR_WEIGHT = 8, 40, 1e-5
"""Novel images for each replayed one; novelty's rate by the memory's; weight of its KL term."""


def one_hot_loss(logits: Tensor) -> Tensor:
    """Cross-entropy of logits [N, M] with the class that each image has anyway: a scalar."""
    return F.cross_entropy(logits, logits.detach().argmax(dim=1))


def class_entropy_loss(logits: Tensor) -> Tensor:
    """sum_m p_m log10 p_m of the mean probabilities of a batch: lowest if all classes are there."""
    mean = logits.softmax(dim=1).mean(dim=0)
    return (mean * mean.log10()).sum()


def agreement(student: Tensor, taught: Tensor) -> Tensor:
    """1 - JS, as published: both outputs and their mean are floored, KL is a mean over entries."""
    ours, theirs = ((logits / JS_TEMPERATURE).softmax(dim=1) for logits in (student, taught))
    middle = (0.5 * (ours + theirs)).clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    floored = (side.clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY).log() for side in (ours, theirs))
    one, other = (F.kl_div(side, middle, reduction="none").mean() for side in floored)
    return 1 - (0.5 * one + 0.5 * other).clamp(0, 1)


def moment_penalty(latents: Tensor) -> Tensor:
    """How far the mean and variance of latents [N, D] are from 0 and 1, as mean squares."""
    variance, mean = torch.var_mean(latents, dim=0)
    return (variance - 1).square().mean() + mean.square().mean()


def prior_kl(mean: Tensor, variance: Tensor) -> Tensor:
    """KL of N(mean, exp(variance)) to N(0, 1), each [N, D], averaged over images: a scalar."""
    return (-0.5 * (1 + variance - mean.square() - variance.exp()).sum(dim=1)).mean()


class PreInverter(Inverter):
    """Novelty generator, memory and student of a run."""

    name = "pre"

    def __init__(self, classifier: Classifier, context: RunContext, settings: Inversion) -> None:
        super().__init__(classifier, context, settings)
        config = self.config = settings.pre
        device = self.device = classifier.texts.device
        self.draws = torch.Generator()
        self.learner = InnerStudentTrainer(
            classifier, context, settings.student, l1_loss, STUDENT_RATE, STUDENT_DECAY
        )
        shape = config.latent, config.width, context.image_size
        self.novelty = build_seeded(
            lambda: PreGenerator(*shape, spectral=True), context.seed_of("novelty"), device
        )
        self.memory = build_seeded(lambda: PreGenerator(*shape), context.seed_of("memory"), device)
        self.encoder = build_seeded(lambda: PreEncoder(*shape), context.seed_of("encoder"), device)
        self.improver = torch.optim.Adam(self.novelty.parameters(), config.learning_rate)
        self.keeper = torch.optim.Adam(
            [*self.memory.parameters(), *self.encoder.parameters()],
            config.learning_rate / MEMORY_SLOWDOWN,
        )
        self.networks = {
            "novelty": self.novelty,
            "memory": self.memory,
            "encoder": self.encoder,
            "student": self.learner.student,
        }
        self.optimizers = {
            "novelty": self.improver,
            "memory": self.keeper,
            "student": self.learner.optimizer,
        }

    def images(self, request: PartRequest, on_step: OnStep | None) -> Synthesised:
        """Play the part's rounds; its images, novel and replayed as the student sees them."""
        config, rounds = self.config, request.rounds(self.config.rounds, self.context)
        self.draws = request.draws("latents")
        sampler = SnapshotSampler(request, rounds, config.snapshots)
        with embedding_taps(self.classifier.teacher) as self.embeddings:
            for number in rounds:
                fallen = cosine_factor(number / config.rounds)
                set_rate(self.learner.optimizer, STUDENT_RATE * fallen)
                loss = self.train_round(remembers=number > 0)
                if on_step is not None:
                    on_step(number, loss[None])
                sampler.take(number, self.seen, loss)
            return sampler.assigned(self.classifier)

    def train_round(self, remembers: bool) -> Tensor:
        """One round; returns the novelty generator's loss.

        Args:
            remembers: whether the memory has anything to replay to itself.
        """
        loss = self._renew()
        for step in range(self.config.student_steps):
            with torch.no_grad():
                novel = self.novelty(self._latents(self.config.batch_size))
            self.memory.eval()
            self._teach(torch.cat([novel, self._replayed()]))
            if step < self.config.memory_steps:
                self._remember(novel, remembers)
        return loss

    def seen(self) -> Tensor:
        """Pixels [B, 3, S, S], novel and replayed in the student's proportion, in random order."""
        self.memory.eval()
        both = torch.cat([self.novelty(self._latents(self.config.batch_size)), self._replayed()])
        order = torch.randperm(len(both), generator=self.draws)
        return self.classifier.pixels(both[order.to(self.device)])

    def _renew(self) -> Tensor:
        """One step of the novelty generator."""
        pixels = self.classifier.pixels(self.novelty(self._latents(self.config.batch_size)))
        taught = self.classifier.logits(pixels)
        (embeddings,) = self.embeddings.read
        loss = (
            CLASS_WEIGHT * one_hot_loss(taught)
            + ENTROPY_WEIGHT * class_entropy_loss(taught)
            - ACTIVATION_WEIGHT * embeddings.abs().mean()
            + agreement(self.learner.student_logits(pixels), taught.detach())
        )
        self.improver.zero_grad(set_to_none=True)
        loss.backward()
        self.improver.step()
        return loss.detach()

    def _teach(self, images: Tensor) -> None:
        pixels = self.classifier.pixels(images)
        with torch.no_grad():
            taught = self.classifier.logits(pixels)
        self.learner.train_step(pixels, taught)

    def _latents(self, count: int) -> Tensor:
        return torch.randn(count, self.config.latent, generator=self.draws).to(self.device)

    @torch.enable_grad()
    def _replayed(self) -> Tensor:
        """Whitened images of the memory, from latents that were moved once."""
        config = self.config
        latents = self._latents(config.batch_size // NOVEL_PER_REPLAY).requires_grad_()
        optimizer = torch.optim.Adam([latents], config.learning_rate)
        logits = self.classifier.logits(self.classifier.pixels(self.memory(latents)))
        loss = (
            CLASS_WEIGHT * one_hot_loss(logits)
            + ENTROPY_WEIGHT * class_entropy_loss(logits)
            + moment_penalty(latents)
        )
        (latents.grad,) = torch.autograd.grad(loss, [latents])
        optimizer.step()
        with torch.no_grad():
            replayed: Tensor = self.memory(latents)
        return replayed

    def _remember(self, novel: Tensor, replays: bool) -> Tensor:
        """One step of the memory, on novel images and perhaps its own; its loss."""
        self.memory.train()
        images = novel[: self.config.batch_size // 2]
        if replays:
            images = torch.cat([images, self._replayed()])
        with torch.no_grad():
            taught = self.classifier.logits(self.classifier.pixels(images))
        mean, variance = self.encoder(images)
        noise = torch.randn(mean.shape, generator=self.draws).to(self.device)
        given = self.memory(mean + noise * (0.5 * variance).exp())
        loss = (
            l1_loss(given, images)
            + l1_loss(self.classifier.logits(self.classifier.pixels(given)), taught)
            + PRIOR_WEIGHT * prior_kl(mean, variance)
        )
        self.keeper.zero_grad(set_to_none=True)
        loss.backward()
        self.keeper.step()
        return loss.detach()
