"""A diffusion model of some ten thousand random weights, in the folder layout of diffusers."""

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file

from dfkd.config.manifest import Manifest
from dfkd.models.generators.text_tower import as_clip_text_model
from dfkd.models.teacher import Teacher
from dfkd.utils.device import seeded
from tests.helpers import small_manifest
from tests.helpers.tiny_models import VIT, load_teacher, model_config

UNET: dict[str, Any] = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1,
    "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
KL: dict[str, Any] = {
    "block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
NOISE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
}  # fmt: skip
"""Stable Diffusion's schedule of noise."""
SCHEDULER: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": False},
    "PNDMScheduler": {"skip_prk_steps": True},
}
"""What Stable Diffusion sets beside it for some schedulers."""
SIZE = 16
"""Side in pixels of an image, whose latent has half of it."""


def tiny_teacher(folder: Path, **text: Any) -> Teacher:
    """A CLIP with a text tower of width 32 and two layers, as `TEXT` has it."""
    return load_teacher(folder, model_config(VIT, **text))


def write_pipeline(
    folder: Path,
    teacher: Teacher,
    scheduler: str = "LCMScheduler",
    layers: int | None = None,
    pad: Any = "<|endoftext|>",
    **unet: Any,
) -> Path:
    """UNet, VAE and scheduler as diffusers writes them, and a text encoder that is the teacher's.

    `layers` is the number of blocks that the text encoder has; None: as many as the teacher.
    """
    width = teacher.token_table.shape[1]
    diffusers: Any = importlib.import_module("diffusers")
    with seeded(0):
        model = diffusers.UNet2DConditionModel(**UNET | {"cross_attention_dim": width} | unet)
        decoder = diffusers.AutoencoderKL(**KL)
    # As they are initialised, neither the prompt nor the noise would be seen in an image.
    for name, value in model.named_parameters():
        if "attn2" in name:
            value.data.mul_(4)
    model.save_pretrained(folder / "unet")
    decoder.save_pretrained(folder / "vae")
    options = NOISE | SCHEDULER.get(scheduler, {})
    getattr(diffusers, scheduler)(**options).save_pretrained(folder / "scheduler")
    blocks = teacher.text.transformer.resblocks
    write_text_encoder(folder, teacher, len(blocks) if layers is None else layers)
    (folder / "tokenizer").mkdir(exist_ok=True)
    (folder / "tokenizer/special_tokens_map.json").write_text(json.dumps({"pad_token": pad}))
    return folder


def write_text_encoder(folder: Path, teacher: Teacher, layers: int, **other: Any) -> None:
    """The teacher's text tower as a CLIPTextModel; `other` replaces keys of its configuration."""
    (folder / "text_encoder").mkdir(parents=True, exist_ok=True)
    first = teacher.text.transformer.resblocks[0]
    config = {
        "hidden_size": teacher.token_table.shape[1],
        "intermediate_size": 4 * teacher.token_table.shape[1],
        "num_attention_heads": first.attn.num_heads,
        "num_hidden_layers": layers,
        "hidden_act": "quick_gelu" if isinstance(first.mlp.gelu, QuickGELU) else "gelu",
        "max_position_embeddings": teacher.context_length,
        "vocab_size": len(teacher.token_table),
        "model_type": "clip_text_model",
    }
    (folder / "text_encoder/config.json").write_text(json.dumps(config | other))
    state = as_clip_text_model(teacher.text, layers)
    named = {f"text_model.{name}": value.detach().clone() for name, value in state.items()}
    save_file(named, folder / "text_encoder/model.safetensors")


def read_manifest(folder: Path, pipeline: Path, *overrides: str, **generator: Any) -> Manifest:
    """A manifest with the teacher of `tiny_teacher(folder)` and the generator in `pipeline`."""
    model, weights = str(folder / "model.json"), str(folder / "model.safetensors")
    synthesis = {"images_per_class": 5, "shard_size": 3, "batch_size": 2}
    own = {"weights": str(pipeline), "guidance": 1.0, "steps": 2}
    return small_manifest.read(
        folder,
        *overrides,
        storage={"root": str(folder / "run")},
        teacher={"model": model, "weights": weights},
        generator={"kind": "diffusers", "diffusers": own | generator},
        prompts={
            "method": ["vanilla", "mix", "random", "contrastive"],
            "random": {"scale": 2.0},
            "contrastive": {"scale": 2.0},
        },
        synthesis=synthesis | {"image_size": SIZE},
    )


def noise(count: int) -> torch.Tensor:
    """Random hidden states of `count` prompts of a `tiny_teacher`."""
    return torch.randn(count, 16, 32, generator=torch.Generator().manual_seed(count))
