"""A cluster without a single worker, and Ray's own autoscaler, which starts nodes when asked."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from filler import Fill, drive, undisturbed
from machines import TESTS, below, driver, wait_for

from dfkd.cluster.pool import PATIENCE
from jobs import contents, environment

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

HEAD = "f" * 51 + "00000"
"""The head's id, by which Ray's provider of nodes on one machine knows it."""


def write_config(folder: Path, address: str) -> Path:
    config = {
        "cluster_name": "tiny",
        "max_workers": 2,
        "provider": {"type": "fake_multinode", "gcs_address": address, "head_node_id": HEAD},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "spot": {
                "resources": {"CPU": 1, "object_store_memory": 80 << 20},
                "node_config": {},
                "max_workers": 2,
            },
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "auth": {"ssh_user": "nobody"},
        "file_mounts": {},
    }
    path = folder / "autoscaler.json"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture
def autoscaled(tmp_path: Path) -> Iterator[str]:
    """The address of a head that has an autoscaler and no CPU."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    address = f"{ray.util.get_node_ip_address()}:{port}"
    options = {
        "port": port,
        "num-cpus": 0,
        "object-store-memory": 80 << 20,
        "dashboard-agent-listen-port": 0,
        "include-dashboard": "false",
        "autoscaling-config": write_config(tmp_path, address),
    }
    ray_command = Path(sys.executable).with_name("ray")
    settings = [f"--{key}={value}" for key, value in options.items()]
    path = [str(folder) for folder in (TESTS.parent, TESTS, TESTS / "faults")]
    own = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "PYTHONPATH": os.pathsep.join(path),
    }
    log = (tmp_path / "head.log").open("wb")
    head = subprocess.Popen(
        [str(ray_command), "start", "--head", "--block", "--disable-usage-stats", *settings],
        env=environment() | own,
        stdout=log,
        stderr=log,
    )
    try:
        wait_for(lambda: b"Ray runtime started" in (tmp_path / "head.log").read_bytes())
        yield address
    finally:
        for pid in [head.pid, *below(head.pid)]:
            os.kill(pid, signal.SIGKILL)
        head.wait()


def test_an_autoscaler_is_asked_for_the_workers_that_are_missing(
    autoscaled: str, tmp_path: Path
) -> None:
    expected = undisturbed(tmp_path / "undisturbed")
    with driver(drive, autoscaled, Fill(tmp_path / "run")) as child:
        child.join(PATIENCE)
    assert child.exitcode == 0
    assert contents(tmp_path / "run/data") == expected
    client = ray._raylet.GcsClient(address=autoscaled)
    assert client.internal_kv_get(b"autoscaler_resource_request", None) == b"[]"
