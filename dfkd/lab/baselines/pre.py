"""PRE-DFKD (Binici et al. 2022): adversarial images, and a second generator that replays old ones.

In each round the novelty generator takes one step that minimises, over a batch x of its images,

    L = w_class CE(T(x), argmax T(x)) + w_entropy sum_m p_m log10 p_m - w_act mean |f(x)| + (1 - JS)

p is the mean class probability of the batch, f the teacher's embedding before normalisation, and JS
the divergence of the student's and the teacher's softened outputs. Then the student takes its
steps. Each step uses a novel batch and an eighth as many replayed images, with L1 on logits; the
learning rate falls by a cosine over the run. The memory is a variational autoencoder whose decoder
makes the replayed images. After each of the first student steps (`memory_steps`) it is trained on
half of the novel images and, except in the first round of the run, on its own replays, to reproduce
the pixels and the teacher's logits. The latents of replays are drawn from N(0, 1) and moved by one
step, which lowers the class and entropy terms and keeps their mean and variance near 0 and 1.
Generators, encoder and student are trained over the whole run, and each part takes its share of the
rounds. Losses and order of the steps are those of `distillation.py`, the networks those of
`networks/generator.py`, both in kuluhan/PRE-DFKD.

There are five differences to the publication:

- Logits are those of `Classifier`; all terms except f were published for logits.
- f is CLIP's embedding, where a ResNet has the pooled feature before its classifier.
- The generators start from a map of 7 px for images of 224 px and double it five times. The
  published ones start from a quarter of the side; at 224 px that gives 401 million weights in the
  first layer of each and, with the encoder, 12 GB of state between parts.
- A batch has 128 images by default; the published one has 1,024 of 32 px.
- As with DFAD, the result is a data set sampled during training (`SnapshotSampler`), and the
  student is discarded. The published result is the student, trained once on every image.

The method uses no batch-norm statistics. A teacher without batch norm is refused only so that all
rows of Table 5 have the same teachers.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.lab.baselines.inverter import (
    Classifier,
    InnerStudentTrainer,
    Inverter,
    PartRequest,
    RunContext,
    cosine_factor,
    embedding_taps,
    minimise,
    set_rate,
)
from dfkd.lab.baselines.networks import PreEncoder, PreGenerator
from dfkd.lab.baselines.settings import Pre
from dfkd.lab.baselines.snapshots import SnapshotSampler
from dfkd.synthesis.image_source import Synthesised

CLASS_WEIGHT, ENTROPY_WEIGHT, ACTIVATION_WEIGHT = 1.0, 5.0, 0.1
LEARNING_RATE = 0.02
"""Learning rate of the novelty generator and of replayed latents, from the published code."""
STUDENT_RATE, STUDENT_DECAY = 0.1, 5e-4
"""The student's initial learning rate and its weight decay."""
JS_TEMPERATURE, MIN_PROBABILITY = 3.0, 0.01
"""Temperature of `agreement`, and the value to which smaller probabilities are raised."""
NOVEL_PER_REPLAY, MEMORY_SLOWDOWN, PRIOR_WEIGHT = 8, 40, 1e-5
"""Novel images per replayed one; ratio of novelty's learning rate to the memory's; weight of the
memory's KL term."""


class PreInverter(Inverter):
    """Trains the novelty generator, the memory and the student of a run."""

    name = "pre"

    def __init__(self, classifier: Classifier, context: RunContext, settings: Pre) -> None:
        super().__init__(classifier, context)
        self.config = settings
        self.latent = settings.latent
        self.learner = InnerStudentTrainer(
            classifier, context, F.l1_loss, STUDENT_RATE, STUDENT_DECAY
        )
        shape = self.latent, settings.width, context.image_size
        self.novelty = self.new_network(lambda: PreGenerator(*shape, spectral=True), "novelty")
        self.memory = self.new_network(lambda: PreGenerator(*shape), "memory")
        self.encoder = self.new_network(lambda: PreEncoder(*shape), "encoder")
        self.novelty_optimizer = torch.optim.Adam(self.novelty.parameters(), LEARNING_RATE)
        self.memory_optimizer = torch.optim.Adam(
            [*self.memory.parameters(), *self.encoder.parameters()],
            LEARNING_RATE / MEMORY_SLOWDOWN,
        )
        self.networks = {
            "novelty": self.novelty,
            "memory": self.memory,
            "encoder": self.encoder,
            "student": self.learner.student,
        }
        self.optimizers = {
            "novelty": self.novelty_optimizer,
            "memory": self.memory_optimizer,
            "student": self.learner.optimizer,
        }

    def images(self, request: PartRequest) -> Synthesised:
        """Train for the rounds of the part; its images are novel and replayed ones."""
        config, rounds = self.config, request.rounds(self.config.rounds, self.context)
        self.rng = request.make_rng("latents")
        sampler = SnapshotSampler(request, rounds, self.config.snapshots)
        with embedding_taps(self.classifier.teacher) as self.embedding_taps:
            for number in rounds:
                factor = cosine_factor(number / config.rounds)
                set_rate(self.learner.optimizer, STUDENT_RATE * factor)
                # Before the first round the memory has learnt nothing that it could replay.
                loss = self.train_round(remembers=number > 0)
                sampler.take(number, self.training_images, loss)
            return sampler.assigned(self.classifier.probabilities)

    def train_round(self, remembers: bool) -> Tensor:
        """Train for one round; returns the novelty generator's loss, a scalar.

        Args:
            remembers: whether the memory is also trained on its own replays.
        """
        loss = self._novelty_step()
        for step in range(self.config.student_steps):
            with torch.no_grad():
                novel = self.novelty(self._latents(self.config.batch_size))
            # The student learns from replays of a memory in evaluation mode; `_memory_step` returns
            # it to training mode, so its own replays use the statistics of their batch.
            self.memory.eval()
            self._teach(torch.cat([novel, self._replayed()]))
            if step < self.config.memory_steps:
                self._memory_step(novel, remembers)
        return loss

    def training_images(self) -> Tensor:
        """Pixels [B, 3, S, S], novel and replayed in the student's proportion, in random order."""
        self.memory.eval()
        images = torch.cat([self.novelty(self._latents(self.config.batch_size)), self._replayed()])
        # Shuffled, because `SnapshotSampler` may take only the first images.
        order = torch.randperm(len(images), generator=self.rng)
        return self.classifier.denormalise(images[order.to(self.device)])

    def _novelty_step(self) -> Tensor:
        """Train the novelty generator for one step; returns its loss, a scalar."""
        pixels = self.classifier.denormalise(self.novelty(self._latents(self.config.batch_size)))
        teacher_logits = self.classifier.logits(pixels)
        (embeddings,) = self.embedding_taps.values
        loss = (
            CLASS_WEIGHT * one_hot_loss(teacher_logits)
            + ENTROPY_WEIGHT * class_entropy_loss(teacher_logits)
            - ACTIVATION_WEIGHT * embeddings.abs().mean()
            # The teacher is the fixed side here, so images move only to where the student differs.
            + agreement(self.learner.student_logits(pixels), teacher_logits.detach())
        )
        minimise(loss, self.novelty_optimizer)
        return loss.detach()

    def _teach(self, images: Tensor) -> None:
        """Train the student for one step on normalised images [N, 3, S, S]."""
        pixels = self.classifier.denormalise(images)
        with torch.no_grad():
            teacher_logits = self.classifier.logits(pixels)
        self.learner.train_step(pixels, teacher_logits)

    def _latents(self, count: int) -> Tensor:
        """Latents [N, D] from N(0, 1)."""
        return torch.randn(count, self.latent, generator=self.rng).to(self.device)

    @torch.enable_grad()
    def _replayed(self) -> Tensor:
        """Whitened images [B / 8, 3, S, S] of the memory, from latents moved by one step."""
        latents = self._latents(self.config.batch_size // NOVEL_PER_REPLAY).requires_grad_()
        optimizer = torch.optim.Adam([latents], LEARNING_RATE)
        logits = self.classifier.logits(self.classifier.denormalise(self.memory(latents)))
        loss = (
            CLASS_WEIGHT * one_hot_loss(logits)
            + ENTROPY_WEIGHT * class_entropy_loss(logits)
            + moment_penalty(latents)
        )
        # `grad` and not `backward`: the weights of the memory shall get no gradient, because they
        # are trained in `_memory_step`.
        (latents.grad,) = torch.autograd.grad(loss, [latents])
        optimizer.step()
        with torch.no_grad():
            replayed: Tensor = self.memory(latents)
        return replayed

    def _memory_step(self, novel: Tensor, replays: bool) -> Tensor:
        """Train the memory for one step, on novel images and perhaps replays; returns its loss."""
        self.memory.train()
        images = novel[: self.config.batch_size // 2]
        if replays:
            images = torch.cat([images, self._replayed()])
        with torch.no_grad():
            teacher_logits = self.classifier.logits(self.classifier.denormalise(images))
        mean, log_variance = self.encoder(images)
        noise = torch.randn(mean.shape, generator=self.rng).to(self.device)
        # The reparametrisation of variational autoencoders, through which gradients reach both
        # outputs of the encoder.
        reconstructed = self.memory(mean + noise * (0.5 * log_variance).exp())
        loss = (
            F.l1_loss(reconstructed, images)
            + F.l1_loss(
                self.classifier.logits(self.classifier.denormalise(reconstructed)), teacher_logits
            )
            + PRIOR_WEIGHT * prior_kl(mean, log_variance)
        )
        minimise(loss, self.memory_optimizer)
        return loss.detach()


def one_hot_loss(logits: Tensor) -> Tensor:
    """Cross-entropy of logits [N, M] with their own most probable class: a scalar.

    It and `class_entropy_loss` are those of DAFL (Chen et al. 2019): each image shall be of a clear
    class, and a batch of all classes.
    """
    return F.cross_entropy(logits, logits.detach().argmax(dim=1))


def class_entropy_loss(logits: Tensor) -> Tensor:
    """sum_m p_m log10 p_m of the mean probabilities p of logits [N, M]: a scalar.

    It is lowest if the classes are balanced.
    """
    mean = logits.softmax(dim=1).mean(dim=0)
    return (mean * mean.log10()).sum()


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """1 - JS of logits [N, M], a scalar: minimised, it drives student and teacher apart.

    As published (`JS_divergence` in `utils/aux.py`) probabilities are clamped, and KL is averaged
    over all entries instead of summed over classes.
    """
    outputs = [
        (logits / JS_TEMPERATURE).softmax(dim=1) for logits in (student_logits, teacher_logits)
    ]
    low, high = MIN_PROBABILITY, 1 - MIN_PROBABILITY
    mean = (0.5 * (outputs[0] + outputs[1])).clamp(low, high)
    logs = [output.clamp(low, high).log() for output in outputs]
    first, second = (F.kl_div(log, mean, reduction="none").mean() for log in logs)
    return 1 - (0.5 * first + 0.5 * second).clamp(0, 1)


def moment_penalty(latents: Tensor) -> Tensor:
    """Mean squared deviation of the mean of latents [N, D] from 0 and of their variance from 1."""
    variance, mean = torch.var_mean(latents, dim=0)
    return (variance - 1).square().mean() + mean.square().mean()


def prior_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) for [N, D] each, averaged over N: a scalar."""
    return (-0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(dim=1)).mean()
