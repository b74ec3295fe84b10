"""Training of the miniature's VQGAN, with the networks of taming-transformers, on painted drawings.

The losses are those of taming-transformers (pixels, features, commitment to the codes, a patch
discriminator), with the teacher's features instead of a VGG's, and one more for colour, of which
most drawings have little. The recipe and the checkpoints call the discriminator the critic.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.discriminator.model import NLayerDiscriminator, weights_init
from torch import Tensor, nn
from torch.nn import functional as F

from dfkd.lab.miniature.drawings import Batches, random_images
from dfkd.lab.miniature.painting import SIZE
from dfkd.lab.miniature.recipe import GeneratorRecipe
from dfkd.lab.miniature.training import Resumable, cosine, normalised, rise

_DECAY = 0.95
"""Decay of the codebook's running sums at each step."""
_UNUSED_MASS = 0.1
"""A code is reset when the running mean of its latents in a batch falls below this number."""
_PIXEL_WEIGHT, _COMMITMENT_WEIGHT = 2, 0.25
"""Weights of the pixel and the commitment loss; the recipe has those of the others."""
_WARMUP_STEPS = 50
"""Steps in which the learning rate rises."""


def config(recipe: GeneratorRecipe) -> dict[str, Any]:
    """The content of taming-transformers' `model.yaml`."""
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
    """The codes of a VQ-VAE, updated by exponential moving averages (van den Oord et al., 2017,
    appendix A.1) and not by gradients.

    A code is the running mean of the latents that are assigned to it. Unused codes are reset to
    random latents.
    """

    mass: Tensor
    """Running number of latents of each code in a batch, [codes]."""
    total: Tensor
    """Running sum of these latents, [codes, C]."""
    started: Tensor
    """Whether the codes have been set to latents."""

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, channels)
        self.embedding.weight.requires_grad_(False)
        self.register_buffer("mass", torch.ones(codes))
        self.register_buffer("total", self.embedding.weight.detach().clone())
        # The first update sets the codes to latents of a partly trained encoder. With random codes,
        # all latents would choose the same few.
        self.register_buffer("started", torch.tensor(False))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest codes [B, C, h, w] of latents [B, C, h, w], and their indices [B * h * w]."""
        # argmin |z - c|^2 = argmin |c|^2 - 2 z c, as |z|^2 is the same for all codes.
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]).float()
        table = self.embedding.weight
        index = (table.square().sum(1) - 2 * flat @ table.T).argmin(1)
        codes = table[index].view(len(z), *z.shape[2:], -1).permute(0, 3, 1, 2)
        return codes, index

    @torch.no_grad()
    def update(self, z: Tensor, index: Tensor, gen: torch.Generator) -> int:
        """Update the codes with a batch; returns the number of codes that were reset.

        Args:
            z: latents [B, C, h, w].
            index: index [B * h * w] of each latent's code.
        """
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
        # A code that no latent chooses never moves to where latents are, so it starts again at one.
        unused = (self.mass < _UNUSED_MASS).nonzero().squeeze(1)
        self.total[unused] = flat[torch.randint(len(flat), (len(unused),), generator=gen)]
        self.mass[unused] = 1.0
        self.embedding.weight.copy_(self.total / self.mass.unsqueeze(1))
        return len(unused)


class Autoencoder(nn.Module):
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
        """Latents [B, C, h, w], not quantised, of images [B, 3, 64, 64] in [-1, 1]."""
        z: Tensor = self.quant_conv(self.encoder(x))
        return z

    def decode(self, codes: Tensor) -> Tensor:
        """Images [B, 3, 64, 64] in about [-1, 1], of quantised latents [B, C, h, w]."""
        x: Tensor = self.decoder(self.post_quant_conv(codes))
        return x

    def reconstruct(self, images: Tensor) -> Tensor:
        """Images [B, 3, 64, 64] in [0, 1] after encoding, quantising and decoding, in [0, 1]."""
        codes, _ = self.quantize(self.encode(images * 2 - 1))
        return ((self.decode(codes) + 1) / 2).clamp(0, 1)

    def official(self) -> dict[str, Tensor]:
        """The weights under the names of an official checkpoint, which has also those of its loss.

        The codebook's running sums, which only training needs, are left out.
        """
        return {
            key: value.detach().clone().contiguous()
            for key, value in self.state_dict().items()
            if key not in ("quantize.mass", "quantize.total", "quantize.started")
        }


class PerceptualLoss(nn.Module):
    """A distance between images: of their features in the first stages of the teacher's tower."""

    def __init__(self, teacher: Any) -> None:
        super().__init__()
        self.tower = teacher.visual.eval().requires_grad_(False)

    def features(self, images: Tensor) -> Iterator[Tensor]:
        """Yield features of images [B, 3, 64, 64] in [0, 1], from fine to coarse."""
        tower = self.tower
        x = normalised(images)
        x = tower.act1(tower.bn1(tower.conv1(x)))
        yield x
        x = tower.act3(tower.bn3(tower.conv3(tower.act2(tower.bn2(tower.conv2(x))))))
        x = tower.avgpool(x)
        yield x
        x = tower.layer1(x)
        yield x
        x = tower.layer2(x)
        yield x

    def forward(self, reconstructed: Tensor, real: Tensor) -> Tensor:
        """The distance of two batches of images, [B, 3, 64, 64] in [0, 1]: a scalar.

        It is the squared error of the features relative to their mean square over the batch, summed
        over the stages. LPIPS normalises each pixel's features instead; where an empty area has
        almost none, that gradient explodes and dominates all others.
        """
        with torch.no_grad():
            targets = [feature.float() for feature in self.features(real)]
        pairs = zip(self.features(reconstructed), targets, strict=True)
        errors = [(a.float() - b).square().mean() / b.square().mean() for a, b in pairs]
        return torch.stack(errors).sum()


class GeneratorTrainer(Resumable):
    """Trains the generator; `run` resumes from the last checkpoint in `folder`.

    Nothing is compiled: with torch 2.13, compiled bfloat16 training did not converge and was no
    faster.

    Args:
        teacher: an open_clip model with a ResNet image tower, for the perceptual loss.
    """

    parts = ("network", "optimizer", "critic", "critic_optimizer")
    recipe: GeneratorRecipe

    def __init__(
        self,
        recipe: GeneratorRecipe,
        batches: Batches,
        teacher: nn.Module,
        folder: Path,
        seed: int,
    ) -> None:
        self.recipe, self.batches, self.path = recipe, batches, folder / "generator.pt"
        torch.manual_seed(seed)
        self.network = Autoencoder(recipe)
        self.perceptual_loss = PerceptualLoss(teacher)
        weights = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(weights, betas=(0.9, 0.99), foreach=True)
        # With two layers an output sees a patch of 34 px; with three, the default, 70 px.
        self.critic = NLayerDiscriminator(3, recipe.critic_channels, n_layers=2).apply(weights_init)
        self.critic_optimizer = torch.optim.Adam(
            self.critic.parameters(), lr=recipe.critic_rate, betas=(0.5, 0.9), foreach=True
        )

    def update(self) -> str:
        """One step of autoencoder, critic and codes; returns the losses."""
        r = self.recipe
        for group in self.optimizer.param_groups:
            # A linear rise, times a cosine to 0.02.
            factor = rise(self.step, _WARMUP_STEPS) * (0.02 + 0.98 * cosine(self.step, r.steps))
            group["lr"] = r.learning_rate * factor
        images, gen = self.batch(self.step)
        free = self.step < r.free_steps
        critical = r.adversarial_weight > 0 and self.step >= r.adversarial_from
        with torch.autocast("cpu", torch.bfloat16):
            z = self.network.encode(images * 2 - 1)
            codes, index = self.network.quantize(z)
            # Straight-through estimator: the decoder sees the codes, and its gradient passes to the
            # encoder as if nothing had been quantised.
            decoded = self.network.decode(z if free else z + (codes - z).detach())
            reconstructed = (decoded + 1) / 2
            perceptual = self.perceptual_loss(reconstructed, images).float()
            # The critic's outputs are high for patches that look real.
            adversarial = torch.zeros(())
            if critical:
                adversarial = -self.critic(reconstructed * 2 - 1).mean()
        commitment = (z.float() - codes).square().mean() * (0.0 if free else 1.0)
        reconstructed = reconstructed.float()
        error = reconstructed - images
        pixel = error.abs().mean()
        # Colour has a loss of its own: most pixels are grey, so the other losses let colours fade.
        # It is squared: an absolute error is least at the median of the colours, which is grey.
        chroma = (error - error.mean(1, keepdim=True)).square().mean()
        loss = _PIXEL_WEIGHT * pixel + r.colour_weight * chroma
        loss = loss + r.perceptual_weight * perceptual
        loss = loss + _COMMITMENT_WEIGHT * commitment
        loss = loss + r.adversarial_weight * adversarial.float()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        if critical:
            # The hinge loss, as in taming-transformers.
            with torch.autocast("cpu", torch.bfloat16):
                on_real = self.critic(images * 2 - 1)
                on_made = self.critic(reconstructed.detach() * 2 - 1)
            hinge = F.relu(1 - on_real.float()).mean() + F.relu(1 + on_made.float()).mean()
            self.critic_optimizer.zero_grad()
            (0.5 * hinge).backward()
            self.critic_optimizer.step()
        reset = 0
        # Codes must exist when the first step with quantisation begins.
        if self.step + 1 >= r.free_steps:
            reset = self.network.quantize.update(z.detach(), index, gen)
        return (
            f"L1 {pixel:.4f} colour {chroma:.4f} features {perceptual:.3f} "
            f"commitment {commitment:.4f} adversarial {adversarial:.3f} codes reset {reset}"
        )

    def batch(self, step: int) -> tuple[Tensor, torch.Generator]:
        """The images of a step, [B, 3, 64, 64] in [0, 1], and its generator for random choices."""
        rows, rng = self.batches.draw(step)
        gen = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return random_images(self.batches.cache, rows, self.recipe.default_share, gen), gen


_COLOURED = 0.2
"""A pixel is coloured if the channels of the original differ by more than this."""


def psnr(reconstructed: Tensor, real: Tensor) -> float:
    """The peak signal-to-noise ratio in dB, the mean over images.

    That of an image is 10 log10(1 / mean squared error).

    Args:
        reconstructed, real: [N, C, H, W] in [0, 1].
    """
    errors = (reconstructed - real).square().flatten(1).mean(1).clamp(min=1e-10)
    return float((-10 * errors.log10()).mean())


def colours_kept(reconstructed: Tensor, real: Tensor) -> tuple[float, float]:
    """Compare hue and chroma of the coloured pixels of images [N, 3, H, W] in [0, 1].

    Hue is the angle, and chroma the length, in the plane orthogonal to grey.

    Returns:
        The mean difference of hue in degrees, over twelve sectors of hue, and the mean chroma of
        the reconstructions, relative to that of the originals.
    """
    coloured = (real.amax(1) - real.amin(1)) > _COLOURED
    # The plane orthogonal to grey; red is at angle 0.
    axes = torch.tensor([[1.0, -0.5, -0.5], [0.0, 0.75**0.5, -(0.75**0.5)]])
    planes = [x.movedim(1, -1)[coloured] @ axes.T for x in (reconstructed, real)]
    angles = [torch.atan2(plane[:, 1], plane[:, 0]) for plane in planes]
    # Differences of angles, brought to [-pi, pi).
    error = (angles[0] - angles[1] + torch.pi).remainder(2 * torch.pi) - torch.pi
    sector = ((angles[1] + torch.pi) / (2 * torch.pi) * 12).long().clamp(max=11)
    # The mean over sectors gives rare hues the weight of common ones.
    means = [error.abs()[sector == i].mean() for i in range(12) if (sector == i).any()]
    kept = planes[0].norm(dim=1).mean() / planes[1].norm(dim=1).mean()
    return float(torch.stack(means).mean().rad2deg()), float(kept)
