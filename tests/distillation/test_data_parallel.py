from collections.abc import Iterator

import pytest
import torch
from torch import distributed, nn

from dfkd.config.distillation import Distillation
from dfkd.distillation.data_parallel import distribute, share_batch_norm
from dfkd.models.student import build


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
    return layer.weight.grad.flatten()


def test_gradients_travel_in_the_precision_of_the_training(alone: None) -> None:
    assert gradient("float32").item() == torch.tensor(1.2345678).item()
    assert gradient("bfloat16").item() == torch.tensor(1.2345678).bfloat16().item()


def batch_norms(module: nn.Module) -> set[bool]:
    """Whether batch norm is shared among ranks, over all its layers."""
    layers = (
        each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)
    )
    return {isinstance(each, nn.SyncBatchNorm) for each in layers}


@pytest.mark.parametrize("name", ["resnet18", "timm:test_resnet", "timm:test_efficientnet"])
def test_a_student_with_shared_batch_norm_is_the_same_student(name: str) -> None:
    """timm's EfficientNet has its activations within its batch norm."""
    config = Distillation(student=name, weights="none", warmup_epochs=0)
    plain, shared = (build(config, 3, 64, seed=0).eval() for _ in range(2))
    shared = share_batch_norm(shared)
    assert batch_norms(plain) == {False}
    assert batch_norms(shared) == {True}
    assert plain.state_dict().keys() == shared.state_dict().keys()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain(images), shared(images))
