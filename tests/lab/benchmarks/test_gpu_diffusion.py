"""The kit's diffusion models: their architectures, and that they are sampled as manifests say."""

import pytest
import torch
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.lab.benchmarks.gpu import diffusion
from dfkd.lab.benchmarks.gpu.kit import Kit
from dfkd.lab.benchmarks.gpu.sizes import FULL, LCM, SD15, TURBO, Sampler
from dfkd.models.generators.generator import to_pixels
from dfkd.synthesis.request import REFINED_BATCH_SIZE
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


def test_a_gradient_through_the_decoder_keeps_as_much_memory_as_the_page_says() -> None:
    """An image of 512 px in float32, from the shapes of what autograd saves."""
    generator = diffusion.build_generator(Kit(FULL, torch.device("meta")), SD15, "float32")
    weights = {each.untyped_storage()._cdata for each in generator.vae.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage  # kept, so that no other gets its number
        return tensor

    latent = torch.empty(1, 4, 64, 64, device="meta", requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        pixels = to_pixels(generator.vae.decode(latent, return_dict=False)[0])
    assert pixels.shape[-1] == 512
    kept = sum(each.nbytes() for number, each in saved.items() if number not in weights) / 1e9
    # What manifests/README.md tells.
    assert (f"{kept:.1f}", f"{REFINED_BATCH_SIZE * kept:.0f}") == ("6.0", "48")


def test_diffusion_models_are_sampled_as_their_manifests_say() -> None:
    for file, sampler in (("pacs_sd15", SD15), ("pacs_turbo", TURBO)):
        manifest = Manifest.read(ROOT / f"manifests/{file}.yaml")
        assert manifest.teacher.model == sampler.teacher
        assert manifest.synthesis.steps == sampler.steps
        assert manifest.generator.guidance == sampler.guidance
        assert manifest.synthesis.batch_size == FULL.sampled_batches[1]
    text = (ROOT / "manifests/pacs_sd15.yaml").read_text()
    assert f"generator.guidance={LCM.guidance:g} --set synthesis.steps={LCM.steps}" in text
