"""Ranks as real processes: DDP, and a change of their number; faults/test_ranks.py kills them."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.api.exceptions import WorkerGroupError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import jobs
from dfkd.checkpoints import Checkpoints
from dfkd.cluster import rank, train
from dfkd.cluster.connect import connected
from dfkd.cluster.rank import Job
from dfkd.cluster.train import (
    Workers,
    _Trainer,
    cpus_each,
    distill,
    explained,
    find_workers,
    run_ranks,
)
from dfkd.distillation import Course
from dfkd.distilled import place
from dfkd.errors import CorruptionError, InfrastructureError, ManifestError
from dfkd.manifest import Cluster, Manifest
from dfkd.student import load_student
from surrogates import publish, write_manifest


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20
        )
        yield
        ray.shutdown()


def prepare(folder: Path, **distillation: object) -> Manifest:
    manifest = Manifest.read(write_manifest(folder, distillation={"workers": 2, **distillation}))
    publish(manifest)
    return manifest


@pytest.mark.faults
def test_training_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    manifest = prepare(tmp_path, epochs=8, workers=1)
    target = place(manifest, "vanilla", 0)
    checkpoints = Checkpoints(target.storage.child("checkpoints"))
    command = jobs.command("distill", tmp_path / "manifest.yaml")
    with subprocess.Popen(command, env=jobs.environment()) as process:
        while not checkpoints.newest():
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    step = checkpoints.newest()
    wider = Manifest.read(tmp_path / "manifest.yaml", ("distillation.workers=2",))
    course = Course.of(wider.distillation, 4)
    assert 0 < step < course.total
    assert place(wider, "vanilla", 0).name == target.name
    distill(wider, "vanilla", 0)
    _, meta = load_student(target.storage)
    assert meta["steps"] == course.total
    assert checkpoints.newest() == 0
    # A run that had begun anew would have written its curve from the first steps on.
    events = EventAccumulator(target.storage.location("tensorboard"))
    events.Reload()
    steps = [event.step for event in events.Scalars("loss")]
    assert steps == sorted(set(steps))
    assert steps[-1] == course.total


def test_ranks_that_start_again_after_the_end_leave_the_student_alone(tmp_path: Path) -> None:
    """As all do when one has died right after the first had written it."""
    manifest = prepare(tmp_path)
    target = distill(manifest, "vanilla", 0).place
    before = list(target.storage.list())
    job = Job(
        manifest=manifest,
        method="vanilla",
        seed=0,
        version=target.version.id,
        name=target.name,
        cpus=1.0,
        gpu=False,
    )
    run_ranks(rank.train, {"job": job}, "again", Workers(2, 1.0, "cpu"))
    assert list(target.storage.list()) == before  # and no curve of another training


def test_our_own_error_in_a_rank_is_the_one_that_is_shown() -> None:
    ours = CorruptionError("shard x: cut; restore it")
    wrapped = UserExceptionWithTraceback(ours, "Traceback ...")
    assert explained(WorkerGroupError("ranks failed", {1: wrapped})) is ours


def test_dead_ranks_are_worth_a_retry() -> None:
    broken = UserExceptionWithTraceback(RuntimeError("Connection closed by peer"), "Traceback ...")
    dead = RuntimeError("a line\nthe reason")
    error = explained(WorkerGroupError("ranks failed", {0: broken, 1: dead}))
    assert isinstance(error, InfrastructureError)
    assert "the reason" in str(error)
    assert "\n" not in str(error)


def test_ranks_that_find_no_room_end_the_run_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own default is to wait for ever, and to say nothing."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    monkeypatch.setattr(train, "STARTS", 1)
    manifest = prepare(tmp_path)
    other = ray.remote(num_cpus=2, max_retries=0)(lambda: time.sleep(600)).remote()
    try:
        with pytest.raises(InfrastructureError, match=r"no room for all ranks.*resumes"):
            distill(manifest, "vanilla", 0)
    finally:
        ray.cancel(other, force=True)


def test_a_defect_keeps_its_traceback() -> None:
    defect = UserExceptionWithTraceback(ZeroDivisionError(), "Traceback ...")
    error = WorkerGroupError("Traceback ...", {0: defect})
    assert explained(error) is error


def test_what_ray_would_wait_for_in_silence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"distillation\.workers.*2 CPUs.*got 3"):
        find_workers(3, Cluster())
    unknown = prepare(tmp_path, student="resnet19")
    with pytest.raises(ManifestError, match=r"distillation\.student"):
        distill(unknown, "vanilla", 0)


def test_ranks_are_sized_by_nodes_and_never_span_two() -> None:
    nodes = {"a": {"CPU": 3.0}, "b": {"CPU": 1.0}}
    assert [cpus_each(nodes, wanted, 0.0) for wanted in (1, 2, 4, 5)] == [3.0, 1.0, 1.0, 0.0]
    nodes["a"]["GPU"] = 1.0
    assert [cpus_each(nodes, wanted, 1.0) for wanted in (1, 2)] == [3.0, 0.0]


def test_nothing_asks_for_a_dashboard_that_is_not_there() -> None:
    """Ray's own default would complain each second."""
    trainer = _Trainer(lambda: None, scaling_config=ScalingConfig(num_workers=2))
    kinds = {type(each).__name__ for each in trainer._create_default_callbacks()}
    assert "BackendSetupCallback" in kinds
    assert "PlacementGroupCleanerCallback" not in kinds


def test_a_connection_of_the_caller_is_used_and_left_open() -> None:
    before = ray.get_runtime_context().gcs_address
    with connected():
        assert ray.get_runtime_context().gcs_address == before
    assert ray.is_initialized()


def test_one_rank_on_one_machine_runs_inside_the_driver() -> None:
    workers = find_workers(1, Cluster())
    assert workers.count == 0
    assert workers.cpus == len(os.sched_getaffinity(0))
    assert find_workers(2, Cluster()).count == 2
