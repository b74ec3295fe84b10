"""Parts of a folder in diffusers' layout that few models have."""

import importlib
import shutil
from pathlib import Path
from typing import Any

import torch

from dfkd.utils.device import seeded
from tests.helpers.sources import load_generator
from tests.helpers.tiny_pipeline import KL, read_manifest, tiny_teacher, write_pipeline


def test_codes_may_be_wider_than_the_decoder_s_input(tmp_path: Path) -> None:
    """The latents of a VQGAN are its codes, so the UNet has as many channels as those."""
    folder = write_pipeline(tmp_path / "pipeline", tiny_teacher(tmp_path))
    diffusers: Any = importlib.import_module("diffusers")
    with seeded(0):
        vae = diffusers.VQModel(
            **KL | {"latent_channels": 3, "vq_embed_dim": 4, "num_vq_embeddings": 16}
        )
    shutil.rmtree(folder / "vae")
    vae.save_pretrained(folder / "vae")
    generator = load_generator(read_manifest(tmp_path, folder))
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        image = vae.eval().decode(latent / vae.config.scaling_factor).sample
        found = generator.decode(latent)
    torch.testing.assert_close(found, ((image + 1) / 2).clamp(0, 1))
