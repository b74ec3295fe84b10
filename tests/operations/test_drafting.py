"""The constants of `dfkd init`: what is counted, known and published."""

import tarfile
from collections.abc import Sequence
from pathlib import Path

import diffusers
import open_clip
import pytest
import torch
import torchvision
from open_clip.pretrained import get_pretrained_cfg

from dfkd.config.manifest import Manifest
from dfkd.config.paths import EVALUATION
from dfkd.config.pipelines import PIPELINES
from dfkd.models.generators.settings import bundled_names
from dfkd.models.student import build
from dfkd.models.weights.artifacts import HUB_BYTES, hub_id
from dfkd.operations import drafting, estimate
from dfkd.operations.drafting import BATCH, EPOCHS, FLOAT32, IMAGE_WORK, STUDENT_WORK, WARMUP
from dfkd.operations.estimate import Work
from dfkd.operations.senses import SENSES
from tests.helpers import published_sizes
from tests.helpers.published_sizes import SD15


def test_the_bundled_models_are_scored_on_all_that_they_draw() -> None:
    """So a manifest of known names always has evaluation data."""
    with tarfile.open(EVALUATION) as archive:
        classes = {Path(name).parts[1] for name in archive.getnames()}
    assert set(bundled_names()) == classes


def test_no_ambiguous_name_is_one_that_it_says_to_write() -> None:
    for name, senses in SENSES.items():
        assert name == name.lower()
        drafting.check_names("x", [name, *senses])
        assert not {each.lower() for each in senses} & set(SENSES)


def test_sizes_are_those_of_the_parameters_in_float32() -> None:
    with torch.device("meta"):
        tower = open_clip.model.CLIP(**open_clip.get_model_config("ViT-L-14-quickgelu"))
    tag = get_pretrained_cfg("ViT-L-14-quickgelu", "openai")
    header = HUB_BYTES[hub_id(tag)] - 4 * sum(each.numel() for each in tower.parameters())
    assert 0 < header < 100_000
    generator = published_sizes.diffusion(SD15, "meta")
    sizes = PIPELINES[drafting.SD15].bytes
    unet = 4 * sum(each.numel() for each in generator.unet.parameters())
    assert 0 < sizes["unet/diffusion_pytorch_model.safetensors"] - unet < 100_000
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    file = weights.url.rpartition("/")[2]
    assert f"{HUB_BYTES[file] / 2**20:.3f}" == f"{weights.meta['_file_size']:.3f}"


@pytest.mark.parametrize(("device", "asked"), [("nvidia0", True), ("nvidiactl", False)])
def test_torch_is_asked_for_the_gpu_where_a_driver_has_made_a_device(
    device: str, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / device).touch()
    monkeypatch.setattr(drafting, "DEVICES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    assert drafting.find_gpu() == ("NVIDIA L4" if asked else "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert drafting.find_gpu() == ""


@pytest.mark.heavy
def test_the_work_of_an_image_is_what_an_estimate_counts(tmp_path: Path) -> None:
    text, _ = drafting.draft("x", ["mug", "stapler", "laptop"], "", "x.yaml")
    (tmp_path / "x.yaml").write_text(text)
    manifest = Manifest.read(tmp_path / "x.yaml")
    config = manifest.distillation
    assert (config.warmup_epochs, config.epochs, config.batch_size) == (WARMUP, EPOCHS, BATCH)
    teacher = published_sizes.teacher(manifest.teacher.model)
    with estimate.NO_DATA:
        generator = published_sizes.diffusion(SD15)
    generator.scheduler = diffusers.PNDMScheduler(**SD15.schedule)
    sampling, decoding, label = estimate.images_work(manifest, teacher, generator)
    prompt = estimate.prompts_work(manifest, teacher, manifest.prompt_settings)
    random = Manifest.read(
        tmp_path / "x.yaml", ("distillation.weights=none", "distillation.warmup_epochs=0")
    )
    student = build(random.distillation, 3, 224, seed=0)
    warmup, training, again = estimate.student_work(manifest, student, 2, 1)
    counted: dict[str, Sequence[Work]] = {
        "sampling": [sampling],
        "decoding": [decoding],
        "label": [label],
        "prompt": prompt,
        "warmup": [warmup * (1 / BATCH)],
        "training": [training * (1 / BATCH)],
    }
    assert (again * (1 / (2 * BATCH))).flop == label.flop
    for part, work in (IMAGE_WORK | STUDENT_WORK).items():
        numbers = [
            sum(getattr(each, field) for each in counted[part])
            for field in ("flop", "products", "others")
        ]
        assert numbers == pytest.approx(list(work), rel=2e-3), part
        single = {each.precision for each in counted[part]} == {"float32"}
        assert single == (part in FLOAT32)


@pytest.mark.heavy
def test_the_least_time_grows_with_the_classes_and_a_slower_gpu() -> None:
    few, many = (drafting._least(images, "NVIDIA L4") for images in (900, 90_000))
    assert few.endswith("minutes at the peaks of L4")
    assert many.endswith("hours at the peaks of L4")
    assert "as those of Some Card are unknown" in drafting._least(900, "Some Card")
