"""The teacher as a classifier, and what a run draws from."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfkd.models.teacher import Teacher
from dfkd.synthesis.request import PartRequest, even_batches, synthesised
from tests.helpers.inversion_runs import course, problem


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


def test_draws_depend_on_the_images_and_the_purpose() -> None:
    one, two = (PartRequest(torch.tensor([0, 1]), seeds, 64) for seeds in ([1, 2], [1, 3]))
    same = PartRequest(one.labels, (1, 2), 32)
    assert one.draws("a").initial_seed() == same.draws("a").initial_seed()
    assert len({r.draws(p).initial_seed() for r in (one, two) for p in "ab"}) == 4
    part = one.select(slice(1, 2))
    assert (part.labels.tolist(), list(part.seeds)) == ([1], [2])


def test_an_image_whose_loss_is_no_number_has_diverged() -> None:
    pixels = torch.zeros(3, 2, 2, 3, dtype=torch.uint8)
    made = synthesised(pixels, torch.tensor([1.0, torch.nan, -torch.inf]), 4)
    assert made.diverged.tolist() == [False, True, True]
    assert made.steps.tolist() == [4, 4, 4]


@given(st.integers(1, 500), st.integers(1, 300))
def test_batches_are_few_and_even_and_hold_every_image_once(count: int, size: int) -> None:
    found = even_batches(count, size)
    assert [row for rows in found for row in range(count)[rows]] == list(range(count))
    sizes = [rows.stop - rows.start for rows in found]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert len(found) == -(-count // size)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 100))
def test_parts_share_all_rounds_and_each_has_one(images: int, size: int, more: int) -> None:
    """A manifest must have at least as many rounds as parts."""
    whole, starts = course(images), range(0, images, size)
    total = len(starts) + more
    found = [
        PartRequest(
            torch.empty(0), range(start, min(start + size, images)), 64, before=start
        ).rounds(total, whole)
        for start in starts
    ]
    assert [number for rounds in found for number in rounds] == list(range(total))
    assert all(found)
