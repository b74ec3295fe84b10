"""DFAD (Fang et al. 2019): a generator makes images on which student and teacher disagree.

Let d(x) be the mean absolute difference between the student's and the teacher's logits of images x,
and let the generator G map noise z ~ N(0, 1) to images. Each round (Algorithm 1 of the paper) is

    student_steps times   student:   min d(G(z))    imitation stage
    once                  generator: max d(G(z))    generation stage

Both learning rates fall to a tenth after one third of the rounds, and again after two thirds.
Generator and student are trained over the whole run, and each part takes its share of the rounds.
Numbers and steps are those of `DFAD_caltech101.py` in VainF/Data-Free-Adversarial-Distillation,
with the options that its README gives.

There are two differences to the publication. Logits are those of `Classifier`. And the published
result is the student, which is trained once on every image; here the result is a data set sampled
during training (`SnapshotSampler`), and this student is discarded.

The method uses neither classes nor batch-norm statistics: the generator is unconditional
(`SnapshotSampler` assigns its images to classes). A teacher without batch norm is refused only so
that all rows of Table 5 have the same teachers.
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
    minimise,
    set_rate,
)
from dfkd.lab.baselines.networks import DfadGenerator
from dfkd.lab.baselines.settings import Dfad
from dfkd.lab.baselines.snapshots import SnapshotSampler
from dfkd.synthesis.image_source import Synthesised

LEARNING_RATE = 1e-3
"""The generator's initial learning rate, that of the README's command for Caltech-101."""
STUDENT_RATE, STUDENT_DECAY = 0.05, 5e-4
"""The student's initial learning rate and its weight decay."""


class DfadInverter(Inverter):
    """Trains the generator and the student of a run against each other."""

    name = "dfad"

    def __init__(self, classifier: Classifier, context: RunContext, settings: Dfad) -> None:
        super().__init__(classifier, context)
        self.config = settings
        self.learner = InnerStudentTrainer(
            classifier, context, F.l1_loss, STUDENT_RATE, STUDENT_DECAY
        )
        self.latent = settings.latent
        self.generator = self.new_network(
            lambda: DfadGenerator(self.latent, settings.width, context.image_size), "generator"
        )
        self.optimizer = torch.optim.Adam(self.generator.parameters(), LEARNING_RATE)
        self.networks = {"generator": self.generator, "student": self.learner.student}
        self.optimizers = {"generator": self.optimizer, "student": self.learner.optimizer}

    def images(self, request: PartRequest) -> Synthesised:
        """Train for the rounds of the part; its images are sampled during training."""
        rounds = request.rounds(self.config.rounds, self.context)
        self.rng = request.make_rng("latents")
        sampler = SnapshotSampler(request, rounds, self.config.snapshots)
        for number in rounds:
            # Rates follow from the number of the round, so they need no place in the state.
            factor = rate_factor(number, self.config.rounds)
            set_rate(self.optimizer, LEARNING_RATE * factor)
            set_rate(self.learner.optimizer, STUDENT_RATE * factor)
            loss = self.train_round()
            sampler.take(number, self.draw, loss)
        return sampler.assigned(self.classifier.probabilities)

    def draw(self) -> Tensor:
        """Pixels [B, 3, S, S] that the generator makes from new latents."""
        latents = torch.randn(self.config.batch_size, self.latent, generator=self.rng)
        pixels: Tensor = self.generator(latents.to(self.device))
        return pixels

    def train_round(self) -> Tensor:
        """Train for one round; returns the generator's loss, a scalar."""
        for _ in range(self.config.student_steps):
            # The student's steps need no gradient through the generator and the teacher.
            with torch.no_grad():
                pixels = self.draw()
                teacher_logits = self.classifier.logits(pixels)
            self.learner.train_step(pixels, teacher_logits)
        # Both networks get gradients with respect to the pixels, so the generator learns where the
        # student fails. The student stays in training mode, as in the published code.
        pixels = self.draw()
        loss = -F.l1_loss(self.learner.student_logits(pixels), self.classifier.logits(pixels))
        minimise(loss, self.optimizer)
        return loss.detach()


def rate_factor(number: int, rounds: int) -> float:
    """Factor of the learning rates in a 0-based round: 1, 0.1 and 0.01 in the three thirds."""
    return float(0.1 ** (3 * number // rounds))
