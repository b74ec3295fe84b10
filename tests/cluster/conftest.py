"""Fixtures of the cluster's tests."""

from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The metrics URL of a Ray on this machine, which exports every second."""
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=100 << 20,
        _system_config={"metrics_report_interval_ms": 1000},
    )
    (node,) = ray.nodes()
    yield f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    ray.shutdown()
