"""A study on the cluster that RAY_ADDRESS names."""

import json
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from dfkd.errors import Exit
from tests.helpers.jobs import ROOT, run_here
from tests.helpers.tiny_study import METHODS, write

NODE = "127.0.0.3"
"""The address of the node that works, which differs from its head's."""


@pytest.mark.slow
def test_cells_are_made_where_ray_address_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head has no CPUs, so a node without the driver does the work."""
    axes = [{"name": "Method", "values": {"Baseline": METHODS["Baseline"]}}]
    path = write(tmp_path, axes=axes, seeds=[0])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # so that workers know the package
    small = {"object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    try:
        cluster.add_node(num_cpus=1, node_ip_address=NODE, **small)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        found = run_here("reproduce", path)
    finally:
        cluster.shutdown()
    assert found.returncode == Exit.DONE, found.stderr
    lines = [json.loads(line) for line in found.stderr.splitlines() if line.startswith('{"time"')]
    assert {line["node"] for line in lines} == {NODE}
    assert "Baseline seed 0: finished " in found.stdout
    assert (tmp_path / "table.md").is_file()
