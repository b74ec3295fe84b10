"""What the student is told: live, ensembles, and stored embeddings that are moved in style."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from dfkd.labels import label_source, restyled, style_directions, target_texts
from dfkd.manifest import Manifest
from dfkd.prompts import class_texts
from dfkd.streaming import Batch
from dfkd.teacher import Teacher, distances

STYLES = ["sketch", "pixel art", "oil paint"]


def read(tmp_path: Path, *overrides: str) -> Manifest:
    file = tmp_path / "manifest.yaml"
    file.write_text(
        "name: x\nclasses: [cat, clock]\nstorage: {root: a}\n"
        "teacher: {model: miniature, weights: miniature}\n"
        "generator: {config: miniature, weights: miniature}\n"
        f"prompts: {{styles: {STYLES}}}\n"
        "distillation: {augmentation: []}\n"
    )
    return Manifest.read(file, overrides)


@pytest.fixture
def batch(teacher: Teacher) -> Batch:
    pixels = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    embeddings = teacher.encode_image(pixels)
    texts = teacher.encode_text(["A cat", "A clock"])
    return Batch(
        (pixels * 255).to(torch.uint8),
        distances(embeddings, texts),
        torch.arange(6) % 2,
        embeddings,
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_stored_labels_need_no_teacher(tmp_path: Path) -> None:
    manifest = read(tmp_path, "distillation.labels=stored", "teacher.weights=/nowhere.pt")
    assert label_source(manifest, torch.device("cpu")) is None


def test_live_labels_are_float32_whatever_the_students_precision(
    tmp_path: Path, teacher: Teacher, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A device that multiplies bfloat16, which this one may not.
    monkeypatch.setattr("dfkd.teacher.multiplies_bfloat16", lambda device: True)
    manifest = read(tmp_path, "distillation.precision=bfloat16")
    label = label_source(manifest, torch.device("cpu"))
    assert label is not None
    views = batch.pixels.float().div(255)
    exact = distances(teacher.encode_image(views), class_texts(manifest, teacher))
    assert torch.equal(label(views, batch, generator()), exact)


def test_live_labels_are_the_distances_of_the_views(
    tmp_path: Path, teacher: Teacher, batch: Batch
) -> None:
    label = label_source(read(tmp_path), torch.device("cpu"))
    assert label is not None
    views = batch.pixels.float().div(255).flip(-1)
    texts = class_texts(read(tmp_path), teacher)
    found = label(views, batch, generator())
    assert torch.allclose(found, distances(teacher.encode_image(views), texts))
    assert not torch.allclose(found, batch.distances, atol=1e-3)


def test_an_ensemble_is_the_mean_over_styles_and_the_class_prompt(
    tmp_path: Path, teacher: Teacher
) -> None:
    found = target_texts(read(tmp_path, "distillation.texts=styles"), teacher)
    texts = ["A clock", *(f"clock in the style of {style}" for style in STYLES)]
    by_hand = F.normalize(teacher.encode_text(texts).mean(dim=0), dim=0)
    assert torch.allclose(found[1], by_hand, atol=1e-6)
    assert torch.equal(target_texts(read(tmp_path), teacher), class_texts(read(tmp_path), teacher))


def test_a_direction_leads_from_the_class_prompts_to_a_style(
    tmp_path: Path, teacher: Teacher
) -> None:
    found = style_directions(read(tmp_path), teacher)
    plain = teacher.encode_text(["A cat", "A clock"])
    styled = teacher.encode_text(
        ["cat in the style of pixel art", "clock in the style of pixel art"]
    )
    assert found.shape == (3, teacher.embedding_dim)
    assert torch.allclose(found[1], (styled - plain).mean(dim=0), atol=1e-6)


def test_restyled_labels_lie_between_the_stored_and_the_moved_ones(
    teacher: Teacher, batch: Batch
) -> None:
    texts = teacher.encode_text(["A cat", "A clock"])
    direction = 2 * texts[1:] - 2 * texts[:1]  # towards the second class
    found = restyled(texts, direction)(batch.pixels, batch, generator())
    moved = distances(F.normalize(batch.embeddings + direction, dim=1), texts)
    assert (found[:, 1] < batch.distances[:, 1]).all()
    assert (found[:, 1] > moved[:, 1]).all()
    assert len(found[:, 1].unique()) == 6

    still = restyled(texts, torch.zeros(1, texts.shape[1]))(batch.pixels, batch, generator())
    assert torch.allclose(still, batch.distances, atol=1e-6)


def test_restyled_labels_depend_on_the_generator_alone(teacher: Teacher, batch: Batch) -> None:
    texts = teacher.encode_text(["A cat", "A clock"])
    label = restyled(texts, texts - texts.flip(0))
    assert torch.equal(
        label(batch.pixels, batch, generator()), label(batch.pixels, batch, generator())
    )
    assert not torch.equal(
        label(batch.pixels, batch, generator()), label(batch.pixels, batch, generator(1))
    )


def test_restyled_labels_need_no_image(
    tmp_path: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = label_source(read(tmp_path, "distillation.labels=restyled"), torch.device("cpu"))
    monkeypatch.setattr(Teacher, "encode_image", lambda *_: pytest.fail("an image was encoded"))
    assert label is not None
    assert label(batch.pixels, batch, generator()).shape == (6, 2)
