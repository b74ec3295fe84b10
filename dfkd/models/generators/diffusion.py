"""The generator whose latents are sampled: a latent diffusion model in diffusers' layout.

    x_T    = sigma_T * noise                                         of the image's own seed
    x_t-1  = scheduler(UNet(x_t, t, states), t, x_t)                 `steps` times
    image  = VAE decoder(x_0 / scaling factor)

This is what diffusers' `StableDiffusionPipeline` computes, and a test compares the two. But the
states are those of the teacher's own text tower (`dfkd.models.generators.text_tower`), and all
noise of an image comes from its own seed, so that it does not depend on its batch.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.config.paths import CACHE
from dfkd.errors import WeightsError
from dfkd.models.generators.diffusers_folder import (
    FIELD,
    REMEDY,
    UNETS,
    VAES,
    find_folder,
    read_network,
    read_scheduler,
    require_fitting,
    weights_file,
)
from dfkd.models.generators.generator import Condition, TextInput, to_pixels
from dfkd.models.generators.settings import Diffusers
from dfkd.models.generators.text_tower import TextEncoder
from dfkd.models.teacher import Teacher
from dfkd.utils.device import multiplies_bfloat16
from dfkd.utils.types import Precision

DECODED_PIXELS = 8 * 512 * 512
"""Pixels that are decoded at once where no gradient is needed: eight images of Stable Diffusion 1.
"""


class Diffusion:
    """UNet, VAE and scheduler of Stable Diffusion 1 or 2, or of a model distilled from one.

    Attributes:
        text: the hidden states that the UNet was trained on.
        unet, vae, scheduler: objects of diffusers; the networks are frozen, and with mixed
            precision their weights have been rounded in place.
        encoder: the text encoder, which the teacher's tower takes the place of.
        steps: sampling steps.
        guidance: scale of classifier-free guidance; 1 for none.
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        scheduler: Any,
        encoder: TextEncoder,
        steps: int,
        guidance: float,
        precision: Precision = "float32",
    ) -> None:
        self.unet, self.vae, self.scheduler, self.encoder = unet, vae, scheduler, encoder
        self.steps, self.guidance = steps, guidance
        self.text: TextInput | None = encoder.input
        self.device = next(self.unet.parameters()).device
        # Computed here, because torch.compile cannot trace it.
        self._mixed = precision == "bfloat16" and multiplies_bfloat16(self.device)
        if self._mixed:
            # Once and in place: autocast would round the weights to the same numbers at each call,
            # because it keeps rounded weights only of networks that are trained.
            for layer in [*unet.modules(), *vae.modules()]:
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    layer.to(torch.bfloat16)
        # Some schedulers add noise at each step.
        self._noisy = "generator" in inspect.signature(self.scheduler.step).parameters
        # A consistency model takes the guidance scale as input, so it needs no second pass.
        size: int | None = self.unet.config.time_cond_proj_dim
        self._scale = scale_embedding(guidance - 1, size).to(self.device) if size else None
        self._guided = guidance > 1 and self._scale is None

    @classmethod
    def files(cls, settings: Diffusers, cache: str = CACHE) -> dict[str, Path]:
        """Configurations and weights of all parts; see `GeneratorSettings.files`.

        Of the text encoder only the configuration changes a pixel.
        """
        folder = find_folder(settings.weights, cache)
        files = {
            "unet/config": folder / "unet/config.json",
            "unet/weights": weights_file(folder / "unet"),
            "vae/config": folder / "vae/config.json",
            "vae/weights": weights_file(folder / "vae"),
            "scheduler": folder / "scheduler/scheduler_config.json",
            **TextEncoder.files(folder),
        }
        for path in files.values():
            if not path.is_file():
                rule = f"must hold {path.relative_to(folder)}"
                raise WeightsError(FIELD, rule, settings.weights, REMEDY)
        return {f"{FIELD}/{part}": path for part, path in files.items()}

    @classmethod
    def load(
        cls,
        settings: Diffusers,
        device: torch.device,
        precision: Precision = "float32",
        cache: str = CACHE,
    ) -> "Diffusion":
        """See `GeneratorSettings.load`.

        Raises:
            ManifestError: the scheduler cannot do so many steps.
        """
        files = cls.files(settings, cache)
        folder = find_folder(settings.weights, cache)
        encoder = TextEncoder.read(folder)
        steps, guidance = settings.sampling_steps, settings.guidance
        scheduler = read_scheduler(files[f"{FIELD}/scheduler"], steps)
        unet = read_network("unet", UNETS, files, device)
        vae = read_network("vae", VAES, files, device)
        require_fitting(unet.config, vae.config, encoder.shape.hidden_size, folder)
        assert guidance is not None  # noqa: S101 - the settings fill it in
        return cls(unet, vae, scheduler, encoder, steps, guidance, precision)

    def require(self, teacher: Teacher, image_size: int) -> None:
        """Refuse a teacher whose text tower is not the pipeline's own; images are resized."""
        self.encoder.require(teacher)

    @torch.no_grad()
    def init_latents(
        self, seeds: Sequence[int], image_size: int, condition: Condition | None = None
    ) -> Tensor:
        """Sampled latents float32 [B, C, h, w]; each depends only on its own seed and prompt.

        Args:
            image_size: not used, because a UNet makes good images only at the size of its training.
            condition: of B prompts.
        """
        assert condition is not None  # noqa: S101 - `text` asks for one
        side = self.unet.config.sample_size
        shape = (self.unet.config.in_channels, side, side)
        # Each image has its own generator on the CPU, so its noise depends neither on the others of
        # its batch nor on the device.
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(shape, generator=draw) for draw in draws])
        self.scheduler.set_timesteps(self.steps, device=self.device)
        latents: Tensor = noise.to(self.device) * self.scheduler.init_noise_sigma
        options = {"generator": draws} if self._noisy else {}
        for time in self.scheduler.timesteps:
            scaled = self.scheduler.scale_model_input(latents, time)
            output = self.predict(scaled, time, condition)
            latents = self.scheduler.step(output, time, latents, return_dict=False, **options)[0]
        return latents

    def predict(self, latents: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """The UNet's output float32 [B, C, h, w], guided away from the empty text."""
        states = condition.prompts
        if self._guided:
            states = torch.cat([condition.empty.expand_as(states), states])
            latents = torch.cat([latents, latents])
        scale = None if self._scale is None else self._scale.expand(len(latents), -1)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._mixed):
            output: Tensor = self.unet(
                latents, time, encoder_hidden_states=states, timestep_cond=scale, return_dict=False
            )[0]
        if not self._guided:
            return output.float()
        empty, prompted = output.float().chunk(2)
        return empty + self.guidance * (prompted - empty)

    def decode(self, latent: Tensor) -> Tensor:
        """Pixels float32 [B, 3, H, W] in [0, 1] of a latent [B, C, h, w]."""
        if torch.is_grad_enabled():
            return self._decode_at_once(latent)
        # The images of a batch that has been sampled may not fit: at 512 px the VAE's widest layer
        # takes 0.7 GB of each, and with 32 it has more elements than some kernels can number.
        side = latent.shape[-1] * 2 ** (len(self.vae.config.block_out_channels) - 1)
        parts = latent.split(max(1, DECODED_PIXELS // side**2))
        return torch.cat([self._decode_at_once(part) for part in parts])

    def _decode_at_once(self, latent: Tensor) -> Tensor:
        """Pixels as `decode` gives them."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._mixed):
            image = self.vae.decode(latent / self.vae.config.scaling_factor, return_dict=False)[0]
        return to_pixels(image.float())

    def constrain(self, latent: Tensor) -> Tensor:
        """The latent itself, because the VAE decodes any."""
        return latent


def scale_embedding(scale: float, size: int) -> Tensor:
    """The guidance scale w as input of a consistency model, float32 [1, size].

    It is a sinusoidal embedding of 1000 w, written as in diffusers' `get_guidance_scale_embedding`
    so that it rounds alike.
    """
    half = size // 2
    rate = torch.log(torch.tensor(10000.0)) / (half - 1)
    angles = torch.tensor([[scale]]) * 1000.0 * torch.exp(torch.arange(half) * -rate)
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, size % 2))
