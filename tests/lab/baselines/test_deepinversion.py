"""DeepInversion: its loss is the sum of its parts, and pixels move towards classes."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.lab.baselines import deepinversion
from dfkd.lab.baselines.batch_norm import batch_norm_loss, batch_norm_taps
from dfkd.lab.baselines.deepinversion import (
    DeepInverter,
    jittered,
    learning_rate,
    mean_norm,
    total_variation,
)
from dfkd.lab.baselines.settings import DeepInversion
from dfkd.models.teacher import Teacher
from dfkd.utils.pixels import from_bytes
from tests.helpers.inversion_runs import problem, run_context

SHORT = DeepInversion(low_resolution_steps=4, steps=12, batch_size=4)


def test_total_variation_is_of_four_directions() -> None:
    image = torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]])
    across, down, falling, rising = math.hypot(1, 2), math.hypot(2, 3), 4.0, 1.0
    assert float(total_variation(image)) == pytest.approx(across + down + falling + rising)
    assert float(total_variation(torch.full((2, 3, 4, 4), 0.3))) == 0.0


def test_the_norm_is_a_mean_over_images() -> None:
    images = torch.zeros(2, 1, 2, 2)
    images[0, 0, 0] = torch.tensor([3.0, 4.0])
    images[1, 0, 1, 1] = 7.0
    assert float(mean_norm(images)) == pytest.approx((5.0 + 7.0) / 2)


def test_the_loss_is_class_statistics_variation_and_norm(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are so large that every term shows in the sum."""
    classifier, run = problem(teacher, 0, 1, 1)
    monkeypatch.setattr(deepinversion, "BATCH_NORM_WEIGHT", 0.5)
    monkeypatch.setattr(deepinversion, "FIRST_LAYER_FACTOR", 3.0)
    monkeypatch.setattr(deepinversion, "TOTAL_VARIATION_WEIGHT", 0.25)
    monkeypatch.setattr(deepinversion, "NORM_WEIGHT", 0.125)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with batch_norm_taps(teacher, "test") as taps:
        inverter = DeepInverter(classifier, run_context(), DeepInversion())
        inverter.taps = taps
        losses = inverter.losses(images, run.labels)
        logits = classifier.logits(images * teacher.std + teacher.mean)
        statistics = float(batch_norm_loss(taps.values, 3.0))
    shared = 0.5 * statistics
    shared += 0.25 * float(total_variation(images)) + 0.125 * float(mean_norm(images))
    for row, label in enumerate((0, 1, 1)):
        own = -math.log(float(logits[row].softmax(0)[label]))
        assert float(losses[row]) == pytest.approx(own + shared, rel=1e-4)


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(0.2, step, 2000) for step in range(2000)]
    assert rates[0] == pytest.approx(0.002)
    assert rates[99] == rates[100] == pytest.approx(0.2)
    assert rates[1050] == pytest.approx(0.1)
    assert 0 < rates[-1] < 1e-5
    assert [learning_rate(0.2, step, 4) for step in range(2)] == pytest.approx(
        [0.2, 0.1 * (1 + 0.5**0.5)]
    )


def test_jitter_rolls_a_whole_batch_alike() -> None:
    images = torch.arange(2 * 64 * 64, dtype=torch.float32).view(2, 1, 64, 64)
    rng = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(20):
        view = jittered(images, rng)
        fitting = [
            (down, right, mirrored)
            for down in range(-8, 9)  # 0.134 of 64 pixels
            for right in range(-8, 9)
            for mirrored in (False, True)
            if torch.equal(_rolled(images, down, right, mirrored), view)
        ]
        assert len(fitting) == 1
        seen |= set(fitting)
    assert len(seen) > 10
    assert {mirrored for _, _, mirrored in seen} == {False, True}


def _rolled(images: Tensor, down: int, right: int, mirrored: bool) -> Tensor:
    rolled = images.roll((down, right), (2, 3))
    return rolled.flip(3) if mirrored else rolled


def test_the_teacher_recognises_the_classes_of_the_images(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, run = problem(teacher, 0, 1, 0, 1)
    seen: list[Tensor] = []
    inverter = DeepInverter(classifier, run_context(), SHORT)
    real = inverter.losses

    def losses(images: Tensor, labels: Tensor) -> Tensor:
        found = real(images, labels)
        seen.append(found.detach())
        return found

    monkeypatch.setattr(inverter, "losses", losses)
    made = inverter.make(run)
    pixels = from_bytes(made.pixels)
    assert classifier.logits(pixels).argmax(1).tolist() == [0, 1, 0, 1]
    assert len(seen) == 4 + 12
    assert torch.equal(made.losses, min(seen[4:], key=lambda losses: float(losses.mean())))
    assert not made.diverged.any()
    assert made.steps.tolist() == [16] * 4


def test_a_batch_is_made_by_itself_from_noise_of_its_images(teacher: Teacher) -> None:
    classifier, run = problem(teacher, 0, 1, 1)
    config = DeepInversion(low_resolution_steps=1, steps=2, batch_size=2)
    inverter = DeepInverter(classifier, run_context(), config)
    assert not inverter.state()  # so that parts are made in any order
    whole = inverter.make(run)
    alone = inverter.make(run.select(slice(2, 3)))
    assert torch.equal(whole.pixels[2], alone.pixels[0])
    first = inverter.make(run.select(slice(0, 2)))
    assert torch.equal(whole.pixels[:2], first.pixels)
    assert F.l1_loss(whole.pixels[0].float(), whole.pixels[1].float()) > 1
