"""Training of the miniature's VQGAN (taming-transformers networks) on coloured icons.

The losses are those of taming-transformers (pixels, features, a patch discriminator), with the
teacher's features instead of a VGG's, and one for colour, which most icons have little of.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.discriminator.model import NLayerDiscriminator, weights_init
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd.miniature.looks.look import LookSampler
from dfkd.miniature.recipe import GeneratorRecipe
from dfkd.miniature.rendering import SIZE, Batches, Cache, painted
from dfkd.miniature.teacher import MEAN, STD, Log

_DECAY = 0.95
_DEAD_MASS = 0.1


def config(recipe: GeneratorRecipe) -> dict[str, Any]:
    """The content of taming-transformers' ``model.yaml``."""
    networks = {
        "double_z": False,
        "z_channels": recipe.latent_channels,
        "resolution": SIZE,
        "in_channels": 3,
        "out_ch": 3,
        "ch": recipe.channels,
        "ch_mult": list(recipe.channel_multipliers),
        "num_res_blocks": recipe.residual_blocks,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    return {
        "model": {
            "base_learning_rate": recipe.learning_rate,
            "target": "taming.models.vqgan.VQModel",
            "params": {
                "embed_dim": recipe.latent_channels,
                "n_embed": recipe.codes,
                "ddconfig": networks,
            },
        }
    }


class Codebook(nn.Module):
    """Codes that follow the running mean of the latents assigned to them; unused codes are reset
    to latents.
    """

    mass: Tensor
    total: Tensor
    started: Tensor

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, channels)
        self.embedding.weight.requires_grad_(False)
        self.register_buffer("mass", torch.ones(codes))
        self.register_buffer("total", self.embedding.weight.detach().clone())
        # Codes start as latents of a partly trained encoder; random codes would collapse onto a
        # few.
        self.register_buffer("started", torch.tensor(False))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest codes [B, C, h, w] of latents [B, C, h, w], and their indices [B * h * w]."""
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]).float()
        table = self.embedding.weight
        index = (table.square().sum(1) - 2 * flat @ table.T).argmin(1)
        codes = table[index].view(len(z), *z.shape[2:], -1).permute(0, 3, 1, 2)
        return codes, index

    @torch.no_grad()
    def follow(self, z: Tensor, index: Tensor, gen: torch.Generator) -> int:
        """Move the codes towards a batch's latents; returns the number of codes that were reset."""
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]).float()
        if not self.started:
            self.total.copy_(flat[torch.randint(len(flat), (len(self.mass),), generator=gen)])
            self.embedding.weight.copy_(self.total)
            self.started.fill_(True)
            return len(self.mass)
        count = torch.bincount(index, minlength=len(self.mass)).float()
        self.mass.mul_(_DECAY).add_(count, alpha=1 - _DECAY)
        gathered = torch.zeros_like(self.total).index_add_(0, index, flat)
        self.total.mul_(_DECAY).add_(gathered, alpha=1 - _DECAY)
        # A code that hardly any latent chooses gets no updates; restart it at a random latent.
        dead = (self.mass < _DEAD_MASS).nonzero().squeeze(1)
        self.total[dead] = flat[torch.randint(len(flat), (len(dead),), generator=gen)]
        self.mass[dead] = 1.0
        self.embedding.weight.copy_(self.total / self.mass.unsqueeze(1))
        return len(dead)


class Network(nn.Module):
    """The autoencoder, with the parameter names of an official VQModel checkpoint."""

    def __init__(self, recipe: GeneratorRecipe) -> None:
        super().__init__()
        params = config(recipe)["model"]["params"]
        width, latent = recipe.latent_channels, params["embed_dim"]
        self.encoder = Encoder(**params["ddconfig"])
        self.decoder = Decoder(**params["ddconfig"])
        self.quantize = Codebook(recipe.codes, latent)
        self.quant_conv = nn.Conv2d(width, latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, width, 1)

    def encode(self, x: Tensor) -> Tensor:
        """Latents before quantisation, of images in [-1, 1]."""
        z: Tensor = self.quant_conv(self.encoder(x))
        return z

    def decode(self, codes: Tensor) -> Tensor:
        """Images in about [-1, 1], of quantised latents."""
        x: Tensor = self.decoder(self.post_quant_conv(codes))
        return x

    def reconstruct(self, images: Tensor) -> Tensor:
        """Images [B, 3, 64, 64] in [0, 1], encoded, quantised and decoded."""
        codes, _ = self.quantize(self.encode(images * 2 - 1))
        return ((self.decode(codes) + 1) / 2).clamp(0, 1)

    def official(self) -> dict[str, Tensor]:
        """The state dict of an official checkpoint without its loss."""
        return {
            key: value.detach().clone().contiguous()
            for key, value in self.state_dict().items()
            if key not in ("quantize.mass", "quantize.total", "quantize.started")
        }


class Perception(nn.Module):
    """A distance between images in the features of the teacher's first stages."""

    def __init__(self, teacher: Any) -> None:
        super().__init__()
        self.tower = teacher.visual.eval().requires_grad_(False)

    def features(self, images: Tensor) -> Iterator[Tensor]:
        """Yield features of images [B, 3, 64, 64] in [0, 1], from fine to coarse."""
        tower = self.tower
        x = (images - MEAN) / STD
        x = tower.act1(tower.bn1(tower.conv1(x)))
        yield x
        x = tower.act3(tower.bn3(tower.conv3(tower.act2(tower.bn2(tower.conv2(x))))))
        x = tower.avgpool(x)
        yield x
        x = tower.layer1(x)
        yield x
        x = tower.layer2(x)
        yield x

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """Squared error of the features relative to their mean square, summed over the stages.

        The features are not normalised: where an empty area has almost none, the gradient of a
        normalised feature explodes and dominates everything else.
        """
        with torch.no_grad():
            targets = [feature.float() for feature in self.features(real)]
        pairs = zip(self.features(made), targets, strict=True)
        errors = [(a.float() - b).square().mean() / b.square().mean() for a, b in pairs]
        return torch.stack(errors).sum()


@dataclass(frozen=True)
class Losses:
    """The loss terms of a batch, with its latents and the codes assigned to them."""

    pixel: Tensor
    chroma: Tensor
    perceptual: Tensor
    commitment: Tensor
    adversarial: Tensor
    made: Tensor
    z: Tensor
    index: Tensor


class GeneratorTrainer:
    """A training run with checkpoints in ``folder``; the same call resumes."""

    def __init__(
        self,
        recipe: GeneratorRecipe,
        cache: Cache,
        keep: npt.NDArray[np.int64],
        teacher: nn.Module,
        folder: Path,
        seed: int,
        log: Log,
    ) -> None:
        self.recipe, self.folder, self.log = recipe, folder, log
        torch.manual_seed(seed)
        self.network = Network(recipe)
        self.encode, self.decode = self.network.encode, self.network.decode
        if recipe.compile:
            self.encode, self.decode = torch.compile(self.encode), torch.compile(self.decode)
        self.perception = Perception(teacher)
        self.batches = Batches(cache, keep, recipe.batch_size, seed + 1)
        weights = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(weights, betas=(0.9, 0.99), foreach=True)
        # A discriminator of two layers judges patches of 16 px.
        self.critic = NLayerDiscriminator(3, recipe.critic_channels, n_layers=2).apply(weights_init)
        self.critic_optimizer = torch.optim.Adam(
            self.critic.parameters(), lr=recipe.critic_rate, betas=(0.5, 0.9), foreach=True
        )
        self.step, self.seconds = 0, 0.0

    def run(self, export: Callable[[Network, int], None]) -> Network:
        """Train to the last step; returns the network in evaluation mode."""
        self._resume()
        while self.step < self.recipe.steps:
            begun = time.monotonic()
            values = self._update()
            self.step += 1
            self.seconds += time.monotonic() - begun
            if self.step % 50 == 0:
                self.log(
                    f"generator step {self.step}/{self.recipe.steps} L1 {values[0]:.4f} "
                    f"colour {values[1]:.4f} features {values[2]:.3f} commitment {values[3]:.4f} "
                    f"adversarial {values[4]:.3f} reborn {values[5]:.0f} "
                    f"{self.seconds / self.step:.2f} s/step"
                )
            if self.step % self.recipe.checkpoint_every == 0 or self.step == self.recipe.steps:
                self._save()
                export(self.network, self.step)
        return self.network.eval()

    @property
    def judged(self) -> bool:
        """Whether the discriminator takes part in the current step."""
        return self.recipe.adversarial_weight > 0 and self.step >= self.recipe.adversarial_from

    def _losses(self, images: Tensor) -> Losses:
        with torch.autocast("cpu", torch.bfloat16):
            z = self.encode(images * 2 - 1)
            codes, index = self.network.quantize(z)
            free = self.step < self.recipe.free_steps
            made = (self.decode(z if free else z + (codes - z).detach()) + 1) / 2
            perceptual = self.perception(made, images)
            # The decoder wants its patches to be called real.
            adversarial = -self.critic(made * 2 - 1).mean() if self.judged else torch.zeros(())
        commitment = (z.float() - codes).square().mean() * (0.0 if free else 1.0)
        made = made.float()
        error = made - images
        # Colour is a separate, squared loss. Most pixels are grey, so an absolute error, or pixel
        # and feature losses alone, are minimal for a grey image.
        chroma = (error - error.mean(1, keepdim=True)).square().mean()
        return Losses(
            error.abs().mean(), chroma, perceptual.float(), commitment, adversarial, made, z, index
        )

    def _update(self) -> tuple[float, ...]:
        r = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = r.learning_rate * _schedule(self.step, r.steps)
        images, gen = self.batch(self.step)
        losses = self._losses(images)
        loss = 2 * losses.pixel + r.colour_weight * losses.chroma
        loss = loss + r.perceptual_weight * losses.perceptual + 0.25 * losses.commitment
        loss = loss + r.adversarial_weight * losses.adversarial.float()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        if self.judged:
            self._train_critic(images, losses.made.detach())
        reborn = 0
        if self.step + 1 >= r.free_steps:
            reborn = self.network.quantize.follow(losses.z.detach(), losses.index, gen)
        parts = (losses.pixel, losses.chroma, losses.perceptual, losses.commitment)
        return (*(part.item() for part in (*parts, losses.adversarial)), float(reborn))

    def _train_critic(self, real: Tensor, made: Tensor) -> None:
        """One step of the discriminator on the hinge loss, as in taming-transformers."""
        with torch.autocast("cpu", torch.bfloat16):
            judged_real, judged_made = self.critic(real * 2 - 1), self.critic(made * 2 - 1)
        loss = F.relu(1 - judged_real.float()).mean() + F.relu(1 + judged_made.float()).mean()
        self.critic_optimizer.zero_grad()
        (0.5 * loss).backward()
        self.critic_optimizer.step()

    def batch(self, step: int) -> tuple[Tensor, torch.Generator]:
        """Painted icons [B, 3, 64, 64] in [0, 1], and the step's generator."""
        rows, rng = self.batches.draw(step)
        gen = torch.Generator().manual_seed(int(rng.integers(2**62)))
        sampler = LookSampler(gen)
        looks = [sampler.draw(row.colour, self.recipe.default_share) for row in rows]
        return painted(self.batches.cache, rows, looks, gen), gen

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "critic": self.critic.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, self.folder / "generator.pt.part")
        os.replace(self.folder / "generator.pt.part", self.folder / "generator.pt")

    def _resume(self) -> None:
        path = self.folder / "generator.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.critic.load_state_dict(state["critic"])
            self.critic_optimizer.load_state_dict(state["critic_optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]
            self.log(f"generator resumes at step {self.step}")


def _schedule(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def psnr(made: Tensor, real: Tensor) -> float:
    """Mean over images of 10 log10(1 / mean squared error), in dB, for images in [0, 1]."""
    errors = (made - real).square().flatten(1).mean(1).clamp(min=1e-10)
    return float((-10 * errors.log10()).mean())


@dataclass(frozen=True)
class Colours:
    """How well the chroma of pictures survives."""

    hue_error: float
    """Mean difference of hue in degrees, as the mean over twelve sectors of hue."""
    chroma_kept: float
    """Mean chroma of the reconstructions as a share of that of the originals."""


def colours_kept(made: Tensor, real: Tensor, threshold: float = 0.2) -> Colours:
    """Hue and chroma of the pixels whose chroma (max - min of the channels) exceeds a threshold.

    Hue is the angle in the plane orthogonal to grey, so that it has no jumps.
    """
    coloured = (real.amax(1) - real.amin(1)) > threshold
    planes = [_chroma_plane(x.movedim(1, -1)[coloured]) for x in (made, real)]
    angles = [torch.atan2(plane[:, 1], plane[:, 0]) for plane in planes]
    error = (angles[0] - angles[1] + torch.pi).remainder(2 * torch.pi) - torch.pi
    sector = ((angles[1] + torch.pi) / (2 * torch.pi) * 12).long().clamp(max=11)
    # The mean over sectors counts rare hues as much as common ones.
    means = [error.abs()[sector == i].mean() for i in range(12) if (sector == i).any()]
    kept = planes[0].norm(dim=1).mean() / planes[1].norm(dim=1).mean()
    return Colours(float(torch.stack(means).mean().rad2deg()), float(kept))


def _chroma_plane(pixels: Tensor) -> Tensor:
    """Two coordinates [N, 2] of RGB values [N, 3] that do not change along grey."""
    axes = torch.tensor([[1.0, -0.5, -0.5], [0.0, 0.75**0.5, -(0.75**0.5)]])
    return pixels @ axes.T
