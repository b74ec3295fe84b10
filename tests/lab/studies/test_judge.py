"""A judge counts the images of their own class, and a file that is no judge's is refused."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dfkd.config.distillation import Evaluation
from dfkd.config.manifest import Manifest
from dfkd.errors import ManifestError
from dfkd.evaluation.data import open_data
from dfkd.lab.studies.judge import Judge, read_judge
from dfkd.utils.device import CPU
from tests.helpers.tiny_judge import write_judge
from tests.helpers.tiny_version import publish, write_manifest

GOOD = {"architecture": "resnet18", "classes": '["red", "blue"]'}


class Colours(nn.Module):
    """A classifier that knows blue, red and green."""

    def forward(self, pixels: Tensor) -> Tensor:
        assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1
        return pixels.mean((2, 3))[:, [2, 0, 1]]


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    version = publish(Manifest.read(write_manifest(tmp_path)))  # red, green and blue alike
    judge = Judge(Colours(), ("blue", "red", "green"), "", CPU)
    assert judge.recognised(version, 32) == 1.0
    wrong = Judge(Colours(), ("blue", "green", "red"), "", CPU)
    assert wrong.recognised(version, 32) == pytest.approx(1 / 3)


def test_its_accuracy_is_over_the_images_that_can_be_read(tmp_path: Path) -> None:
    """Of a red, a green, a blue and a broken image; the order of the data's classes is its own."""
    for name, colour in (("red", "red"), ("green", "green"), ("blue", "yellow")):
        path = tmp_path / "data" / "plain" / name / "one.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (40, 40), colour).save(path)
    (tmp_path / "data" / "plain" / "red" / "two.png").write_bytes(b"no image")
    data = open_data(Evaluation(data=str(tmp_path / "data")), ("red", "green", "blue"))
    judge = Judge(Colours(), ("blue", "red", "green"), "", CPU)
    assert judge.accuracy(data, 32, threads=1) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        (None, r"judge: must be a safetensors file whose metadata has .*, got '.*'; run dfkd pre"),
        ({**GOOD, "architecture": "vit_h_14"}, "judge: must have a student's architecture"),
        ({"architecture": "resnet18"}, "classes, a JSON list"),
        ({**GOOD, "classes": "red"}, "classes, a JSON list"),
        ({**GOOD, "classes": '["red", "red"]'}, "judge: classes of .*: must have every entry once"),
        ({**GOOD, "classes": '["red"]'}, r"judge: must know every class .* red, got \['blue'\]; "),
        (GOOD, "judge: must match the architecture, but it lacks backbone.bn1.bias"),
    ],
)
def test_a_file_that_is_no_judge_s_is_refused(
    tmp_path: Path, metadata: dict[str, str] | None, complaint: str
) -> None:
    save_file({"fc.bias": torch.zeros(2)}, tmp_path / "judge", metadata)
    with pytest.raises(ManifestError, match=complaint):
        read_judge(str(tmp_path / "judge"), ("red", "blue"), 64, CPU)


def test_a_judge_uses_the_statistics_of_its_training_and_is_no_pickle(tmp_path: Path) -> None:
    path = write_judge(tmp_path / "judge", ("red", "blue"), "red")
    judge = read_judge(str(path), ("red", "blue"), 64, CPU)
    assert judge is not None
    assert not judge.network.training
    state = load_file(path)
    save_file(state, path, {**GOOD, "classes": '["red", "blue", "key"]'})
    with pytest.raises(ManifestError, match=r"judge: must match .* head\.bias \(2,\) for \(3,\)"):
        read_judge(str(path), ("red",), 64, CPU)
    torch.save(state, path)
    with pytest.raises(ManifestError, match="judge: must be a safetensors file"):
        read_judge(str(path), ("red",), 64, CPU)
