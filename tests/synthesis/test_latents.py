"""An image is optimised towards its own prompt, independently of whatever shares its batch."""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Sequence
from typing import Any, get_args
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from dfkd.config.synthesis import Synthesis
from dfkd.models.generators.vqgan import VQGAN
from dfkd.models.teacher import Teacher, spherical_distance
from dfkd.synthesis import latents
from dfkd.synthesis.image_source import Synthesised
from dfkd.synthesis.latents import Synthesiser
from dfkd.utils.pixels import from_bytes
from dfkd.utils.types import Precision
from tests.helpers.tiny_models import VQGAN as SETTINGS

PROMPTS = ("A dog", "A house", "A car", "A heart")
SEEDS = (1, 2, 3, 4)
SMALL = Synthesis(image_size=64, views=1, view_noise=0.02)
PLAIN = Synthesis(image_size=64, views=0)


def made_by(
    teacher: Teacher, generator: VQGAN, config: Synthesis, steps: int = 6, rate: float = 0.15
) -> Synthesiser:
    return Synthesiser(teacher, generator, config, steps, rate)


def run(
    teacher: Teacher,
    generator: VQGAN,
    config: Synthesis,
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] = SEEDS,
    *,
    steps: int = 6,
    rate: float = 0.15,
    **options: object,
) -> Synthesised:
    targets = teacher.encode_text(prompts)
    return made_by(teacher, generator, config, steps, rate)(targets, seeds, **options)


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
    plain = run(teacher, generator, SMALL)
    fused = functools.partial(torch.optim.Adam, fused=True)
    monkeypatch.setattr(latents, "_adam", lambda moved, rate: fused([moved], rate))
    made = run(teacher, generator, SMALL)
    assert float((made.pixels.int() - plain.pixels.int()).abs().float().mean()) < 0.05
    torch.testing.assert_close(made.losses, plain.losses, rtol=0.01, atol=0.001)


def test_distances_fall(teacher: Teacher, generator: VQGAN) -> None:
    seen: list[Tensor] = []
    made = run(teacher, generator, PLAIN, steps=12, on_step=lambda _, losses: seen.append(losses))
    assert bool((made.losses < seen[0]).all())
    assert not made.diverged.any()
    assert made.pixels.shape == (4, 64, 64, 3)
    assert made.pixels.dtype == torch.uint8


def test_an_image_is_that_of_its_last_step(teacher: Teacher, generator: VQGAN) -> None:
    """An earlier image may have a lower loss, because views differ; latents hardly move here."""
    seen: list[Tensor] = []
    still = dataclasses.replace(SMALL, view_noise=0.0)
    options = {"steps": 4, "rate": 1e-9, "on_step": lambda _, losses: seen.append(losses)}
    made = run(teacher, generator, still, **options)
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
    clean = made_by(teacher, generator, SMALL)(targets, SEEDS)
    targets[2] = torch.nan
    made = made_by(teacher, generator, SMALL)(targets, SEEDS)
    assert made.diverged.tolist() == [False, False, True, False]
    assert torch.equal(made.pixels[[0, 1, 3]], clean.pixels[[0, 1, 3]])


def test_a_latent_that_is_no_number_has_diverged(
    teacher: Teacher, generator: VQGAN, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its nearest codes have a finite loss."""

    def step(generator: VQGAN, values: Tensor, *others: Any) -> None:
        take_step(generator, values, *others)
        values.data[1] = torch.nan

    take_step = latents._step
    monkeypatch.setattr(latents, "_step", step)
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
    made = run(teacher, generator, SMALL, steps=steps, on_step=lambda _, loss: seen.append(loss))
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
    config = dataclasses.replace(SMALL, batch_size=3, compile=True)
    synthesiser, targets = made_by(teacher, generator, config, 2), teacher.encode_text(PROMPTS)
    for size in (1, 3, 2, 4):
        synthesiser(targets[:size], SEEDS[:size])
    calls = [args for each in compiled for args, _ in each.call_args_list]
    assert [len(latents) for latents, *_ in calls] == [3, 3]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs a C++ compiler")
def test_a_compiled_step_makes_the_same_image(teacher: Teacher, generator: VQGAN) -> None:
    """They differ by rounding only, which in so few steps is hardly a grey level."""
    targets = teacher.encode_text(PROMPTS)
    config = dataclasses.replace(SMALL, batch_size=len(PROMPTS))
    plain, compiled = (
        made_by(teacher, generator, dataclasses.replace(config, compile=switch), 3)
        for switch in (False, True)
    )
    one, two = (made(targets, SEEDS) for made in (plain, compiled))
    difference = (one.pixels.int() - two.pixels.int()).abs().float()
    assert float(difference.mean()) < 0.05
    torch.testing.assert_close(one.losses, two.losses, rtol=0.02, atol=0.002)
