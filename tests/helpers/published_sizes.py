"""Networks of published architectures with random weights: what costs are counted on."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from dfkd.config.paths import GENERATOR_CONFIG
from dfkd.config.pipelines import PIPELINES
from dfkd.models.generators.diffusion import Diffusion
from dfkd.models.generators.generator import TextInput
from dfkd.models.generators.text_tower import Shape, TextEncoder
from dfkd.models.generators.vqgan import VQGAN, Network
from dfkd.models.generators.vqgan_config import Decoder, Model, Params, read_model
from dfkd.models.teacher import Teacher
from dfkd.models.teacher_architecture import build, build_tokenizer, read_architecture
from dfkd.utils.device import seeded

VIT = "ViT-B-32-quickgelu"
"""The paper's teacher."""
F16_16384 = Model(
    params=Params(
        embed_dim=256,
        n_embed=16384,
        ddconfig=Decoder(
            z_channels=256,
            resolution=256,
            in_channels=3,
            out_ch=3,
            ch=128,
            ch_mult=(1, 1, 2, 2, 4),
            num_res_blocks=2,
            attn_resolutions=(16,),
        ),
    )
)
"""The architecture of `vqgan-imagenet-f16-16384`."""


@dataclass(frozen=True)
class Sampler:
    """A latent diffusion model, and how a manifest samples from it.

    Networks and scheduler are classes of diffusers; what is not stated is as by their defaults.
    """

    teacher: str
    """`teacher.model`, whose text tower is the model's own."""
    unet: dict[str, Any]
    """Of a `UNet2DConditionModel`, beside the width of that tower."""
    scheduler: str
    schedule: dict[str, Any]
    steps: int
    guidance: float = 1.0


LCM = Sampler("ViT-L-14-quickgelu", {"sample_size": 64}, "LCMScheduler", {}, steps=4)
"""The few-step model of `manifests/pacs_sd15.yaml`."""
SD15 = replace(
    LCM,
    scheduler="PNDMScheduler",
    schedule={"skip_prk_steps": True},
    steps=PIPELINES["stable-diffusion-v1-5"].steps,
    guidance=PIPELINES["stable-diffusion-v1-5"].guidance,
)
"""The model of `manifests/pacs_sd15.yaml`."""
TURBO = Sampler(
    "ViT-H-14",
    {"sample_size": 64, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    "EulerDiscreteScheduler",
    {"timestep_spacing": "trailing"},
    steps=PIPELINES["sd-turbo"].steps,
)
"""The model of `manifests/pacs_turbo.yaml`."""
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 512,
    "down_block_types": 4 * ("DownEncoderBlock2D",),
    "up_block_types": 4 * ("UpDecoderBlock2D",),
}


def teacher(name: str) -> Teacher:
    """The teacher of an architecture."""
    architecture = read_architecture(name)
    with seeded(0):
        model = build(architecture)
    return Teacher(model, build_tokenizer(architecture), name, architecture.preprocess)


def generator(model: Model | None = None) -> VQGAN:
    """A VQGAN, of the miniature's size by default."""
    with seeded(0):
        return VQGAN(Network(model or read_model(GENERATOR_CONFIG)), "float32")


def diffusion(sampler: Sampler, device: str = "cpu") -> Diffusion:
    """A diffusion model, as `Diffusion.load` gives it with trained weights."""
    import diffusers

    library: Any = diffusers
    width = read_architecture(sampler.teacher).model["text_cfg"]["width"]
    with torch.device(device), seeded(0):
        unet = library.UNet2DConditionModel(cross_attention_dim=width, **sampler.unet)
        vae = library.AutoencoderKL(**VAE)
    vae.encoder = vae.quant_conv = None
    networks: tuple[nn.Module, ...] = (unet, vae)
    for network in networks:
        network.eval().requires_grad_(False)
    scheduler = getattr(library, sampler.scheduler)(**sampler.schedule)
    encoder = TextEncoder(Shape(hidden_size=width), TextInput(1, pads_with_end=True), None)
    return Diffusion(unet, vae, scheduler, encoder, sampler.steps, sampler.guidance, "float32")
