"""Batch norms that are folded into convolutions leave a tower as it was."""

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import nn

from dfkd.lab.baselines.batch_norm import layers
from dfkd.models.batch_norm import fold_batch_norms


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
