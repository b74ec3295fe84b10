"""Draining a node of a Ray cluster, as a provider does that takes it away soon."""

import time

import ray
from ray._private.node import Node
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2


def drain(cluster: Cluster, node: Node, seconds: float = 600.0) -> None:
    """Give the notice of preemption of a node that goes in so many seconds."""
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]
    client = ray._raylet.GcsClient(address=cluster.address)  # type: ignore[attr-defined]
    deadline = time.time_ns() // 1_000_000 + int(seconds * 1000)
    accepted, why = client.drain_node(node.node_id, reason, "spot", deadline)
    assert accepted, why
