"""The kit's diffusion models: their architectures, and that they are sampled as manifests say."""

import pytest
import torch

from dfkd.benchmarks.gpu import diffusion
from dfkd.benchmarks.gpu.kit import Kit
from dfkd.benchmarks.gpu.sizes import FULL, LCM, SD15, TURBO, Sampler
from dfkd.config.manifest import Manifest
from tests.helpers.jobs import ROOT

CPU = torch.device("cpu")
PUBLISHED_UNET = 3_438_167_540
"""Bytes of Stable Diffusion 1.5's in float32."""


@pytest.mark.parametrize(
    ("sampler", "unet"), [(LCM, 859_520_964), (SD15, 859_520_964), (TURBO, 865_910_724)]
)
def test_diffusion_models_have_as_many_weights_as_the_published_ones(
    sampler: Sampler, unet: int
) -> None:
    generator = diffusion.build_generator(Kit(FULL, torch.device("meta")), sampler, "float32")
    assert sum(each.numel() for each in generator.unet.parameters()) == unet
    assert sum(each.numel() for each in generator.vae.parameters()) == 49_490_199
    # A file of weights begins with a list of its tensors.
    assert sampler is TURBO or 0 < PUBLISHED_UNET - 4 * unet < 100_000


def test_diffusion_models_are_sampled_as_their_manifests_say() -> None:
    for file, sampler in (("pacs_sd15", SD15), ("pacs_turbo", TURBO)):
        manifest = Manifest.read(ROOT / f"manifests/{file}.yaml")
        assert manifest.teacher.model == sampler.teacher
        assert manifest.synthesis.steps == sampler.steps
        assert manifest.generator.guidance == sampler.guidance
        assert manifest.synthesis.batch_size == FULL.sampled_batches[1]
    text = (ROOT / "manifests/pacs_sd15.yaml").read_text()
    assert f"generator.guidance={LCM.guidance:g} --set synthesis.steps={LCM.steps}" in text
