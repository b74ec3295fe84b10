"""PRE-DFKD (Binici et al. 2022): adversarial images, and a second generator that replays old ones.

Each round the novelty generator takes one step of minimising, over a batch x of what it gives,

    L = w_class CE(T(x), argmax T(x)) + w_entropy sum_m p_m log10 p_m - w_act mean |f(x)| + (1 - JS)

p is the batch's mean class probability, f the teacher's embedding before it is normalised, and JS
the divergence of the student's and the teacher's softened outputs. Then the student takes its
steps: each on a novel batch and an eighth as many replayed images, by L1 on logits. After the first
of them the memory, a variational autoencoder whose decoder replays, learns from half of the novel
images and from its own replays; it is to give the same pixels and the same logits of the teacher.
Latents of replays are drawn from N(0, 1) and moved once to lower the class and entropy terms while
their mean and variance stay near 0 and 1.

Logits as in `Classifier`, which all terms but f were published for. Batch-norm statistics do not
enter; a teacher without them is refused only so that the rows of Table 5 have the same teachers.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.batch_norm import Taps
from dfkd.inversion.features import embedding_taps
from dfkd.inversion.harvest import Harvest
from dfkd.inversion.inner import Learner, absolute
from dfkd.inversion.network import Encoder, GeneratorNetwork, built
from dfkd.inversion.run import Classifier, Run
from dfkd.inversion.settings import Inversion
from dfkd.synthesis import OnStep, Synthesised

SOFTNESS, FLOOR = 3.0, 0.01
"""Of `agreement`: temperature, and the least probability that counts."""
REPLAYED, SLOWER, PRIOR = 8, 40, 1e-5
"""Novel images for each replayed one; novelty's rate by the memory's; weight of its KL term."""


def invert(
    classifier: Classifier, run: Run, settings: Inversion, on_step: OnStep | None = None
) -> Synthesised:
    """Play the rounds; the images are from the way, novel and replayed as the student sees them."""
    config = settings.pre
    with embedding_taps(classifier.teacher) as embeddings:
        game = _Game(classifier, run, settings, embeddings)
        harvest = Harvest(run, config.rounds, config.snapshots)
        for number in range(config.rounds):
            loss = game.play()
            if on_step is not None:
                on_step(number, loss[None])
            harvest.take(number, game.seen, loss)
    return harvest.filed(classifier)


def certainty(logits: Tensor) -> Tensor:
    """Cross-entropy of logits [N, M] with the class that each image has anyway: a scalar."""
    return F.cross_entropy(logits, logits.detach().argmax(dim=1))


def imbalance(logits: Tensor) -> Tensor:
    """sum_m p_m log10 p_m of the mean probabilities of a batch: lowest if all classes are there."""
    mean = logits.softmax(dim=1).mean(dim=0)
    return (mean * mean.log10()).sum()


def agreement(student: Tensor, taught: Tensor) -> Tensor:
    """1 - JS, as published: both outputs and their mean are floored, KL is a mean over entries."""
    ours, theirs = ((logits / SOFTNESS).softmax(dim=1) for logits in (student, taught))
    middle = (0.5 * (ours + theirs)).clamp(FLOOR, 1 - FLOOR)
    floored = (side.clamp(FLOOR, 1 - FLOOR).log() for side in (ours, theirs))
    one, other = (F.kl_div(side, middle, reduction="none").mean() for side in floored)
    return 1 - (0.5 * one + 0.5 * other).clamp(0, 1)


def drift(latents: Tensor) -> Tensor:
    """How far the mean and variance of latents [N, D] are from 0 and 1, as mean squares."""
    variance, mean = torch.var_mean(latents, dim=0)
    return (variance - 1).square().mean() + mean.square().mean()


def prior(mean: Tensor, variance: Tensor) -> Tensor:
    """KL of N(mean, exp(variance)) to N(0, 1), each [N, D], averaged over images: a scalar."""
    return (-0.5 * (1 + variance - mean.square() - variance.exp()).sum(dim=1)).mean()


class _Game:
    """Novelty generator, memory and student of one run."""

    def __init__(
        self, classifier: Classifier, run: Run, settings: Inversion, embeddings: Taps[Tensor]
    ) -> None:
        config = self.config = settings.pre
        self.classifier, self.embeddings = classifier, embeddings
        self.device, self.draws = classifier.texts.device, run.draws("latents")
        self.learner = Learner(settings.student, run, len(classifier.texts), absolute)

        def network(spectral: bool) -> Callable[[], GeneratorNetwork]:
            shape = config.latent, config.width, run.image_size
            return lambda: GeneratorNetwork(*shape, whitened=True, spectral=spectral)

        def encoder() -> Encoder:
            return Encoder(config.latent, config.width, run.image_size)

        self.novelty = built(network(spectral=True), run.seed("novelty"), self.device)
        self.memory = built(network(spectral=False), run.seed("memory"), self.device)
        self.encoder = built(encoder, run.seed("encoder"), self.device)
        self.improver = torch.optim.Adam(self.novelty.parameters(), config.learning_rate)
        self.keeper = torch.optim.Adam(
            [*self.memory.parameters(), *self.encoder.parameters()], config.learning_rate / SLOWER
        )
        self.remembers = False

    def play(self) -> Tensor:
        """One round; returns the novelty generator's loss."""
        loss = self._renew()
        for step in range(self.config.student_steps):
            with torch.no_grad():
                novel = self.novelty(self._latents(self.config.batch_size))
            self.memory.eval()
            self._teach(torch.cat([novel, self._replayed()]))
            if step < self.config.memory_steps:
                self._remember(novel)
        return loss

    def seen(self) -> Tensor:
        """Pixels [B, 3, S, S], novel and replayed in the student's proportion, in random order."""
        self.memory.eval()
        both = torch.cat([self.novelty(self._latents(self.config.batch_size)), self._replayed()])
        order = torch.randperm(len(both), generator=self.draws)
        return self.classifier.pixels(both[order.to(self.device)])

    def _renew(self) -> Tensor:
        """One step of the novelty generator."""
        config = self.config
        pixels = self.classifier.pixels(self.novelty(self._latents(config.batch_size)))
        taught = self.classifier.logits(pixels)
        (embeddings,) = self.embeddings.read
        loss = (
            config.class_weight * certainty(taught)
            + config.entropy_weight * imbalance(taught)
            - config.activation_weight * embeddings.abs().mean()
            + agreement(self.learner.judge(pixels), taught.detach())
        )
        self.improver.zero_grad(set_to_none=True)
        loss.backward()
        self.improver.step()
        return loss.detach()

    def _teach(self, images: Tensor) -> None:
        pixels = self.classifier.pixels(images)
        with torch.no_grad():
            taught = self.classifier.logits(pixels)
        self.learner.learn(pixels, taught)

    def _latents(self, count: int) -> Tensor:
        return torch.randn(count, self.config.latent, generator=self.draws).to(self.device)

    @torch.enable_grad()
    def _replayed(self) -> Tensor:
        """Whitened images of the memory, from latents that were moved once."""
        config = self.config
        latents = self._latents(config.batch_size // REPLAYED).requires_grad_()
        optimizer = torch.optim.Adam([latents], config.learning_rate)
        logits = self.classifier.logits(self.classifier.pixels(self.memory(latents)))
        loss = (
            config.class_weight * certainty(logits)
            + config.entropy_weight * imbalance(logits)
            + drift(latents)
        )
        (latents.grad,) = torch.autograd.grad(loss, [latents])
        optimizer.step()
        with torch.no_grad():
            replayed: Tensor = self.memory(latents)
        return replayed

    def _remember(self, novel: Tensor) -> Tensor:
        """One step of the memory, on novel images alone until it has any of its own; its loss."""
        self.memory.train()
        images = novel[: self.config.batch_size // 2]
        if self.remembers:
            images = torch.cat([images, self._replayed()])
        self.remembers = True
        with torch.no_grad():
            taught = self.classifier.logits(self.classifier.pixels(images))
        mean, variance = self.encoder(images)
        noise = torch.randn(mean.shape, generator=self.draws).to(self.device)
        given = self.memory(mean + noise * (0.5 * variance).exp())
        loss = (
            absolute(given, images)
            + absolute(self.classifier.logits(self.classifier.pixels(given)), taught)
            + PRIOR * prior(mean, variance)
        )
        self.keeper.zero_grad(set_to_none=True)
        loss.backward()
        self.keeper.step()
        return loss.detach()
