"""The labels that a student learns: live labels, and ensembles of texts."""

import copy
from pathlib import Path

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import nn
from torch.nn import functional as F

from dfkd.config.manifest import Manifest
from dfkd.distillation.labels import fold_batch_norms, target_embeddings, target_function
from dfkd.errors import ManifestError
from dfkd.lab.baselines.batch_norm import layers
from dfkd.models.labeller import distances
from dfkd.models.teacher import Teacher
from dfkd.prompts.styles import class_text_embeddings
from tests.helpers import small_manifest

STYLES = ["sketch", "pixel art", "oil paint"]


def read(tmp_path: Path, *overrides: str) -> Manifest:
    return small_manifest.read(
        tmp_path,
        *overrides,
        classes=["cat", "clock"],
        prompts={"styles": STYLES},
        distillation={"augmentation": ["flip"]},
    )


def test_stored_labels_need_no_teacher(tmp_path: Path) -> None:
    manifest = read(tmp_path, "distillation.augmentation=[]", "teacher.weights=/nowhere.pt")
    assert target_function(manifest, torch.device("cpu")) is None


def test_live_labels_are_distances_of_the_views_in_float32_whatever_the_students_precision(
    tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A device that multiplies bfloat16, which this one may not.
    monkeypatch.setattr("dfkd.models.labeller.multiplies_bfloat16", lambda device: True)
    manifest = read(tmp_path, "distillation.precision=bfloat16")
    label = target_function(manifest, torch.device("cpu"))
    views = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    folded = copy.deepcopy(teacher)
    fold_batch_norms(folded.visual)
    exact = distances(folded.encode_image(views), class_text_embeddings(manifest, teacher))
    assert torch.equal(label(views), exact)


def test_an_ensemble_is_the_mean_over_styles_and_the_class_prompt(
    tmp_path: Path, teacher: Teacher
) -> None:
    found = target_embeddings(read(tmp_path, "distillation.texts=styles"), teacher)
    texts = ["A clock", *(f"clock in the style of {style}" for style in STYLES)]
    by_hand = F.normalize(teacher.encode_text(texts).mean(dim=0), dim=0)
    assert torch.allclose(found[1], by_hand, atol=1e-6)
    assert torch.equal(
        target_embeddings(read(tmp_path), teacher), class_text_embeddings(read(tmp_path), teacher)
    )


def test_an_ensemble_of_texts_that_would_be_cut_is_refused(tmp_path: Path) -> None:
    manifest = read(
        tmp_path, "distillation.texts=styles", f"prompts.styles=[{'very ' * 40 + 'dark'}]"
    )
    with pytest.raises(
        ManifestError, match=r"^prompts.styles: .* got 'cat in the style of very very"
    ):
        target_function(manifest, torch.device("cpu"))


def test_a_folded_tower_has_the_same_embeddings_and_no_batch_norm() -> None:
    noise = torch.Generator().manual_seed(0)
    # Two blocks in a stage, so that one of them has no convolution beside it.
    tower = ModifiedResNet([2, 1, 1, 1], output_dim=4, heads=2, image_size=32, width=8).eval()
    for layer in layers(tower):
        for values in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
            values.data = 0.5 + torch.rand(values.shape, generator=noise)
    images = torch.rand(3, 3, 32, 32, generator=noise)
    before = tower(images)
    fold_batch_norms(tower)
    assert not layers(tower)
    torch.testing.assert_close(tower(images), before, rtol=1e-4, atol=1e-5)


def test_a_tower_whose_norms_may_come_elsewhere_is_left_alone() -> None:
    class NormFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

    tower = NormFirst()
    fold_batch_norms(tower)
    assert layers(tower) == [tower.bn1]
