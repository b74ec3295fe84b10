"""Text towers that cannot be compared with the teacher's, or that no diffusion model knows."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dfkd.errors import ManifestError
from dfkd.models.generators.text_tower import TextEncoder
from tests.helpers.tiny_models import VIT, load_teacher, model_config
from tests.helpers.tiny_pipeline import tiny_teacher, write_pipeline


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda bias: bias[:1], r"its text_encoder has no {} of shape \(32,\)"),
        (lambda bias: bias * torch.nan, "{} differs by nan% of its norm"),
    ],
    ids=["shape", "nan"],
)
def test_a_tensor_that_cannot_be_compared_is_another_one(
    change: Callable[[Tensor], Tensor], named: str, tmp_path: Path
) -> None:
    """One number would be spread over all, and NaN is neither more nor less than the tolerance."""
    teacher, name = tiny_teacher(tmp_path), "encoder.layers.1.layer_norm1.bias"
    pipeline = write_pipeline(tmp_path / "pipeline", teacher)
    path = pipeline / "text_encoder/model.safetensors"
    state = load_file(path)
    state[f"text_model.{name}"] = change(state[f"text_model.{name}"]).clone()
    save_file(state, path)
    with pytest.raises(ManifestError, match=named.format(name)):
        TextEncoder.read(pipeline).require(teacher)


def test_a_tower_that_reads_ahead_is_not_that_of_a_clip(tmp_path: Path) -> None:
    teacher = load_teacher(tmp_path, model_config(VIT, custom=True, no_causal_mask=True))
    encoder = TextEncoder.read(write_pipeline(tmp_path / "pipeline", teacher))
    with pytest.raises(ManifestError, match="the teacher's is not that of a CLIP"):
        encoder.require(teacher)
