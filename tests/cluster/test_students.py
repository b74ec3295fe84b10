"""What a driver records of students in training, and what an actor makes of an error."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dfkd.cluster import students as module
from dfkd.cluster.capacity import Ranks
from dfkd.cluster.students import RANK_GRACE_SECONDS, StudentDistiller, StudentTask, distill
from dfkd.config.manifest import Manifest
from dfkd.distillation.student_store import StudentLocation, locate_student
from dfkd.errors import CorruptionError, DfkdError, InfrastructureError
from dfkd.storage import cost_records, layout
from dfkd.storage.checkpoints import Checkpoints
from dfkd.storage.lease import held_leases
from dfkd.storage.local import open_storage
from tests.helpers.ranks import prepare

STATE = {"weight": torch.zeros(1)}


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return prepare(tmp_path, workers=1, seeds=[0, 1], batch_size=10)


def checkpoints(target: StudentLocation) -> Checkpoints:
    return Checkpoints(target.storage.child("checkpoints"))


def task_of(manifest: Manifest) -> StudentTask:
    target = locate_student(manifest, "vanilla", 0)
    return StudentTask("vanilla", 0, target.version.id, target.architecture, target.name)


@pytest.mark.parametrize(
    "error",
    [InfrastructureError("busy; again"), OSError(errno.EIO, "busy"), torch.AcceleratorError()],
)
def test_what_another_try_may_cure_ends_the_actor(
    manifest: Manifest, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost GPU would fail every further student of this actor at once, and the driver ends all
    students if it is handed an error.
    """
    monkeypatch.setattr(module, "_train", raising(error))
    with pytest.raises(type(error)):
        StudentDistiller(1.0, manifest, "log").train(task_of(manifest))


def test_what_no_try_cures_is_handed_to_the_driver(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = CorruptionError("shard x: cut; restore it")
    monkeypatch.setattr(module, "_train", raising(error))
    task = task_of(manifest)
    assert StudentDistiller(1.0, manifest, "log").train(task) == (task, error)


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(("longest", "timeout"), [(0.0, 0.0), (50.0, 50.0 + RANK_GRACE_SECONDS)])
def test_the_watch_of_a_rank_that_hangs_comes_before_the_others_give_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, longest: float, timeout: float
) -> None:
    prepare(tmp_path)
    settings = (f"cluster.task_timeout={longest}",)
    manifest = Manifest.read(tmp_path / "manifest.yaml", settings)
    limits: list[float] = []
    monkeypatch.setattr(module, "run_ranks", lambda *given: limits.append(given[-1]))
    target = locate_student(manifest, "vanilla", 0)
    module._train(manifest, target, Ranks(2, 1.0, "cpu"), "log")
    assert limits == [timeout]


def test_a_resumed_training_counts_its_own_images(manifest: Manifest) -> None:
    target, root = locate_student(manifest, "vanilla", 0), open_storage(manifest.storage.root)
    checkpoints(target).write(3, STATE)
    for ranks in (Ranks(2, 1.0, "a GPU"), Ranks(0, 1.0, "cpu")):
        with module._lease_and_record(manifest, target, ranks):
            checkpoints(target).write(checkpoints(target).newest() + 4, STATE)
    found = [(each.images, each.workers, each.device) for each in cost_records.read(root)]
    assert found == [(40, 2, "a GPU"), (40, 1, "cpu")]


def test_the_checkpoints_of_a_finished_student_are_cleared(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left by a run that was killed between the student and their removal."""
    target = locate_student(manifest, "vanilla", 0)
    checkpoints(target).write(7, STATE)
    monkeypatch.setattr(StudentLocation, "finished", True)
    assert distill(manifest, "vanilla", 0).reused
    assert checkpoints(target).newest() == 0


def test_a_version_is_kept_while_a_student_learns_from_it(manifest: Manifest) -> None:
    target, root = locate_student(manifest, "vanilla", 0), open_storage(manifest.storage.root)
    with module._lease_and_record(manifest, target, Ranks(0, 1.0, "cpu")):
        (lease,) = held_leases(root).values()
    assert list(lease.versions) == [f"vanilla/{target.version.id}"]
    assert held_leases(root) == {}


def test_a_version_whose_removal_has_begun_is_not_learnt_from(manifest: Manifest) -> None:
    """After it was opened and before it was leased; else its shards would go one by one."""
    target = locate_student(manifest, "vanilla", 0)
    mark = f"{layout.version(target.version.id)}/{layout.REMOVING}"
    target.version.home.put(mark, b"")
    recording = module._lease_and_record(manifest, target, Ranks(0, 1.0, "cpu"))
    with pytest.raises(DfkdError, match="is being removed"), recording:
        pytest.fail("the training began")
    assert held_leases(open_storage(manifest.storage.root)) == {}
