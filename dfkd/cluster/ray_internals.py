"""All that this package uses of Ray beyond its public API, because there is no public way to it.

Another release of Ray may change any of it without notice: `pyproject.toml` therefore allows one
minor release, and tests/cluster/test_ray_internals.py has a test of each use.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.state import state
from ray._private.worker import get_dashboard_url
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.experimental import tqdm_ray
from ray.experimental.internal_kv import _internal_kv_get
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)

from dfkd.utils.progress import Bar


class LocalTorchTrainer(TorchTrainer):
    """Without the actor that frees what a killed run had reserved, where it can only complain.

    It asks the dashboard each second whether the run lives. A local cluster has no dashboard, and
    ends with its run.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        if get_dashboard_url():
            return callbacks
        return [each for each in callbacks if not isinstance(each, PlacementGroupCleanerCallback)]


def draining_nodes() -> set[str]:
    """Ids of the nodes that will go and take no new work, as after a notice of preemption.

    `ray.train.get_preemption_info` tells it only to ranks, and only of their own nodes.
    """
    return set(state.get_draining_nodes())


def node_types() -> Iterable[str]:
    """What the autoscaler calls the nodes that are there.

    Without an autoscaler Ray runs a stand-in, which names a type `node_...` after each node.
    """
    if status := _internal_kv_get(DEBUG_AUTOSCALING_STATUS):
        active: Mapping[str, int] = (
            json.loads(status).get("autoscaler_report", {}).get("active_nodes", {})
        )
        return active
    found = get_cluster_status(ray.get_runtime_context().gcs_address)
    return [node.ray_node_type_name for node in [*found.active_nodes, *found.idle_nodes]]


def request_nodes(bundles: Sequence[Mapping[str, float]]) -> None:
    """Ask the autoscaler for nodes that hold all `bundles` at once; none takes the wish back."""
    request_resources(bundles=[dict(bundle) for bundle in bundles])


def relayed_bar(description: str, total: int, unit: str, done: int) -> Bar:
    """A bar that an actor moves and the driver's terminal shows."""
    bar: Bar = tqdm_ray.tqdm(desc=description, total=total, unit=unit)
    bar.update(done)
    return bar


def quiet_authentication() -> None:
    """Do not print that clusters use tokens, which is Ray's default, on each start."""
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
