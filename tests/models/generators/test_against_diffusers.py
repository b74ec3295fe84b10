"""The same images as diffusers' own pipeline, and the same states as transformers' text encoder.

Both need transformers, which no environment of ours has, because open_clip then takes a second
longer to import. `.ci/run` installs it into a folder of its own for these tests.
"""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dfkd.models.generators.diffusers_folder import SCHEDULERS
from dfkd.models.generators.diffusion import Diffusion
from dfkd.models.generators.generator import Condition, TextInput
from dfkd.models.generators.text_tower import TextEncoder
from dfkd.prompts.conditions import ConditionEncoder
from dfkd.utils.pixels import to_bytes
from tests.helpers.sources import load_generator
from tests.helpers.tiny_models import VIT, load_teacher, model_config
from tests.helpers.tiny_pipeline import (
    SIZE,
    noise,
    read_manifest,
    tiny_teacher,
    write_pipeline,
    write_text_encoder,
)

transformers = pytest.importorskip("transformers", reason=".ci/run installs it")
diffusers: Any = importlib.import_module("diffusers")

SEEDS = [5, 6, 2**62]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("kind", [*SCHEDULERS, "consistency"])
def test_images_are_those_of_the_pipeline(kind: str, guidance: float, tmp_path: Path) -> None:
    scheduler = kind if kind in SCHEDULERS else "LCMScheduler"
    unet = {"time_cond_proj_dim": 16} if kind == "consistency" else {}
    folder = write_pipeline(tmp_path / "pipeline", tiny_teacher(tmp_path), scheduler, **unet)
    manifest = read_manifest(tmp_path, folder, "generator.diffusers.steps=4", guidance=guidance)
    ours = load_generator(manifest)
    assert isinstance(ours, Diffusion)
    latents = ours.init_latents(SEEDS, SIZE, Condition(noise(3), noise(1)))

    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL.from_pretrained(folder / "vae"),
        unet=diffusers.UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=getattr(diffusers, scheduler).from_pretrained(folder / "scheduler"),
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)

    def theirs(output: str) -> Tensor:
        images: Tensor = pipeline(
            prompt_embeds=noise(3),
            negative_prompt_embeds=noise(1).expand(3, -1, -1),
            height=SIZE,
            width=SIZE,
            num_inference_steps=4,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
            output_type=output,
        ).images
        return images

    assert torch.equal(theirs("latent"), latents)
    assert torch.equal(to_bytes(theirs("pt")), to_bytes(ours.decode(latents)))


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_states_are_those_of_the_text_encoder(layers: int, quick: bool, tmp_path: Path) -> None:
    """With all blocks as Stable Diffusion 1 has it, and without the last as 2 has it."""
    teacher = load_teacher(tmp_path, model_config(VIT, quick=quick))
    write_text_encoder(tmp_path, teacher, layers)
    encoder = transformers.CLIPTextModel.from_pretrained(tmp_path / "text_encoder").eval()
    texts = ["a dog", "a photo of two cats, sleeping"]
    tokens = teacher.tokenize(texts)
    with torch.no_grad():
        ours = teacher.hidden_states(teacher.embed_tokens(tokens), layers)
        torch.testing.assert_close(ours, encoder(tokens).last_hidden_state, atol=1e-5, rtol=1e-5)

    # What transformers writes is recognised as the teacher's tower.
    encoder.save_pretrained(tmp_path / "again/text_encoder")
    (tmp_path / "again/tokenizer").mkdir()
    (tmp_path / "again/tokenizer/tokenizer_config.json").write_text('{"pad_token": "!"}')
    read = TextEncoder.read(tmp_path / "again")
    assert read.input == TextInput(layers, pads_with_end=False)
    assert read.weights is not None
    read.require(teacher)


@pytest.mark.parametrize("end", [False, True])
def test_texts_are_padded_as_the_tokenizer_does(end: bool, tmp_path: Path) -> None:
    """Token 0 as in Stable Diffusion 2, or the end token as in 1."""
    teacher = tiny_teacher(tmp_path)
    manifest = read_manifest(tmp_path, tmp_path, "prompts.method=vanilla")
    write_text_encoder(tmp_path, teacher, 2)
    encoder = transformers.CLIPTextModel.from_pretrained(tmp_path / "text_encoder").eval()
    states = ConditionEncoder(manifest, teacher, TextInput(2, end))
    start, stop = (int(token) for token in teacher.tokenize([""])[0, :2])
    ids = [start, *teacher.content_tokens("A dog"), stop]
    ids += [stop if end else 0] * (teacher.context_length - len(ids))
    with torch.no_grad():
        expected = encoder(torch.tensor([ids])).last_hidden_state
    torch.testing.assert_close(states.of_texts(["A dog"]), expected, atol=1e-5, rtol=1e-5)
