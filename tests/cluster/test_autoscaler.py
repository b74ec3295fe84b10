"""Ray's own autoscaler, with a provider that starts nodes on this machine instead of in a cloud."""

import contextlib
import json
import subprocess
import time
from pathlib import Path

import pytest
import yaml

import jobs
from dfkd.dataset import current, verify
from dfkd.storage import open_storage
from nodes import Node, RayCluster, descendants

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HEAD, HEAD_TYPE = "f" * 51 + "00000", "ray.head.default"
"""Under which the provider knows the head."""
WORKERS = 2

TREE = {
    "name": "autoscaled",
    "classes": ["dog", "house"],
    "teacher": {"model": "miniature", "weights": "miniature"},
    "prompts": {"method": "vanilla"},
    "synthesis": {"images_per_class": 12, "shard_size": 1, "image_size": 64, "steps": 60},
    "cluster": {"workers": WORKERS},
}


class Autoscaled(RayCluster):
    """A head that works on nothing itself and gets nodes of one CPU when somebody asks for them."""

    def __init__(self) -> None:
        super().__init__(
            {
                "RAY_FAKE_CLUSTER": "1",
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            }
        )

    def _start(self, *arguments: str) -> Node:
        file = self._folder / "autoscaler.json"
        file.write_text(json.dumps(self._autoscaling()))
        return super()._start(*arguments, f"--autoscaling-config={file}")

    def _autoscaling(self) -> dict[str, object]:
        node = {"resources": {"CPU": 1, "object_store_memory": 80 << 20}, "node_config": {}}
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        lists = ("initialization", "setup", "head_setup", "worker_setup")
        starts = ("head_start_ray", "worker_start_ray")
        return {
            "cluster_name": "fake",
            "provider": {
                "type": "fake_multinode",
                "gcs_address": f"127.0.0.2:{self.port}",
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "available_node_types": {
                HEAD_TYPE: head,
                "worker": node | {"min_workers": 0, "max_workers": WORKERS},
            },
            "head_node_type": HEAD_TYPE,
            "max_workers": WORKERS,
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": 0.1,
            **{f"{kind}_commands": [] for kind in (*lists, *starts)},
            **{key: {} for key in ("auth", "docker", "file_mounts")},
            **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
            "file_mounts_sync_continuously": False,
        }

    @property
    def size(self) -> int:
        """Nodes that are there, the head included."""
        (head,) = self.nodes
        lines = [arguments(pid) for pid in descendants(head.process.pid)]
        # By their lines: a raylet's child has its parent's until it becomes a worker.
        return len({line for line in lines if line.partition("\0")[0].endswith("/raylet")})


def arguments(pid: int) -> str:
    """The command line of a process; nothing if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def write(folder: Path) -> Path:
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump(TREE | {"storage": {"root": str(folder / "run")}}))
    return path


def test_nodes_come_for_a_run_and_go_after_it(tmp_path: Path) -> None:
    with Autoscaled() as cluster:
        address = f"{cluster.nodes[0].address}:{cluster.port}"
        assert cluster.size == 1
        environment = jobs.environment() | cluster.environment | {"RAY_ADDRESS": address}
        with (tmp_path / "log").open("wb") as log:
            job = subprocess.Popen(
                jobs.command("synthesize", write(tmp_path)), env=environment, stdout=log, stderr=log
            )
        most = 1
        while job.poll() is None:
            most = max(most, cluster.size)
            time.sleep(0.1)
        assert job.returncode == 0, (tmp_path / "log").read_text()
        assert most == 1 + WORKERS
        while cluster.size > 1:  # the test's own time limit ends this
            time.sleep(0.1)
    published = current(open_storage(str(tmp_path / "run")).child("data/vanilla"))
    assert published is not None
    assert len(published.shards) == 24
    assert verify(published) == []
