"""What a worker reads, and how often; what it makes and refuses is in test_making.py."""

import errno
import gc
import os
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dfkd.cluster.making import identify
from dfkd.cluster.worker import Worker
from dfkd.config.identity import identity
from dfkd.config.manifest import Manifest
from dfkd.config.plan import Unit, units
from dfkd.dataset.versions import begin
from dfkd.errors import InfrastructureError, ManifestError
from dfkd.lab.benchmarks.scale import ScaleWorker
from dfkd.lab.benchmarks.stand_in import StandInMaker, put_prompts
from dfkd.models.generators.generator import Generator
from dfkd.models.teacher import Teacher
from dfkd.storage.local import open_storage
from tests.helpers.tiny_models import VIT, model_config, random_model, write_teacher
from tests.helpers.tiny_version import write_manifest
from tests.helpers.workers import own_worker


def bytes_read() -> int:
    """Bytes that this process has read from files so far, by the kernel's count."""
    (line,) = [line for line in Path("/proc/self/io").read_text().splitlines() if "rchar" in line]
    return int(line.split()[1])


def test_a_teacher_is_read_once_to_load_it_and_for_each_version_to_hash_it(tmp_path: Path) -> None:
    """Weights in the older format, because it is read and not mapped, so that reads count."""
    config = model_config(VIT, quick=True)
    archive = tmp_path / "Tiny.pt"
    state = random_model(config).state_dict()
    torch.save(state, archive, _use_new_zipfile_serialization=False)
    model = write_teacher(tmp_path / "teacher", config).model
    settings: dict[str, object] = {"model": model, "weights": str(archive)}
    manifest = Manifest.read(write_manifest(tmp_path, teacher=settings))
    version = begin(open_storage(manifest.storage.root), identify(manifest))
    own_worker(manifest, version, Worker).load_teacher()  # also imports what is imported late
    worker, read, teachers = Worker(1.0), [], []
    for _ in range(2):
        worker.work_on(manifest, version)
        before = bytes_read()
        teachers.append(worker.load_teacher())
        read.append((bytes_read() - before) / archive.stat().st_size)
    assert teachers[0] is teachers[1]
    assert 2 <= read[0] < 2.5
    assert 1 <= read[1] < 1.5


def test_a_folder_that_this_node_does_not_share_is_named(tmp_path: Path) -> None:
    manifest = Manifest.read(write_manifest(tmp_path))
    version = begin(open_storage(manifest.storage.root), identity(manifest, {}))
    elsewhere = replace(version, home=open_storage(str(tmp_path / "not mounted")))
    with pytest.raises(
        ManifestError, match=r"^storage\.root: must be a folder that all nodes share"
    ):
        Worker(1.0).work_on(manifest, elsewhere)


def test_another_precision_loads_the_teacher_anew(tmp_path: Path) -> None:
    worker, teachers = Worker(1.0), []
    for name, precision in (("a", "float32"), ("b", "bfloat16"), ("c", "bfloat16")):
        (folder := tmp_path / name).mkdir()
        manifest = Manifest.read(write_manifest(folder, synthesis={"precision": precision}))
        version = begin(open_storage(manifest.storage.root), identify(manifest))
        worker.work_on(manifest, version)
        teachers.append(worker.load_teacher())
    assert teachers[0] is not teachers[1]
    assert teachers[1] is teachers[2]


def test_a_teacher_is_gone_before_the_next_one_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU need not have room for both."""
    there: list[object] = []
    worker = Worker(1.0)
    worker._teacher, worker._teacher_key = Teacher.__new__(Teacher), "another"
    monkeypatch.setattr(Teacher, "load", lambda *_: there.append(worker._teacher))
    manifest = Manifest.read(write_manifest(tmp_path))
    version = begin(open_storage(manifest.storage.root), identify(manifest))
    worker.work_on(manifest, version)
    worker.load_teacher()
    assert there == [None]


def test_the_generator_of_one_method_is_gone_before_the_next_loads_its_own(tmp_path: Path) -> None:
    worker = Worker(1.0)
    manifest = Manifest.read(write_manifest(tmp_path))
    version = begin(open_storage(manifest.storage.root), identify(manifest))
    worker.work_on(manifest, version)
    generators = []
    load = Worker.load_generator
    with pytest.MonkeyPatch.context() as patch:

        def noted(worker: Worker) -> Generator | None:
            generators.append(weakref.ref(generator := load(worker)))
            return generator

        patch.setattr(Worker, "load_generator", noted)
        worker._shard_maker = worker.load_maker()
    gc.disable()  # as if no collection were due
    try:
        worker.work_on(manifest, version)
    finally:
        gc.enable()
    assert [reference() for reference in generators] == [None]


@contextmanager
def reads() -> Iterator[Counter[str]]:
    """How often Python opens each file for reading while the block runs, by its name."""
    counts: Counter[str] = Counter()
    active = True

    def count(event: str, arguments: tuple[object, ...]) -> None:
        if active and event == "open" and arguments[1] in ("r", "rb"):
            counts[Path(str(arguments[0])).name] += 1

    sys.addaudithook(count)  # stays until the process ends, so it is switched off
    yield counts
    active = False


def test_a_finished_shard_is_read_once(tmp_path: Path) -> None:
    """The bytes that are parsed and hashed for the receipt are those that are stored."""
    manifest = Manifest.read(write_manifest(tmp_path))
    version = begin(open_storage(manifest.storage.root), identity(manifest, {}))
    put_prompts(manifest, version)
    unit = next(units(manifest, ()))
    with reads() as counts:
        ((receipt, summary),) = own_worker(manifest, version, ScaleWorker).run(unit).result
    assert counts[f"{receipt.task}.tar"] == 1
    assert (summary.samples, summary.failed) == (receipt.samples, 0)
    assert len(summary.images) == receipt.samples


class BadDisk(StandInMaker):
    """A maker of shards that notes something and then meets an error of the disk."""

    def __init__(self, worker: Worker, code: int) -> None:
        super().__init__(worker.manifest)
        self.worker, self.code = worker, code

    def shards(self, unit: Unit, prompts: Any, folder: Path) -> Any:
        self.worker.notes.append("a note")
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.ENOSPC, InfrastructureError), (errno.EIO, OSError), (errno.EROFS, OSError)],
)
def test_only_a_full_disk_ends_the_run(
    tmp_path: Path, code: int, expected: type[Exception]
) -> None:
    """After any other error the engine tries another worker, which may be on another node."""
    manifest = Manifest.read(write_manifest(tmp_path))
    version = begin(open_storage(manifest.storage.root), identity(manifest, {}))
    put_prompts(manifest, version)
    unit = next(units(manifest, ()))
    worker = own_worker(manifest, version, ScaleWorker)
    worker._shard_maker = BadDisk(worker, code)
    with pytest.raises(expected, match=os.strerror(code)):
        worker.run(unit)
    assert worker.run(unit).notes == ()
