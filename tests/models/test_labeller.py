"""Labellers that are no teachers: SigLIP, SigLIP 2 and CLIPA, scaled down, beside open_clip."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_image

from dfkd.config.hashing import sha256_file
from dfkd.config.synthesis import TeacherConfig
from dfkd.errors import ManifestError
from dfkd.models.labeller import Labeller, check_classes, file_hashes
from dfkd.models.teacher import Teacher
from dfkd.models.teacher_architecture import read_architecture
from dfkd.utils.device import CPU
from dfkd.utils.pixels import from_bytes
from tests.helpers.http_server import keep_hub_model
from tests.helpers.hub_families import PUBLISHED, family_config, write_family, write_tokenizer
from tests.helpers.tiny_models import VIT, model_config, random_model, write_teacher

TEXTS = ["This is a photo of a Dog.", "hot_dog", "", "a cat and " * 9]
"""Upper case, punctuation, nothing, and more than the context."""


@pytest.fixture(scope="module", params=PUBLISHED)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp(family)
    write_family(home, family)
    return home


@pytest.fixture(scope="module")
def labeller(folder: Path) -> Labeller:
    return Labeller.load(TeacherConfig(model=str(folder), weights=str(folder)), CPU)


def test_embeddings_are_those_of_open_clip_s_own_model(family: str, labeller: Labeller) -> None:
    tree = family_config(family, labeller.tokenizer._vocabulary)
    model: Any = random_model(tree["model_cfg"]).requires_grad_(False)
    expected = model.encode_text(labeller.tokenize(TEXTS), normalize=True)
    torch.testing.assert_close(labeller.encode_text(TEXTS), expected, atol=1e-5, rtol=0)
    assert len(set(expected[:, 0].tolist())) == len(TEXTS)  # so that they tell texts apart
    assert labeller.embedding_dim == expected.shape[1]

    size, stated = labeller.image_size, tree["preprocess_cfg"]
    assert labeller.resizing == ("squash", stated["interpolation"])
    picture = ImageOps.fit(Image.fromarray(load_sample_image("china.jpg")), (size, size))
    transform = image_transform_v2(PreprocessCfg(size=size, **stated), is_train=False)
    expected = model.encode_image(transform(picture)[None], normalize=True)
    pixels = from_bytes(torch.tensor(list(picture.tobytes())).byte().view(1, size, size, 3))
    torch.testing.assert_close(labeller.encode_image(pixels), expected, atol=1e-5, rtol=0)


def test_a_teacher_needs_clip_s_tokenizer_and_text_tower(folder: Path) -> None:
    config = TeacherConfig(model=str(folder), weights=str(folder))
    with pytest.raises(ManifestError, match=r"^teacher.model: .*a labeller \(distillation.labell"):
        Teacher.load(config, CPU)


def test_classes_must_differ_and_fit_and_hold_no_marks(family: str, labeller: Labeller) -> None:
    check_classes(labeller, ["dog", "hot dog", "cat"], "a {class}")
    bert = family == "clipa"
    with pytest.raises(ManifestError, match="reads to the model exactly like 'dog'"):
        check_classes(labeller, ["dog", "Dog" if bert else "(Dog)!"])
    with pytest.raises(ManifestError, match="tokenises to nothing"):
        check_classes(labeller, ["dog", " " if bert else "!!!"])
    most = 12 - (2 if bert else 1)
    check_classes(labeller, [" ".join("a" * most)])
    rule = f"at most {most} tokens, this one {most + 1}"
    with pytest.raises(ManifestError, match=rule):
        check_classes(labeller, [" ".join("a" * most)], "a {class}")
    if bert:
        with pytest.raises(ManifestError, match="must not hold the model's mark"):
            check_classes(labeller, ["dog", "hot [SEP] dog"])
    else:  # the cleaning takes its brackets away
        check_classes(labeller, ["dog", "hot </s><eos> dog"])
    if family != "siglip2":  # whose tokenizer knows every byte
        with pytest.raises(ManifestError, match="tokenises to nothing"):
            check_classes(labeller, ["dog", "犬"])


def test_the_tokenizer_is_hashed_and_lies_beside_weights_or_configuration(tmp_path: Path) -> None:
    config = write_family(tmp_path / "hub", "siglip")
    hashes = file_hashes(config)
    assert hashes["teacher.tokenizer"] == sha256_file(tmp_path / "hub" / "tokenizer.json")
    shutil.copytree(tmp_path / "hub", tmp_path / "weights")
    (tmp_path / "hub" / "tokenizer.json").unlink()
    moved = TeacherConfig(model=config.model, weights=str(tmp_path / "weights"))
    assert file_hashes(moved)["teacher.tokenizer"] == hashes["teacher.tokenizer"]
    for call in (file_hashes, lambda config: Labeller.load(config, CPU)):
        with pytest.raises(ManifestError, match=r"needs tokenizer.json in its folder.*copy it th"):
            call(config)


def test_the_tokenizer_of_a_tag_is_read_from_the_cache(tmp_path: Path) -> None:
    model, tag = PUBLISHED["clipa"]
    config, file = TeacherConfig(model=model, weights=tag), tmp_path / "tokenizer.json"
    # Only hashes are asked for, so any file will do for the weights.
    keep_hub_model(tmp_path, "UCSC-VLAA/ViT-H-14-CLIPA-datacomp1B", Path(__file__))
    with pytest.raises(ManifestError) as caught:
        file_hashes(config, str(tmp_path))
    assert "needs tokenizer.json of bert-base-uncased, which is not in" in str(caught.value)
    assert "run dfkd fetch MANIFEST" in str(caught.value)
    write_tokenizer(file, "clipa")
    keep_hub_model(tmp_path, "bert-base-uncased", file, "tokenizer.json")
    assert file_hashes(config, str(tmp_path))["teacher.tokenizer"] == sha256_file(file)


def test_a_siglip_without_its_bias_loads_as_in_open_clip(tmp_path: Path) -> None:
    config = write_family(tmp_path, "siglip")
    file = tmp_path / "open_clip_model.safetensors"
    state = load_file(file)
    for other in ({}, {"logit_bias": torch.tensor([-9.0])}):
        state.pop("logit_bias", None)
        save_file(state | other, file)
        assert Labeller.load(config, CPU).logit_scale > 1


def test_a_tower_whose_texts_have_another_width_than_its_images_is_refused(tmp_path: Path) -> None:
    tree = family_config("siglip-i18n", 100)
    tree["model_cfg"]["text_cfg"]["width"] = 32
    (tmp_path / "model.json").write_text(json.dumps(tree))
    with pytest.raises(ManifestError, match="another width than the embeddings"):
        read_architecture(str(tmp_path / "model.json"))


def test_a_tower_like_clip_s_is_a_labeller_too(tmp_path: Path) -> None:
    config = write_teacher(tmp_path, model_config(VIT))
    labeller, teacher = Labeller.load(config, CPU), Teacher.load(config, CPU)
    assert torch.equal(labeller.encode_text(TEXTS), teacher.encode_text(TEXTS))
    assert labeller.content_length == 14
