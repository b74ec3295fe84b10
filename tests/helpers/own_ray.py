"""A Ray for a few tests alone, with settings or an environment of their own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.helpers.jobs import ROOT


@contextmanager
def own_ray(**settings: Any) -> Iterator[Cluster]:
    """Join this process to a new Ray of one node, which has the environment of this moment."""
    small = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # so that its workers know the package
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = Cluster(initialize_head=True, head_node_args=small | settings)
    ray.init(address=cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
