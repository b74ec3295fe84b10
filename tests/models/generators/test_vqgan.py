"""The VQGAN: official checkpoints, nearest codes, straight-through gradients, independence."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from taming.modules.diffusionmodules.model import Decoder
from taming.modules.vqvae.quantize import VectorQuantizer
from torch import Tensor, nn

from dfkd.config.hashing import sha256_file
from dfkd.config.paths import CACHE
from dfkd.errors import WeightsError
from dfkd.models.generators.settings import Vqgan
from dfkd.models.generators.vqgan import VQGAN
from tests.helpers.tiny_models import F16, official_state, official_yaml, write_generator

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Vqgan:
    return write_generator(tmp_path_factory.mktemp("vqgan"), official_yaml())


@pytest.fixture(scope="module")
def vqgan(files: Vqgan) -> VQGAN:
    return VQGAN.load(files, CPU)


def official_decode(tree: dict[str, Any], latent: Tensor) -> Tensor:
    """taming's own quantise and decode, as VQModel does them, in [-1, 1]."""
    params, state = tree["model"]["params"], official_state(tree)
    quantizer = VectorQuantizer(params["n_embed"], params["embed_dim"], 0.25)
    decoder = Decoder(**params["ddconfig"])
    conv = nn.Conv2d(params["embed_dim"], params["ddconfig"]["z_channels"], 1)
    for name, module in (
        ("quantize.", quantizer),
        ("decoder.", decoder),
        ("post_quant_conv.", conv),
    ):
        part = {k.removeprefix(name): v for k, v in state.items() if k.startswith(name)}
        module.load_state_dict(part)
    with torch.no_grad():
        image: Tensor = decoder(conv(quantizer(latent)[0]))
    return image


@pytest.mark.parametrize(
    "tree",
    [official_yaml(), official_yaml(codes=1024, **F16), official_yaml(codes=16384, **F16)],
    ids=["f8", "f16-1024", "f16-16384"],
)
def test_decoding_equals_the_official_model(tree: dict[str, Any], tmp_path: Path) -> None:
    config = write_generator(tmp_path, tree)
    generator = VQGAN.load(config, CPU)
    factor = 2 ** (len(tree["model"]["params"]["ddconfig"]["ch_mult"]) - 1)
    assert generator.downsampling == factor
    assert len(generator.codebook) == tree["model"]["params"]["n_embed"]
    latent = torch.randn(2, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = (official_decode(tree, latent) + 1) / 2
    pixels = generator.decode(latent)
    assert pixels.shape == (2, 3, 2 * factor, 2 * factor)
    torch.testing.assert_close(pixels, expected.clamp(0, 1), atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 4))
def test_the_nearest_code_is_the_one_at_the_least_distance(
    vqgan: VQGAN, seed: int, batch: int, side: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    latent = torch.randn(batch, 16, side, side, generator=draw)
    found = vqgan.nearest(latent)
    cells = latent.permute(0, 2, 3, 1).double()
    every = (cells[..., None, :] - vqgan.codebook.double()).norm(dim=-1)
    chosen = every.gather(-1, found[..., None]).squeeze(-1)
    torch.testing.assert_close(chosen, every.amin(dim=-1), atol=1e-6, rtol=0)


def test_quantising_gives_exact_codes_and_passes_the_gradient_on(vqgan: VQGAN) -> None:
    latent = torch.randn(2, 16, 2, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    codes = vqgan.quantise(latent)
    assert torch.equal(codes.permute(0, 2, 3, 1), vqgan.codebook[vqgan.nearest(latent)])
    weight = torch.arange(float(codes.numel())).view_as(codes)
    (codes * weight).sum().backward()
    assert torch.equal(latent.grad, weight)
    assert vqgan.codebook.grad is None
    assert not any(p.requires_grad for p in vqgan.network.parameters())


def test_without_quantisation_the_latent_itself_is_decoded(files: Vqgan, vqgan: VQGAN) -> None:
    plain = VQGAN.load(dataclasses.replace(files, quantise=False), CPU)
    latent = torch.randn(1, 16, 2, 2, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(plain.decode(latent), vqgan.decode(latent))
    codes = vqgan.quantise(latent)
    assert torch.equal(plain.decode(codes), vqgan.decode(latent))


def test_the_pixel_clamp_lets_out_of_range_pixels_return(vqgan: VQGAN) -> None:
    """torch.clamp would give a zero gradient there; a push further out is stopped."""
    with torch.no_grad():
        bias = vqgan.network.get_parameter("decoder.conv_out.bias")
        kept = bias.clone()
        bias.fill_(50.0)
    try:
        latent = torch.randn(1, 16, 2, 2, generator=torch.Generator().manual_seed(1))
        down, up = latent.clone().requires_grad_(), latent.clone().requires_grad_()
        pixels = vqgan.decode(down)
        assert float(pixels.detach().min()) == float(pixels.detach().max()) == 1.0
        pixels.sum().backward()  # a positive gradient: the step makes pixels darker
        (-vqgan.decode(up).sum()).backward()
        assert down.grad.abs().sum() > 0
        assert up.grad.abs().sum() == 0
    finally:
        with torch.no_grad():
            bias.copy_(kept)


def test_a_fresh_latent_depends_on_its_seed_alone(vqgan: VQGAN) -> None:
    together = vqgan.init_latents([5, 6, 2**62], 32)
    assert together.shape == (3, 16, 4, 4)
    assert together.dtype == torch.float32
    torch.manual_seed(123)
    assert torch.equal(vqgan.init_latents([2**62], 32)[0], together[2])
    assert not torch.equal(together[0], together[1])


def test_fresh_latents_are_codes(vqgan: VQGAN) -> None:
    codes = vqgan.init_latents([0], 64)
    assert torch.equal(vqgan.quantise(codes), codes)


def test_constrain_clamps_in_place_to_the_range_of_each_channel(vqgan: VQGAN) -> None:
    latent = (100 * torch.randn(2, 16, 2, 2)).requires_grad_()
    inside = vqgan.init_latents([3], 32)
    assert torch.equal(vqgan.constrain(inside.clone()), inside)
    returned = vqgan.constrain(latent)
    assert returned.data_ptr() == latent.data_ptr()
    channels = latent.detach().permute(1, 0, 2, 3).flatten(1)
    assert (channels <= vqgan.codebook.amax(dim=0)[:, None]).all()
    assert (channels >= vqgan.codebook.amin(dim=0)[:, None]).all()
    assert (channels.amax(dim=1) == vqgan.codebook.amax(dim=0)).all()


def test_an_image_does_not_depend_on_its_companions(vqgan: VQGAN) -> None:
    """Bit-equal, codes, pixels and gradients, in any batch of the same size and at any place.

    In a batch of another size the CPU's convolutions may sum in another order: close, not equal.
    """
    draw = torch.Generator().manual_seed(7)
    first, other = (torch.randn(4, 16, 4, 4, generator=draw) for _ in range(2))
    other[3] = first[1]
    alone = first[1:2].clone()
    for latent in (first, other, alone):
        vqgan.decode(latent.requires_grad_()).square().sum().backward()
    assert torch.equal(vqgan.decode(first)[1], vqgan.decode(other)[3])
    assert torch.equal(first.grad[1], other.grad[3])
    assert torch.equal(vqgan.nearest(first)[1], vqgan.nearest(alone)[0])
    torch.testing.assert_close(vqgan.decode(alone)[0], vqgan.decode(first)[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(alone.grad[0], first.grad[1], atol=1e-4, rtol=1e-4)


def test_both_files_are_hashed(files: Vqgan) -> None:
    assert files.hashes(CACHE) == {
        "generator.vqgan.config": sha256_file(files.config),
        "generator.vqgan.weights": sha256_file(files.weights),
    }


def test_safetensors_with_the_same_keys_give_the_same_model(
    files: Vqgan, vqgan: VQGAN, tmp_path: Path
) -> None:
    path = tmp_path / "decoder.safetensors"
    state = official_state(official_yaml())
    save_file({k: v for k, v in state.items() if not k.startswith(("encoder", "loss"))}, path)
    loaded = VQGAN.load(Vqgan(config=files.config, weights=str(path)), CPU)
    latent = loaded.init_latents([1], 32)
    assert torch.equal(loaded.decode(latent), vqgan.decode(latent))


def test_loading_prints_nothing_and_draws_no_random_number(
    files: Vqgan, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.random.get_rng_state()
    VQGAN.load(files, CPU)
    assert capsys.readouterr().out == ""
    assert torch.equal(torch.random.get_rng_state(), before)


def refusal(config: str, weights: str) -> str:
    with pytest.raises(WeightsError) as caught:
        VQGAN.load(Vqgan(config=config, weights=weights), CPU)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_checkpoint_of_another_architecture_is_described(files: Vqgan, tmp_path: Path) -> None:
    other = write_generator(tmp_path, official_yaml(codes=128, latent=32))
    text = refusal(files.config, other.weights)
    assert "differs in shape at decoder.conv_in.weight (64, 32, 3, 3) for (64, 16, 3, 3)" in text
    larger = write_generator(tmp_path / "larger", official_yaml(codes=128))
    text = refusal(files.config, larger.weights)
    assert "differs in shape at quantize.embedding.weight (128, 16) for (64, 16)" in text
    deeper = write_generator(tmp_path / "deep", official_yaml(num_res_blocks=2))
    assert "has no use for decoder.up.0.block.2" in refusal(files.config, deeper.weights)
    assert "lacks decoder.up.0.block.2" in refusal(deeper.config, files.weights)


def changed(path: str, value: object) -> str:
    """An official model.yaml with one key replaced, or removed where `value` is None."""
    tree = official_yaml()
    *parents, leaf = path.split(".")
    place: dict[str, Any] = tree
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[leaf]
    else:
        place[leaf] = value
    return yaml.safe_dump(tree)


PARAMS = "model.params"
SHAPE = f"{PARAMS}.ddconfig"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "mapping"),
        ("model: [", "valid YAML"),
        ("other: 1", "model"),
        (changed("model.target", "os.system"), "model.target"),
        (changed(f"{PARAMS}.n_embed", None), f"{PARAMS}.n_embed"),
        (changed(f"{PARAMS}.n_embed", 10**12), "differs in shape at quantize.embedding"),
        (changed(f"{PARAMS}.n_embed", "64"), f"{PARAMS}.n_embed"),
        (changed(f"{PARAMS}.embed_dim", -1), "must be buildable"),
        (changed(f"{SHAPE}.ch", 48), "must be buildable"),
        (changed(f"{SHAPE}.ch", 32 * 10**9), "must be buildable"),
        (yaml.safe_dump(official_yaml(width=1024, ch_mult=[1, 1, 2, 8])), "differs in shape at"),
        (changed(f"{SHAPE}.ch_mult", []), f"{SHAPE}.ch_mult"),
        (changed(f"{SHAPE}.ch_mult", [1] * 40), f"{SHAPE}.ch_mult"),
        (changed(f"{SHAPE}.num_res_blocks", 1000), f"{SHAPE}.num_res_blocks"),
        (changed(f"{SHAPE}.out_ch", 4), f"{SHAPE}.out_ch"),
        (changed(f"{SHAPE}.dropout", 2.0), "must be buildable"),
        ("model: !!python/object/apply:os.system [ls]", "valid YAML"),
    ],
)
def test_a_hostile_model_yaml_is_refused_in_one_line(
    text: str, named: str, files: Vqgan, tmp_path: Path
) -> None:
    bad = tmp_path / "model.yaml"
    bad.write_text(text)
    message = refusal(str(bad), files.weights)
    assert message.startswith(("generator.vqgan.config", "generator.vqgan.weights"))
    assert named in message
