"""Students of embeddings: the loss, its moments, and what is left of both in a finished student."""

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.config.distillation import Distillation
from dfkd.config.manifest import Manifest
from dfkd.config.plan import blocks, tasks
from dfkd.dataset.batch import Batch
from dfkd.dataset.shards import write_shard
from dfkd.distillation.distiller import Distiller, Schedule
from dfkd.distillation.embedding import embedding_moments, encode_classes
from dfkd.distillation.labels import fold_batch_norms, target_function
from dfkd.distillation.objective import EmbeddingObjective
from dfkd.errors import ManifestError
from dfkd.models.labeller import distances
from dfkd.models.student import Student, build
from dfkd.models.teacher import Teacher
from tests.helpers import small_manifest
from tests.helpers.tiny_version import fill, publish, write_manifest

CONFIG = Distillation(
    student="timm:test_resnet",
    weights="none",
    target="embedding",
    augmentation=(),
    warmup_epochs=0,
    epochs=2,
    batch_size=6,
    optimizer="adamw",
    learning_rate=1e-3,
)
SCHEDULE = Schedule.of(CONFIG, 3)
WIDTH = 4
OBJECTIVE = EmbeddingObjective(
    mean=torch.tensor([0.5, -0.25, 0.0, 0.125]),
    std=0.25,
    texts=F.normalize(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0]]), dim=1),
)


def pixels(seed: int) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (6, 3, 32, 32), generator=noise, dtype=torch.uint8)


def batch(seed: int) -> Batch:
    noise = torch.Generator().manual_seed(seed)
    embeddings = F.normalize(torch.randn(6, WIDTH, generator=noise), dim=1)
    return Batch(pixels(seed), torch.zeros(6, 3), torch.zeros(6, dtype=torch.int64), embeddings)


def student() -> Student:
    return build(CONFIG, WIDTH, 32, seed=0)


def distiller(config: Distillation = CONFIG, **options: object) -> Distiller:
    return Distiller(student(), config, SCHEDULE, seed=0, objective=OBJECTIVE, **options)


def test_the_loss_is_the_mean_squared_error_of_standardised_embeddings() -> None:
    objective = EmbeddingObjective(torch.tensor([1.0, 0.0]), 2.0, torch.eye(2))
    outputs = torch.tensor([[0.0, 1.0], [0.5, 0.0]])
    targets = torch.tensor([[1.0, 4.0], [3.0, -2.0]])
    # Standardised they are [[0, 2], [1, -1]], so the errors are 0, 1, 0.5 and 1.
    assert objective.loss(outputs, targets) == pytest.approx((0 + 1 + 0.25 + 1) / 4)


def test_with_distances_the_l1_loss_of_standardised_distances_is_added() -> None:
    plain = EmbeddingObjective(torch.zeros(2), 1.0, torch.eye(2))
    both = dataclasses.replace(plain, distance_std=0.5)
    outputs, targets = torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 0.0]])
    # The student is at the second text and the teacher at the first. A right angle apart, their
    # squared spherical distance is 2 arcsin(sqrt(2) / 2)^2.
    apart = 2 * math.asin(math.sqrt(2) / 2) ** 2
    expected = plain.loss(outputs, targets) + apart / 0.5
    torch.testing.assert_close(both.loss(outputs, targets), expected)


def test_a_step_learns_stored_embeddings_and_counts_equal_nearest_classes() -> None:
    run, first = distiller(), batch(0)
    expected = run.student.train()(first.pixels / 255).detach()
    metrics = distiller().advance(first)
    by_hand = ((first.embeddings - OBJECTIVE.mean) / 0.25 - expected).square().mean()
    assert metrics.loss == pytest.approx(by_hand.item(), rel=1e-5)
    embeddings = expected * 0.25 + OBJECTIVE.mean
    nearest = (F.normalize(embeddings, dim=1) @ OBJECTIVE.texts.T).argmax(1)
    same = nearest == (first.embeddings @ OBJECTIVE.texts.T).argmax(1)
    assert metrics.agreement == pytest.approx(same.float().mean().item())


def test_a_finished_student_gives_the_teacher_s_distances_of_its_unscaled_output() -> None:
    trained = student().eval()
    finished, views = OBJECTIVE.finish(trained), pixels(1) / 255
    embeddings = F.normalize(trained(views) * OBJECTIVE.std + OBJECTIVE.mean, dim=1)
    torch.testing.assert_close(finished.embed(views), embeddings, atol=1e-6, rtol=1e-5)
    expected = distances(embeddings, OBJECTIVE.texts)
    torch.testing.assert_close(finished(views), expected, atol=1e-6, rtol=1e-5)


def test_moments_are_those_of_all_stored_embeddings(tmp_path: Path) -> None:
    version = publish(Manifest.read(write_manifest(tmp_path)))
    mean, std = embedding_moments(version)
    stored = np.stack(
        [s.arrays["embedding"] for r in version.receipts() for s in version.samples(r)]
    ).astype(float)
    np.testing.assert_allclose(mean.numpy(), stored.mean(0), atol=1e-6)
    assert std == pytest.approx((stored - stored.mean(0)).std())


def test_a_shard_whose_images_all_failed_adds_nothing_to_the_moments(tmp_path: Path) -> None:
    manifest, tar = Manifest.read(write_manifest(tmp_path)), tmp_path / "empty.tar"
    failed, *made = tasks(manifest)
    version = fill(manifest, made)
    write_shard([], tar)
    version.commit(failed, tar, failed.indices)
    mean, _ = embedding_moments(version.publish(blocks(manifest), {}))
    # Of five shards, one is of the failed one's class.
    np.testing.assert_allclose(mean[:3].numpy(), [1 / 5, 2 / 5, 2 / 5], atol=1e-6)


def test_live_targets_are_the_teacher_s_embeddings_of_the_views(
    tmp_path: Path, teacher: Teacher
) -> None:
    manifest = small_manifest.read(tmp_path, "distillation.target=embedding")
    views = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    label = target_function(manifest, torch.device("cpu"))
    folded = copy.deepcopy(teacher)
    fold_batch_norms(folded.visual)
    assert torch.equal(label(views), folded.encode_image(views))


def test_other_classes_are_encoded_like_the_manifest_s_own(
    tmp_path: Path, teacher: Teacher
) -> None:
    manifest = small_manifest.read(tmp_path, "evaluation.aliases={dog: hound}")
    found = encode_classes(manifest, ("rocket", "umbrella", "dog"))
    expected = teacher.encode_text(["A rocket", "A umbrella", "A dog"])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_other_classes_that_the_teacher_would_cut_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"^classes: a class prompt has at most"):
        encode_classes(small_manifest.read(tmp_path), ("cat", "dog " * 40 + "house"))
