"""L_bn of numbers that can be checked by hand, and of every layer of a teacher."""

import numpy as np
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from dfkd.models.batch_norm import (
    Taps,
    batch_norm_loss,
    fold_batch_norms,
    layers,
    statistics_distance,
)
from dfkd.models.teacher import Teacher, batch_norm_taps
from dfkd.synthesis.inversion.inverter import stage_taps


def test_a_folded_tower_has_the_same_embeddings_and_no_batch_norm() -> None:
    noise = torch.Generator().manual_seed(0)
    # Two blocks in a stage, so that one of them has no convolution beside it.
    tower = ModifiedResNet([2, 1, 1, 1], output_dim=4, heads=2, image_size=32, width=8).eval()
    for layer in layers(tower):
        for values in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
            values.data = 0.5 + torch.rand(values.shape, generator=noise)
    images = torch.rand(3, 3, 32, 32, generator=noise)
    before = tower(images)
    fold_batch_norms(tower)
    assert not layers(tower)
    torch.testing.assert_close(tower(images), before, rtol=1e-4, atol=1e-5)


def test_a_tower_whose_norms_may_come_elsewhere_is_left_alone() -> None:
    class NormFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

    tower = NormFirst()
    fold_batch_norms(tower)
    assert layers(tower) == [tower.bn1]


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
