"""Every use of Ray beyond its public API, where the public API offers no way.

Another release of Ray may change any of it without notice: `pyproject.toml` therefore allows one
minor release, and tests/cluster/test_ray_internals.py tests each use.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.state import state
from ray._private.worker import get_dashboard_url
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.experimental import tqdm_ray
from ray.experimental.internal_kv import _internal_kv_get

from dfkd.errors import shorten
from dfkd.utils.progress import Bar


def local_torch_trainer() -> Any:
    """Subclass of `TorchTrainer` without the placement-group cleaner where there is no dashboard.

    The cleaner frees resources of a killed run and asks the dashboard every second whether the run
    is alive. A local cluster has no dashboard and ends with its run, so it would only log errors.

    Nor does it take over Ctrl-C, for which Ray's handler exits with 0 or, after the training, does
    nothing.
    """
    # Imported here, because workers need no training, and this takes them seconds.
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback,
    )

    class LocalTorchTrainer(TorchTrainer):
        """See `local_torch_trainer`."""

        def _create_default_callbacks(self) -> list[Any]:
            """Ray's callbacks, without the actor for data sets, of which these trainings have none,
            and without the cleaner if there is no dashboard.
            """
            unused: tuple[type, ...] = (DatasetsCallback,)
            if not get_dashboard_url():
                unused += (PlacementGroupCleanerCallback,)
            callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
            return [callback for callback in callbacks if not isinstance(callback, unused)]

        def _register_sigint_handler(self, controller: Any) -> None:
            """Leave the handler as it is: the job ends what it has started."""

    return LocalTorchTrainer


def in_submitted_folder() -> bool:
    """Whether this process works in a folder that `ray job submit` has sent.

    Ray unpacks it into a temporary folder, and removes it some time after the job.
    """
    return "/working_dir_files/" in os.getcwd()


def draining_nodes() -> set[str]:
    """Ids of the nodes that are about to leave and take no new work, as after a preemption notice.

    `ray.train.get_preemption_info` works in ranks only, and for their own nodes only.
    """
    return set(state.get_draining_nodes())


def node_types() -> Iterable[str]:
    """The autoscaler's type names of the available nodes.

    Without an autoscaler Ray runs a stand-in, whose type names are `node_` and the node's id.
    """
    # The v1 autoscaler publishes its report as JSON under this key; v2 has an SDK.
    if status := _internal_kv_get(DEBUG_AUTOSCALING_STATUS):
        active: Mapping[str, int] = (
            json.loads(status).get("autoscaler_report", {}).get("active_nodes", {})
        )
        return active
    cluster = get_cluster_status(ray.get_runtime_context().gcs_address)
    return [node.ray_node_type_name for node in [*cluster.active_nodes, *cluster.idle_nodes]]


def ray_reason(error: Exception) -> str:
    """What an exception of Ray says, in one line of at most 300 characters, without secrets.

    A dead actor's text has a general line, then indented ids, then why it died.
    """
    if isinstance(error, OutOfMemoryError):
        # Ray's own text is a page whose last line tells where to read on.
        return "Ray ended it because the node's memory is nearly full (other programs count too)"
    lines = str(error).strip().splitlines()
    if isinstance(error, RayActorError):
        lines = [line for line in lines[1:] if not line.startswith("\t")] or lines
    else:
        lines = lines[-1:]
    # Of a dead process Ray tells the common causes too, which are the same for all.
    text = " ".join(lines).partition("Some common causes include")[0]
    return shorten(text, 300) or repr(error)


def relayed_bar(description: str, total: int, unit: str, done: int) -> Bar:
    """A progress bar that an actor updates and the driver's terminal shows."""
    bar: Bar = tqdm_ray.tqdm(desc=description, total=total, unit=unit)
    bar.update(done)
    return bar


def quiet_authentication() -> None:
    """Silence Ray's message at each start that clusters use tokens by default."""
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
