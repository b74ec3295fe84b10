"""Fills a small version step by step, as a run does, so that tests can kill it on the way."""

import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import webdataset  # noqa: F401 - here once, so that not each forked process imports it on its way

from dfkd.config.plan import Task
from dfkd.dataset import versions
from dfkd.dataset.published import PublishedVersion
from dfkd.dataset.receipts import Receipt
from dfkd.dataset.shards import Sample, sample_key, write_shard
from dfkd.storage.base import Storage
from dfkd.storage.local import open_storage
from tests.helpers.jobs import contents

pa.array([0])  # likewise: with its first array pyarrow imports pandas, if that is installed

IDENTITY: dict[str, Any] = {
    "schema": 1,
    "seed": 0,
    "classes": ["owl", "tree"],
    "prompts.method": ["vanilla"],
    "teacher.model": "miniature",
    "teacher.weights.sha256": "ab" * 32,
}
TASKS = tuple(Task(row, shard, shard * 3, 3) for shard in range(2) for row in range(2))
ENVIRONMENT = {"torch": "2"}


def blocks(tasks: Collection[Task]) -> list[tuple[str, list[Task]]]:
    """The tasks as the one block that they are in a run."""
    return [("00000", sorted(tasks, key=lambda task: task.id))]


BLOCKS = blocks(TASKS)


def metadata(name: str, class_index: int, index: int, **own: object) -> dict[str, Any]:
    """What a sample of the class `name` says of itself; `own` replaces values."""
    return {
        "class": name,
        "class_index": class_index,
        "index": index,
        "seed": index,
        "method": "vanilla",
        "prompt": "A thing",
        "loss": 0.5,
        "confidence": 0.9,
        "steps": 1,
        "attempt": 0,
        **own,
    }


def make_sample(class_index: int, index: int, shift: float = 0.0) -> Sample:
    """The sample that this class and index always give; `shift` makes another one."""
    noise, name = np.random.default_rng([class_index, index]), IDENTITY["classes"][class_index]
    facts = metadata(
        name,
        class_index,
        index,
        seed=int(noise.integers(2**62)) * 2 + 1,
        prompt=f"A {name} in the style of ½ {index}",
        loss=0.5 + shift,
        confidence=float(noise.random()),
        steps=20,
    )
    arrays = {
        "distances": noise.random(2, np.float32) + 1,
        "embedding": noise.random(4, np.float32).astype(np.float16),
    }
    return Sample(sample_key(class_index, index), noise.bytes(700), "png", facts, arrays)


def write_task(task: Task, path: Path, failed: Collection[int] = (), shift: float = 0.0) -> Path:
    """The task's shard at `path`, without the failed indices."""
    wanted = [index for index in task.indices if index not in failed]
    write_shard([make_sample(task.class_index, index, shift) for index in wanted], path)
    return path


def commit(
    version: versions.Version, task: Task, failed: Collection[int] = (), shift: float = 0.0
) -> Receipt:
    """Write a task's shard and commit it."""
    with tempfile.TemporaryDirectory() as folder:
        return version.commit(task, write_task(task, Path(folder, "shard"), failed, shift), failed)


def commit_all(version: versions.Version, without: Collection[str] = ()) -> None:
    """Commit each task but some."""
    for task in TASKS:
        if task.id not in without:
            commit(version, task)


def home(root: Path | str) -> Storage:
    """The vanilla method's storage in a run's root."""
    return open_storage(str(root)).child("data/vanilla")


def open_filling(root: Path | str, tasks: Collection[Task] = TASKS) -> versions.Version:
    """Begin or resume, and have the prompts there."""
    version = versions.begin(home(root), IDENTITY)
    shards = sorted({task.shard_index for task in tasks})
    for shard in shards:
        mine = [task for task in tasks if task.shard_index == shard]
        rows = [{"class_index": t.class_index, "index": i} for t in mine for i in t.indices]
        version.put_prompts(f"{shard:05d}", pa.Table.from_pylist(rows))
    version.seal_prompts([f"{shard:05d}" for shard in shards], {})
    return version


def fill(root: Path | str, tasks: Collection[Task] = TASKS) -> PublishedVersion:
    """Begin or resume, prompts, every missing task, publish: what a run does, without models."""
    version = open_filling(root, tasks)
    done = version.done()
    for task in tasks:
        if task.id not in done:
            commit(version, task, failed=[4] if task.id == "0001-00001" else [])
    return version.publish(blocks(tasks), ENVIRONMENT)


def regenerated(
    root: Path,
    base: PublishedVersion,
    salt: int,
    fresh: Collection[Task],
    make_current: bool = True,
) -> PublishedVersion:
    """A version in which only some tasks are made anew, with other samples than the base's."""
    version = versions.begin(
        home(root), IDENTITY | {"salt": salt, "carried.from": base.fingerprint}
    )
    version.carry(fresh)
    done = version.done()
    for task in TASKS:
        if task.id not in done:
            commit(version, task, shift=float(salt))
    return version.publish(BLOCKS, ENVIRONMENT, make_current=make_current)


def fill_and_die(root: Path, tasks: Collection[Task], calls: int) -> None:
    """`fill`, but this process kills itself before its `calls`-th step on the file system."""
    left = calls

    def dying(step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments, **options)

        return call

    for name in ("fsync", "link", "replace"):
        setattr(os, name, dying(getattr(os, name)))
    fill(root, tasks)


def fork(target: Callable[..., Any], *arguments: Any) -> int:
    """Run in a child: its exit code, -9 if it was killed."""
    child = os.fork()
    if not child:
        try:
            target(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def require_unharmed(root: Path, undisturbed: dict[str, bytes]) -> None:
    """Whatever is visible is whole: every file but those being written is as it will stay."""
    for name, data in contents(root).items():
        if not name.startswith(".partial/") and data != undisturbed[name]:
            raise AssertionError(f"{name} is half-written")


def require_resumed(root: Path, tasks: Collection[Task], undisturbed: dict[str, bytes]) -> None:
    """The same command again ends in the bytes of an undisturbed run, and leaves nothing else."""
    if fork(fill, root, tasks) or contents(root) != undisturbed:
        raise AssertionError(f"{root} differs: {contents(root).keys() ^ undisturbed.keys()}")


def kill_at_every_step(root: Path) -> tuple[int, int]:
    """Kill a run before each of its steps, resume each; the number of steps and of objects."""
    tasks = TASKS[2:]
    fork(fill, root / "undisturbed", tasks)
    undisturbed = contents(root / "undisturbed")
    step = 1
    while fork(fill_and_die, place := root / str(step), tasks, step) == -9:
        require_unharmed(place, undisturbed)
        require_resumed(place, tasks, undisturbed)
        step += 1
    if contents(place) != undisturbed:
        raise AssertionError("the run that was not killed differs")
    return step, len(undisturbed)
