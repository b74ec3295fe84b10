"""Training of the miniature's VQGAN (taming-transformers networks) on coloured icons.

There is no adversarial loss: for drawings of 64 px, pixel and feature losses and an averaged
codebook are enough, and training takes minutes.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from taming.modules.diffusionmodules.model import Decoder, Encoder
from torch import Tensor, nn

from dfkd.miniature import augmentation
from dfkd.miniature.recipe import GeneratorRecipe
from dfkd.miniature.rendering import SIZE, Batches, Cache
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
                    f"reborn {values[4]:.0f} "
                    f"{self.seconds / self.step:.2f} s/step"
                )
            if self.step % self.recipe.checkpoint_every == 0 or self.step == self.recipe.steps:
                self._save()
                export(self.network, self.step)
        return self.network.eval()

    def _losses(self, images: Tensor) -> Losses:
        with torch.autocast("cpu", torch.bfloat16):
            z = self.encode(images * 2 - 1)
            codes, index = self.network.quantize(z)
            free = self.step < self.recipe.free_steps
            made = (self.decode(z if free else z + (codes - z).detach()) + 1) / 2
            perceptual = self.perception(made, images)
        commitment = (z.float() - codes).square().mean() * (0.0 if free else 1.0)
        error = made.float() - images
        # Colour is a separate, squared loss. Most pixels are grey, so an absolute error, or pixel
        # and feature losses alone, are minimal for a grey image.
        chroma = (error - error.mean(1, keepdim=True)).square().mean()
        return Losses(error.abs().mean(), chroma, perceptual.float(), commitment, z, index)

    def _update(self) -> tuple[float, ...]:
        r = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = r.learning_rate * _schedule(self.step, r.steps)
        images, gen = self.batch(self.step)
        losses = self._losses(images)
        loss = 2 * losses.pixel + r.colour_weight * losses.chroma
        loss = loss + r.perceptual_weight * losses.perceptual + 0.25 * losses.commitment
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        reborn = 0
        if self.step + 1 >= r.free_steps:
            reborn = self.network.quantize.follow(losses.z.detach(), losses.index, gen)
        parts = (losses.pixel, losses.chroma, losses.perceptual, losses.commitment)
        return (*(part.item() for part in parts), float(reborn))

    def batch(self, step: int) -> tuple[Tensor, torch.Generator]:
        """Coloured icons [B, 3, 64, 64] in [0, 1] without degradation, and the step's generator."""
        rows, alpha, coloured, rng = self.batches.draw(step)
        gen = torch.Generator().manual_seed(int(rng.integers(2**62)))
        plan = augmentation.plan(len(rows), gen)
        off = torch.zeros_like(plan.blur)
        clean = replace(plan, blur=off, noise=off, texture=off)
        images = augmentation.paint(alpha, coloured, clean, gen, 0.7)
        return images, gen

    def _save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
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
            self.step, self.seconds = state["step"], state["seconds"]
            self.log(f"generator resumes at step {self.step}")


def _schedule(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def psnr(made: Tensor, real: Tensor) -> float:
    """Mean over images of 10 log10(1 / mean squared error), in dB, for images in [0, 1]."""
    errors = (made - real).square().flatten(1).mean(1).clamp(min=1e-10)
    return float((-10 * errors.log10()).mean())
