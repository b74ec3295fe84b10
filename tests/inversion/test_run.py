"""The teacher as a classifier, and what a run draws from."""

import numpy as np
import torch

from dfkd.inversion.run import Run, synthesised
from dfkd.teacher import Teacher
from runs import problem


def test_logits_are_scaled_cosines_without_their_mean(teacher: Teacher) -> None:
    classifier, _ = problem(teacher, 0)
    pixels = torch.rand(3, 3, 64, 64)
    cosines = (teacher.encode_image(pixels) @ classifier.texts.T).numpy()
    scaled = teacher.logit_scale * cosines
    logits = classifier.logits(pixels)
    assert np.allclose(logits, scaled - scaled.mean(axis=1, keepdims=True), atol=1e-4)
    expected = torch.tensor(scaled).softmax(1)
    assert torch.allclose(logits.softmax(1), expected, atol=1e-5)


def test_whitened_pixels_are_what_the_layers_see(teacher: Teacher) -> None:
    classifier, _ = problem(teacher, 0)
    pixels = torch.rand(2, 3, 8, 8)
    whitened = classifier.whiten(pixels)
    red = (pixels[0, 0, 0, 0] - teacher.mean[0, 0, 0, 0]) / teacher.std[0, 0, 0, 0]
    assert torch.isclose(whitened[0, 0, 0, 0], red)
    assert torch.allclose(classifier.pixels(whitened), pixels, atol=1e-6)


def test_what_a_run_draws_depends_on_its_images_and_the_purpose() -> None:
    one, two = (Run(torch.tensor([0, 1]), seeds, 64) for seeds in ([1, 2], [1, 3]))
    assert one.seed("a") == Run(one.labels, (1, 2), 32).seed("a")
    assert len({one.seed("a"), one.seed("b"), two.seed("a")}) == 3
    part = one.select(slice(1, 2))
    assert (part.labels.tolist(), list(part.seeds)) == ([1], [2])


def test_an_image_whose_loss_is_no_number_has_diverged() -> None:
    pixels = torch.zeros(3, 2, 2, 3, dtype=torch.uint8)
    made = synthesised(pixels, torch.tensor([1.0, torch.nan, -torch.inf]), 4)
    assert made.diverged.tolist() == [False, True, True]
    assert made.steps.tolist() == [4, 4, 4]
