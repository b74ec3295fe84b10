"""An image is optimised towards its own prompt, independently of whatever shares its batch."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from typing import Any, get_args
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.models.generators.vqgan import VQGAN
from dfkd.models.labeller import spherical_distance
from dfkd.models.teacher import Teacher
from dfkd.synthesis.image_source import Synthesised
from dfkd.synthesis.latents import LatentSource
from dfkd.utils.pixels import from_bytes
from dfkd.utils.types import Precision
from tests.helpers.sources import source_of, stored
from tests.helpers.tiny_models import VQGAN as SETTINGS

PROMPTS = ("A dog", "A house", "A car", "A heart")
SEEDS = (1, 2, 3, 4)
SMALL = ("synthesis.view_noise=0.02",)
PLAIN = ("synthesis.views=0", "synthesis.view_noise=0")


def latents_of(
    teacher: Teacher,
    generator: VQGAN,
    settings: Sequence[str],
    steps: int = 4,
    rate: float = 0.15,
    seen: list[Tensor] | None = None,
) -> LatentSource:
    """The source of a VQGAN's latents, which appends the losses of each step to `seen`."""
    loop = (f"generator.vqgan.steps={steps}", f"generator.vqgan.learning_rate={rate}")
    manifest = Manifest.read("manifests/studies/vqgan.yaml", (*loop, *settings))
    source: LatentSource = source_of(manifest, teacher, generator)
    if seen is not None:
        # Copies, because what is appended must not hold a step's graph.
        source.losses = lambda found: seen.append(found.detach().clone()) or found  # type: ignore
    return source


def run(
    teacher: Teacher,
    generator: VQGAN,
    settings: Sequence[str],
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] = SEEDS,
    **options: Any,
) -> Synthesised:
    targets = teacher.encode_text(prompts)
    return latents_of(teacher, generator, settings, **options).make(stored(targets), seeds)


def test_an_image_depends_on_its_prompt_and_seed_and_not_on_its_batch(
    teacher: Teacher, generator: VQGAN
) -> None:
    """Bit-equal where the kernels allow it, which on a CPU may choose by batch size: so within one
    grey level for a picture that is made alone, and exactly for one whose companions change."""
    together = run(teacher, generator, SMALL)
    company = run(teacher, generator, SMALL, ["A key", PROMPTS[1], "A bell", "A cat"], [9, 2, 8, 7])
    assert torch.equal(together.pixels[1], company.pixels[1])
    assert together.losses[1] == company.losses[1]
    other = run(teacher, generator, SMALL, seeds=[1, 5, 3, 4])
    assert torch.equal(together.pixels[2:], other.pixels[2:])
    assert not torch.equal(together.pixels[1], other.pixels[1])
    alone = run(teacher, generator, SMALL, PROMPTS[1:2], [2])
    difference = (together.pixels[1].int() - alone.pixels[0].int()).abs()
    assert float((difference > 1).float().mean()) < 0.01


def test_fused_adam_makes_the_same_image(
    teacher: Teacher, generator: VQGAN, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job on a GPU has it; a gradient of another layout than the latents' would spoil them."""
    plain, adam = run(teacher, generator, SMALL), torch.optim.Adam
    monkeypatch.setattr(
        torch.optim, "Adam", lambda moved, rate, fused: adam(moved, rate, fused=True)
    )
    made = run(teacher, generator, SMALL)
    assert float((made.pixels.int() - plain.pixels.int()).abs().float().mean()) < 0.05
    torch.testing.assert_close(made.losses, plain.losses, rtol=0.01, atol=0.001)


def test_distances_fall(teacher: Teacher, generator: VQGAN) -> None:
    seen: list[Tensor] = []
    made = run(teacher, generator, PLAIN, steps=12, seen=seen)
    assert bool((made.losses < seen[0]).all())
    assert not made.diverged.any()
    assert made.pixels.shape == (4, 64, 64, 3)
    assert made.pixels.dtype == torch.uint8


def test_an_image_is_that_of_its_last_step(teacher: Teacher, generator: VQGAN) -> None:
    """An earlier image may have a lower loss, because views differ; latents hardly move here."""
    seen: list[Tensor] = []
    still = ("synthesis.view_noise=0",)
    made = run(teacher, generator, still, steps=4, rate=1e-9, seen=seen)
    assert torch.equal(made.losses, seen[-1])
    assert bool((made.losses > torch.stack(seen).amin(dim=0)).any())
    assert not made.diverged.any()


def test_losses_are_those_of_the_pixels(teacher: Teacher, generator: VQGAN) -> None:
    made = run(teacher, generator, PLAIN, steps=8, rate=5.0)
    pixels = from_bytes(made.pixels)
    again = spherical_distance(teacher.encode_image(pixels), teacher.encode_text(PROMPTS))
    assert torch.allclose(again, made.losses, atol=0.05)


def test_latents_are_projected_after_each_step(
    teacher: Teacher, generator: VQGAN, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here to zero, so that all images are the same."""
    monkeypatch.setattr(generator, "constrain", torch.zeros_like)
    made = run(teacher, generator, SMALL, steps=2)
    assert len(made.pixels.unique(dim=0)) == 1


def test_a_nan_stays_with_its_own_image(teacher: Teacher, generator: VQGAN) -> None:
    targets = teacher.encode_text(PROMPTS)
    source = latents_of(teacher, generator, SMALL)
    clean = source.make(stored(targets), SEEDS)
    made = source.make(stored(targets.index_fill(0, torch.tensor(2), torch.nan)), SEEDS)
    assert made.diverged.tolist() == [False, False, True, False]
    assert torch.equal(made.pixels[[0, 1, 3]], clean.pixels[[0, 1, 3]])


def test_a_latent_that_is_no_number_has_diverged(
    teacher: Teacher, generator: VQGAN, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its nearest codes have a finite loss."""

    def constrain(latents: Tensor) -> Tensor:
        latents[1] = torch.nan
        return latents

    monkeypatch.setattr(generator, "constrain", constrain)
    made = run(teacher, generator, SMALL)
    assert made.diverged.tolist() == [False, True, False, False]


@pytest.mark.parametrize(("steps", "passes"), [(1, 0), (4, 3)])
def test_the_last_step_computes_no_gradient(
    steps: int, passes: int, teacher: Teacher, generator: VQGAN, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would move the latents once more, and no loss would belong to them."""
    grad = Mock(wraps=torch.autograd.grad)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    seen: list[Tensor] = []
    made = run(teacher, generator, SMALL, steps=steps, seen=seen)
    assert (len(seen), grad.call_count) == (steps, passes)
    assert torch.equal(made.losses, seen[-1])


def test_bfloat16_makes_nearly_the_same_image(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with float32, pixels differ by less than 3 of 255 levels, distances by 0.02.

    Adam's first steps have the size of the learning rate even where a gradient is so small that
    rounding turns its sign, so pixels differ more than the rounding of one pass.
    """
    # A device that multiplies bfloat16, which this one may not.
    monkeypatch.setattr("dfkd.models.generators.vqgan.multiplies_bfloat16", lambda device: True)
    settings = dataclasses.replace(SETTINGS, quantise=False)
    one, two = (
        run(teacher, VQGAN.load(settings, torch.device("cpu"), precision), SMALL, steps=3)
        for precision in get_args(Precision)
    )
    assert 0 < float((one.pixels.int() - two.pixels.int()).abs().float().mean()) < 3
    assert torch.allclose(one.losses, two.losses, atol=0.02)


def test_only_full_batches_are_compiled(
    teacher: Teacher, generator: VQGAN, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each further batch size would be compiled anew, which takes minutes."""
    compiled: list[Mock] = []

    def compile_(function: Callable[..., Tensor], dynamic: bool) -> Mock:
        compiled.append(Mock(wraps=function))
        return compiled[-1]

    monkeypatch.setattr(torch, "compile", compile_)
    settings = (*SMALL, "synthesis.batch_size=3", "synthesis.compile=true")
    source, targets = latents_of(teacher, generator, settings, 2), teacher.encode_text(PROMPTS)
    for size in (1, 3, 2, 4):
        source.make(stored(targets[:size]), SEEDS[:size])
    calls = [args for each in compiled for args, _ in each.call_args_list]
    assert [len(latents) for latents, *_ in calls] == [3, 3]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs a C++ compiler")
def test_a_compiled_step_makes_the_same_image(teacher: Teacher, generator: VQGAN) -> None:
    """They differ by rounding only, which in so few steps is hardly a grey level."""
    settings = (*SMALL, f"synthesis.batch_size={len(PROMPTS)}")
    one, two = (
        run(teacher, generator, (*settings, f"synthesis.compile={switch}"), steps=3)
        for switch in ("false", "true")
    )
    difference = (one.pixels.int() - two.pixels.int()).abs().float()
    assert float(difference.mean()) < 0.05
    torch.testing.assert_close(one.losses, two.losses, rtol=0.02, atol=0.002)
