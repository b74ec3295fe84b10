"""The generator whose latents are optimised: a taming-transformers VQGAN decoder, its codebook."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from taming.modules.diffusionmodules.model import Decoder
from torch import Tensor, nn

from dfkd.config.paths import CACHE, GENERATOR_CONFIG, GENERATOR_WEIGHTS, MINIATURE, local_path
from dfkd.errors import ManifestError, WeightsError, one_line
from dfkd.models.generators.generator import Condition, TextInput, to_pixels
from dfkd.models.generators.settings import Vqgan
from dfkd.models.generators.vqgan_config import REMEDY, Model, read_model
from dfkd.models.generators.vqgan_decoder import decode
from dfkd.models.teacher import Teacher
from dfkd.models.weights.artifacts import FETCH, PUBLISHED_VQGANS, cached, published
from dfkd.models.weights.reading import existing_file, load_into, match, read_state_dict
from dfkd.utils.device import multiplies_bfloat16
from dfkd.utils.types import Precision

MAX_DISTANCES = 1 << 24
"""Maximal number of distances between latents and codes in a GPU's memory at once: 64 MB."""

_PARTS = ("decoder.", "quantize.", "post_quant_conv.")
"""Beginnings of the names of the tensors that are used of a checkpoint."""

_MINIATURE = {
    "generator.vqgan.config": GENERATOR_CONFIG,
    "generator.vqgan.weights": GENERATOR_WEIGHTS,
}


def find_file(field: str, value: str, cache: str = CACHE) -> Path:
    """The file that a key of `generator.vqgan` names.

    Args:
        field: `generator.vqgan.config` or `generator.vqgan.weights`.
        value: the value of that key.
        cache: the folder with the files of published VQGANs.

    Raises:
        WeightsError: no such file or name, or the file is not in the cache.
    """
    if value == MINIATURE:
        return existing_file(field, _MINIATURE[field])
    if artifact := published(field, value):
        return cached(field, value, artifact.file, cache)
    path = local_path(value)
    if not path.is_file():
        names = ", ".join(PUBLISHED_VQGANS)
        rule = f"must be an existing file or a published VQGAN ({names})"
        raise WeightsError(field, rule, value, f"check the path, or name one and run {FETCH}")
    return path


class VQGAN:
    """Decoder and codebook of a taming-transformers VQModel; created by `VQGAN.load`.

    Attributes:
        downsampling: height and width in pixels of one code (16 for f16).
        codebook: [K, C] float32.
        quantised: whether `decode` takes the nearest codes (straight-through) of a latent.
        network: decoder and codebook, frozen.
    """

    text: TextInput | None = None

    def __init__(
        self, network: "Network", precision: Precision = "float32", *, quantised: bool = True
    ) -> None:
        self.quantised = quantised
        self.network = network.eval().requires_grad_(False)
        self.codebook: Tensor = network.get_parameter("quantize.embedding.weight")
        self.downsampling = network.downsampling
        self._norms = self.codebook.square().sum(dim=1)
        self._transposed = self.codebook.t().contiguous()
        channels = (1, -1, 1, 1)
        self._low = self.codebook.amin(dim=0).view(channels)
        self._high = self.codebook.amax(dim=0).view(channels)
        self._cuda = self.codebook.device.type == "cuda"
        # Computed here, because torch.compile cannot trace it.
        self._mixed = precision == "bfloat16" and multiplies_bfloat16(self.codebook.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def load(
        cls,
        settings: Vqgan,
        device: torch.device,
        precision: Precision = "float32",
        cache: str = CACHE,
    ) -> "VQGAN":
        """See `GeneratorSettings.load`; the nearest codes are always searched in float32."""
        config, weights = cls.files(settings, cache).values()
        model = read_model(config)
        try:
            with torch.device("meta"):  # shapes only, so that a mismatch costs no memory
                network = Network(model)
        except Exception as error:  # impossible numbers can raise anything in a constructor
            rule = f"must be buildable ({one_line(error)})"
            raise WeightsError("generator.vqgan.config", rule, str(config), REMEDY) from None
        # A checkpoint also holds the encoder and the discriminator of its training.
        state = {
            key: value
            for key, value in read_state_dict("generator.vqgan.weights", weights).items()
            if key.startswith(_PARTS)
        }
        remedy = "give the checkpoint that belongs to generator.vqgan.config"
        match("generator.vqgan.weights", weights, state, network.state_dict(), remedy)
        network.to_empty(device=device)
        load_into("generator.vqgan.weights", weights, network, state)
        return cls(network, precision, quantised=settings.quantise)

    @classmethod
    def files(cls, settings: Vqgan, cache: str = CACHE) -> dict[str, Path]:
        """Configuration and checkpoint; see `GeneratorSettings.files`."""
        values = {
            "generator.vqgan.config": settings.config,
            "generator.vqgan.weights": settings.weights,
        }
        return {field: find_file(field, value, cache) for field, value in values.items()}

    def require(self, teacher: Teacher, image_size: int) -> None:
        """Refuse a size that is not a multiple of `downsampling`; any teacher has a gradient."""
        self._latent_side(image_size)

    def init_latents(
        self, seeds: Sequence[int], image_size: int, condition: Condition | None = None
    ) -> Tensor:
        """Initial latents float32 [B, C, h, w]; each depends only on its own seed.

        Codes are drawn uniformly, as in VQGAN-CLIP.

        Args:
            image_size: a multiple of `downsampling`.
            condition: not used.
        """
        side = self._latent_side(image_size)
        codebook = self.codebook.cpu()  # drawn on the CPU, so latents do not depend on the device
        latents = []
        # One generator per image, so that a latent does not depend on the others of its batch.
        for seed in seeds:
            random = torch.Generator().manual_seed(seed)
            codes = codebook[torch.randint(len(codebook), (side * side,), generator=random)]
            latents.append(codes.view(side, side, -1).permute(2, 0, 1))
        return torch.stack(latents).contiguous().to(self.codebook.device)

    def _latent_side(self, image_size: int) -> int:
        """h = w of the latent of an image.

        Raises:
            ManifestError: `image_size` is not a multiple of `downsampling`.
        """
        side, rest = divmod(image_size, self.downsampling)
        if rest or not side:
            raise ManifestError(
                "synthesis.image_size",
                f"must be a multiple of {self.downsampling}",
                image_size,
                f"use {max(1, side) * self.downsampling}",
            )
        return side

    def nearest(self, latent: Tensor) -> Tensor:
        """Indices [B, h, w] of the nearest code to each cell of a latent [B, C, h, w].

        The distance is |z|^2 - 2 z.e + |e|^2, without the first term, which is equal for all codes.
        """
        batch, channels, height, width = latent.shape
        cells = latent.detach().float().permute(0, 2, 3, 1).reshape(-1, channels)
        # A GPU searches as many cells at once as `MAX_DISTANCES` allows, and a CPU those of one
        # image: the product then fits its cache, and its rounding does not depend on the batch.
        rows = max(1, MAX_DISTANCES // len(self.codebook)) if self._cuda else height * width
        indices = [
            torch.addmm(self._norms, part, self._transposed, alpha=-2).argmin(dim=1)
            for part in cells.split(rows)
        ]
        return torch.cat(indices).view(batch, height, width)

    def quantise(self, latent: Tensor) -> Tensor:
        """The nearest codes [B, C, h, w]; the gradient passes unchanged to the latent.

        This is the straight-through estimator, as in VQGAN-CLIP (`vector_quantize`): the choice of
        the nearest code has no useful gradient, so the decoder's gradient at the code is used for
        the latent. The latent moves on between the codes until another one is nearer.
        """
        codes = self.codebook[self.nearest(latent)].permute(0, 3, 1, 2).contiguous()
        straight: Tensor = _StraightThrough.apply(latent, codes)  # type: ignore[no-untyped-call]
        return straight

    def decode(self, latent: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] float32 in [0, 1] of a latent [B, C, h, w]."""
        codes = self.quantise(latent) if self.quantised else latent
        with torch.autocast(codes.device.type, torch.bfloat16, enabled=self._mixed):
            image = self.network(codes)
        return to_pixels(image.float())

    @torch.no_grad()
    def constrain(self, latent: Tensor) -> Tensor:
        """Clamp a latent, in place, to the range of the codebook in each channel; returns it.

        VQGAN-CLIP does it after each step. The decoder has never seen values beyond that range.
        """
        return latent.clamp_(self._low, self._high)


class Network(nn.Module):
    """The parts of a VQModel that turn codes into an image, under the checkpoint's names."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        params = model.params
        with contextlib.redirect_stdout(io.StringIO()):  # taming prints its shapes
            self.decoder = Decoder(**asdict(params.ddconfig))
        codebook = nn.Embedding(params.n_embed, params.embed_dim)
        self.quantize = nn.ModuleDict({"embedding": codebook})
        self.post_quant_conv = nn.Conv2d(params.embed_dim, params.ddconfig.z_channels, 1)
        self.downsampling = params.ddconfig.downsampling

    def forward(self, codes: Tensor) -> Tensor:
        """The decoder's output [B, 3, H, W] in about [-1, 1] for codes [B, C, h, w]."""
        inner = self.post_quant_conv(codes)
        # torch.compile fuses the norms of taming's own decoder by itself.
        fused = codes.is_cuda and torch.compiler.is_compiling()
        image: Tensor = self.decoder(inner) if fused else decode(self.decoder, inner)
        return image


class _StraightThrough(torch.autograd.Function):
    """Forward the codes, backward the identity for the latent (VQGAN-CLIP's ReplaceGrad).

    The usual `latent + (codes - latent).detach()` would round the codes.
    """

    @staticmethod
    def forward(ctx: Any, latent: Tensor, codes: Tensor) -> Tensor:
        """The codes [B, C, h, w]; the latent is there for its gradient."""
        return codes

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradient of the codes as that of the latent."""
        return gradients[0], None
