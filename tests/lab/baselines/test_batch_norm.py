"""L_bn of numbers that can be checked by hand, and of every layer of a teacher."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dfkd.errors import ManifestError
from dfkd.lab.baselines.batch_norm import (
    Taps,
    batch_norm_loss,
    batch_norm_taps,
    layers,
    require_batch_norm,
    statistics_distance,
)
from dfkd.lab.baselines.inverter import stage_taps
from dfkd.models.teacher import Teacher
from tests.helpers.tiny_models import load_teacher, model_config


def distance(seen: list[list[float]]) -> Tensor:
    """The distance of an input [N, C] from a running mean of 0 and a running variance of 1."""
    layer = nn.BatchNorm1d(len(seen[0])).eval()
    return statistics_distance(layer, torch.tensor(seen), torch.empty(0))


def test_the_loss_is_a_sum_of_two_norms_over_layers() -> None:
    # Mean (3, 4), variance (1, 1): ||(3, 4)|| + 0 = 5.
    first = distance([[2.0, 3.0], [4.0, 5.0]])
    # Mean (0, 1), variance (1, 3): 1 + ||(0, 2)|| = 3.
    second = distance([[-1.0, 1 - 3**0.5], [1.0, 1 + 3**0.5]])
    assert [float(first), float(second)] == pytest.approx([5.0, 3.0])
    assert float(batch_norm_loss([first, second])) == pytest.approx(8.0)
    assert float(batch_norm_loss([first, second], first_layer_factor=10.0)) == pytest.approx(53.0)


@pytest.mark.parametrize(
    ("layer", "seen"),
    [
        (nn.BatchNorm1d(1), [[0.0], [2.0], [4.0], [6.0]]),
        (nn.BatchNorm1d(1), [[[0.0, 2.0]], [[4.0, 6.0]]]),
        (nn.BatchNorm2d(1), [[[[0.0, 2.0], [4.0, 6.0]]]]),
        (nn.SyncBatchNorm(1), [[[[0.0], [2.0]]], [[[4.0], [6.0]]]]),
    ],
)
def test_every_kind_of_batch_norm_is_read(layer: nn.Module, seen: list[object]) -> None:
    """Mean 3 and biased variance 5, each alone and both together against running ones."""
    layer.eval()
    for mean, variance, expected in ((3.0, 5.0, 0.0), (1.0, 5.0, 2.0), (3.0, 2.0, 3.0), (1, 2, 5)):
        layer.get_buffer("running_mean").fill_(mean)
        layer.get_buffer("running_var").fill_(variance)
        with Taps([layer], statistics_distance) as taps:
            layer(torch.tensor(seen))
            assert float(batch_norm_loss(taps.values)) == pytest.approx(expected, abs=1e-6)


def test_statistics_of_bfloat16_features_are_those_of_float32() -> None:
    """Mean 1 + 1 / 256, which bfloat16 rounds to 1, and a variance of 1 / 65536."""
    seen = torch.tensor([[1.0], [1.0078125]], dtype=torch.bfloat16)
    found = statistics_distance(nn.BatchNorm1d(1), seen, torch.empty(0))
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(1 + 1 / 256 + 1 - 1 / 65536, abs=1e-6)


def test_hooks_see_the_statistics_of_every_layer(teacher: Teacher) -> None:
    inputs: list[Tensor] = []
    norms = layers(teacher.model.get_submodule("visual"))
    pixels = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    handles = [
        layer.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
        for layer in norms
    ]
    with batch_norm_taps(teacher, "test") as taps:
        teacher.encode_image(pixels)
        read = taps.values
    for handle in handles:
        handle.remove()
    assert len(read) == len(inputs) == len(norms) == 19
    first = teacher.model.get_submodule("visual.conv1")((pixels - teacher.mean) / teacher.std)
    assert torch.allclose(inputs[0], first, atol=1e-5)
    whole = 0.0
    for found, layer, given in zip(read, norms, inputs, strict=True):
        values = given.double().numpy().transpose(1, 0, 2, 3).reshape(given.shape[1], -1)
        mean, variance = values.mean(axis=1), values.var(axis=1)
        expected = float(np.linalg.norm(mean - layer.get_buffer("running_mean").numpy()))
        expected += float(np.linalg.norm(variance - layer.get_buffer("running_var").numpy()))
        assert float(found) == pytest.approx(expected, rel=1e-3, abs=1e-4)
        whole += expected
    assert float(batch_norm_loss(read)) == pytest.approx(whole, rel=1e-3)


def test_hooks_are_gone_after_their_block_even_if_it_fails(teacher: Teacher) -> None:
    visual = teacher.model.get_submodule("visual")

    def failing() -> None:
        with batch_norm_taps(teacher, "test"), stage_taps(teacher):
            assert any(module._forward_hooks for module in visual.modules())
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert not any(module._forward_hooks for module in visual.modules())


def test_batch_norm_is_detected_and_required(tmp_path: Path, teacher: Teacher) -> None:
    require_batch_norm(teacher, "DeepInversion")
    vit = load_teacher(tmp_path, model_config())
    for use in (require_batch_norm, batch_norm_taps):  # on which L_bn would be silently nothing
        with pytest.raises(
            ManifestError, match=r"^teacher\.model: DeepInversion needs .* batch norm.*$"
        ):
            use(vit, "DeepInversion")
