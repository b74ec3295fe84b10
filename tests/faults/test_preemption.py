"""A node that is taken away with a notice, while ranks or students train on it."""

import functools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
from ray._private.node import Node

from dfkd.cluster import students as module
from dfkd.cluster.rank import train
from dfkd.cluster.ray_internals import draining_nodes
from dfkd.cluster.students import (
    StudentDistiller,
    StudentTask,
    distill,
    distill_all,
    student_engine,
)
from dfkd.config.manifest import Manifest
from dfkd.distillation.distiller import Distiller
from dfkd.distillation.student_store import StudentLocation, locate_students
from dfkd.models.student import load_student
from dfkd.storage.checkpoints import Checkpoints
from tests.helpers.draining import drain
from tests.helpers.machines import Nodes, two_nodes
from tests.helpers.tiny_version import publish, write_manifest
from tests.helpers.waiting import wait_for

pytestmark = [pytest.mark.faults, pytest.mark.timeout(800)]

STEPS = 40
"""Of the one epoch: 240 images in batches of 6. No checkpoint is written but after a notice."""
GATE = 5
"""The step before which a node goes."""


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A cluster for each test: Ray Train sees a node that joined up to 20 seconds later.

    A second test on the same cluster would start with one rank, and get the other only at the next
    check of `launch.RESIZE_SECONDS`.
    """
    with two_nodes() as cluster:
        yield cluster


@pytest.fixture
def driver(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A connection of this process to the cluster."""
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.2")
    # Ray may wait so long for room on the node that is going, before it tries with one rank less.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    ray.init(address=nodes.cluster.address)
    yield
    ray.shutdown()


def prepare(folder: Path, **distillation: object) -> Manifest:
    path = write_manifest(
        folder,
        synthesis={"images_per_class": 80, "shard_size": 10},
        distillation={
            "workers": [1, 2],
            "warmup_epochs": 0,
            "epochs": 1,
            "checkpoint_epochs": 100,
            **distillation,
        },
    )
    manifest = Manifest.read(path)
    publish(manifest)
    return manifest


def noted(notes: Path, gate: Path) -> Callable[[dict[str, Any]], Any]:
    """`train`, whose first rank notes each step, its node and the number of ranks.

    All wait before step `GATE` until `gate` is there, and then take their time for what Ray has to
    tell them, until they are started again.
    """
    step = GATE

    def loop(config: dict[str, Any]) -> Any:
        world = ray.train.get_context().get_world_size()
        node = ray.get_runtime_context().get_node_id()
        again = gate.exists()
        advance = Distiller.advance

        @functools.wraps(advance)
        def noting(self: Distiller, batch: Any) -> Any:
            if self.step == step:
                (notes / f"at the gate {self.rank}").touch()
                while not gate.exists():
                    time.sleep(0.05)
            outcome = advance(self, batch)
            if self.rank == 0:
                with (notes / "steps").open("a") as stream:
                    stream.write(f"{self.step - 1} {world} {node}\n")
            time.sleep(0.0 if again or self.step < step else 0.3)
            return outcome

        Distiller.advance = noting  # type: ignore[method-assign]
        return train(config)

    return loop


def made(notes: Path) -> list[tuple[int, int, str]]:
    """Each step, the number of ranks that made it, and the first one's node."""
    lines = (notes / "steps").read_text().splitlines()
    return [(int(step), int(world), node) for step, world, node in map(str.split, lines)]


@pytest.fixture
def run(
    nodes: Nodes, driver: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Path], None]], tuple[StudentLocation, Path]]:
    """Distil, while `change(notes)` is called with all ranks at the gate."""

    def run(change: Callable[[Path], None]) -> tuple[StudentLocation, Path]:
        manifest, notes, gate = prepare(tmp_path), tmp_path / "notes", tmp_path / "gate"
        notes.mkdir()
        monkeypatch.setattr(module, "train", noted(notes, gate))

        def watch() -> None:
            world = len(nodes.workers)
            try:
                wait_for(lambda: len(list(notes.glob("at the gate *"))) == world, limit=120)
                change(notes)
            finally:
                gate.touch()  # also after a failure: the ranks would wait for ever

        with ThreadPoolExecutor(1) as aside:
            watching = aside.submit(watch)
            student = distill(manifest, "vanilla", 0).student
            watching.result()
        return student, notes

    return run


@pytest.mark.parametrize("first", [True, False], ids=["the first rank's", "the other rank's"])
def test_no_step_is_lost_or_made_twice_when_a_node_goes_with_a_notice(
    nodes: Nodes, run: Callable[..., tuple[StudentLocation, Path]], first: bool
) -> None:
    leaving: list[Node] = []

    def give_notice(notes: Path) -> None:
        of_first = made(notes)[0][2]
        leaving.extend(each for each in nodes.workers if (each.node_id == of_first) == first)
        (node,) = leaving
        drain(nodes.cluster, node)
        wait_for(lambda: node.node_id in draining_nodes(), limit=60)

    student, notes = run(give_notice)
    steps, worlds, _ = zip(*made(notes), strict=True)
    assert list(steps) == list(range(STEPS))
    assert set(worlds) == {1, 2}
    assert load_student(student.storage)[1]["steps"] == STEPS
    assert Checkpoints(student.storage.child("checkpoints")).newest() == 0
    print(f"{worlds.count(2)} steps of two ranks, a notice, {worlds.count(1)} steps of one")


def noting_actor(notes: Path, gate: Path) -> type[StudentDistiller]:
    """An actor that notes the node of each step of a student; all wait before step `GATE`."""
    step = GATE

    class Noting(StudentDistiller):
        def train(self, task: StudentTask) -> tuple[StudentTask, Exception | None]:
            again, node = gate.exists(), ray.get_runtime_context().get_node_id()
            advance = Distiller.advance

            def noting(distiller: Distiller, batch: Any) -> Any:
                if distiller.step == step:
                    (notes / f"at the gate {task.seed}").write_text(node)
                    while not gate.exists():
                        time.sleep(0.05)
                outcome = advance(distiller, batch)
                with (notes / f"steps {task.seed}").open("a") as stream:
                    stream.write(f"{distiller.step - 1} {node}\n")
                time.sleep(0.0 if again or distiller.step < step else 0.3)
                return outcome

            Distiller.advance = noting  # type: ignore[method-assign]
            try:
                return super().train(task)
            finally:
                Distiller.advance = advance  # type: ignore[method-assign]

    return Noting


def test_of_students_side_by_side_the_one_whose_node_goes_moves_and_loses_no_step(
    nodes: Nodes, driver: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = prepare(tmp_path, workers=1, seeds=[0, 1])
    notes, gate = tmp_path / "notes", tmp_path / "gate"
    notes.mkdir()
    kind = noting_actor(notes, gate)
    monkeypatch.setattr(module, "student_engine", lambda _, *rest: student_engine(kind, *rest))

    def give_notice() -> None:
        waiting = [notes / f"at the gate {seed}" for seed in (0, 1)]
        try:
            wait_for(lambda: all(file.exists() for file in waiting), limit=120)
            first, second = (file.read_text() for file in waiting)
            assert first != second
            (node,) = (each for each in nodes.workers if each.node_id == first)
            drain(nodes.cluster, node)
            wait_for(lambda: node.node_id in draining_nodes(), limit=60)
        finally:
            gate.touch()

    with ThreadPoolExecutor(1) as aside:
        watching = aside.submit(give_notice)
        students = list(distill_all(manifest, locate_students(manifest)))
        watching.result()
    seeds = [each.student.seed for each in students]
    assert seeds == [1, 0]
    for seed, places in zip(seeds, (1, 2), strict=True):
        lines = (notes / f"steps {seed}").read_text().splitlines()
        steps, hosts = zip(*map(str.split, lines), strict=True)
        assert list(map(int, steps)) == list(range(STEPS))
        assert len(set(hosts)) == places
