import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from dfkd.cluster import rank
from dfkd.cluster.capacity import Ranks
from dfkd.cluster.metrics import Pace
from dfkd.cluster.rank import Job, LocalPreemptionWatch, _Loop, open_distiller, open_stream
from dfkd.config.manifest import Manifest
from dfkd.config.plan import MAX_EMBEDDING_DIM
from dfkd.dataset import loader
from dfkd.distillation.hang_watch import HangWatch
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
    assert open_stream(manifest, version, 0, 0, 1, Ranks(1, cpus, "cpu")).cached == cached


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
        ranks=Ranks(world, 1.0, "a GPU" if gpu else "cpu"),
    )
    stream = open_stream(manifest, version, 0, 0, world, job.ranks)
    student: object = open_distiller(job, version, stream, 0, world)
    assert isinstance(student, nn.Module)
    layers = [each for each in student.modules() if isinstance(each, BatchNorm)]
    assert {isinstance(each, nn.SyncBatchNorm) for each in layers} == {shared}


def test_a_checkpoint_that_another_process_has_deleted_is_no_damage(tmp_path: Path) -> None:
    checkpoints = Checkpoints(open_storage(str(tmp_path)))
    with pytest.raises(InfrastructureError, match=r"000007\.safetensors: no such object"):
        rank._read(checkpoints, 7)


class Steps:
    """A distiller and its stream in one, which only count the steps of epochs of four."""

    def __init__(self, epochs: int) -> None:
        self.step, self.total = 0, 4 * epochs
        self.student = nn.Identity()
        self.config = SimpleNamespace(checkpoint_epochs=2, batch_size=6)
        self.schedule = SimpleNamespace(steps_per_epoch=4)
        self.read: list[tuple[int, int]] = []
        """Epoch and batch from which on the stream was read."""

    @property
    def epoch(self) -> int:
        return self.step // 4

    @property
    def done(self) -> bool:
        return self.step == self.total

    def advance(self, batch: object) -> None:
        self.step += 1

    def batches(self, epoch: int, skip: int) -> Iterator[int]:
        self.read.append((epoch, skip))
        return iter(range(skip, 4))

    def run(self, monkeypatch: pytest.MonkeyPatch, *notices: int) -> tuple[bool, list[int]]:
        """Whether to restart, and the steps of checkpoints; the notices come after steps of it."""
        watch, saved = LocalPreemptionWatch(), []
        monkeypatch.setattr(watch, "received", lambda: self.step in notices)
        parts: Any = self
        loop = _Loop(parts, parts, Pace(6, manifest="m", method="mix"), HangWatch(0.0))
        return loop.run(watch, self.advance, lambda: saved.append(self.step)), saved


def test_a_checkpoint_follows_every_so_many_epochs_but_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Steps(epochs=6).run(monkeypatch) == (False, [8, 16])


def test_a_notice_leads_to_a_checkpoint_of_its_step_but_one_at_the_end_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = Steps(epochs=2)
    assert steps.run(monkeypatch, 3) == (True, [3])
    assert steps.run(monkeypatch, 8) == (False, [])
    assert steps.read == [(0, 0), (0, 3), (1, 0)]


def test_ray_is_asked_for_a_notice_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = [0.0], []

    def draining() -> set[str]:
        asked.append(clock[0])
        return {"other"} if clock[0] < 2 else {"other", "own"}

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(rank, "node_id", lambda: "own")
    monkeypatch.setattr(rank, "draining_nodes", draining)
    watch = LocalPreemptionWatch()
    assert not watch.received()  # there is no Ray
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    found = []
    for clock[0] in (0.0, 0.4, 0.9, 1.1, 1.9, 2.2):
        found.append(watch.received())
    assert found == [False] * 5 + [True]
    assert asked == [0.0, 1.1, 2.2]
