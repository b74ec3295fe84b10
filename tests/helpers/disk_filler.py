"""Drivers without models: the real engine commits tiny made-up samples."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import ray

from dfkd.cluster.capacity import WorkerResources
from dfkd.cluster.connection import connected
from dfkd.cluster.engine import Actor, Engine
from dfkd.config.plan import Task
from dfkd.dataset.versions import Version
from tests.helpers import partial_version
from tests.helpers.jobs import contents

TASKS = tuple(Task(row, shard, shard * 3, 3) for shard in range(12) for row in range(2))


@dataclass(frozen=True)
class Fill:
    """A run that `drive` makes: `notes` has a file for each task, a line for each try."""

    root: Path
    attempts: int = 20
    """Random kills may well hit one task several times."""
    gates: tuple[int, ...] = ()
    """Positions in `TASKS` from which on tasks wait in the midst of their work until `open`."""
    pause: float = 0.0

    @property
    def notes(self) -> Path:
        """Made when the run begins."""
        return self.root.with_suffix(".notes")

    def gate(self, position: int) -> Path:
        """The file that opens a gate."""
        return self.root.with_suffix(f".gate-{position}")

    def wait(self, position: int) -> None:
        """Stand before every gate that a task has to pass."""
        for gate in self.gates:
            while gate <= position and not self.gate(gate).exists():
                time.sleep(0.02)


class Filler(Actor):
    """Notes that it tries a task, then writes and commits it."""

    def __init__(self, version: Version, run: Fill) -> None:
        self.version, self.fill = version, run

    def run(self, task: Task) -> str:
        """Waits at the run's gates before the commit or after it, by the task's number."""
        position = TASKS.index(task)
        with (self.fill.notes / task.id).open("a") as stream:
            stream.write(f"{ray.get_runtime_context().get_node_id()}\n")
        time.sleep(self.fill.pause)
        if position % 2:
            self.fill.wait(position)
        partial_version.commit(self.version, task)
        self.fill.wait(position)
        return task.id


def drive(address: str, run: Fill) -> None:
    """One driver from its connection to the publication."""
    os.environ["RAY_ADDRESS"] = address
    run.notes.mkdir(exist_ok=True)
    resources = WorkerResources(1.0)
    with connected():
        version = partial_version.open_filling(run.root, TASKS)
        done = version.done()
        engine = Engine(Filler, (version, run), len(TASKS), run.attempts, resources)
        list(engine.run(task for task in TASKS if task.id not in done))
        assert engine.quarantine == []
        version.publish(partial_version.blocks(TASKS), partial_version.ENVIRONMENT)


def undisturbed(root: Path) -> dict[str, bytes]:
    """Every byte that a run of `TASKS` leaves when nothing happens."""
    version = partial_version.open_filling(root, TASKS)
    for task in TASKS:
        partial_version.commit(version, task)
    version.publish(partial_version.blocks(TASKS), partial_version.ENVIRONMENT)
    return contents(root / "data")
