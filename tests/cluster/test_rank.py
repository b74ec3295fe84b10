"""How the ranks of a distillation are joined."""

from collections.abc import Iterator

import pytest
import torch
from torch import distributed, nn

from dfkd.cluster.rank import distribute


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    yield
    distributed.destroy_process_group()


def gradient(precision: str) -> torch.Tensor:
    layer = nn.Linear(1, 1, bias=False)
    parallel = distribute(layer, precision)
    parallel(torch.tensor([[1.2345678]])).sum().backward()
    assert layer.weight.grad is not None
    return layer.weight.grad.flatten()


def test_gradients_travel_in_the_precision_of_the_training(alone: None) -> None:
    assert gradient("float32").item() == torch.tensor(1.2345678).item()
    assert gradient("bfloat16").item() == torch.tensor(1.2345678).bfloat16().item()
