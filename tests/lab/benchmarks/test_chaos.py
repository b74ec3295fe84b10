"""The run in chaos, at a small size: what it kills, and what it finds afterwards."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import jobs

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def test_nothing_is_lost_and_nothing_doubled_while_workers_and_nodes_are_killed(
    tmp_path: Path,
) -> None:
    record = tmp_path / "chaos.json"
    module = ("-m", "dfkd.lab.benchmarks.chaos", str(record))
    sizes = ("--tasks=60", "--nodes=2", "--pause=4", "--task-seconds=0.5", "--seed=1")
    environment = jobs.environment()
    environment.pop("RAY_AUTH_TOKEN", None)
    done = subprocess.run([sys.executable, *module, *sizes], env=environment, check=False)
    assert done.returncode == 0
    results = json.loads(record.read_text())["results"]
    assert (results["tasks"], results["lost"], results["doubled"]) == (60, 0, 0)
    assert results["quarantined"] == {}
    assert sum(results["killed"].values()) == len(results["kills"]) > 0
    assert results["attempts"] >= 60
