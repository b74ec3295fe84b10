"""How much the kit measures: the real architectures at 224 px, or the miniature's in seconds."""

from dataclasses import dataclass, replace
from typing import Any

from dfkd.config.paths import GENERATOR_CONFIG, MINIATURE
from dfkd.config.pipelines import PIPELINES
from dfkd.config.synthesis import Contrastive
from dfkd.models.generators.vqgan_config import Decoder, Model, Params, read_model

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
"""The architecture of the published `vqgan-imagenet-f16-16384`."""


@dataclass(frozen=True)
class Sampler:
    """A latent diffusion model, and how a manifest samples from it.

    Networks and scheduler are classes of diffusers; what is not stated is as by their defaults.
    """

    name: str
    teacher: str
    """`teacher.model`, whose text tower is the model's own."""
    unet: dict[str, Any]
    """Of a `UNet2DConditionModel`, beside the width of that tower."""
    vae: dict[str, Any]
    """Of an `AutoencoderKL`."""
    scheduler: str
    schedule: dict[str, Any]
    steps: int
    guidance: float = 1.0


_LEVELS = 4
LCM = Sampler(
    name="SD 1.5 with LCM-LoRA",
    teacher="ViT-L-14-quickgelu",
    unet={"sample_size": 64},
    vae={
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "sample_size": 512,
        "down_block_types": _LEVELS * ("DownEncoderBlock2D",),
        "up_block_types": _LEVELS * ("UpDecoderBlock2D",),
    },
    scheduler="LCMScheduler",
    schedule={},
    steps=4,
)
"""The few-step model of `manifests/pacs_sd15.yaml`."""
SD15 = replace(
    LCM,
    name="SD 1.5, guided",
    scheduler="PNDMScheduler",
    schedule={"skip_prk_steps": True},
    steps=PIPELINES["stable-diffusion-v1-5"].steps,
    guidance=PIPELINES["stable-diffusion-v1-5"].guidance,
)
"""The model of `manifests/pacs_sd15.yaml`."""
TURBO = replace(
    LCM,
    name="SD-Turbo",
    teacher="ViT-H-14",
    unet={"sample_size": 64, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    scheduler="EulerDiscreteScheduler",
    schedule={"timestep_spacing": "trailing"},
    steps=PIPELINES["sd-turbo"].steps,
)
"""The model of `manifests/pacs_turbo.yaml`."""
TINY = replace(
    LCM,
    name="tiny diffusion",
    teacher=MINIATURE,
    unet={"sample_size": 8, "block_out_channels": (32, 32, 64, 64)},
    vae=LCM.vae | {"block_out_channels": (32, 32, 32, 32)},
)
"""Blocks as in `LCM`, but small."""


@dataclass(frozen=True)
class Sizes:
    """Architectures, sizes and repeats."""

    teachers: tuple[str, ...]
    """`teacher.model` of each teacher; the first one is measured in more variants."""
    generator: Model
    image_size: int
    batches: tuple[int, ...]
    """Batch sizes of eager synthesis, from the paper's on."""
    compiled_batches: tuple[int, ...]
    """Batch sizes of compiled synthesis, beside that of the fastest eager row."""
    windows: int
    """Timed windows of a loop, each of which gives one value."""
    window_steps: int
    """Steps in a window."""
    samplers: tuple[Sampler, ...]
    """Diffusion models; the first one is measured in more variants."""
    sampled_batches: tuple[int, ...]
    """Batch sizes of the first one; the others have that in the middle."""
    students: tuple[str, ...]
    training_batch: int
    """Images in a step of distillation."""
    training_steps: int
    """Steps of distillation in a window."""
    contrastive: Contrastive


FULL = Sizes(
    teachers=("ViT-B-32-quickgelu", "RN50-quickgelu"),
    generator=F16_16384,
    image_size=224,
    # For its gradient an image keeps 0.55 GB with ViT-B/32 and 0.82 GB with RN50: an eager batch of
    # 128 nearly fills or exceeds 80 GB. A compiled one may fit, because fused operations keep less.
    batches=(8, 16, 32, 64),
    compiled_batches=(8, 128),
    windows=3,
    window_steps=10,
    samplers=(LCM, SD15, TURBO),
    sampled_batches=(1, 8, 32),
    students=("resnet18", "resnet50"),
    training_batch=128,
    training_steps=4,
    contrastive=Contrastive(updates=10),
)
"""For measurements."""

QUICK = Sizes(
    teachers=(MINIATURE,),
    generator=read_model(GENERATOR_CONFIG),
    image_size=32,
    batches=(1, 2),
    compiled_batches=(1, 2),
    windows=1,
    window_steps=2,
    samplers=(TINY,),
    sampled_batches=(1, 2),
    students=("resnet18",),
    training_batch=2,
    training_steps=1,
    contrastive=Contrastive(updates=2, batch_size=4, bank=8),
)
"""For a check within seconds, also on a CPU, that everything runs; its figures say little."""
