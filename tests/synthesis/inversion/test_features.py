"""What is read of a teacher's image tower on the way: stages, and the embedding."""

from pathlib import Path

import torch
from torch import nn

from dfkd.models.teacher import Teacher
from dfkd.synthesis.inversion.inverter import embedding_taps, stage_taps
from tests.helpers.tiny_models import RESNET, load_teacher, model_config


def test_stages_are_those_of_a_resnet(tmp_path: Path, teacher: Teacher) -> None:
    pixels = torch.rand(2, 3, 64, 64)
    with stage_taps(teacher) as taps:
        teacher.encode_image(pixels)
        widths = [features.shape for features in taps.read]
    inner = [teacher.model.get_submodule(f"visual.layer{n}.0.conv1") for n in (1, 2, 3, 4)]
    assert widths == [(2, conv.in_channels) for conv in inner]
    vit = load_teacher(tmp_path / "vit", model_config())
    with stage_taps(vit) as taps:
        assert not taps._handles
    other = load_teacher(tmp_path / "resnet", model_config(RESNET))
    with stage_taps(other) as taps:
        other.encode_image(pixels)
        assert len(taps.read) == 4


def test_a_stage_is_read_as_the_mean_over_positions(teacher: Teacher) -> None:
    pixels = torch.rand(2, 3, 64, 64)
    visual = teacher.model.get_submodule("visual")
    x = (pixels - teacher.mean) / teacher.std
    for name, module in visual.named_children():
        if name == "layer1":
            break
        x = module(x)
    with stage_taps(teacher) as taps:
        teacher.encode_image(pixels)
        assert torch.allclose(taps.read[0], x.mean(dim=(2, 3)), atol=1e-5)


def test_the_embedding_is_read_before_it_is_normalised(teacher: Teacher) -> None:
    with embedding_taps(teacher) as taps:
        unit = teacher.encode_image(torch.rand(2, 3, 64, 64))
        (raw,) = taps.read
    assert torch.allclose(nn.functional.normalize(raw, dim=1), unit, atol=1e-6)
    assert not torch.allclose(raw.norm(dim=1), torch.ones(2), atol=1e-2)
