import dataclasses
import math
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dfkd.config.distillation import Distillation
from dfkd.lab.few_shot import tuning
from dfkd.lab.few_shot.settings import FewShot, Start
from dfkd.lab.few_shot.tuning import (
    TEMPERATURE,
    FewShotSplit,
    LabelledImages,
    batches,
    fine_tune,
    from_distances,
    learning_rates,
    predict,
    tune_on_split,
)
from dfkd.models.student import Student, build

CONFIG = FewShot(epochs=2, learning_rate=0.01)


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of four images as they are."""
    monkeypatch.setattr(tuning, "BATCH", 4)
    monkeypatch.setattr(tuning, "ANSWERED", 2)
    monkeypatch.setattr(tuning, "AUGMENTATION", ())


def classifier(seed: int = 0) -> Student:
    config = Distillation(student="timm:test_resnet", weights="none", warmup_epochs=0)
    return build(config, 3, 32, seed)


def shots(per_class: int = 2) -> LabelledImages:
    """32 px images of three colours."""
    noise = torch.Generator().manual_seed(0)
    labels = torch.arange(3 * per_class) % 3
    pixels = torch.randint(0, 120, (len(labels), 3, 32, 32), generator=noise, dtype=torch.uint8)
    pixels[torch.arange(len(labels)), labels] += 120
    return LabelledImages(pixels, labels)


def tuned(config: FewShot = CONFIG, seed: int = 0, start: Start = "student") -> Student:
    model = classifier()
    fine_tune(model, shots(), config, seed, start)
    return model


def equal(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Brightness(nn.Module):
    """1 for a white image and -1 for a black one."""

    def forward(self, normal: torch.Tensor) -> torch.Tensor:
        return normal.mean(dim=(1, 2, 3)).sign()[:, None]


def linear() -> Student:
    """One number goes in, two logits come out, all weights zero."""
    head = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(head.weight)
    return Student(Brightness(), head)


def test_two_steps_are_those_of_adam_and_cross_entropy_by_hand() -> None:
    """For x = 1 of class 0 and x = -1 of class 1: dL/dw0 = p0(x = 1) - 1, dL/dw1 = its negative.

    The first step has all of the rate, the second half of it, as a cosine of two steps has.
    """
    pixels = torch.tensor([255, 0], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    model = linear()
    config = dataclasses.replace(CONFIG, learning_rate=0.5)
    fine_tune(model, LabelledImages(pixels, torch.tensor([0, 1])), config, seed=0, start="student")
    one = 0.5 - 1  # the gradient while logits are equal
    first = 0.5  # Adam's first step is the rate, against the gradient's sign
    two = 1 / (1 + math.exp(-2 * first)) - 1
    mean = (0.9 * 0.1 * one + 0.1 * two) / (1 - 0.9**2)
    square = (0.999 * 0.001 * one**2 + 0.001 * two**2) / (1 - 0.999**2)
    second = first - 0.25 * mean / square**0.5
    assert model.head.weight.flatten().tolist() == pytest.approx([second, -second], rel=1e-5)


def test_a_student_answers_as_before_once_its_distances_are_logits() -> None:
    student, found = classifier().eval(), shots()
    pixels = found.pixels.float() / 255
    distances, start = student(pixels), from_distances(student)
    assert torch.allclose(start(pixels), -distances / TEMPERATURE, atol=1e-3)
    places = torch.tensor([4, 0, 3])
    assert torch.equal(predict(start, found.pixels, places), distances.argmin(1)[places])


def test_a_student_of_embeddings_answers_as_before_too() -> None:
    found, texts = shots(), nn.functional.normalize(torch.tensor([[1.0, 0, 0], [1, 1, -2]]))
    student = classifier().eval().with_classes(texts)
    start, pixels = from_distances(student), found.pixels.float() / 255
    assert torch.equal(start(pixels).argmax(1), student(pixels).argmin(1))
    cosines = start(pixels) * TEMPERATURE / student.output(pixels).norm(dim=1, keepdim=True)
    assert torch.allclose(cosines, student.embed(pixels) @ texts.T, atol=1e-5)


@pytest.mark.parametrize(
    ("start", "expected"),
    [("student", (0.01, 0.01)), ("library", (0.01, 0.1)), ("scratch", (0.1, 0.1))],
)
def test_random_weights_move_at_ten_times_the_rate(
    start: Start, expected: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam's first step moves each weight by its rate, against the sign of its gradient."""
    assert learning_rates(CONFIG, start) == expected
    monkeypatch.setattr(tuning, "BATCH", 6)
    model = tuned(dataclasses.replace(CONFIG, epochs=1), start=start)
    before = classifier()
    for part, rate in zip(("backbone", "head"), expected, strict=True):
        pairs = zip(
            getattr(model, part).parameters(), getattr(before, part).parameters(), strict=True
        )
        moved = max(float((after - old).detach().abs().max()) for after, old in pairs)
        assert moved == pytest.approx(rate, rel=1e-3)


def test_a_trained_backbone_keeps_its_statistics_and_a_random_one_learns_them() -> None:
    before = dict(classifier().named_buffers())
    running = [name for name in before if "running" in name]
    kept, found = dict(tuned().named_buffers()), dict(tuned(start="scratch").named_buffers())
    assert running
    assert all(torch.equal(kept[name], before[name]) for name in running)
    assert not any(torch.equal(found[name], before[name]) for name in running)


def test_the_same_seed_gives_the_same_classifier_and_global_randomness_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning, "AUGMENTATION", ("flip", "crop"))
    before = torch.get_rng_state()
    first = tuned()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert equal(tuned(), first)
    assert not equal(tuned(seed=1), first)
    assert not first.training


def test_every_step_of_every_seed_has_views_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    augment = Mock(side_effect=lambda pixels, *_: pixels)
    monkeypatch.setattr(tuning, "augment", augment)
    tuned(seed=0)
    tuned(seed=1)
    drawn = [generator.initial_seed() for (*_, generator), _ in augment.call_args_list]
    assert len(set(drawn)) == len(drawn) == 8  # four steps of each


def test_a_split_is_tuned_on_with_its_own_images_and_seed() -> None:
    images, found, expected = shots(), classifier(), classifier()
    tune_on_split(found, images, FewShotSplit((0, 1, 2, 3, 4), (5,), 3), CONFIG, "student")
    five = LabelledImages(images.pixels[:5], images.labels[:5])
    fine_tune(expected, five, CONFIG, 3, "student")
    assert equal(found, expected)


def test_what_a_backbone_drops_follows_from_the_seed_alone() -> None:
    found = []
    for state in (0, 1):
        model = classifier()
        model.backbone = nn.Sequential(model.backbone, nn.Dropout())
        torch.manual_seed(state)
        fine_tune(model, shots(), CONFIG, seed=0, start="scratch")
        found.append(model)
    assert equal(*found)


@pytest.mark.parametrize("start", ["library", "scratch"])
def test_a_few_images_teach_three_colours(start: Start) -> None:
    model = tuned(dataclasses.replace(CONFIG, epochs=20, learning_rate=0.001), start=start)
    unseen = shots(8)
    found = predict(model, unseen.pixels, torch.arange(24))
    assert (found == unseen.labels).float().mean() > 0.9


def test_logits_that_are_not_finite_are_reported_as_no_class() -> None:
    model = linear()
    black = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    assert predict(model, black, torch.tensor([0])).tolist() == [0]
    for broken in (math.nan, math.inf):
        model.head.weight.data[1] = broken
        assert predict(model, black, torch.tensor([0])).tolist() == [-1]


@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 12), st.integers(0, 9))
def test_batches_are_full_and_take_each_image_in_turn(
    images: int, size: int, steps: int, seed: int
) -> None:
    found = batches(images, size, steps, seed)
    assert found.shape == (steps, size)
    counts = torch.bincount(found.flatten(), minlength=images)
    assert int(counts.max() - counts.min()) <= 1
    assert torch.equal(found, batches(images, size, steps, seed))
