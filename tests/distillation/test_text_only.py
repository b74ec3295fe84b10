"""The text-only classifier: its losses by hand, what it knows, and where it is kept."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.config.synthesis import TeacherConfig
from dfkd.distillation import text_only
from dfkd.distillation.text_only import (
    arcface,
    class_vectors,
    classifier_name,
    content_loss,
    style_loss,
    train_classifier,
)
from dfkd.errors import CorruptionError, WeightsError
from dfkd.models.labeller import distances, errors_name
from dfkd.models.teacher import Teacher
from dfkd.storage.local import open_storage
from tests.helpers.tiny_models import VIT, model_config, random_model, write_teacher
from tests.helpers.tiny_version import write_manifest

CPU = torch.device("cpu")
CLASSES = ("clock", "book", "house", "cat")
STYLES = 3


def miniature(folder: Path, **settings: object) -> Manifest:
    path = write_manifest(
        folder,
        candidates={"styles": STYLES, **settings},
        evaluation={"models": ["teacher", "text-only"]},
    )
    return Manifest.read(path, (f"classes=[{', '.join(CLASSES)}]",))


@pytest.fixture(scope="module")
def tower() -> Teacher:
    return Teacher.load(Manifest.read("manifests/miniature.yaml").teacher, CPU)


@pytest.fixture(autouse=True)
def few_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published 100 for each style would take a minute."""
    monkeypatch.setattr(text_only, "UPDATES", 3)


def test_style_loss_is_the_mean_cosine_to_earlier_styles_without_its_sign() -> None:
    style = torch.tensor([0.6, 0.8])
    earlier = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, -1.0])]
    assert float(style_loss(style, [])) == 0.0
    assert float(style_loss(style, earlier)) == pytest.approx((0.6 + 0.8) / 2)


def test_content_loss_is_cross_entropy_over_plain_cosines() -> None:
    contents = torch.eye(2)
    styled = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    first = -math.log(math.exp(0.6) / (math.exp(0.6) + math.exp(0.8)))
    second = -math.log(math.exp(1.0) / (math.exp(0.0) + math.exp(1.0)))
    assert float(content_loss(styled, contents)) == pytest.approx((first + second) / 2)


@given(angle=st.floats(0.01, math.pi - 0.6), other=st.floats(0, math.pi))
def test_arcface_adds_its_margin_to_the_angle_of_the_right_class(
    angle: float, other: float
) -> None:
    cosines = torch.tensor([[math.cos(other), math.cos(angle)]], dtype=torch.float64)
    found = arcface(cosines, torch.tensor([1]))
    wanted = [5 * math.cos(other), 5 * math.cos(angle + 0.5)]
    assert found[0].tolist() == pytest.approx(wanted, abs=1e-6)


def test_arcface_has_a_gradient_where_feature_and_vector_are_the_same() -> None:
    cosines = torch.ones(1, 2, requires_grad=True)
    arcface(cosines, torch.tensor([0])).sum().backward()
    assert torch.isfinite(cosines.grad).all()


def test_a_style_word_moves_away_from_the_earlier_ones(
    tower: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last L_style is below the first; a large rate shows it within a few updates."""
    seen: list[float] = []

    def noted(style: Tensor, earlier: list[Tensor]) -> Tensor:
        loss = style_loss(style, earlier)
        if earlier:
            seen.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(text_only, "style_loss", noted)
    monkeypatch.setattr(text_only, "UPDATES", 30)
    monkeypatch.setattr(text_only, "STYLE_RATE", 0.2)
    text_only.style_features(tower, CLASSES, 2, torch.Generator().manual_seed(0))
    assert len(seen) == 30
    assert seen[-1] < seen[0] - 0.01


def test_the_classifier_names_each_class_by_its_text(tower: Teacher) -> None:
    vectors = train_classifier(tower, CLASSES, STYLES, seed=0)
    assert vectors.shape == (len(CLASSES), tower.embedding_dim)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(len(CLASSES)), atol=1e-6)
    for sentence in ("{}", "a red {}", "a line drawing of a {}"):
        texts = tower.encode_text([sentence.format(name) for name in CLASSES])
        assert distances(texts, vectors).argmin(dim=1).tolist() == list(range(len(CLASSES)))


def test_all_that_is_random_comes_from_the_seed(tower: Teacher) -> None:
    torch.manual_seed(1)
    first = train_classifier(tower, CLASSES, 2, seed=0)
    torch.manual_seed(2)
    assert torch.equal(train_classifier(tower, CLASSES, 2, seed=0), first)
    assert not torch.allclose(train_classifier(tower, CLASSES, 2, seed=1), first)


def test_the_classifier_is_fitted_with_a_margin_between_angles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each feature, a unit axis, is nearer to its own vector by more than the margin."""
    features = torch.eye(4).expand(8, 4, 4)
    monkeypatch.setattr(text_only, "RATE", 0.5)
    vectors = text_only.fit_classifier(features, torch.Generator().manual_seed(0))
    angles = vectors.clamp(-1, 1).acos()
    others = angles.masked_fill(torch.eye(4, dtype=torch.bool), torch.inf)
    assert float((others.amin(dim=1) - angles.diagonal()).min()) > text_only.MARGIN


def test_a_classifier_is_trained_once_and_then_found(
    tower: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = miniature(tmp_path)
    root = open_storage(str(tmp_path / "run"))
    first = class_vectors(manifest, manifest.teacher, tower, 0, root)
    (key,) = root.list("text-only/")
    with monkeypatch.context() as patch:
        patch.setattr(text_only, "train_classifier", lambda *_: pytest.fail("trained again"))
        assert torch.equal(class_vectors(manifest, manifest.teacher, tower, 0, root), first)
    class_vectors(miniature(tmp_path, styles=2), manifest.teacher, tower, 0, root)
    class_vectors(manifest, manifest.teacher, tower, 1, root)
    assert len(list(root.list("text-only/"))) == 3
    flipped = bytearray(root.get(key))
    flipped[-1] ^= 0x40  # the exponent of the last value
    for damaged in (
        b"torn",
        bytes(flipped),
        save({"vectors": first * 1.01}),
        save({"vectors": first.index_fill(1, torch.tensor([0]), math.nan)}),
        save({"vectors": first.double()}),
        save({"vectors": first[1:]}),
    ):
        root.put(key, damaged)
        with pytest.raises(CorruptionError, match="is not the classifier that was written"):
            class_vectors(manifest, manifest.teacher, tower, 0, root)


def test_a_classifier_is_named_after_the_weights_of_its_tower(tmp_path: Path) -> None:
    own = write_teacher(tmp_path / "own", model_config(VIT))
    manifest = miniature(tmp_path)
    name = classifier_name(manifest, own, 0)
    save_file(random_model(model_config(VIT), seed=1).state_dict(), own.weights)
    assert classifier_name(manifest, own, 0) != name


def test_the_errors_of_a_tower_name_its_own_keys() -> None:
    missing = TeacherConfig(model="miniature", weights="absent.pt")
    with (
        pytest.raises(WeightsError, match=r"^candidates\.towers\.0\.weights: must be an existing"),
        errors_name("candidates.towers.0"),
    ):
        Teacher.load(missing, CPU)
