"""What a cluster can hold: shares of its nodes, nodes that are leaving it, and an autoscaler."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.state import state
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.experimental.internal_kv import _internal_kv_get

from dfkd.errors import ManifestError
from dfkd.manifest import Cluster

ROUNDING = 1e-6
"""Of a division: ten shares of 0.1 CPU fit one CPU."""


@dataclass(frozen=True)
class Share:
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


def staying() -> dict[str, dict[str, float]]:
    """The resources of each node that takes work, by node id: alive, and not being drained."""
    draining = state.get_draining_nodes()  # as Ray Train asks; there is no public way yet
    return {
        node["NodeID"]: node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in draining
    }


def worker_share(cluster: Cluster) -> Share:
    """What each synthesis worker reserves."""
    gpus = cluster.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if Share(0.0, 1.0).slots(staying()) else 0.0
    return Share(cluster.cpus_per_worker, gpus)


@contextmanager
def room(share: Share, wanted: int) -> Iterator[None]:
    """Ask an autoscaler for what `wanted` workers lack while the block runs.

    Raises:
        ManifestError: there is none and no node can hold even one worker, which Ray would wait for
            in silence.
    """
    nodes = staying()
    asked = share.slots(nodes) < max(1, wanted) and autoscaled()
    if asked:
        request_resources(bundles=[share.bundle] * max(1, wanted))
    elif not share.slots(nodes):
        _refuse(share, nodes)
    try:
        yield
    finally:
        if asked:
            request_resources(bundles=[])


def _refuse(share: Share, nodes: Mapping[str, Mapping[str, float]]) -> None:
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


def autoscaled() -> bool:
    """Whether nodes come by themselves: an autoscaler runs that has node types of its own.

    Without one Ray runs a stand-in, which only looks on and names a type after each node.
    """
    types: Any
    if status := _internal_kv_get(DEBUG_AUTOSCALING_STATUS):
        types = json.loads(status).get("autoscaler_report", {}).get("active_nodes", {})
    else:
        found = get_cluster_status(ray.get_runtime_context().gcs_address)
        types = [node.ray_node_type_name for node in [*found.active_nodes, *found.idle_nodes]]
    return any(name and not name.startswith("node_") for name in types)
