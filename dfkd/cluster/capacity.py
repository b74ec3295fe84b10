"""The capacity of a cluster: how many workers its nodes hold, and requests to an autoscaler."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from dfkd.cluster.ray_internals import draining_nodes, node_types, request_nodes
from dfkd.config.manifest import Cluster
from dfkd.errors import InfrastructureError, ManifestError
from dfkd.storage.base import BUCKET_ROOTS

POLL_SECONDS = 1.0
"""Seconds between two polls of the cluster's nodes and of deadlines."""

CAPACITY_WAIT_SECONDS = 900.0
"""Seconds without capacity before a run gives up. A new node of an autoscaler takes minutes."""

ROUNDING = 1e-6
"""Tolerance for floating-point division, so that ten workers of 0.1 CPU fit one CPU."""


@dataclass(frozen=True)
class WorkerResources:
    """The CPUs and GPUs that one worker reserves on a node."""

    cpus: float
    gpus: float = 0.0

    @property
    def bundle(self) -> dict[str, float]:
        """The non-zero amounts as a Ray resource bundle, e.g. `{"CPU": 1.0}`."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus}
        return {name: amount for name, amount in amounts.items() if amount}

    @property
    def options(self) -> dict[str, float]:
        """Keyword arguments for the options of a Ray actor."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}

    def slots(self, nodes: Mapping[str, Mapping[str, float]]) -> int:
        """The number of such workers that fit the nodes; a worker never spans two nodes."""
        return sum(
            min(int(node.get(name, 0.0) / amount + ROUNDING) for name, amount in bundle)
            for node in nodes.values()
            if (bundle := self.bundle.items())
        )


def schedulable_nodes() -> dict[str, dict[str, float]]:
    """Resources of each node that accepts work (alive and not draining), by node id."""
    leaving = draining_nodes()
    return {
        node["NodeID"]: node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in leaving
    }


def count_nodes() -> int:
    """The number of nodes that are alive, draining ones included; 1 if Ray is not running."""
    return sum(node["Alive"] for node in ray.nodes()) if ray.is_initialized() else 1


def wait_for_nodes(resources: WorkerResources, workers: int) -> None:
    """Wait until the nodes hold `workers` workers; returns at once without an autoscaler.

    Raises:
        InfrastructureError: the nodes did not come within `CAPACITY_WAIT_SECONDS`.
    """
    if not has_autoscaler():
        return
    # The request stays while this waits: an autoscaler may take away nodes that nobody requests.
    with request_resources_for(resources, workers):
        end = time.monotonic() + CAPACITY_WAIT_SECONDS
        while resources.slots(schedulable_nodes()) < workers:
            if time.monotonic() > end:
                raise no_capacity_error(resources)
            time.sleep(POLL_SECONDS)


def no_capacity_error(resources: WorkerResources) -> InfrastructureError:
    """The error for a cluster that had no room for a worker for `CAPACITY_WAIT_SECONDS`."""
    return InfrastructureError(
        f"cluster: no node had room for a worker for {CAPACITY_WAIT_SECONDS:g} seconds (each takes "
        f"{resources.bundle}); free or add nodes and run the same command again, it resumes"
    )


def worker_resources(cluster: Cluster) -> WorkerResources:
    """The resources of each synthesis worker: by default one GPU where the cluster has any."""
    gpus = cluster.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if WorkerResources(0.0, 1.0).slots(schedulable_nodes()) else 0.0
    return WorkerResources(cluster.cpus_per_worker, gpus)


@contextmanager
def request_resources_for(resources: WorkerResources, workers: int) -> Iterator[None]:
    """Keep a request for `workers` workers with the autoscaler while the block runs.

    Does nothing if the nodes hold that many workers already.

    Raises:
        ManifestError: there is no autoscaler and no node can hold even one worker. Ray itself
            would wait for such a node without a message.
    """
    # The pool starts only actors that fit, so without a request the autoscaler would see no need.
    nodes = schedulable_nodes()
    requested = resources.slots(nodes) < max(1, workers) and has_autoscaler()
    if requested:
        request_nodes([resources.bundle] * max(1, workers))
    elif not resources.slots(nodes):
        _refuse(resources, nodes)
    try:
        yield
    finally:
        # A cluster has one request; it would outlive this process and keep the nodes.
        if requested:
            request_nodes([])


def _refuse(resources: WorkerResources, nodes: Mapping[str, Mapping[str, float]]) -> None:
    """Raise the `ManifestError` that names the resource of which no node has enough."""
    # One resource at a time first, because such a message names the key to change.
    for key, name, amount in (
        ("cluster.cpus_per_worker", "CPU", resources.cpus),
        ("cluster.gpus_per_worker", "GPU", resources.gpus),
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
        f"must fit a node together with {resources.gpus:g} GPUs, which none does",
        resources.cpus,
        "lower it or add nodes",
    )


def require_shared_storage(root: str) -> None:
    """Raise `ManifestError` for a relative root on several nodes, which would not share it."""
    if "://" not in root and not os.path.isabs(root) and count_nodes() > 1:
        raise ManifestError(
            "storage.root",
            f"must be {BUCKET_ROOTS}, or the absolute path of a folder that all nodes share",
            root,
            "name one, for example by --set storage.root=s3://bucket/prefix",
        )


def has_autoscaler() -> bool:
    """Whether an autoscaler with node types of its own runs, so that requested nodes are added."""
    # Without an autoscaler Ray names a type `node_` and the node's id.
    return any(name and not name.startswith("node_") for name in node_types())
