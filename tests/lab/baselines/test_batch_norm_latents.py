"""Latents with L_bn: their images have the teacher's statistics, and depend on their batch."""

import pytest
import torch

from dfkd.lab.baselines.batch_norm import batch_norm_loss, batch_norm_taps
from dfkd.models.generators.vqgan import VQGAN
from dfkd.models.labeller import spherical_distance
from dfkd.models.teacher import Teacher
from dfkd.synthesis.latents import LatentSource
from dfkd.utils.pixels import from_bytes
from tests.helpers.inversion_runs import read
from tests.helpers.sources import source_of, stored

PROMPTS = ("A dog", "A house", "A car", "A heart")
SEEDS = (1, 2, 3, 4)


def latents_of(teacher: Teacher, generator: VQGAN, source: str, steps: int) -> LatentSource:
    """The source that a manifest names."""
    words = (f"synthesis.source={source}", "synthesis.bn.weight=0.1", "synthesis.views=0")
    manifest = read(*words, f"generator.vqgan.steps={steps}")
    made: LatentSource = source_of(manifest, teacher, generator)
    return made


def test_statistics_that_are_asked_for_are_matched(teacher: Teacher, generator: VQGAN) -> None:
    """L_bn of the kept images is lower with it than without, and it is counted in their losses."""
    targets = teacher.encode_text(PROMPTS)

    def loss(source: str) -> tuple[float, float]:
        made = latents_of(teacher, generator, source, steps=8).make(stored(targets), SEEDS)
        pixels = from_bytes(made.pixels)
        with batch_norm_taps(teacher, "test") as taps:
            seen = teacher.encode_image(pixels)
            statistics = float(batch_norm_loss(taps.values))
        distance = spherical_distance(seen, targets).mean()
        return statistics, float(made.losses.mean() - distance)

    without, rest = loss("latents")
    matched, counted = loss("bn")
    assert matched < 0.9 * without
    assert rest == pytest.approx(0.0, abs=0.05)  # of the rounding to bytes
    assert counted == pytest.approx(0.1 * matched, rel=0.1)
    visual = teacher.model.get_submodule("visual")
    assert not any(module._forward_hooks for module in visual.modules())


def test_images_that_share_statistics_depend_on_each_other_and_on_nothing_else(
    teacher: Teacher, generator: VQGAN
) -> None:
    prompts = stored(teacher.encode_text(PROMPTS))
    source = latents_of(teacher, generator, "bn", steps=4)
    one, two = (source.make(prompts, SEEDS) for _ in range(2))
    assert torch.equal(one.pixels, two.pixels)
    other = source.make(prompts, [1, 2, 3, 5])
    assert not torch.equal(one.pixels[0], other.pixels[0])


def test_a_loss_that_is_no_number_is_that_of_the_whole_batch(
    teacher: Teacher, generator: VQGAN, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "quantised", False)  # the nearest codes of no number are finite
    targets = teacher.encode_text(PROMPTS)
    targets[2] = torch.nan
    made = latents_of(teacher, generator, "bn", steps=3).make(stored(targets), SEEDS)
    assert made.diverged.all()
