"""DFAD (Fang et al. 2019): a generator makes what student and teacher disagree about.

With d(x) the mean absolute difference of the student's and the teacher's logits of images x, which
the generator makes of noise z ~ N(0, 1), each round is

    student_steps times   student:   min d(G(z))
    once                  generator: max d(G(z))

Logits as in `Classifier`, which are what the published discrepancy is of. Neither classes nor
batch-norm statistics enter: the generator is unconditional (`Harvest` files its images), and a
teacher without batch norm is refused only so that the rows of Table 5 have the same teachers.
"""

import torch
from torch import Tensor

from dfkd.inversion.harvest import Harvest
from dfkd.inversion.inner import Learner, absolute
from dfkd.inversion.network import GeneratorNetwork, built
from dfkd.inversion.run import Classifier, Run
from dfkd.inversion.settings import Dfad, Inversion
from dfkd.synthesis import OnStep, Synthesised


def invert(
    classifier: Classifier, run: Run, settings: Inversion, on_step: OnStep | None = None
) -> Synthesised:
    """Train a generator and a student against each other; the images are from the way."""
    config, game = settings.dfad, _Game(classifier, run, settings)
    harvest = Harvest(run, config.rounds, config.snapshots)
    for number in range(config.rounds):
        loss = game.play()
        if on_step is not None:
            on_step(number, loss[None])
        harvest.take(number, game.draw, loss)
    return harvest.filed(classifier)


class _Game:
    """Generator and student of one run."""

    def __init__(self, classifier: Classifier, run: Run, settings: Inversion) -> None:
        self.classifier, self.config = classifier, settings.dfad
        self.device = classifier.texts.device
        self.draws = run.draws("latents")
        self.learner = Learner(settings.student, run, len(classifier.texts), absolute)
        self.generator = built(
            lambda: network(self.config, run.image_size), run.seed("generator"), self.device
        )
        self.optimizer = torch.optim.Adam(self.generator.parameters(), self.config.learning_rate)

    def draw(self) -> Tensor:
        """Pixels [B, 3, S, S] of fresh latents."""
        latents = torch.randn(self.config.batch_size, self.config.latent, generator=self.draws)
        return self.classifier.pixels(self.generator(latents.to(self.device)))

    def play(self) -> Tensor:
        """One round; returns the generator's loss."""
        for _ in range(self.config.student_steps):
            with torch.no_grad():
                pixels = self.draw()
                taught = self.classifier.logits(pixels)
            self.learner.learn(pixels, taught)
        pixels = self.draw()
        loss = -absolute(self.learner.judge(pixels), self.classifier.logits(pixels))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def network(config: Dfad, side: int) -> GeneratorNetwork:
    """The generator of the publication's small images."""
    return GeneratorNetwork(config.latent, config.width, side, whitened=True)
