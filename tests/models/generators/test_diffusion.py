"""A diffusion model as generator: what it samples, what it reads, and what it refuses.

`test_against_diffusers.py` compares its images with those of diffusers' own pipeline.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dfkd.config.hashing import sha256_file
from dfkd.config.manifest import Manifest
from dfkd.config.paths import CACHE
from dfkd.errors import Exit, ManifestError
from dfkd.models.generators import diffusion
from dfkd.models.generators.diffusers_folder import SCHEDULERS
from dfkd.models.generators.diffusion import Diffusion, scale_embedding
from dfkd.models.generators.generator import Condition
from dfkd.models.generators.text_tower import TextEncoder
from dfkd.models.teacher import Teacher
from dfkd.operations.preflight import check_synthesis
from tests.helpers.sources import load_generator
from tests.helpers.tiny_pipeline import (
    SIZE,
    noise,
    read_manifest,
    tiny_teacher,
    write_pipeline,
    write_text_encoder,
)

CPU = torch.device("cpu")
SEEDS = [5, 6, 2**62]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def clip(home: Path) -> Teacher:
    return tiny_teacher(home)


@pytest.fixture(scope="module")
def pipeline(home: Path, clip: Teacher) -> Path:
    return write_pipeline(home / "pipeline", clip)


@pytest.fixture
def own(tmp_path: Path, clip: Teacher) -> Path:
    """A pipeline that a test may damage."""
    return write_pipeline(tmp_path / "own", clip)


def load(manifest: Manifest) -> Diffusion:
    generator = load_generator(manifest)
    assert isinstance(generator, Diffusion)
    return generator


def condition(count: int = 3) -> Condition:
    return Condition(noise(3)[:count], noise(1))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_latent_depends_on_its_own_seed_and_prompt(
    scheduler: str, home: Path, clip: Teacher, tmp_path: Path
) -> None:
    """Also on the second call, because schedulers have a state."""
    folder = write_pipeline(tmp_path, clip, scheduler)
    generator = load(read_manifest(home, folder, guidance=4.0))
    together = generator.init_latents(SEEDS, SIZE, condition())
    assert together.shape == (3, 4, 8, 8)
    assert together.dtype == torch.float32
    torch.manual_seed(123)
    alone = generator.init_latents(SEEDS[1:2], SIZE, Condition(noise(3)[1:2], noise(1)))
    torch.testing.assert_close(alone[0], together[1], atol=1e-4, rtol=1e-4)
    other = generator.init_latents(SEEDS[1:2], SIZE, Condition(noise(3)[:1], noise(1)))
    assert not torch.allclose(other, alone, atol=1e-2)
    assert torch.equal(generator.init_latents(SEEDS, SIZE, condition()), together)


def test_the_empty_text_matters_only_with_guidance(home: Path, pipeline: Path) -> None:
    def latents(guidance: float, empty: torch.Tensor) -> torch.Tensor:
        generator = load(read_manifest(home, pipeline, guidance=guidance))
        return generator.init_latents(SEEDS, SIZE, Condition(noise(3), empty))

    assert torch.equal(latents(1.0, noise(1)), latents(1.0, 2 * noise(1)))
    assert not torch.allclose(latents(3.0, noise(1)), latents(3.0, 2 * noise(1)))


def test_guidance_goes_past_the_prompt_away_from_the_empty_text(home: Path, pipeline: Path) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    prompts = noise(3)[:2]

    def predicted(guidance: float, states: torch.Tensor) -> torch.Tensor:
        generator = load(read_manifest(home, pipeline, guidance=guidance))
        with torch.no_grad():
            return generator.predict(latents, torch.tensor(500), Condition(states, noise(1)))

    empty, prompted = predicted(1.0, noise(1).expand_as(prompts)), predicted(1.0, prompts)
    expected = 4 * prompted - 3 * empty
    torch.testing.assert_close(predicted(4.0, prompts), expected, atol=1e-4, rtol=1e-4)


def test_a_consistency_model_takes_the_guidance_scale_as_input(
    home: Path, clip: Teacher, tmp_path: Path
) -> None:
    """As sines and cosines of 1000 w at rates from 1 to 1 / 10000, where w counts from 1."""
    angles = [math.sin(3.0), math.sin(3e-4), math.cos(3.0), math.cos(3e-4), 0.0]
    torch.testing.assert_close(scale_embedding(0.003, 5), torch.tensor([angles]))
    folder = write_pipeline(tmp_path, clip, time_cond_proj_dim=16)
    low, high = (load(read_manifest(home, folder, guidance=scale)) for scale in (1.0, 8.0))
    assert high._scale is not None
    assert torch.equal(high._scale, scale_embedding(7.0, 16))
    latents = [each.init_latents(SEEDS, SIZE, condition()) for each in (low, high)]
    assert not torch.allclose(*latents)


def test_the_decoder_gets_a_latent_over_its_scaling_factor(home: Path, pipeline: Path) -> None:
    """0.18215, as Stable Diffusion's; its output in [-1, 1] is moved to [0, 1]."""
    generator = load(read_manifest(home, pipeline))
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    image = generator.vae.decode(latent / 0.18215).sample
    torch.testing.assert_close(generator.decode(latent), ((image + 1) / 2).clamp(0, 1))


def test_a_large_batch_is_decoded_in_parts(
    home: Path, pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = load(read_manifest(home, pipeline))
    latent = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    decoded: list[int] = []
    decode = generator.vae.decode

    def watched(part: torch.Tensor, **options: Any) -> Any:
        decoded.append(len(part))
        return decode(part, **options)

    monkeypatch.setattr(generator.vae, "decode", watched)
    whole = generator.decode(latent)
    side = whole.shape[-1]
    monkeypatch.setattr(diffusion, "DECODED_PIXELS", 2 * side**2)
    with torch.no_grad():
        torch.testing.assert_close(generator.decode(latent), whole.detach())
    assert decoded == [5, 2, 2, 1]


def test_pixels_are_differentiable_in_the_latent(home: Path, pipeline: Path) -> None:
    generator = load(read_manifest(home, pipeline))
    latent = generator.init_latents(SEEDS, SIZE, condition()).requires_grad_()
    pixels = generator.decode(latent)
    assert pixels.shape == (3, 3, SIZE, SIZE)
    assert 0 <= pixels.detach().min() < pixels.detach().max() <= 1
    pixels.square().sum().backward()
    assert latent.grad is not None
    assert bool((latent.grad.abs().flatten(1).sum(dim=1) > 0).all())
    assert not any(p.requires_grad for p in generator.unet.parameters())


def test_bfloat16_changes_latents_and_pixels_little(home: Path, pipeline: Path) -> None:
    generator = load(read_manifest(home, pipeline))
    exact = generator.init_latents(SEEDS, SIZE, condition())
    pixels = generator.decode(exact)
    generator._mixed = True  # as on a device with such instructions
    rounded = generator.init_latents(SEEDS, SIZE, condition())
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).abs().max()) < 0.1 * float(exact.abs().max())
    again = generator.decode(exact)
    assert again.dtype == torch.float32
    torch.testing.assert_close(again, pixels, atol=0.05, rtol=0)


def test_weights_are_rounded_once_to_what_autocast_rounds_them_to_at_each_call(
    home: Path, pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusion, "multiplies_bfloat16", lambda device: True)
    once = load_generator(read_manifest(home, pipeline), "bfloat16")
    each_time = load(read_manifest(home, pipeline))
    each_time._mixed = True
    assert isinstance(once, Diffusion)
    latents = [each.init_latents(SEEDS, SIZE, condition()) for each in (once, each_time)]
    assert torch.equal(*latents)
    assert torch.equal(once.decode(latents[0]), each_time.decode(latents[0]))
    for network, other in ((once.unet, each_time.unet), (once.vae, each_time.vae)):
        state = network.state_dict()
        assert {value.dtype for value in state.values() if value.ndim > 1} == {torch.bfloat16}
        assert {value.dtype for key, value in state.items() if "norm" in key} == {torch.float32}
        assert {value.dtype for value in other.state_dict().values()} == {torch.float32}


def test_every_file_that_changes_a_pixel_is_hashed(home: Path, pipeline: Path) -> None:
    manifest = read_manifest(home, pipeline)
    files = {
        "unet/config": "unet/config.json",
        "unet/weights": "unet/diffusion_pytorch_model.safetensors",
        "vae/config": "vae/config.json",
        "vae/weights": "vae/diffusion_pytorch_model.safetensors",
        "scheduler": "scheduler/scheduler_config.json",
        "text_encoder": "text_encoder/config.json",
        "tokenizer": "tokenizer/special_tokens_map.json",
    }
    assert manifest.generator.settings.hashes(CACHE) == {
        f"generator.diffusers.weights/{role}": sha256_file(pipeline / file)
        for role, file in files.items()
    }


def test_weights_of_half_precision_and_old_names_are_read(
    home: Path, pipeline: Path, own: Path
) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(key: str) -> str:
        for new, name in old.items():
            key = key.replace(f".{new}.", f".{name}.")
        return key

    path = own / "vae/diffusion_pytorch_model.safetensors"
    state = load_file(path)
    assert any(".to_q." in key for key in state)
    save_file({renamed(key): value.half() for key, value in state.items()}, path)
    path.rename(own / "vae/diffusion_pytorch_model.fp16.safetensors")
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    both = [load(read_manifest(home, folder)).decode(latent) for folder in (own, pipeline)]
    torch.testing.assert_close(*both, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("context", "layers", "pad"), [(16, 1, "!"), (16, 2, {"content": "<|endoftext|>"})]
)
def test_a_text_encoder_may_lack_the_last_block(
    context: int, layers: int, pad: Any, home: Path, clip: Teacher, tmp_path: Path
) -> None:
    """As that of Stable Diffusion 2, which also has another padding."""
    folder = write_pipeline(tmp_path, clip, layers=layers, pad=pad)
    generator = load(read_manifest(home, folder))
    generator.require(clip, SIZE)
    assert generator.text is not None
    assert generator.text.layers == layers
    assert generator.text.pads_with_end == (pad != "!")


def refusal(manifest: Manifest) -> str:
    with pytest.raises(ManifestError) as caught:
        check_synthesis(manifest)
    assert caught.value.exit_code == Exit.USAGE
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 64),
        ("num_attention_heads", 4),
        ("num_hidden_layers", 3),
        ("hidden_act", "quick_gelu"),
        ("max_position_embeddings", 77),
        ("vocab_size", 1000),
    ],
)
def test_another_text_tower_is_refused_for_its_shape(
    key: str, value: Any, home: Path, clip: Teacher, own: Path
) -> None:
    write_text_encoder(own, clip, 2, **{key: value})
    if key == "hidden_size":  # the UNet must be of the same width
        write_pipeline(own, clip, cross_attention_dim=value)
        write_text_encoder(own, clip, 2, hidden_size=value)
    text = refusal(read_manifest(home, own))
    assert text.startswith(
        "teacher.model: must have the text tower that generator.diffusers.weights was"
    )
    assert f"({key} is " in text
    assert f"there and {value} here)" in text


@pytest.mark.parametrize(
    "tensor", ["embeddings.token_embedding.weight", "encoder.layers.1.self_attn.k_proj.weight"]
)
def test_another_text_tower_of_the_same_shape_is_refused_for_its_weights(
    tensor: str, home: Path, own: Path
) -> None:
    path = own / "text_encoder/model.safetensors"
    state = load_file(path)
    state[f"text_model.{tensor}"] = 1.02 * state[f"text_model.{tensor}"]
    save_file(state, path)
    assert f"({tensor} differs by 2% of its norm)" in refusal(read_manifest(home, own))
    variant = path.rename(path.with_name("model.fp16.safetensors"))
    assert f"({tensor} differs by 2% of its norm)" in refusal(read_manifest(home, own))
    variant.unlink()  # without them only shapes are compared
    check_synthesis(read_manifest(home, own))


def test_rounded_weights_of_the_text_tower_are_the_same_tower(home: Path, own: Path) -> None:
    path = own / "text_encoder/model.safetensors"
    save_file({key: value.bfloat16() for key, value in load_file(path).items()}, path)
    check_synthesis(read_manifest(home, own))


def test_a_bias_that_changes_no_attention_does_not_make_another_tower(tmp_path: Path) -> None:
    teacher = tiny_teacher(tmp_path)
    encoder = TextEncoder.read(write_pipeline(tmp_path / "pipeline", teacher))
    before = teacher.encode_text(["a dog"])
    for block in teacher.text.transformer.resblocks:
        block.attn.in_proj_bias.data.chunk(3)[1].add_(1.0)  # queries, keys, values
    torch.testing.assert_close(teacher.encode_text(["a dog"]), before)
    encoder.require(teacher)


def test_zeros_of_the_text_tower_are_compared_like_other_numbers(tmp_path: Path) -> None:
    """Biases of an untrained tower are zero, and a difference relative to them is no number."""
    teacher = tiny_teacher(tmp_path)
    teacher.text.ln_final.bias.data.zero_()
    encoder = TextEncoder.read(write_pipeline(tmp_path / "pipeline", teacher))
    encoder.require(teacher)
    teacher.text.ln_final.bias.data.fill_(0.1)
    with pytest.raises(ManifestError, match=r"final_layer_norm\.bias differs by 100% of its norm"):
        encoder.require(teacher)


@pytest.mark.parametrize(
    "file",
    [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "tokenizer/special_tokens_map.json",
    ],
)
def test_a_missing_file_is_named(file: str, home: Path, own: Path) -> None:
    """A pickle in its place is never read."""
    (own / file).rename((own / file).with_suffix(".bin"))
    part = file if not file.startswith("tokenizer") else "tokenizer/tokenizer_config.json"
    assert f"generator.diffusers.weights: must hold {part}, got" in refusal(
        read_manifest(home, own)
    )


UNET, VAE, SCHEDULER = "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"
TOKENS = "tokenizer/special_tokens_map.json"


@pytest.mark.parametrize(
    ("file", "changes", "named"),
    [
        (UNET, {"_class_name": "os"}, "unet._class_name: must be one of UNet2DCond"),
        (UNET, {"layers_per_block": 9}, "unet.layers_per_block: must be at most 8"),
        (UNET, {"block_out_channels": [10**9, 8]}, "unet.block_out_channels: must"),
        (
            UNET,
            {"block_out_channels": [8] * 9},
            "unet.block_out_channels (length): must be at most 8",
        ),
        (UNET, {"down_block_types": ["x", "y"]}, "must be buildable by diffusers"),
        (UNET, {"out_channels": 3}, "differs in shape at conv_out"),
        (VAE, {"latent_channels": 3}, "differs in shape at"),
        (VAE, {"_class_name": "VQDiffusion"}, "vae._class_name: must be one of Auto"),
        (SCHEDULER, {"_class_name": "DDPMScheduler"}, "scheduler._class"),
        (SCHEDULER, {"beta_schedule": "x"}, "must be buildable by"),
        (SCHEDULER, {"prediction_type": "v"}, "that can take steps (predic"),
        (VAE, {"scaling_factor": None}, "positive scaling_factor"),
        (VAE, {"scaling_factor": 0}, "positive scaling_factor"),
        (UNET, {"sample_size": 0}, "square images of one size"),
        (TOKENS, {"pad_token": ["!"]}, "tokenizer.pad_token: must be"),
        ("text_encoder/config.json", {"hidden_size": "32"}, "text_encoder.hidden_size: "),
        (TOKENS, {"pad_token": "?"}, "tokenizer.pad_token: must be <"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused(
    file: str, changes: dict[str, Any], named: str, home: Path, own: Path
) -> None:
    tree = json.loads((own / file).read_text())
    (own / file).write_text(json.dumps(tree | changes))
    text = refusal(read_manifest(home, own))
    assert text.startswith("generator.diffusers.weights")
    assert any(each in text for each in named.split("|")), text


XL = {
    "addition_embed_type": "text_time",
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": [1, 2, 10],
}
"""What tells the UNet of Stable Diffusion XL from that of 1; its blocks have ten layers."""


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("text_encoder_2", "must have one text tower and a UNet, and this one has text_encoder_2"),
        ("transformer", "must have one text tower and a UNet, and this one has transformer"),
        ("", "a UNet that one text tower conditions, and this one has addition_embed_type"),
    ],
)
def test_another_kind_of_pipeline_is_refused_for_what_it_is(
    part: str, named: str, home: Path, own: Path
) -> None:
    """Not for its numbers, which are larger than those that are read."""
    (own / UNET).write_text(json.dumps(json.loads((own / UNET).read_text()) | XL))
    (own / part).mkdir(exist_ok=True)
    told = refusal(read_manifest(home, own))
    assert named in told
    assert told.endswith("give a Stable Diffusion 1 or 2")


@pytest.mark.parametrize(
    ("unet", "named"),
    [
        ({"num_class_embeds": 3}, "this one has num_class_embeds"),
        ({"class_embed_type": "identity"}, "this one has class_embed_type"),
        ({"in_channels": 9}, "as many channels as the VAE has"),
        ({"sample_size": (8, 16)}, "a UNet for square images of one size"),
        ({"cross_attention_dim": 64}, "a UNet for hidden states of width 32"),
    ],
)
def test_a_unet_of_another_task_is_refused(
    unet: dict[str, Any], named: str, home: Path, clip: Teacher, tmp_path: Path
) -> None:
    folder = write_pipeline(tmp_path, clip, **unet)
    assert named in refusal(read_manifest(home, folder))
