from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from dfkd.cluster import rank
from dfkd.cluster.rank import Job, open_distiller, open_stream
from dfkd.config.manifest import Manifest
from dfkd.config.plan import MAX_EMBEDDING_DIM
from dfkd.dataset import loader
from dfkd.errors import InfrastructureError
from dfkd.storage.checkpoints import Checkpoints
from dfkd.storage.local import open_storage
from tests.helpers.tiny_version import publish, write_manifest


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
    layers = [each for each in student.modules() if isinstance(each, BatchNorm)]
    assert {isinstance(each, nn.SyncBatchNorm) for each in layers} == {shared}


def test_a_checkpoint_that_another_process_has_deleted_is_no_damage(tmp_path: Path) -> None:
    checkpoints = Checkpoints(open_storage(str(tmp_path)))
    with pytest.raises(InfrastructureError, match=r"000007\.safetensors: no such object"):
        rank._read(checkpoints, 7)
