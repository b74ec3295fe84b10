"""L_bn is what it says on numbers that can be checked by hand, and on every layer of a teacher."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dfkd.errors import ManifestError
from dfkd.models.batch_norm import Moments, Taps, batch_norm_loss, layers, moments
from dfkd.models.teacher import Teacher, batch_norm_taps
from dfkd.synthesis.inversion.features import stage_taps
from tests.helpers.tiny_models import load_teacher, model_config


def layer_of(mean: list[float], variance: list[float]) -> Moments:
    running_mean, running_variance = torch.zeros(len(mean)), torch.ones(len(mean))
    return Moments(torch.tensor(mean), torch.tensor(variance), running_mean, running_variance)


def test_the_loss_is_a_sum_of_two_norms_over_layers() -> None:
    first = layer_of([3.0, 4.0], [1.0, 1.0])  # ||(3, 4)|| + 0 = 5
    second = layer_of([0.0, 1.0], [1.0, 3.0])  # 1 + ||(0, 2)|| = 3
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
    """Mean 3 and biased variance 5 against a running mean of 1 and a running variance of 2."""
    layer.eval()
    layer.get_buffer("running_mean").fill_(1.0)
    layer.get_buffer("running_var").fill_(2.0)
    with Taps([layer], moments) as taps:
        layer(torch.tensor(seen))
        (read,) = taps.read
    assert float(read.mean) == pytest.approx(3.0)
    assert float(read.variance) == pytest.approx(5.0)
    assert float(batch_norm_loss([read])) == pytest.approx(2.0 + 3.0)


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
        read = taps.read
    for handle in handles:
        handle.remove()
    assert len(read) == len(inputs) == len(norms) == 19
    expected = 0.0
    for found, layer, given in zip(read, norms, inputs, strict=True):
        values = given.double().numpy().transpose(1, 0, 2, 3).reshape(given.shape[1], -1)
        mean, variance = values.mean(axis=1), values.var(axis=1)
        assert np.allclose(found.mean, mean, atol=1e-4)
        assert np.allclose(found.variance, variance, rtol=1e-3, atol=1e-4)
        expected += float(np.linalg.norm(mean - layer.get_buffer("running_mean").numpy()))
        expected += float(np.linalg.norm(variance - layer.get_buffer("running_var").numpy()))
    assert float(batch_norm_loss(read)) == pytest.approx(expected, rel=1e-3)
    first = teacher.model.get_submodule("visual.conv1")((pixels - teacher.mean) / teacher.std)
    assert torch.allclose(read[0].mean, first.mean(dim=(0, 2, 3)), atol=1e-5)


def test_hooks_are_gone_after_their_block_even_if_it_fails(teacher: Teacher) -> None:
    visual = teacher.model.get_submodule("visual")

    def failing() -> None:
        with batch_norm_taps(teacher, "test"), stage_taps(teacher):
            assert any(module._forward_hooks for module in visual.modules())
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert not any(module._forward_hooks for module in visual.modules())


def test_a_teacher_without_batch_norm_is_refused_in_one_line(tmp_path: Path) -> None:
    """On it the loss would be silently nothing."""
    vit = load_teacher(tmp_path, model_config())
    with pytest.raises(ManifestError, match=r"^teacher.model: cmi needs .* batch norm, got") as e:
        batch_norm_taps(vit, "cmi")
    assert "\n" not in str(e.value)
