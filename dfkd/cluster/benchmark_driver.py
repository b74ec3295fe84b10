"""What the driver costs: tasks that do nothing, through the pool that real tasks go through."""

import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import ray

from dfkd.benchmarks.measure import spread
from dfkd.benchmarks.memory import watched
from dfkd.cluster.capacity import worker_share
from dfkd.cluster.pool import Actor, Pool
from dfkd.manifest import Manifest
from dfkd.plan import Task

TENTHS = 10


class Idle(Actor):
    """An actor whose tasks are done at once."""

    def run(self, task: Task) -> str:
        """The task's name."""
        return task.id


def measure(manifest: Manifest, count: int, interval: float = 1.0) -> dict[str, Any]:
    """Run `count` tasks that do nothing.

    Args:
        manifest: whose `cluster` section says how many workers, and how stubbornly.
        count: of tasks; ten at least.
        interval: seconds between two looks at the memory.

    Returns:
        `tasks`, `workers`, `tasks_per_s`, the `ms_per_task` of each tenth of the tasks, and
        `memory` as `Watch.summary` gives it.
    """
    cluster = manifest.cluster
    share = worker_share(cluster)
    actor: Any = ray.remote(Idle).options(max_restarts=0, max_task_retries=0, **share.options)
    pool: Pool[Task] = Pool(actor.remote, cluster.workers or count, cluster.attempts, share)
    with watched(interval) as watch:
        marks = list(_marks(pool, count))
    tenth = count // TENTHS
    return {
        "tasks": count,
        "workers": pool.largest,
        "tasks_per_s": round(tenth * TENTHS / (marks[-1] - marks[0]), 1),
        "ms_per_task": spread([(b - a) / tenth * 1000 for a, b in pairwise(marks)]),
        "memory": watch.summary(),
    }


def _marks(pool: Pool[Task], count: int) -> Iterator[float]:
    """The clock after the first task and after each tenth of the others."""
    tenth = count // TENTHS
    planned = (Task(number // 100, number % 100, 0, 1) for number in range(tenth * TENTHS + 1))
    for number, _ in enumerate(pool.run(planned)):
        if number % tenth == 0:
            yield time.perf_counter()
