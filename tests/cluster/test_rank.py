"""How the ranks of a distillation are joined."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from dfkd.cluster import rank
from dfkd.cluster.rank import Job, distribute, open_distiller, open_stream, share_batch_norm
from dfkd.config.distillation import Distillation
from dfkd.config.manifest import Manifest
from dfkd.config.plan import MAX_EMBEDDING_DIM
from dfkd.dataset import loader
from dfkd.models.student import build
from tests.helpers.tiny_version import publish, write_manifest


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


@pytest.mark.parametrize(("cpus", "cached"), [(4.0, True), (1.0, False)])
def test_a_rank_keeps_what_its_share_of_the_memory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: float, cached: bool
) -> None:
    manifest = Manifest.read(write_manifest(tmp_path))
    version = publish(manifest)
    decoded = 24 * (3 * 32**2 + 4 * 3 + 2 * MAX_EMBEDDING_DIM)
    monkeypatch.setattr(loader, "CACHE_BYTES", 0)
    monkeypatch.setattr(loader, "available_memory", lambda: 2 * decoded)
    monkeypatch.setattr(loader, "cpu_count", lambda: 4)
    assert open_stream(manifest, version, 0, 0, 1, cpus).cached == cached


@pytest.mark.parametrize(
    ("gpu", "world", "shared"), [(True, 2, True), (True, 1, False), (False, 2, False)]
)
def test_ranks_on_gpus_share_their_batch_norm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool, world: int, shared: bool
) -> None:
    """No GPU is needed up to where the student is moved to it."""
    monkeypatch.setattr(rank, "pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(rank, "Distiller", lambda student, *_, **__: student)
    manifest = Manifest.read(write_manifest(tmp_path))
    version = publish(manifest)
    job = Job(
        manifest=manifest,
        method="vanilla",
        seed=0,
        version=version.id,
        name="student",
        cpus=1.0,
        gpu=gpu,
    )
    stream = open_stream(manifest, version, 0, 0, world)
    student: object = open_distiller(job, version, stream, 0, world)
    assert isinstance(student, nn.Module)
    assert batch_norms(student) == {shared}
