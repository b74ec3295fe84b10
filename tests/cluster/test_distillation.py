"""Ranks as real processes: DDP, and a change of their number; faults/test_ranks.py kills them."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dfkd
from dfkd.cluster import capacity, launch, rank, students
from dfkd.cluster.capacity import (
    Ranks,
    WorkerResources,
    plan_ranks,
    wait_for_nodes,
)
from dfkd.cluster.connection import connected
from dfkd.cluster.launch import run_ranks
from dfkd.cluster.rank import Job, LocalPreemptionWatch, open_stream
from dfkd.cluster.students import (
    FinishedStudent,
    StudentDistiller,
    StudentTask,
    distill,
    student_engine,
)
from dfkd.config.manifest import Cluster, Manifest, StorageConfig
from dfkd.distillation.distiller import Distiller, Schedule
from dfkd.distillation.embedding import embedding_objective
from dfkd.distillation.objective import DistanceObjective, Objective
from dfkd.distillation.student_store import StudentLocation, locate_student, locate_students
from dfkd.errors import CorruptionError, DfkdError, InfrastructureError, ManifestError
from dfkd.models.labeller import file_hashes
from dfkd.models.student import Student, build, load_student
from dfkd.storage import cost_records
from dfkd.storage.checkpoints import Checkpoints
from dfkd.storage.lease import held_leases
from dfkd.storage.local import open_storage
from dfkd.utils.hardware import cpu_count
from tests.helpers import jobs
from tests.helpers.published import flip_bit
from tests.helpers.ranks import prepare
from tests.helpers.tiny_models import model_config, write_teacher
from tests.helpers.tiny_version import EMBEDDING, publish, write_manifest

pytestmark = pytest.mark.usefixtures("two_cpus")


@pytest.mark.faults
def test_training_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    manifest = prepare(tmp_path, epochs=8, workers=1)
    target = locate_student(manifest, "vanilla", 0)
    checkpoints = Checkpoints(target.storage.child("checkpoints"))
    jobs.kill_when(checkpoints.newest, "distill", tmp_path / "manifest.yaml")
    step = checkpoints.newest()
    wider = Manifest.read(tmp_path / "manifest.yaml", ("distillation.workers=2",))
    course = Schedule.of(wider.distillation, 4)
    assert 0 < step < course.total
    assert locate_student(wider, "vanilla", 0).name == target.name
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


@pytest.fixture(scope="module")
def trained(two_cpus: None, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The manifest of a student that two ranks have made in one step, of 12 and of 11 images."""
    folder = tmp_path_factory.mktemp("trained")
    manifest = prepare(folder, batch_size=23, warmup_epochs=0, epochs=1, standardise=False)
    distill(manifest, "vanilla", 0)
    return manifest


def test_two_ranks_with_unequal_shares_make_the_step_of_the_whole_batch(trained: Manifest) -> None:
    """The gradient is the mean over all images, batch-norm statistics are the mean over ranks.

    Of both there is one step, so that each rank's part can be had by itself.
    """
    check_step_of_the_whole_batch(trained)


def test_two_ranks_learn_embeddings(tmp_path: Path) -> None:
    """What DDP wraps is what the loss sees, so the gradients of both ranks are averaged."""
    teacher = write_teacher(tmp_path, {**model_config(), "embed_dim": EMBEDDING})
    path = write_manifest(
        tmp_path,
        teacher=dataclasses.asdict(teacher),
        distillation={"workers": 2, "batch_size": 23, "epochs": 1, "target": "both"},
    )
    manifest = Manifest.read(path)
    publish(manifest, digests=file_hashes(teacher))
    distill(manifest, "vanilla", 0)
    check_step_of_the_whole_batch(manifest)


def check_step_of_the_whole_batch(manifest: Manifest) -> None:
    """That the student of one step is the mean of what each rank would have made of it alone."""
    target = locate_student(manifest, "vanilla", 0)
    student = load_student(target.storage)[0].state_dict()
    alone = [one_step(manifest, target, rank) for rank in range(2)]
    parameters = dict(alone[0].named_parameters())
    states = [each.state_dict() for each in alone]
    statistics = [name for name in student if "running" in name]
    assert len(statistics) > 2
    assert any(not torch.equal(states[0][name], states[1][name]) for name in statistics)
    for name in [*parameters, *statistics]:
        shares = (12 / 23, 11 / 23) if name in parameters else (0.5, 0.5)
        expected = sum(share * state[name] for share, state in zip(shares, states, strict=True))
        torch.testing.assert_close(student[name], expected, rtol=1e-4, atol=1e-6)


def one_step(manifest: Manifest, target: StudentLocation, rank: int) -> Student:
    """The student after the only step, made of one rank's images alone."""
    config = manifest.distillation
    stream = open_stream(manifest, target.version, 0, rank, 2, Ranks(2, 1.0, "cpu"))
    assert (stream.steps, stream.rank_batch_size) == (1, 12 - rank)
    objective: Objective = DistanceObjective()
    if config.embeds:
        objective = embedding_objective(manifest, target.version)
    student = build(config, 3 if config.target == "distances" else EMBEDDING, 32, 0)
    distiller = Distiller(student, config, Schedule.of(config, 1), 0, objective=objective)
    distiller.advance(next(stream.batches(0)))
    return objective.finish(student)


def test_ranks_that_start_again_after_the_end_leave_the_student_alone(trained: Manifest) -> None:
    """As all do when one has died right after the first had written it."""
    target = locate_student(trained, "vanilla", 0)
    before = list(target.storage.list())
    assert before
    job = Job(
        manifest=trained,
        method="vanilla",
        seed=0,
        version=target.version.id,
        name=target.name,
        ranks=Ranks(2, 1.0, "cpu"),
    )
    run_ranks(rank.train, job.as_config(), "again", job.ranks)
    assert list(target.storage.list()) == before  # and no curve of another training


def test_ranks_that_find_no_room_end_the_run_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own default is to wait for ever, and to say nothing."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    monkeypatch.setattr(launch, "MAX_START_ATTEMPTS", 1)
    manifest = prepare(tmp_path)
    other = ray.remote(num_cpus=2, max_retries=0)(lambda: time.sleep(600)).remote()
    try:
        with pytest.raises(InfrastructureError, match=r"gave up on the ranks \(.*resumes"):
            distill(manifest, "vanilla", 0)
    finally:
        ray.cancel(other, force=True)


@pytest.mark.parametrize(
    ("cpus", "gpus", "each"),
    [
        (1.0, None, WorkerResources(1.0)),
        (0.5, 0.0, WorkerResources(1.0)),
        (0.5, 0.5, WorkerResources(1.0, 1.0)),
        (4.0, 2.0, WorkerResources(4.0, 1.0)),
    ],
)
def test_an_autoscaler_is_asked_for_what_ranks_need(
    monkeypatch: pytest.MonkeyPatch, cpus: float, gpus: float | None, each: WorkerResources
) -> None:
    """Workers may share a CPU or a GPU, ranks may not."""
    asked: list[object] = []
    monkeypatch.setattr(capacity, "has_autoscaler", lambda: True)
    monkeypatch.setattr(capacity, "wait_for_nodes", lambda *request: asked.append(request))
    plan_ranks((2, 4), Cluster(cpus_per_worker=cpus, gpus_per_worker=gpus))
    assert asked == [(each, 2)]


def test_what_ray_would_wait_for_in_silence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"distillation\.workers.*2 CPUs.*got 3"):
        plan_ranks((3, 3), Cluster())
    unknown = prepare(tmp_path, student="resnet19")
    with pytest.raises(ManifestError, match=r"distillation\.student"):
        distill(unknown, "vanilla", 0)


def test_a_connection_of_the_caller_is_used_and_left_open() -> None:
    before = ray.get_runtime_context().gcs_address
    with connected():
        assert ray.get_runtime_context().gcs_address == before
    assert ray.is_initialized()


def test_one_rank_on_one_machine_runs_inside_the_driver() -> None:
    workers = plan_ranks((1, 1), Cluster())
    assert workers.count == 0
    assert workers.cpus == cpu_count()
    assert plan_ranks((2, 2), Cluster()).count == 2


def test_elastic_ranks_are_as_many_as_fit() -> None:
    workers = plan_ranks((1, 4), Cluster())
    assert (workers.count, workers.cpus, workers.elastic) == (2, 1.0, (1, 4))


def test_who_waits_for_nodes_in_vain_is_told_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wait_for_nodes(WorkerResources(1.0), 2)
    assert not capfd.readouterr().err
    monkeypatch.setattr(capacity, "CAPACITY_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(capacity, "POLL_SECONDS", 0.01)
    with pytest.raises(InfrastructureError, match="no node had room"):
        wait_for_nodes(WorkerResources(1.0), 3)
    assert "waiting for nodes for 3 workers, each takes {'CPU': 1.0}" in capfd.readouterr().err


def prepare_alone(folder: Path, **distillation: object) -> Manifest:
    """The manifest of a published version, for four students of one rank."""
    settings = {"workers": 1, "seeds": [0, 1, 2, 3], "warmup_epochs": 0, "epochs": 1}
    return prepare(folder, **settings | distillation)


def test_students_of_one_rank_train_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one engine, under a relative root; what is finished is not trained again."""
    monkeypatch.chdir(tmp_path)
    manifest = prepare_alone(tmp_path)
    manifest = dataclasses.replace(manifest, storage=StorageConfig(root="run"))
    alone = distill(manifest, "vanilla", 2)
    written = Path(alone.student.location).stat().st_mtime_ns
    told: list[tuple[int, bool]] = []
    root = open_storage(manifest.storage.root)
    recorded: list[tuple[int, int]] = []

    def tell(finished: FinishedStudent) -> None:
        told.append((finished.student.seed, finished.reused))
        recorded.append((len(cost_records.read(root)), len(held_leases(root))))

    counts: list[int] = []

    def noted(kind: Any, share: WorkerResources, count: int, *others: Any) -> Any:
        counts.append(count)
        return student_engine(kind, share, count, *others)

    monkeypatch.setattr(students, "student_engine", noted)
    found = dfkd.distill(manifest, on_student=tell)
    assert [each.student.seed for each in found] == [0, 1, 2, 3]
    assert counts == [3]
    assert told[0] == (2, True)
    assert sorted(told[1:]) == [(0, False), (1, False), (3, False)]
    assert Path(alone.student.location).stat().st_mtime_ns == written
    # A student's cost and the end of its lease are there as soon as it is told.
    assert [count for count, _ in recorded] == [1, 2, 3, 4]
    assert recorded[-1] == (4, 0)
    entries = cost_records.read(root)
    assert [(entry.seed, entry.workers, entry.images) for entry in entries] == [
        (seed, 1, 24) for seed in range(4)
    ]
    events = tmp_path.glob("run/students/*/tensorboard/events.*")
    # This process and its actors, of which the first may have trained all before others begin.
    assert len({file.name.split(".")[-2] for file in events}) > 1


def test_other_architectures_train_beside_the_first_on_the_last_method_s_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    several = ["timm:test_resnet", "timm:test_efficientnet"]
    settings = {"student": several, "epochs": 1}
    manifest = Manifest.read(
        write_manifest(tmp_path, prompts={"method": ["vanilla", "mix"]}, distillation=settings)
    )
    versions = {method: publish(manifest, method) for method in manifest.methods}
    alone = distill(manifest.with_student(several[0]), "mix", 0)  # of a manifest without others
    assert "mix test_resnet: " in capfd.readouterr().err
    written = Path(alone.student.location).stat().st_mtime_ns
    engines: list[tuple[type, int]] = []

    def noted(kind: Any, share: WorkerResources, count: int, *others: Any) -> Any:
        engines.append((kind, count))
        return student_engine(kind, share, count, *others)

    monkeypatch.setattr(students, "student_engine", noted)
    found = dfkd.distill(manifest)
    assert engines == [(StudentDistiller, 2)]
    assert [(each.student.method, each.student.architecture, each.reused) for each in found] == [
        ("vanilla", several[0], False),
        ("mix", several[0], True),
        ("mix", several[1], False),
    ]
    assert found[1].student.name == alone.student.name
    assert Path(alone.student.location).stat().st_mtime_ns == written
    for each in found:
        _, card = load_student(each.student.storage)
        made = (card["version"], card["architecture"])
        assert made == (versions[each.student.method].fingerprint, each.student.architecture)
    assert len([*tmp_path.glob("run/students/*")]) == 3


def test_a_student_that_fails_at_every_attempt_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unlucky(StudentDistiller):
        """On a disk that is gone."""

        def train(self, task: StudentTask) -> tuple[StudentTask, Exception | None]:
            raise OSError("the disk is gone")

    monkeypatch.setattr(students, "student_engine", lambda _, *rest: student_engine(Unlucky, *rest))
    manifest = prepare_alone(tmp_path, seeds=[0, 1]).with_values(cluster={"attempts": 1})
    found = (
        r"vanilla student timm:test_resnet of seed \d: failed at every attempt \(.*the disk is gone"
    )
    with pytest.raises(InfrastructureError, match=found):
        list(students.distill_all(manifest, locate_students(manifest)))


def test_an_error_of_one_student_beside_others_is_that_error(tmp_path: Path) -> None:
    manifest = prepare_alone(tmp_path)
    shard = next(iter(tmp_path.glob("run/data/vanilla/versions/*/shards/*.tar")))
    flip_bit(shard)
    with pytest.raises(CorruptionError, match=shard.name):
        dfkd.distill(manifest)


def test_a_defect_in_an_actor_keeps_its_traceback(tmp_path: Path) -> None:
    own = Cluster()  # not the default of other manifests
    manifest = dataclasses.replace(prepare_alone(tmp_path), cluster=own)
    object.__setattr__(manifest.cluster, "task_timeout", "never")  # which no manifest may have
    with pytest.raises(TypeError) as caught:
        dfkd.distill(manifest)
    assert "in _train\n" in "".join(caught.value.__notes__)


def test_a_training_that_diverges_ends_with_one_line(tmp_path: Path) -> None:
    manifest = prepare(tmp_path, workers=1, warmup_epochs=0, learning_rate=1e30)
    with pytest.raises(DfkdError, match=r"loss is no number at step \d+; lower distillation"):
        distill(manifest, "vanilla", 0)
    assert not locate_student(manifest, "vanilla", 0).finished


def test_a_notice_leaves_no_checkpoint_of_a_training_that_has_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another call would go on from it to the same end."""
    manifest = prepare(tmp_path, workers=1, warmup_epochs=0, learning_rate=1e30)
    answers = iter([False, False, True])  # the loss of the first step is still a number
    monkeypatch.setattr(LocalPreemptionWatch, "received", lambda watch: next(answers))
    with pytest.raises(DfkdError, match="loss is no number at step 3; lower distillation"):
        distill(manifest, "vanilla", 0)
    assert not list(tmp_path.rglob("checkpoints/*"))
