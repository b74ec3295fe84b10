"""What a cluster can hold: shares of its nodes, nodes that are leaving it, and an autoscaler."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from dfkd.cluster.ray_internals import draining_nodes, node_types, request_nodes
from dfkd.config.manifest import Cluster
from dfkd.errors import InfrastructureError, ManifestError

POLL_SECONDS = 1.0
"""Seconds between two looks at the cluster's nodes and at deadlines."""

CAPACITY_WAIT_SECONDS = 900.0
"""Seconds without room before a run gives up; an autoscaler's node takes minutes to come."""

ROUNDING = 1e-6
"""Of a division: ten shares of 0.1 CPU fit one CPU."""


@dataclass(frozen=True)
class WorkerResources:
    """What one worker reserves of a node."""

    cpus: float
    gpus: float = 0.0

    @property
    def bundle(self) -> dict[str, float]:
        """Under Ray's names."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        return {name: amount for name, amount in wanted.items() if amount}

    @property
    def options(self) -> dict[str, float]:
        """Of an actor."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}

    def slots(self, nodes: Mapping[str, Mapping[str, float]]) -> int:
        """How many such shares the nodes hold together; one share never spans two nodes."""
        return sum(
            min(int(node.get(name, 0.0) / amount + ROUNDING) for name, amount in bundle)
            for node in nodes.values()
            if (bundle := self.bundle.items())
        )


def schedulable_nodes() -> dict[str, dict[str, float]]:
    """The resources of each node that takes work, by node id: alive, and not being drained."""
    leaving = draining_nodes()
    return {
        node["NodeID"]: node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in leaving
    }


def count_nodes() -> int:
    """Nodes that are alive, also those that take no work; one without Ray."""
    return sum(node["Alive"] for node in ray.nodes()) if ray.is_initialized() else 1


def wait_for_nodes(share: WorkerResources, wanted: int) -> None:
    """Wait until an autoscaler, if there is one, has brought nodes that hold `wanted` shares.

    Raises:
        InfrastructureError: it has not, within `CAPACITY_WAIT_SECONDS`.
    """
    if not has_autoscaler():
        return
    with request_resources_for(share, wanted):
        end = time.monotonic() + CAPACITY_WAIT_SECONDS
        while share.slots(schedulable_nodes()) < wanted:
            if time.monotonic() > end:
                raise no_capacity_error(share)
            time.sleep(POLL_SECONDS)


def no_capacity_error(share: WorkerResources) -> InfrastructureError:
    """That the cluster has held no such share for as long as `CAPACITY_WAIT_SECONDS`."""
    return InfrastructureError(
        f"cluster: no node had room for a worker for {CAPACITY_WAIT_SECONDS:g} seconds (each takes "
        f"{share.bundle}); free or add nodes and run the same command again, it resumes"
    )


def worker_resources(cluster: Cluster) -> WorkerResources:
    """What each synthesis worker reserves."""
    gpus = cluster.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if WorkerResources(0.0, 1.0).slots(schedulable_nodes()) else 0.0
    return WorkerResources(cluster.cpus_per_worker, gpus)


@contextmanager
def request_resources_for(share: WorkerResources, wanted: int) -> Iterator[None]:
    """Ask an autoscaler for what `wanted` workers lack while the block runs.

    Raises:
        ManifestError: there is none and no node can hold even one worker, which Ray would wait for
            in silence.
    """
    nodes = schedulable_nodes()
    asked = share.slots(nodes) < max(1, wanted) and has_autoscaler()
    if asked:
        request_nodes([share.bundle] * max(1, wanted))
    elif not share.slots(nodes):
        _refuse(share, nodes)
    try:
        yield
    finally:
        if asked:
            request_nodes([])


def _refuse(share: WorkerResources, nodes: Mapping[str, Mapping[str, float]]) -> None:
    for key, name, amount in (
        ("cluster.cpus_per_worker", "CPU", share.cpus),
        ("cluster.gpus_per_worker", "GPU", share.gpus),
    ):
        most = max((node.get(name, 0.0) for node in nodes.values()), default=0.0)
        if most < amount:
            raise ManifestError(
                key,
                f"must fit a node of the cluster, of which the largest has {most:g} {name}s",
                amount,
                "lower it or add nodes",
            )
    raise ManifestError(
        "cluster.cpus_per_worker",
        f"must fit a node together with {share.gpus:g} GPUs, which none does",
        share.cpus,
        "lower it or add nodes",
    )


def require_shared_storage(root: str) -> None:
    """Refuse (`ManifestError`) a root that is another folder on each of several nodes."""
    if "://" not in root and not os.path.isabs(root) and count_nodes() > 1:
        raise ManifestError(
            "storage.root",
            "must be s3://bucket/prefix, or the absolute path of a folder that all nodes share",
            root,
            "name one, for example by --set storage.root=s3://bucket/prefix",
        )


def has_autoscaler() -> bool:
    """Whether nodes come by themselves: an autoscaler runs that has node types of its own."""
    return any(name and not name.startswith("node_") for name in node_types())
