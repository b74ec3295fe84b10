"""What standardises the labels of other models than the version's teacher."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dfkd.config.manifest import Manifest
from dfkd.dataset.published import PublishedVersion
from dfkd.distillation import label_moments
from dfkd.distillation.label_moments import key_of, measure, moments_of, read_moments
from dfkd.distillation.labels import Ensemble, load_ensemble, target_function
from dfkd.distillation.student_names import labellers_identity
from dfkd.errors import CorruptionError, WeightsError
from dfkd.models.labeller import Labeller, distances
from dfkd.storage.base import MissingObject
from dfkd.storage.local import open_storage
from dfkd.utils.device import CPU
from tests.helpers.published import flip_bit
from tests.helpers.tiny_models import RESNET, VIT, model_config, write_teacher
from tests.helpers.tiny_version import publish, write_manifest


@pytest.fixture
def labelled(tmp_path: Path) -> tuple[Manifest, PublishedVersion]:
    """A version, and two labellers with other towers and sizes."""
    sections = []
    for name, config in (("vit", model_config(VIT)), ("resnet", model_config(RESNET))):
        folder = tmp_path / name
        folder.mkdir()
        section = write_teacher(folder, config)
        sections.append(
            {"model": section.model, "weights": section.weights, "template": f"{name} {{class}}"}
        )
    manifest = Manifest.read(write_manifest(tmp_path, distillation={"labeller": sections}))
    return manifest, publish(manifest)


def pixels_of(version: PublishedVersion) -> torch.Tensor:
    images = [
        np.asarray(Image.open(io.BytesIO(sample.image)).convert("RGB"))
        for receipt in version.receipts()
        for sample in version.samples(receipt)
    ]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def test_moments_are_those_of_all_distances(labelled: tuple[Manifest, PublishedVersion]) -> None:
    manifest, version = labelled
    root = open_storage(manifest.storage.root)
    found = measure(manifest, version, root, CPU)
    pixels, rows = pixels_of(version), []
    for config in manifest.labellers.values():
        model = Labeller.load(config, CPU)
        texts = model.encode_text(
            [config.template.replace("{class}", name) for name in manifest.classes]
        )
        rows.append(distances(model.encode_image(pixels), texts).double().flatten().numpy())
    np.testing.assert_allclose(found.mean, np.mean(rows, axis=1), atol=1e-6)
    np.testing.assert_allclose(found.covariance, np.cov(rows, bias=True), atol=1e-6)
    first = Labeller.load(next(iter(manifest.labellers.values())), CPU).encode_image(pixels)
    torch.testing.assert_close(found.embedding_mean, first.mean(dim=0), atol=1e-6, rtol=0)
    by_hand = (first - first.mean(dim=0)).square().mean().sqrt()
    assert found.embedding_std == pytest.approx(float(by_hand), abs=1e-5)


def test_the_targets_of_several_are_the_mean_of_their_standardised_distances(
    labelled: tuple[Manifest, PublishedVersion],
) -> None:
    manifest, version = labelled
    found = measure(manifest, version, open_storage(manifest.storage.root), CPU)
    label = target_function(manifest, CPU, found.weights)
    pixels = pixels_of(version)
    mean, std = found.of_distances
    targets = (label(pixels) - mean) / std
    # The mean has a smaller spread than each, which the objective makes 1.
    single = load_ensemble(manifest, CPU, (0.5, 0.5))
    standardised = []
    for model, texts in zip(single.labellers, single.texts, strict=True):
        raw = distances(model.encode_image(pixels), texts)
        standardised.append((raw - raw.mean()) / raw.std(correction=0))
    together = torch.stack(standardised).mean(dim=0)
    torch.testing.assert_close(targets, together / together.std(correction=0), atol=1e-3, rtol=0)
    assert float(targets.mean()) == pytest.approx(0, abs=1e-4)
    assert sum(found.weights) == pytest.approx(1)


def test_images_are_labelled_once(
    labelled: tuple[Manifest, PublishedVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, version = labelled
    root = open_storage(manifest.storage.root)
    with pytest.raises(MissingObject):
        read_moments(manifest, version, root)
    found = measure(manifest, version, root, CPU)
    monkeypatch.setattr(label_moments, "load_ensemble", lambda *_: pytest.fail("measured again"))
    assert torch.equal(measure(manifest, version, root, CPU).covariance, found.covariance)
    plain = manifest.with_values(distillation={"labeller": ("teacher",)})
    assert moments_of(plain, version, root) is None


def test_what_determines_labels_determines_where_their_moments_are(
    labelled: tuple[Manifest, PublishedVersion],
) -> None:
    manifest, version = labelled
    one, two = manifest.distillation.labeller
    keys = {
        key_of(manifest.with_values(distillation=changes), version)
        for changes in ({}, {"labeller": (one,)}, {"labeller": (two,)}, {"texts": "styles"})
    }
    assert len(keys) == 4
    assert key_of(manifest.with_values(distillation={"epochs": 9}), version) in keys


def test_damaged_moments_are_named(labelled: tuple[Manifest, PublishedVersion]) -> None:
    manifest, version = labelled
    root = open_storage(manifest.storage.root)
    measure(manifest, version, root, CPU)
    flip_bit(Path(manifest.storage.root, key_of(manifest, version)), 3)
    with pytest.raises(CorruptionError, match="delete it and distil again"):
        read_moments(manifest, version, root)


def test_a_missing_labeller_is_named_by_its_key(tmp_path: Path) -> None:
    absent = {"model": "ViT-B-32", "weights": "/nowhere.pt"}
    manifest = Manifest.read(write_manifest(tmp_path, distillation={"labeller": absent}))
    with pytest.raises(WeightsError, match=r"^distillation\.labeller\.weights"):
        load_ensemble(manifest, CPU)


def test_one_labeller_weighs_one(teacher: Labeller) -> None:
    texts = teacher.encode_text(["A cat", "A clock"])
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    alone = Ensemble([teacher], [texts])
    assert torch.equal(alone.distances(pixels), distances(teacher.encode_image(pixels), texts))
    assert alone.temperature == pytest.approx(1 / teacher.logit_scale)


def test_the_same_weights_in_another_architecture_are_another_labeller(tmp_path: Path) -> None:
    """With other activations they have the same shapes and give other labels."""
    weights = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(1)}, weights)
    found = []
    for model in ("RN50", "RN50-quickgelu"):
        labeller = {"model": model, "weights": str(weights)}
        manifest = Manifest.read(write_manifest(tmp_path, distillation={"labeller": labeller}))
        found.append(labellers_identity(manifest))
    assert found[0] != found[1]
