import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dfkd.student import Student, build
from dfkd.training import Distillation, FewShot
from dfkd.tuning import Labelled, answers, batches, embed, from_distances, likeliest, tune

CONFIG = FewShot(
    warmup_epochs=2, epochs=2, learning_rate=0.1, finetune_factor=0.1, augmentation=(), batch_size=4
)


def classifier(seed: int = 0) -> Student:
    return build(Distillation(student="timm:test_resnet"), 3, 32, seed)


def shots(per_class: int = 2) -> Labelled:
    """32 px images of three colours."""
    noise = torch.Generator().manual_seed(0)
    labels = torch.arange(3 * per_class) % 3
    pixels = torch.randint(0, 120, (len(labels), 3, 32, 32), generator=noise, dtype=torch.uint8)
    pixels[torch.arange(len(labels)), labels] += 120
    return Labelled(pixels, labels)


def features(model: Student, found: Labelled) -> Tensor:
    return embed(model, found.pixels, torch.arange(len(found)), 4)


def tuned(config: FewShot = CONFIG, seed: int = 0, frozen: bool = True, start: int = 0) -> Student:
    model, found = classifier(start), shots()
    tune(model, found, config, seed, features(model, found) if frozen else None)
    return model


def equal(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def linear() -> Student:
    """One number goes in, two logits come out, all weights zero."""
    head = nn.Linear(1, 2)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return Student(nn.Identity(), head)


def test_a_step_is_that_of_cross_entropy_by_hand() -> None:
    """For x = 1 of class 0 and x = -1 of class 1: dL/dw0 = p0(x = 1) - 1, dL/dw1 = its negative."""
    two = Labelled(torch.zeros(2, 3, 1, 1, dtype=torch.uint8), torch.tensor([0, 1]))
    config = FewShot(
        warmup_epochs=2, epochs=0, learning_rate=0.5, momentum=0.0, augmentation=(), batch_size=2
    )
    model = linear()
    tune(model, two, config, seed=0, features=torch.tensor([[1.0], [-1.0]]))
    first = -0.5 * (0.5 - 1)  # logits are equal
    p0 = 1 / (1 + math.exp(-2 * first))
    second = first - 0.5 * (p0 - 1)
    assert first == 0.25
    assert model.head.weight.flatten().tolist() == pytest.approx([second, -second])
    assert model.head.bias.tolist() == pytest.approx([0, 0], abs=1e-6)


def test_momentum_and_rate_are_those_of_the_settings() -> None:
    two = Labelled(torch.zeros(2, 3, 1, 1, dtype=torch.uint8), torch.tensor([0, 1]))
    config = FewShot(
        warmup_epochs=2, epochs=0, learning_rate=0.5, momentum=0.9, augmentation=(), batch_size=2
    )
    model = linear()
    tune(model, two, config, seed=0, features=torch.tensor([[1.0], [-1.0]]))
    gradient = 1 / (1 + math.exp(-0.5)) - 1
    velocity = 0.9 * -0.5 + gradient
    assert model.head.weight[0].item() == pytest.approx(0.25 - 0.5 * velocity)


def test_a_student_answers_as_before_once_its_distances_are_logits() -> None:
    student, found = classifier().eval(), shots()
    distances = student(found.pixels.float() / 255)
    start = from_distances(student, 0.05)
    places = torch.arange(len(found))
    assert torch.allclose(start.head(features(start, found)), -distances / 0.05, atol=1e-4)
    assert torch.equal(answers(start, found.pixels, places, 4), distances.argmin(1))


def test_the_frozen_phase_trains_the_head_and_leaves_the_backbone() -> None:
    only_head = dataclasses.replace(CONFIG, epochs=0)
    model = tuned(only_head)
    assert equal(model.backbone, classifier().backbone)
    assert not torch.equal(model.head.weight, classifier().head.weight)
    whole = tuned()
    before = dict(classifier().backbone.named_parameters())
    assert all(not torch.equal(p, before[n]) for n, p in whole.backbone.named_parameters())


def test_without_features_the_backbone_is_trained_from_the_first_step() -> None:
    model = tuned(dataclasses.replace(CONFIG, epochs=0), frozen=False)
    before = dict(classifier().backbone.named_parameters())
    assert all(not torch.equal(p, before[n]) for n, p in model.backbone.named_parameters())


def test_the_same_seed_is_the_same_classifier_and_leaves_global_randomness_alone() -> None:
    config = dataclasses.replace(CONFIG, augmentation=("flip", "crop"))
    before = torch.get_rng_state()
    first = tuned(config)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert equal(tuned(config), first)
    assert not equal(tuned(config, seed=1), first)
    assert not first.training


def test_a_few_images_teach_three_colours() -> None:
    model = tuned(
        dataclasses.replace(CONFIG, warmup_epochs=20, epochs=20, finetune_factor=1.0), frozen=False
    )
    unseen = shots(8)
    found = answers(model, unseen.pixels, torch.arange(24), 5)
    assert (found == unseen.labels).float().mean() > 0.9
    assert torch.equal(likeliest(model, features(model, unseen)), found)


def test_features_are_those_of_the_places_whatever_the_batch() -> None:
    model, found = classifier(), shots()
    places = torch.tensor([4, 0, 3])
    some = embed(model, found.pixels, places, 2)
    assert torch.allclose(some, features(model, found)[places], atol=1e-5)
    expected = model.features(found.pixels[places].float() / 255)
    assert torch.allclose(some, expected, atol=1e-5)


def test_logits_that_are_not_finite_are_no_answer() -> None:
    model = linear()
    found = torch.tensor([[1.0], [math.nan], [math.inf]])
    assert likeliest(model, found).tolist() == [0, -1, -1]


@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 12), st.integers(0, 9))
def test_batches_are_full_and_take_each_image_in_turn(
    images: int, size: int, steps: int, seed: int
) -> None:
    found = batches(images, size, steps, seed)
    assert found.shape == (steps, size)
    counts = torch.bincount(found.flatten(), minlength=images)
    assert int(counts.max() - counts.min()) <= 1
    assert torch.equal(found, batches(images, size, steps, seed))
