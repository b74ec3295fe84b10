"""A Ray cluster of several nodes on this machine, whose parts can be killed for real."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray._private.node import Node
from ray.cluster_utils import Cluster

from dfkd.lab.benchmarks.memory import descendants
from tests.helpers import jobs

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.helpers.disk_filler"])
"""Drivers are children of a process that has imported all that is slow to import."""


class Nodes:
    """A head without CPUs, and worker nodes of one CPU each.

    The head asks each node often whether it lives: Ray would need 15 seconds to see a node dead.
    """

    def __init__(self, workers: int) -> None:
        os.environ["PYTHONPATH"] = str(jobs.ROOT)  # as Ray's workers and drivers see it
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "_system_config": {"health_check_period_ms": 500},
                **SMALL,
            },
        )
        self.workers: list[Node] = []
        for _ in range(workers):
            self.add()

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a job that joins this cluster."""
        return jobs.environment() | {"RAY_ADDRESS": self.cluster.address}

    def add(self) -> Node:
        """Start another worker node."""
        self.workers.append(self.cluster.add_node(num_cpus=1, **SMALL))
        return self.workers[-1]

    def kill(self, node: Node) -> None:
        """SIGKILL to a node's raylet and all its workers."""
        self.workers.remove(node)
        for pid in [raylet(node), *descendants(raylet(node))]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)

    def actors(self, name: str) -> list[tuple[Node, int]]:
        """Node and process id of each actor of a class."""
        family = ((node, pid) for node in self.workers for pid in sorted(descendants(raylet(node))))
        return [(node, pid) for node, pid in family if f"ray::{name}" in title(pid)]

    def close(self) -> None:
        """End all that was started."""
        self.cluster.shutdown()


SMALL = {"object_store_memory": 80 << 20}


@contextlib.contextmanager
def two_nodes() -> Iterator[Nodes]:
    """A cluster of two worker nodes, and the environment of this process as it was before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # to have it put back
        cluster = Nodes(2)
        yield cluster
        cluster.close()


def raylet(node: Node) -> int:
    """Process id of a node."""
    (found,) = node.all_processes["raylet"]
    return int(found.process.pid)


def title(pid: int) -> str:
    """What a process calls itself; nothing if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


@contextlib.contextmanager
def driver(target: Callable[..., None], *arguments: Any) -> Iterator[multiprocessing.Process]:
    """A driver in a process of its own; one that still runs at the end is killed."""
    child = CONTEXT.Process(target=target, args=arguments)
    child.start()
    try:
        yield child
    finally:
        if child.is_alive():
            child.kill()
        child.join()
