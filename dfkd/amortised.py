"""An amortised start: a network that guesses an image's latent from its prompt and noise.

It is trained through the teacher on the run's own prompts, so that what optimising one image after
another would find out again each time is found out once. A few steps of each image's own follow.
"""

import math
from collections.abc import Mapping, Sequence

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd.checkpoints import below, moments, restore_moments
from dfkd.errors import CorruptionError, DfkdError
from dfkd.generator import Generator
from dfkd.manifest import Manifest
from dfkd.plan import derive_seed, root_seed, training_steps
from dfkd.seeding import seeded
from dfkd.synthesis import Synthesiser
from dfkd.views import Views

NOISE = 32
"""Numbers that tell two images of one prompt apart."""

COARSE = 4
"""Most cells a side of the map that convolutions then enlarge."""


class Start(nn.Module):
    """Latents [B, C, h, w] from text embeddings [B, E] and seeds: each its own, whatever the batch.

    Two dense layers make a coarse map of `COARSE` cells a side or less, which convolutions enlarge.
    """

    def __init__(
        self, embedding: int, generator: Generator, image_size: int, width: int, seed: int
    ) -> None:
        """Random weights from `seed`; the global random state is left as it was."""
        super().__init__()
        self.generator = generator
        self.shape = generator.latent_shape(image_size)
        channels, side, _ = self.shape
        doublings = max(0, math.ceil(math.log2(side / COARSE)))
        self.coarse = -(-side // 2**doublings)
        with seeded(seed):
            self.dense = nn.Sequential(
                *_dense(embedding + NOISE, width),
                *_dense(width, width),
                nn.Linear(width, channels * self.coarse**2),
            )
            self.enlarge = nn.ModuleList(
                nn.Conv2d(channels, channels, 3, padding=1) for _ in range(doublings)
            )

    def forward(self, targets: Tensor, noise: Tensor) -> Tensor:
        """Latents in the generator's range, from unit embeddings [B, E] and noise [B, NOISE]."""
        # Of a unit vector's numbers none is large; like this their spread is that of the noise.
        given = torch.cat([targets * targets.shape[1] ** 0.5, noise], dim=1)
        maps = self.dense(given).view(len(given), self.shape[0], self.coarse, self.coarse)
        for convolution in self.enlarge:
            maps = maps + convolution(F.gelu(maps))
            maps = F.interpolate(maps, scale_factor=2.0, mode="nearest")
        _, height, width = self.shape
        latents: Tensor = self.generator.squash(maps[:, :, :height, :width])
        return latents

    @torch.no_grad()
    def latents(self, targets: Tensor, seeds: Sequence[int]) -> Tensor:
        """Where images start, one for each target [B, E] and seed."""
        latents: Tensor = self(targets, noise(seeds).to(targets.device))
        return latents.contiguous()

    def save(self) -> bytes:
        """Its weights as safetensors."""
        tensors = {key: value.cpu().contiguous() for key, value in self.state_dict().items()}
        return safetensors.torch.save(tensors)

    def load(self, data: bytes, where: str) -> None:
        """Take the weights that `save` gave; `CorruptionError` naming `where` if they are none."""
        try:
            self.load_state_dict(safetensors.torch.load(data))
        except (SafetensorError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise CorruptionError(
                f"{where}: not the start network of this run ({reason}); delete it and run again"
            ) from None


def _dense(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inputs, outputs), nn.GELU(), nn.LayerNorm(outputs)


def noise(seeds: Sequence[int]) -> Tensor:
    """float32 [B, NOISE], each row from its own seed alone."""
    drawn = [torch.Generator().manual_seed(derive_seed("start noise", seed)) for seed in seeds]
    return torch.stack([torch.randn(NOISE, generator=generator) for generator in drawn])


def fresh_start(
    manifest: Manifest, generator: Generator, embedding: int, device: torch.device
) -> Start:
    """A network with the random weights that the manifest's seed gives, on a device."""
    seed = derive_seed("start network", *root_seed(manifest))
    config = manifest.synthesis
    return Start(embedding, generator, config.image_size, config.amortised.width, seed).to(device)


class Trainer:
    """The network in training; what a step does depends on the manifest and its number alone."""

    def __init__(self, manifest: Manifest, synthesiser: Synthesiser, prompts: Tensor) -> None:
        """`prompts` are unit text embeddings [N, E], which are gone through again and again."""
        self.manifest, self.synthesiser, self.prompts = manifest, synthesiser, prompts
        self.config = manifest.synthesis.amortised
        self.total = training_steps(manifest)
        self.step = 0
        device = prompts.device
        self.start = fresh_start(manifest, synthesiser.generator, prompts.shape[1], device)
        self.optimizer = torch.optim.Adam(
            self.start.parameters(), self.config.learning_rate, fused=prompts.is_cuda
        )

    def advance(self, last: int) -> None:
        """Train up to step `last`.

        Raises:
            DfkdError: the weights are no numbers any more.
        """
        while self.step < last:
            loss = self._loss()
            self.optimizer.zero_grad()
            loss.backward()
            for group in self.optimizer.param_groups:
                progress = math.cos(math.pi * self.step / self.total)
                group["lr"] = self.config.learning_rate * (1 + progress) / 2
            self.optimizer.step()
            self.step += 1
        if not all(bool(weights.isfinite().all()) for weights in self.start.parameters()):
            raise DfkdError(
                "synthesis.amortised: the start network diverged; lower its learning_rate"
            )

    def _loss(self) -> Tensor:
        """The mean distance of a batch of first guesses to their prompts (Eq 1-3)."""
        config, seed = self.manifest.synthesis, self._seed("step", self.step)
        targets = self.prompts[self._rows()]
        seeds = [derive_seed(seed, row) for row in range(len(targets))]
        size = self.synthesiser.teacher.image_size
        views = Views(seeds, 1, config.views, config.view_noise, size, targets.device)
        latents = self.start(targets, noise(seeds).to(targets.device))
        return self.synthesiser.distances(latents, targets, views.draw(0)).mean()

    def _rows(self) -> Tensor:
        """Of the prompts in this step's batch: all are shown once before any is shown again."""
        first, count = self.step * self.config.batch_size, len(self.prompts)
        places = torch.arange(first, first + self.config.batch_size)
        rounds = range(first // count, int(places[-1]) // count + 1)
        order = {
            number: torch.randperm(
                count, generator=torch.Generator().manual_seed(self._seed("round", number))
            )
            for number in rounds
        }
        return torch.stack([order[place // count][place % count] for place in places.tolist()])

    def _seed(self, what: str, number: int) -> int:
        return derive_seed("start", what, *root_seed(self.manifest), number)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, but for the step's number."""
        tensors = {f"start.{key}": value for key, value in self.start.state_dict().items()}
        tensors |= moments(self.optimizer)
        return {key: value.detach().cpu().clone() for key, value in tensors.items()}

    def restore(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Go on after `step` from its `state()`; `CorruptionError` if it is of another network."""
        try:
            self.start.load_state_dict(below(tensors, "start."))
            restore_moments(self.optimizer, tensors)
        except (LookupError, ValueError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise CorruptionError(
                f"a checkpoint is not of this start network ({reason}); delete the folder start/ "
                "of the version and run again"
            ) from None
        self.step = step
