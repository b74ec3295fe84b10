"""Images of a diffusion model: sampled from their own prompt, and refined if that is asked for."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd.config.manifest import Manifest
from dfkd.config.plan import Task, Unit, image_steps, tasks
from dfkd.dataset.shards import Sample
from dfkd.models.generators import kinds
from dfkd.models.teacher import Teacher, spherical_distance
from dfkd.prompts.maker import PromptMaker
from dfkd.synthesis.shard_maker import ShardMaker
from dfkd.synthesis.sources import LatentSource
from dfkd.utils.pixels import from_bytes
from tests.helpers.tiny_pipeline import SIZE, read_manifest
from tests.models.generators.test_diffusion import CPU, clip, home, pipeline

__all__ = ["clip", "home", "pipeline"]


def make(manifest: Manifest, teacher: Teacher, folder: Path) -> list[Sample]:
    """The samples of the first task, whose images are 0, 1 and 2 of the first class."""
    task = next(tasks(manifest))
    assert task == Task(0, 0, 0, 3)
    prompts = PromptMaker(manifest, teacher).part(0).slice(0, 3)
    maker = ShardMaker(
        manifest, teacher, LatentSource(manifest, teacher, kinds.load(manifest, CPU))
    )
    made = maker.shards(Unit((task,), (task,)), prompts, folder)[task]
    assert made.failed == ()
    return made.samples


def pixels(sample: Sample) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(sample.image))).astype(int)


@pytest.mark.parametrize("method", ["vanilla", "mix", "random", "contrastive"])
def test_an_image_does_not_depend_on_its_batch(
    method: str, home: Path, clip: Teacher, pipeline: Path, tmp_path: Path
) -> None:
    """Within one grey level, because kernels may choose by batch size."""
    together, alone = (
        make(read_manifest(home, pipeline, *words, f"synthesis.batch_size={size}"), clip, tmp_path)
        for size in (3, 1)
        for words in [(f"prompts.method={method}", "prompts.contrastive.updates=3")]
    )
    for one, other in zip(together, alone, strict=True):
        assert pixels(one).shape == (SIZE, SIZE, 3)
        assert np.abs(pixels(one) - pixels(other)).max() <= 1
    assert np.abs(pixels(together[0]) - pixels(together[1])).max() > 8


def test_the_method_of_prompts_changes_the_image(
    home: Path, clip: Teacher, pipeline: Path, tmp_path: Path
) -> None:
    """All methods draw the same noise, so only the states differ."""
    vanilla, other = (
        make(read_manifest(home, pipeline, f"prompts.method={method}"), clip, tmp_path)
        for method in ("vanilla", "random")
    )
    assert [s.metadata["seed"] for s in vanilla] == [s.metadata["seed"] for s in other]
    for pair in zip(vanilla, other, strict=True):
        one, two = map(pixels, pair)
        assert np.abs(one - two).max() > 1


def test_a_sampled_image_is_measured_once_and_takes_no_step(
    home: Path, clip: Teacher, pipeline: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(home, pipeline, "prompts.method=vanilla")
    assert image_steps(manifest) == 0
    samples = make(manifest, clip, tmp_path)
    target = clip.encode_text(["A dog"])[0]
    for sample in samples:
        assert sample.metadata["steps"] == 0
        seen = clip.encode_image(from_bytes(torch.from_numpy(pixels(sample))[None]))[0]
        assert sample.metadata["loss"] == pytest.approx(
            float(spherical_distance(seen, target)), abs=1e-2
        )


def test_an_image_is_resized_from_the_size_that_the_model_was_trained_for(
    home: Path, clip: Teacher, pipeline: Path, tmp_path: Path
) -> None:
    sizes = (SIZE, SIZE // 2)
    words = [("prompts.method=vanilla", f"synthesis.image_size={size}") for size in sizes]
    whole, half = (make(read_manifest(home, pipeline, *each), clip, tmp_path) for each in words)
    for one, other in zip(whole, half, strict=True):
        assert pixels(other).shape == (SIZE // 2, SIZE // 2, 3)
        small = Image.fromarray(pixels(one).astype(np.uint8)).resize(
            sizes[1:] * 2, Image.Resampling.BILINEAR
        )
        assert np.abs(np.array(small).astype(int) - pixels(other)).max() <= 2


def test_refinement_starts_from_the_sampled_image_and_comes_closer_to_the_prompt(
    home: Path, clip: Teacher, pipeline: Path, tmp_path: Path
) -> None:
    plain = ("prompts.method=vanilla", "synthesis.views=0")

    def refined(steps: int, rate: float) -> list[Sample]:
        settings = (f"generator.refine_steps={steps}", f"synthesis.learning_rate={rate}")
        manifest = read_manifest(home, pipeline, *plain, *settings)
        assert image_steps(manifest) == 10 * (steps + 1)
        return make(manifest, clip, tmp_path)

    sampled = make(read_manifest(home, pipeline, "prompts.method=vanilla"), clip, tmp_path)
    still = refined(1, 1e-9)
    for one, other in zip(sampled, still, strict=True):
        assert np.abs(pixels(one) - pixels(other)).max() <= 1
    moved = refined(8, 0.3)
    for one, other in zip(sampled, moved, strict=True):
        assert other.metadata["steps"] == 9
        assert other.metadata["loss"] < one.metadata["loss"]
        assert np.abs(pixels(one) - pixels(other)).max() > 8
