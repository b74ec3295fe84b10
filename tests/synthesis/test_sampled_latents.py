"""Images of a diffusion model: sampled from their own prompt, and refined if that is asked for."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.config.plan import Task, Unit, tasks
from dfkd.dataset.shards import Sample
from dfkd.models.labeller import spherical_distance
from dfkd.models.teacher import Teacher
from dfkd.prompts.conditions import StoredPrompt
from dfkd.prompts.maker import PromptMaker
from dfkd.synthesis.shard_maker import ShardMaker
from dfkd.utils.pixels import from_bytes
from tests.helpers.sources import source_of
from tests.helpers.tiny_pipeline import SIZE, read_manifest
from tests.models.generators.test_diffusion import CPU, clip, home, pipeline

__all__ = ["clip", "home", "pipeline"]


Make = Callable[..., list[Sample]]


def load(manifest: Manifest) -> Any:
    return manifest.generator.settings.load(CPU, "float32", manifest.cache)


@pytest.fixture
def make(home: Path, clip: Teacher, pipeline: Path, tmp_path: Path) -> Make:
    """Makes images 0, 1 and 2 of the first class with some settings."""

    def made(*settings: str, method: str = "vanilla") -> list[Sample]:
        manifest = read_manifest(home, pipeline, f"prompts.method={method}", *settings)
        task = next(tasks(manifest))
        assert task == Task(0, 0, 0, 3)
        prompts = PromptMaker(manifest, clip).part(0).slice(0, 3)
        source = source_of(manifest, clip, load(manifest))
        unit = Unit((task,), (task,))
        shard = ShardMaker(manifest, clip, source).shards(unit, prompts, tmp_path)[task]
        assert shard.failed == ()
        return shard.samples

    return made


def pixels(sample: Sample) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(sample.image))).astype(int)


def apart(one: Sample, other: Sample) -> int:
    """The largest difference of two images in levels of grey."""
    return int(np.abs(pixels(one) - pixels(other)).max())


@pytest.mark.parametrize("method", ["vanilla", "mix", "random", "contrastive"])
def test_an_image_does_not_depend_on_its_batch(method: str, make: Make) -> None:
    """Within one grey level, because kernels may choose by batch size."""
    together, alone = (
        make("prompts.contrastive.updates=3", f"synthesis.batch_size={size}", method=method)
        for size in (3, 1)
    )
    for one, other in zip(together, alone, strict=True):
        assert pixels(one).shape == (SIZE, SIZE, 3)
        assert apart(one, other) <= 1
    assert apart(*together[:2]) > 8


def test_the_method_of_prompts_changes_the_image(make: Make) -> None:
    """All methods draw the same noise, so only the states differ."""
    for one, other in zip(make(), make(method="random"), strict=True):
        assert one.metadata["seed"] == other.metadata["seed"]
        assert apart(one, other) > 1


def test_a_sampled_image_is_measured_once_and_takes_no_step(make: Make, clip: Teacher) -> None:
    target = clip.encode_text(["A dog"])[0]
    for sample in make():
        assert sample.metadata["steps"] == 0
        seen = clip.encode_image(from_bytes(torch.from_numpy(pixels(sample))[None]))[0]
        distance = float(spherical_distance(seen, target))
        assert sample.metadata["loss"] == pytest.approx(distance, abs=1e-2)


def test_an_image_is_resized_from_the_size_that_the_model_was_trained_for(make: Make) -> None:
    whole, half = (make(f"synthesis.image_size={size}") for size in (SIZE, SIZE // 2))
    for one, other in zip(whole, half, strict=True):
        assert pixels(other).shape == (SIZE // 2, SIZE // 2, 3)
        small = Image.fromarray(pixels(one).astype(np.uint8)).resize(
            (SIZE // 2, SIZE // 2), Image.Resampling.BILINEAR
        )
        assert np.abs(np.array(small).astype(int) - pixels(other)).max() <= 2


def test_refinement_starts_from_the_sampled_image_and_comes_closer_to_the_prompt(
    make: Make,
) -> None:
    def refined(steps: int, rate: float) -> list[Sample]:
        refinement = (
            f"generator.diffusers.refine_steps={steps}",
            f"generator.diffusers.refine_rate={rate}",
        )
        return make("synthesis.views=0", *refinement)

    for sampled, still, moved in zip(make(), refined(1, 1e-9), refined(8, 0.3), strict=True):
        assert apart(sampled, still) <= 1
        assert moved.metadata["steps"] == 9
        assert moved.metadata["loss"] < sampled.metadata["loss"]
        assert apart(sampled, moved) > 8


@pytest.mark.heavy
def test_refinement_by_default_keeps_most_of_what_was_sampled(teacher: Teacher) -> None:
    """How far 20 steps move latents of the bundled model, in their standard deviation: 0.92 at the
    rate of a VQGAN's latents. manifests/README.md has the figures of more latents and rates."""

    def moved(*rate: str) -> float:
        manifest = Manifest.read(
            "manifests/miniature.yaml", ("generator.diffusers.refine_steps=20", *rate)
        )
        generator = load(manifest)
        source = source_of(manifest.with_method("vanilla"), teacher, generator)
        seen: list[Tensor] = []
        init_latents, constrain = generator.init_latents, generator.constrain

        def keep(latents: Tensor) -> Tensor:
            seen.append(latents.clone())
            return latents

        generator.init_latents = lambda *given: keep(init_latents(*given))
        generator.constrain = lambda latents: keep(constrain(latents))
        text = teacher.encode_text(["A dog"])[0]
        prompts = [StoredPrompt(0, 0, 0, "A dog", text, None)]
        source.make(prompts, range(1))
        start, *_, end = seen
        assert len(seen) == 21
        return float((end - start).square().mean().sqrt() / start.std())

    assert 0.25 < moved() < 0.4
    assert moved("generator.diffusers.refine_rate=0.15") > 0.75
