"""DFAD (Fang et al. 2019): a generator makes what student and teacher disagree about.

With d(x) the mean absolute difference of the student's and the teacher's logits of images x, which
the generator makes of noise z ~ N(0, 1), each round is

    student_steps times   student:   min d(G(z))
    once                  generator: max d(G(z))

Rates of both fall to a tenth after a third of the rounds, and again after two. Generator and
student play one game over the whole run: each part takes its share of the rounds.

Two things are not as published. Logits are those of `Classifier`. And the published student learns
from every image once, while it is made, and is the result; here a data set is the result, a sample
of the way (`SnapshotSampler`), and the student of the game is thrown away.

Neither classes nor batch-norm statistics enter: the generator is unconditional (`SnapshotSampler`
files its images), and a teacher without batch norm is refused only so that the rows of Table 5 have
the same teachers.
"""

import torch
from torch import Tensor

from dfkd.config.inversion import Inversion
from dfkd.synthesis.inversion.inner_student import InnerStudentTrainer, l1_loss, set_rate
from dfkd.synthesis.inversion.inverter import Inverter
from dfkd.synthesis.inversion.networks import DfadGenerator, build_seeded
from dfkd.synthesis.inversion.run import Classifier, PartRequest, RunContext
from dfkd.synthesis.inversion.snapshots import SnapshotSampler
from dfkd.synthesis.latents import OnStep, Synthesised

STUDENT_RATE, STUDENT_DECAY = 0.05, 5e-4
"""Learning rate of the student at the beginning, and its weight decay."""


class DfadInverter(Inverter):
    """Generator and student of a run, trained against each other."""

    name = "dfad"

    def __init__(self, classifier: Classifier, context: RunContext, settings: Inversion) -> None:
        super().__init__(classifier, context, settings)
        config = self.config = settings.dfad
        self.device = classifier.texts.device
        self.learner = InnerStudentTrainer(
            classifier, context, settings.student, l1_loss, STUDENT_RATE, STUDENT_DECAY
        )
        self.generator = build_seeded(
            lambda: DfadGenerator(config.latent, config.width, context.image_size),
            context.seed_of("generator"),
            self.device,
        )
        self.optimizer = torch.optim.Adam(self.generator.parameters(), config.learning_rate)
        self.draws = torch.Generator()
        self.networks = {"generator": self.generator, "student": self.learner.student}
        self.optimizers = {"generator": self.optimizer, "student": self.learner.optimizer}

    def images(self, request: PartRequest, on_step: OnStep | None) -> Synthesised:
        """Play the part's rounds; its images are from the way."""
        rounds = request.rounds(self.config.rounds, self.context)
        self.draws = request.draws("latents")
        sampler = SnapshotSampler(request, rounds, self.config.snapshots)
        for number in rounds:
            fallen = rate_factor(number, self.config.rounds)
            set_rate(self.optimizer, self.config.learning_rate * fallen)
            set_rate(self.learner.optimizer, STUDENT_RATE * fallen)
            loss = self.train_round()
            if on_step is not None:
                on_step(number, loss[None])
            sampler.take(number, self.draw, loss)
        return sampler.assigned(self.classifier)

    def draw(self) -> Tensor:
        """Pixels [B, 3, S, S] of fresh latents."""
        latents = torch.randn(self.config.batch_size, self.config.latent, generator=self.draws)
        pixels: Tensor = self.generator(latents.to(self.device))
        return pixels

    def train_round(self) -> Tensor:
        """One round; returns the generator's loss."""
        for _ in range(self.config.student_steps):
            with torch.no_grad():
                pixels = self.draw()
                taught = self.classifier.logits(pixels)
            self.learner.train_step(pixels, taught)
        pixels = self.draw()
        loss = -l1_loss(self.learner.student_logits(pixels), self.classifier.logits(pixels))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def rate_factor(number: int, rounds: int) -> float:
    """The factor of rates in a 0-based round: 1, 0.1 and 0.01 in its thirds."""
    return float(0.1 ** (3 * number // rounds))
