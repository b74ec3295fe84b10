"""Fixtures of the cluster's tests."""

from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The metrics URL of a Ray on this machine, which exports every second."""
    for tries_left in (2, 1, 0):
        try:
            ray.init(
                address="local",
                num_cpus=1,
                include_dashboard=False,
                object_store_memory=100 << 20,
                _system_config={"metrics_report_interval_ms": 1000},
            )
            break
        except Exception:  # Ray gives a node half a minute to start, whatever the machine does
            ray.shutdown()
            if not tries_left:
                raise
    (node,) = ray.nodes()
    yield f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    ray.shutdown()
