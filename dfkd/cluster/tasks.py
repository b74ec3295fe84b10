"""A function of many items on a cluster, as plain Ray tasks."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from dfkd.errors import InfrastructureError, one_line

A = TypeVar("A")
B = TypeVar("B")

ROUNDS = 2
"""Tasks in flight for each CPU of the cluster, so that none waits for the driver."""


def ray_map(work: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Yield `work(item)` for each item in order; each call is a Ray task on one CPU.

    Ray repeats a task whose worker or node is lost.

    Raises:
        InfrastructureError: workers that do an item are lost again and again.
        Exception: the one that `work` raises.
    """
    task, remaining = ray.remote(num_cpus=1)(work), iter(items)
    pending: deque[ray.ObjectRef[B]] = deque()
    while True:
        # An autoscaler adds nodes for the tasks that wait, perhaps the first ones.
        ahead = ROUNDS * max(1, int(ray.cluster_resources().get("CPU", 0)))
        pending.extend(map(task.remote, islice(remaining, max(0, ahead - len(pending)))))
        if not pending:
            return
        try:
            yield ray.get(pending.popleft())
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise InfrastructureError(
                f"a worker was lost again and again ({one_line(error)}); run the same command again"
            ) from None
