"""The capacity of a cluster: how many workers its nodes hold, what an autoscaler may add, and which
GPUs a worker uses.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from dfkd.cluster.ray_internals import draining_nodes, node_types
from dfkd.config.manifest import Cluster
from dfkd.errors import InfrastructureError, ManifestError, one_line
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
    """Wait until `workers` workers have room at the same time; does nothing without an autoscaler.

    Raises:
        InfrastructureError: the nodes did not come within `CAPACITY_WAIT_SECONDS`.
    """
    if not has_autoscaler():
        return
    # A placement group is demand that an autoscaler sees, and it ends with its driver.
    group = placement_group([resources.bundle] * workers)
    try:
        if not group.wait(CAPACITY_WAIT_SECONDS):
            raise no_capacity_error(resources)
    finally:
        remove_placement_group(group)


def no_capacity_error(resources: WorkerResources) -> InfrastructureError:
    """The error for a cluster that had no room for a worker for `CAPACITY_WAIT_SECONDS`."""
    return InfrastructureError(
        f"cluster: no node had room for a worker for {CAPACITY_WAIT_SECONDS:g} seconds (each takes "
        f"{resources.bundle}); free or add nodes and run the same command again, it resumes"
    )


def see_reserved_gpus() -> None:
    """Let torch see the GPUs that this actor or task has reserved, and no others.

    Call it before CUDA starts. Ray hides the other GPUs only from a process that has reserved one.
    Processes without a GPU see all GPUs of their node, and each would use the first one.

    Raises:
        InfrastructureError: torch cannot use the GPU, and would compute on the CPU instead.
    """
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    import torch  # here, because it takes seconds, and an actor without a GPU may need no torch

    try:
        torch.cuda.init()
    # A torch without CUDA says so by an AssertionError.
    except (AssertionError, RuntimeError) as error:
        node, reason = ray.util.get_node_ip_address(), one_line(error)
        raise InfrastructureError(
            f"cluster: torch cannot use the GPU that Ray has reserved on node {node} ({reason}); "
            "install a driver there that fits torch's CUDA, or start Ray there without GPUs, and "
            "run the same command again, it resumes"
        ) from None


def worker_resources(cluster: Cluster) -> WorkerResources:
    """The resources of each synthesis worker: by default one GPU where the cluster has any."""
    gpus = cluster.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if WorkerResources(0.0, 1.0).slots(schedulable_nodes()) else 0.0
    return WorkerResources(cluster.cpus_per_worker, gpus)


def rank_resources(cluster: Cluster) -> WorkerResources:
    """The least that a rank of a distillation needs: a whole CPU and, if workers have one, a GPU.

    Workers may share a CPU or a GPU, ranks do not.
    """
    worker = worker_resources(cluster)
    return WorkerResources(max(1.0, worker.cpus), 1.0 if worker.gpus else 0.0)


def cpus_per_rank(nodes: Mapping[str, Mapping[str, float]], ranks: int, gpus: float) -> float:
    """The largest whole number of CPUs with which `ranks` ranks fit the nodes; 0 if none does.

    A rank never spans two nodes.
    """
    # Try every number: the largest one is not total / ranks, since nodes differ in size.
    most = max((int(node.get("CPU", 0.0)) for node in nodes.values()), default=0)
    fitting = (
        cpus for cpus in range(most, 0, -1) if WorkerResources(cpus, gpus).slots(nodes) >= ranks
    )
    return float(next(fitting, 0))


def divide_resources(
    nodes: Mapping[str, Mapping[str, float]], students: int, at_most: int = 0
) -> tuple[int, WorkerResources]:
    """How many students with one rank train at once, and what each of them reserves.

    Each gets a GPU if there are any, and an equal share of the CPUs in whole numbers.

    Args:
        nodes: resources by node.
        at_most: maximum number of students at once; 0 is no limit.
    """
    # A student uses a whole GPU: shares of one would compete for its memory.
    gpus = 1.0 if WorkerResources(0.0, 1.0).slots(nodes) else 0.0
    count = min(students, at_most or students, max(1, WorkerResources(1.0, gpus).slots(nodes)))
    return count, WorkerResources(max(1.0, cpus_per_rank(nodes, count, gpus)), gpus)


def plan_students(cluster: Cluster, students: int, at_most: int = 0) -> tuple[int, WorkerResources]:
    """How many students train at once on the connected cluster, and what each of them reserves.

    Without an autoscaler this is `divide_resources`. With one it waits for a first node, of which
    each student reserves its share; the autoscaler adds nodes for those that find no room.

    Args:
        at_most: as for `divide_resources`.

    Raises:
        InfrastructureError: as `wait_for_nodes`.
    """
    if not has_autoscaler():
        return divide_resources(schedulable_nodes(), students, at_most)
    least = rank_resources(cluster)
    wait_for_nodes(least, 1)
    # Of each node by itself, because their number is yet to grow.
    nodes = [{name: node} for name, node in schedulable_nodes().items()]
    shares = [divide_resources(each, students, at_most)[1] for each in nodes if least.slots(each)]
    # The smallest share, which has room on each kind of node.
    share = min(shares, key=lambda each: each.cpus, default=least)
    return min(students, at_most or students), share


def require_room(resources: WorkerResources) -> None:
    """Raise `ManifestError` if no node can hold a worker and no autoscaler can add one.

    Ray itself would wait for such a node without a message.
    """
    nodes = schedulable_nodes()
    if not resources.slots(nodes) and not has_autoscaler():
        _refuse(resources, nodes)


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
    """Raise `ManifestError` for a relative root on several nodes, which would not share it.

    A cluster with an autoscaler may begin with one node and get others later.
    """
    shared = count_nodes() > 1 or (ray.is_initialized() and has_autoscaler())
    if shared and "://" not in root and not os.path.isabs(root):
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
