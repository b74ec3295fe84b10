"""Where a teacher's configuration and weight file come from, without loading the model."""

import contextlib
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import list_pretrained_tags_by_model
from safetensors.torch import load_file, save_file

from dfkd.config.synthesis import TeacherConfig
from dfkd.errors import ManifestError
from dfkd.models.teacher import Teacher
from dfkd.models.teacher_architecture import build, find_weights, read_architecture
from dfkd.models.teacher_checks import require_token_embeddings
from tests.helpers.http_server import give_tag, keep_hub_model
from tests.helpers.tiny_models import VIT, load_teacher, model_config, write_teacher


def test_an_architecture_by_name_has_the_preprocessing_that_all_its_weights_share() -> None:
    mobile = read_architecture("MobileCLIP-S1").preprocess
    assert mobile == {
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
        "interpolation": "bilinear",
        "resize_mode": "shortest",
    }
    assert read_architecture("PE-Core-T-16-384").preprocess["resize_mode"] == "squash"
    assert read_architecture("ViT-L-14").preprocess == {}  # those of laion2b differ from OpenAI's


def test_of_several_weight_files_in_a_folder_open_clip_s_is_taken(tmp_path: Path) -> None:
    written = write_teacher(tmp_path / "files", model_config(VIT))
    architecture, folder = read_architecture(written.model), tmp_path / "hub"
    folder.mkdir()
    for name in ("model.safetensors", "open_clip_pytorch_model.bin"):
        shutil.copy(written.weights, folder / name)
    found = find_weights(str(folder), architecture).path
    assert found == folder / "open_clip_pytorch_model.bin"


def test_a_tag_that_names_a_file_of_a_hub_may_be_there_as_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the client of open_clip keeps it, if the hub has both."""
    give_tag(monkeypatch, hf_hub="someone/tiny/best.bin")
    written = write_teacher(tmp_path / "files", model_config(VIT))
    keep_hub_model(tmp_path, "someone/tiny", Path(written.weights))
    (kept,) = tmp_path.rglob("open_clip_model.safetensors")
    best = kept.rename(kept.with_name("best.safetensors"))
    assert find_weights("tiny", read_architecture(written.model), str(tmp_path)).path == best


def test_an_image_tower_of_timm_is_built_without_its_own_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    vision = {"timm_model_name": "test_resnet", "timm_model_pretrained": True, "image_size": 32}
    (tmp_path / "model.json").write_text(json.dumps(model_config(vision, custom=True)))
    model: Any = build(read_architecture(str(tmp_path / "model.json")))
    assert model.encode_image(torch.zeros(2, 3, 32, 32)).shape == (2, 16)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_factor_on_cosines_is_the_exponential_of_a_weight(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    """A scalar in some files, and one number in a list in others."""
    written = write_teacher(tmp_path, model_config(VIT))
    state = load_file(written.weights) | {"logit_scale": torch.full(shape, math.log(20.0))}
    save_file(state, tmp_path / "other.safetensors")
    config = TeacherConfig(model=written.model, weights=str(tmp_path / "other.safetensors"))
    teacher = Teacher.load(config, torch.device("cpu"))
    assert teacher.logit_scale == pytest.approx(20.0)


def test_a_tower_of_images_that_are_not_square_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"^teacher\.model: must see square images, got"):
        load_teacher(tmp_path, model_config(VIT | {"image_size": [32, 64]}))


def test_which_published_architectures_are_labellers_and_which_are_teachers() -> None:
    labellers, teachers = set(), set()
    for name in open_clip.list_models():
        with contextlib.suppress(ManifestError):
            architecture = read_architecture(name)
            labellers.add(name)
            require_token_embeddings(name, architecture.model)
            teachers.add(name)
    no_teachers, refused = re.compile("SigLIP|CLIPA"), re.compile("nllb|roberta|worldwide|coca|mt5")
    published = {name for name in open_clip.list_models() if list_pretrained_tags_by_model(name)}
    usable = {name for name in published if not refused.search(name)}
    assert usable <= labellers
    assert not [name for name in labellers if refused.search(name)]
    assert {name for name in labellers if no_teachers.search(name)} == labellers - teachers
    assert len(labellers - teachers) == 32
