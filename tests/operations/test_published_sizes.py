"""The networks on which costs are counted have the sizes of the published ones."""

import pytest
import torch
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.models.generators.generator import to_pixels
from dfkd.models.generators.settings import REFINED_BATCH_SIZE
from dfkd.models.generators.vqgan import Network
from dfkd.models.teacher_architecture import read_architecture
from tests.helpers.jobs import ROOT
from tests.helpers.published_sizes import F16_16384, LCM, SD15, TURBO, VIT, Sampler, diffusion

PUBLISHED_UNET = 3_438_167_540
"""Bytes of Stable Diffusion 1.5's in float32."""


@pytest.mark.parametrize(
    ("sampler", "unet"), [(LCM, 859_520_964), (SD15, 859_520_964), (TURBO, 865_910_724)]
)
def test_diffusion_models_have_as_many_weights_as_the_published_ones(
    sampler: Sampler, unet: int
) -> None:
    generator = diffusion(sampler, "meta")
    assert sum(each.numel() for each in generator.unet.parameters()) == unet
    assert sum(each.numel() for each in generator.vae.parameters()) == 49_490_199
    # A file of weights begins with a list of its tensors.
    assert sampler is TURBO or 0 < PUBLISHED_UNET - 4 * unet < 100_000


def test_a_gradient_through_the_decoder_keeps_as_much_memory_as_the_page_says() -> None:
    """An image of 512 px in float32, from the shapes of what autograd saves."""
    generator = diffusion(SD15, "meta")
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
        own = manifest.generator.kinds["diffusers"]
        assert (own.steps, own.guidance) == (sampler.steps, sampler.guidance)
    text = (ROOT / "manifests/pacs_sd15.yaml").read_text()
    assert (
        f"generator.diffusers.guidance={LCM.guidance:g} --set generator.diffusers.steps={LCM.steps}"
        in text
    )


def test_the_vqgan_and_the_teacher_are_the_published_ones() -> None:
    assert read_architecture(VIT).quick_gelu
    with torch.device("meta"):
        network = Network(F16_16384)
    assert network.get_parameter("quantize.embedding.weight").shape == (16384, 256)
    assert network.downsampling == 16
    assert network.decoder.conv_in.weight.shape == (512, 256, 3, 3)
    assert network.decoder.conv_out.weight.shape == (3, 128, 3, 3)
    assert len(network.decoder.up[4].attn) == 3  # at 16 x 16 cells, and nowhere else
    assert sum(len(level.attn) for level in network.decoder.up) == 3
