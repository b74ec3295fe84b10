"""A study on the cluster that RAY_ADDRESS names."""

import json
import os
from pathlib import Path

import pytest

from dfkd.errors import Exit
from nodes import RayCluster
from tests.helpers.jobs import last_error, run, run_here
from tests.helpers.tiny_study import METHODS, write


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cells_are_made_where_ray_address_says(tmp_path: Path) -> None:
    """The head has no CPUs, so a node without the driver does the work."""
    axes = [{"name": "Method", "values": {"Baseline": METHODS["Baseline"]}}]
    path = write(tmp_path, axes=axes, seeds=[0])
    variables = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "RAY_USAGE_STATS_ENABLED": "0"}
    with RayCluster(variables) as cluster:
        node = cluster.add(cpus=2)
        address = f"{cluster.nodes[0].address}:{cluster.port}"
        found = run("reproduce", path, env=cluster.environment | {"RAY_ADDRESS": address})
    assert found.returncode == Exit.DONE, found.stderr
    lines = [json.loads(line) for line in found.stderr.splitlines() if line.startswith('{"time"')]
    assert {line["node"] for line in lines} == {node.address}
    assert "Baseline seed 0: finished " in found.stdout
    assert (tmp_path / "table.md").is_file()


@pytest.mark.heavy
def test_an_unreachable_cluster_asks_for_a_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    found = run_here("reproduce", write(tmp_path))
    assert found.returncode == Exit.RETRY
    assert "no Ray cluster answered at 127.0.0.1:1" in last_error(found)
    assert not (tmp_path / "table.md").exists()
