"""Fixtures of the cluster's tests."""

from collections.abc import Iterator

import pytest
import ray

from tests.helpers.own_ray import own_ray


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The metrics URL of a Ray on this machine, which exports every second."""
    with own_ray(_system_config={"metrics_report_interval_ms": 1000}):
        (node,) = ray.nodes()
        yield f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
