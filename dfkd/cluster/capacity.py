"""The capacity of a cluster: how many workers its nodes hold, what an autoscaler may add, and which
GPUs a worker uses.
"""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dfkd.cluster.ray_internals import draining_nodes, node_types, ray_reason
from dfkd.config.manifest import Cluster
from dfkd.errors import InfrastructureError, ManifestError, one_line
from dfkd.utils.progress import say

POLL_SECONDS = 1.0
"""Seconds between two polls of the cluster's nodes and of deadlines."""

CAPACITY_WAIT_SECONDS = 900.0
"""Seconds without capacity before a run gives up. A new node of an autoscaler takes minutes."""

PING_SECONDS = 30.0
"""Seconds for a node to answer a ping, or for Ray to notice that it is dead."""

MAX_PROBES = 16
"""GPUs at most that are looked at to know their name."""

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

    def count_fitting(self, nodes: Mapping[str, Mapping[str, float]]) -> int:
        """The number of such workers that fit the nodes; a worker never spans two nodes."""
        return sum(
            min(int(node.get(name, 0.0) / amount + ROUNDING) for name, amount in bundle)
            for node in nodes.values()
            if (bundle := self.bundle.items())
        )


def schedulable_nodes() -> dict[str, dict[str, float]]:
    """Resources of each node that accepts work (alive and not draining), by node id.

    Raises:
        InfrastructureError: no node is alive, not even the head, so none can join either.
    """
    leaving = draining_nodes()
    alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    if not alive:
        raise InfrastructureError(
            "cluster: Ray's last node has died; run the same command again, it resumes"
        )
    return {name: resources for name, resources in alive.items() if name not in leaving}


def enter_folder(folder: str) -> None:
    """Enter the driver's working directory, so that relative paths mean the same here."""
    if os.path.isdir(folder):  # not on another machine, where such paths mean nothing
        os.chdir(folder)


def node_id() -> str:
    """The id of the node that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())


def ping(node: str) -> None:
    """Ask a node for an answer; if it is dead, Ray has noticed that afterwards."""
    on_node = NodeAffinitySchedulingStrategy(node, soft=False)
    ask: Any = ray.remote(node_id).options(num_cpus=0, max_retries=0, scheduling_strategy=on_node)
    with contextlib.suppress(RayError):
        ray.get(ask.remote(), timeout=PING_SECONDS)


def count_nodes() -> int:
    """The number of nodes that are alive, draining ones included; 1 if Ray is not running."""
    return sum(node["Alive"] for node in ray.nodes()) if ray.is_initialized() else 1


def wait_for_nodes(resources: WorkerResources, workers: int) -> None:
    """Wait until `workers` workers have free room at the same time.

    Raises:
        InfrastructureError: they had none within `CAPACITY_WAIT_SECONDS`.
    """
    # A placement group is demand that an autoscaler sees, and it ends with its driver.
    group = placement_group([resources.bundle] * workers)
    try:
        if not group.wait(POLL_SECONDS):
            say(f"cluster: waiting for nodes for {workers} workers, each takes {resources.bundle}")
            if not group.wait(CAPACITY_WAIT_SECONDS):
                raise no_capacity_error(resources)
    finally:
        remove_placement_group(group)


def no_capacity_error(resources: WorkerResources) -> InfrastructureError:
    """The error for a worker that did not begin: Ray does not tell waiting from hanging."""
    return InfrastructureError(
        f"cluster: no node had room for a worker for {CAPACITY_WAIT_SECONDS:g} seconds (each takes "
        f"{resources.bundle}), or it hung before its first task; free or add nodes, or find out "
        "why workers hang, and run the same command again, it resumes"
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
    # Here, because torch takes seconds, and an actor without a GPU may need none.
    from dfkd.utils.device import try_gpu

    try:
        try_gpu()
    # A torch without CUDA says so by an AssertionError.
    except (AssertionError, RuntimeError) as error:
        node, reason = ray.util.get_node_ip_address(), one_line(error)
        raise InfrastructureError(
            f"cluster: torch cannot use the GPU that Ray has reserved on node {node} ({reason}); "
            "install a driver there that fits torch's CUDA, or start Ray there without GPUs (on "
            "one machine by CUDA_VISIBLE_DEVICES=), and run the same command again, it resumes"
        ) from None


def worker_resources(cluster: Cluster) -> WorkerResources:
    """The resources of each synthesis worker: by default one GPU where the cluster has any."""
    gpus = cluster.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if WorkerResources(0.0, 1.0).count_fitting(schedulable_nodes()) else 0.0
    return WorkerResources(cluster.cpus_per_worker, gpus)


def rank_resources(cluster: Cluster) -> WorkerResources:
    """The least that a rank of a distillation needs: a whole CPU and, if workers have one, a GPU.

    Workers may share a CPU or a GPU, ranks do not.
    """
    worker = worker_resources(cluster)
    return WorkerResources(max(1.0, worker.cpus), 1.0 if worker.gpus else 0.0)


def cpus_per_rank(nodes: Mapping[str, Mapping[str, float]], ranks: int, gpus: float) -> float:
    """The largest whole number of CPUs with which `ranks` ranks fit the nodes; 0 if none does.

    A rank never spans two nodes. With a GPU it gets at most its GPU's share of a node's CPUs.
    """
    # More would leave GPUs of a node without CPUs, so that ranks exchange gradients over the
    # network instead of inside one node.
    shares = {
        name: max(1, int(node["CPU"] // node["GPU"])) if gpus else int(node["CPU"])
        for name, node in nodes.items()
        if node.get("CPU", 0.0) >= 1 and node.get("GPU", 0.0) >= gpus
    }
    # Try every number: the largest one is not total / ranks, since nodes differ in size.
    for cpus in range(max(shares.values(), default=0), 0, -1):
        large = {name: nodes[name] for name, share in shares.items() if share >= cpus}
        if WorkerResources(cpus, gpus).count_fitting(large) >= ranks:
            return float(cpus)
    return 0.0


@dataclass(frozen=True)
class Ranks:
    """The number of ranks of a student and the resources of each."""

    count: int
    """Ranks at the start; 0 means one rank in the calling process (Ray Train's local mode)."""
    cpus: float
    device: str
    """`cpu`, or the name of each rank's GPU."""
    elastic: tuple[int, int] | None = None
    """Smallest and largest number of ranks, if it follows the available nodes."""

    @property
    def local(self) -> bool:
        """Whether the only rank runs in the calling process."""
        return not self.count

    @property
    def gpu(self) -> bool:
        """Whether each rank has a GPU."""
        return self.device != "cpu"

    @property
    def share(self) -> WorkerResources:
        """The resources that each rank reserves."""
        return WorkerResources(self.cpus, float(self.gpu))


def trains_here(rank_limits: tuple[int, int]) -> bool:
    """Whether a run with these limits on its ranks has one only, inside this process."""
    return rank_limits[1] == 1 and count_nodes() == 1


def plan_ranks(rank_limits: tuple[int, int], cluster: Cluster) -> Ranks:
    """The number of ranks that fit, between the two limits, and the resources of each.

    With an autoscaler it waits until there are nodes for the smallest number of ranks.

    Raises:
        ManifestError: the smallest number does not fit; Ray would wait for it without a message.
        InfrastructureError: the autoscaler's nodes did not come in time, or torch cannot use the
            GPUs.
    """
    least, most = rank_limits
    if ray.is_initialized() and has_autoscaler():
        wait_for_nodes(rank_resources(cluster), least)
    if trains_here(rank_limits):
        from dfkd.utils.hardware import cpu_count  # here: torch takes seconds

        device = "cpu" if cluster.gpus_per_worker == 0 else own_device()
        return Ranks(0, float(cpu_count()), device)
    # On a machine with GPUs each rank takes one; otherwise the ranks divide the CPUs.
    nodes = schedulable_nodes()
    gpus = 0 if cluster.gpus_per_worker == 0 else WorkerResources(0.0, 1.0).count_fitting(nodes)
    device = gpu_name() if gpus else "cpu"
    if 0 < gpus < least:
        raise _too_many_ranks(f"the cluster's {gpus} GPUs", least)
    # Ranks may wait for each other at every step, so all of them must fit at the same time.
    each = float(gpus > 0)
    count = max(least, min(most, WorkerResources(1.0, each).count_fitting(nodes)))
    cpus = cpus_per_rank(nodes, count, each)
    if not cpus:
        total = sum(node.get("CPU", 0.0) for node in nodes.values())
        held = f"what the cluster's {total:g} CPUs on {len(nodes)} nodes hold"
        raise _too_many_ranks(held, least)
    return Ranks(count, cpus, device, rank_limits if least < most else None)


def _too_many_ranks(most: str, ranks: int) -> ManifestError:
    """The error for a smallest number of ranks that exceeds `most`."""
    rule = f"must not exceed {most}"
    return ManifestError("distillation.workers", rule, ranks, "lower it or add nodes")


def gpu_name() -> str:
    """The name of a worker's GPU.

    Raises:
        InfrastructureError: torch can use none, or no GPU was free within `CAPACITY_WAIT_SECONDS`.
    """
    gpus = WorkerResources(0.0, 1.0).count_fitting(schedulable_nodes())
    probe: Any = ray.remote(num_gpus=1, max_retries=0)(_reserved_device)
    # At once, so that each has a GPU of its own: one that is broken must not hide the others.
    probes = [probe.remote() for _ in range(max(1, min(gpus, MAX_PROBES)))]
    problem = no_capacity_error(WorkerResources(1.0, 1.0))  # if other jobs hold all GPUs
    try:
        while probes:
            done, probes = ray.wait(probes, timeout=CAPACITY_WAIT_SECONDS)
            if not done:
                break
            name, error = ray.get(done[0])
            if error is None:
                return str(name)
            problem = error
        raise problem
    except RayTaskError:
        raise  # a defect of ours, which keeps its traceback
    except RayError as error:
        raise InfrastructureError(
            f"cluster: the process that looks at a GPU died ({ray_reason(error)}); "
            "run the same command again, it resumes"
        ) from None
    finally:
        for late in probes:
            ray.cancel(late)


def _reserved_device() -> tuple[str, InfrastructureError | None]:
    """The name of the GPU that this process has reserved, or an empty text and why it has none."""
    try:
        see_reserved_gpus()
    except InfrastructureError as error:
        return "", error
    return own_device(), None


def own_device() -> str:
    """The name of this process's device."""
    from dfkd.utils.device import device_name, pick_device  # here: torch takes seconds

    return device_name(pick_device())


def divide_resources(
    nodes: Mapping[str, Mapping[str, float]], students: int, gpus: bool = True
) -> tuple[int, WorkerResources]:
    """How many students with one rank fit the nodes at once, and the share of each.

    Each gets a GPU if there are any, and an equal share of the CPUs in whole numbers.

    Args:
        nodes: resources by node.
        students: the largest number of students at once.
        gpus: whether they may use GPUs.
    """
    # A student uses a whole GPU: shares of one would compete for its memory.
    each = float(gpus and WorkerResources(0.0, 1.0).count_fitting(nodes) > 0)
    count = min(students, max(1, WorkerResources(1.0, each).count_fitting(nodes)))
    return count, WorkerResources(max(1.0, cpus_per_rank(nodes, count, each)), each)


def plan_students(cluster: Cluster, students: int) -> WorkerResources:
    """The share of each of `students` students that train at once on the connected cluster.

    Without an autoscaler it is that of `divide_resources`. With one, the function waits for the
    first node, and each student gets the share that it would have on the smallest suitable node,
    because nodes that join later may be as small.

    Raises:
        InfrastructureError: as `wait_for_nodes`.
    """
    gpus = cluster.gpus_per_worker != 0
    if not has_autoscaler():
        return divide_resources(schedulable_nodes(), students, gpus)[1]
    least = rank_resources(cluster)
    wait_for_nodes(least, 1)
    nodes = [{name: node} for name, node in schedulable_nodes().items()]
    # Nodes that have what a student needs. Others, like a head without a GPU, take none.
    fitting = [each for each in nodes if least.count_fitting(each)]
    shares = [divide_resources(each, students, least.gpus > 0)[1] for each in fitting]
    return min(shares, key=lambda each: each.cpus, default=least)


def require_room(resources: WorkerResources) -> None:
    """Raise `ManifestError` if no node can hold a worker and no autoscaler can add one.

    Ray itself would wait for such a node without a message.
    """
    if not resources.count_fitting(schedulable_nodes()) and not has_autoscaler():
        raise ManifestError(
            "cluster.cpus_per_worker",
            "must fit a node together with cluster.gpus_per_worker, and none is large enough",
            resources.bundle,
            "lower them or add nodes",
        )


def has_autoscaler() -> bool:
    """Whether an autoscaler with node types of its own runs, so that requested nodes are added."""
    # Without an autoscaler Ray names a type `node_` and the node's id.
    return any(name and not name.startswith("node_") for name in node_types())
