"""open_clip's tags: the files that the hub's client keeps in the cache."""

from pathlib import Path

import pytest
import torch

from dfkd.config.synthesis import TeacherConfig
from dfkd.errors import WeightsError
from dfkd.models.labeller import file_hashes
from dfkd.models.teacher import Teacher
from tests.helpers.http_server import give_tag, keep_hub_model
from tests.helpers.tiny_models import VIT, model_config, random_model, write_teacher

CPU = torch.device("cpu")
TEXTS = ["a dog", "two cats"]


def test_a_folder_that_is_named_like_a_tag_is_given_as_a_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The name alone is the tag, as `dfkd fetch` takes it."""
    monkeypatch.chdir(tmp_path)
    give_tag(monkeypatch, hf_hub="someone/tiny/")
    written = write_teacher(tmp_path / "tiny", model_config(VIT))
    with pytest.raises(WeightsError, match="needs someone/tiny"):
        file_hashes(TeacherConfig(model=written.model, weights="tiny"), str(tmp_path))
    by_path = TeacherConfig(model=written.model, weights="./tiny")
    assert file_hashes(by_path, str(tmp_path)) == file_hashes(written)


def test_a_hubs_model_is_found_in_the_cache_without_a_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    give_tag(monkeypatch, hf_hub="someone/tiny/")
    written = write_teacher(tmp_path / "files", model_config(VIT))
    config = TeacherConfig(model=written.model, weights="tiny")
    with pytest.raises(WeightsError) as caught:
        file_hashes(config, str(tmp_path))
    text = str(caught.value)
    assert "needs someone/tiny, which is not in the cache" in text
    assert "run dfkd fetch MANIFEST" in text
    assert "\n" not in text

    keep_hub_model(tmp_path, "someone/tiny", Path(written.weights))
    teacher = Teacher.load(config, CPU, cache=str(tmp_path))
    expected = random_model(model_config(VIT)).requires_grad_(False)
    tokens = teacher.tokenize(TEXTS)
    assert torch.equal(teacher.encode_text(TEXTS), expected.encode_text(tokens, normalize=True))
