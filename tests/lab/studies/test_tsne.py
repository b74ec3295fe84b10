"""The map of a student's features: neighbours stay neighbours, the same rows give the same map."""

import dataclasses

import numpy as np
import pytest
import torch

from dfkd.config.distillation import Distillation
from dfkd.lab.few_shot.tuning import LabelledImages, features_of
from dfkd.lab.studies.study import Adaptation
from dfkd.lab.studies.tsne import before_and_after, silhouette, tsne
from dfkd.models.student import build

ADAPTATION = Adaptation(domain="ink", shots=4)


def test_two_crowds_that_lie_apart_lie_apart_on_the_map() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    rows[20:] += 50
    found = tsne(rows)
    assert found.shape == (40, 2)
    middles = found[:20].mean(axis=0), found[20:].mean(axis=0)
    widest = max(
        np.linalg.norm(part - part.mean(axis=0), axis=1).max() for part in np.split(found, 2)
    )
    assert np.linalg.norm(middles[0] - middles[1]) > 2 * widest
    np.testing.assert_array_equal(found, tsne(rows))


def test_a_silhouette_is_that_of_the_points_by_hand() -> None:
    """On a line: 0 and 1 of one class, 4 and 6 of the other."""
    rows = np.array([[0], [1], [4], [6]], np.float32)
    each = [(5 - 1) / 5, (4 - 1) / 4, (3.5 - 2) / 3.5, (5.5 - 2) / 5.5]
    assert silhouette(rows, np.array([0, 0, 1, 1])) == pytest.approx(np.mean(each))
    assert silhouette(rows, np.array([1, 1, 1, 1])) == 0


def test_training_moves_the_features_and_pale_images_are_those_it_learns_from() -> None:
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 255, (12, 3, 32, 32), generator=noise, dtype=torch.uint8)
    images = LabelledImages(pixels, torch.arange(12) % 2)
    random = Distillation(student="timm:test_resnet", weights="none", warmup_epochs=0)
    student = build(random, 2, 32, 0).eval()
    taught = dataclasses.replace(ADAPTATION, epochs=2, learning_rate=0.01)
    before, after = before_and_after("row", student, images, ("cat", "dog"), taught)
    assert (before.shots, after.shots) == (0, 4)
    assert before.points != after.points
    assert before.taught == after.taught
    assert [sum(before.taught[label::2]) for label in (0, 1)] == [4, 4]
    assert before.classes == tuple(("cat", "dog")[label] for label in images.labels)
    frozen = dataclasses.replace(taught, learning_rate=1e-12)
    first, last = before_and_after("row", student, images, ("cat", "dog"), frozen)
    assert last.silhouette == pytest.approx(first.silhouette, abs=0.001)
    assert after.silhouette != pytest.approx(before.silhouette, abs=0.001)
    left = [number for number, taught in enumerate(first.taught) if not taught]
    features = features_of(student, pixels, torch.tensor(left)).numpy()
    compactness = silhouette(features, images.labels[left].numpy())
    assert first.silhouette == pytest.approx(compactness, abs=0.001)
