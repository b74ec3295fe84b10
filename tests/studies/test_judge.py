"""A judge counts the images of its own class, and a file that is no judge's is refused."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dfkd.config.manifest import Manifest
from dfkd.dataset.published import PublishedVersion
from dfkd.errors import CorruptionError, ManifestError
from dfkd.studies.judge import Judge, read_judge
from dfkd.utils.device import CPU
from tests.helpers.tiny_judge import write_judge
from tests.helpers.tiny_version import publish, write_manifest

GOOD = {"architecture": "resnet18", "classes": '["red", "blue"]'}


@pytest.fixture
def version(tmp_path: Path) -> PublishedVersion:
    """Eight images of each of red, green and blue, 32 px."""
    return publish(Manifest.read(write_manifest(tmp_path)))


class Colours(nn.Module):
    """A classifier that knows the colours, in another order than the data set."""

    def forward(self, pixels: Tensor) -> Tensor:
        assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1
        return pixels.mean((2, 3))[:, [2, 0, 1]]


def test_classes_are_matched_by_name(version: PublishedVersion) -> None:
    judge = Judge(Colours(), ("blue", "red", "green"), "", CPU)
    assert judge.recognised(version, 32) == 1.0
    wrong = Judge(Colours(), ("blue", "green", "red"), "", CPU)
    assert wrong.recognised(version, 32) == pytest.approx(1 / 3)


def test_a_judge_that_always_names_one_class_recognises_its_share(
    version: PublishedVersion, tmp_path: Path
) -> None:
    path = write_judge(tmp_path / "judge.safetensors", ("key", "red", "green", "blue"), "blue")
    judge = read_judge(str(path), version.classes, CPU)
    assert judge is not None
    assert judge.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert judge.recognised(version, 32) == pytest.approx(1 / 3)


def test_a_damaged_image_is_not_judged(version: PublishedVersion, tmp_path: Path) -> None:
    shard = next((tmp_path / "run").glob("data/vanilla/versions/*/shards/*.tar"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptionError):
        Judge(Colours(), version.classes, "", CPU).recognised(version, 32)


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        (None, r"judge: must be a safetensors file whose metadata has .*, got '.*'; run jobs/pre"),
        ({**GOOD, "architecture": "vit_h_14"}, "architecture, resnet18 or resnet50"),
        ({"architecture": "resnet18"}, "classes, a JSON list"),
        ({**GOOD, "classes": "red"}, "classes, a JSON list"),
        ({**GOOD, "classes": '["red", "red"]'}, "judge: classes of .*: every entry once"),
        ({**GOOD, "classes": '["red"]'}, r"judge: must know every class .* red, got \['blue'\]; "),
        (GOOD, "judge: must match the architecture, but it lacks bn1.bias"),
    ],
)
def test_a_file_that_is_no_judge_s_is_refused(
    tmp_path: Path, metadata: dict[str, str] | None, complaint: str
) -> None:
    save_file({"fc.bias": torch.zeros(2)}, tmp_path / "judge", metadata)
    with pytest.raises(ManifestError, match=complaint):
        read_judge(str(tmp_path / "judge"), ("red", "blue"), CPU)


def test_a_pickle_or_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    path = write_judge(tmp_path / "judge", ("red", "blue"), "red")
    state = load_file(path)
    save_file(state, path, {**GOOD, "classes": '["red", "blue", "key"]'})
    with pytest.raises(ManifestError, match=r"judge: must match .* fc\.bias \(2,\) for \(3,\)"):
        read_judge(str(path), ("red",), CPU)
    torch.save(state, path)
    with pytest.raises(ManifestError, match="judge: must be a safetensors file"):
        read_judge(str(path), ("red",), CPU)
