"""Ray's own autoscaler, with a provider that starts nodes on this machine instead of in a cloud."""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from dfkd.dataset.published import current
from dfkd.dataset.verification import verify
from dfkd.lab.benchmarks.memory import descendants
from dfkd.storage.local import open_storage
from dfkd.utils.yaml import merge
from nodes import Node, RayCluster
from tests.helpers import jobs, tiny_study
from tests.helpers.machines import title
from tests.helpers.tiny_version import write_manifest
from tests.helpers.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(700)]

HEAD, HEAD_TYPE = "f" * 51 + "00000", "ray.head.default"
"""Under which the provider knows the head."""
WORKERS = 2


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
        lines = [title(pid) for pid in descendants(head.process.pid)]
        # By their lines: a raylet's child has its parent's until it becomes a worker.
        return len({line for line in lines if line.partition("\0")[0].endswith("/raylet")})


def write(folder: Path) -> Path:
    made = {"images_per_class": 4, "shard_size": 1, "image_size": 64, "views": 0}
    # Some seconds an image: long enough for a second node to come, which takes as long.
    return write_manifest(
        folder,
        classes=["dog", "house"],
        generator={"vqgan": {"steps": 12}},
        synthesis=made,
        distillation={"epochs": 1},
    )


def start(job: str, file: Path, cluster: Autoscaled) -> "subprocess.Popen[bytes]":
    """A job on the cluster."""
    address = f"{cluster.nodes[0].address}:{cluster.port}"
    environment = jobs.environment() | cluster.environment | {"RAY_ADDRESS": address}
    with file.with_name(f"{job}.log").open("wb") as log:
        return subprocess.Popen(jobs.command(job, file), env=environment, stdout=log, stderr=log)


def run(job: str, file: Path, cluster: Autoscaled) -> int:
    """Run a job to its end on a cluster that is a head alone; the most nodes at once."""
    assert cluster.size == 1
    process, most = start(job, file, cluster), cluster.size
    while process.poll() is None:
        most = max(most, cluster.size)
        time.sleep(0.3)
    assert process.returncode == 0, file.with_name(f"{job}.log").read_text()
    return most


def wait_until_nodes_are_gone(cluster: Autoscaled) -> None:
    wait_for(lambda: cluster.size <= 1, "the end of all nodes", pause=0.3)


def test_nodes_come_for_a_run_and_go_after_it(tmp_path: Path) -> None:
    with Autoscaled() as cluster:
        assert run("synthesize", write(tmp_path), cluster) == 1 + WORKERS
        wait_until_nodes_are_gone(cluster)
        # One rank, for which the head would do if it were a machine by itself.
        assert run("distill", write(tmp_path), cluster) > 1
        wait_until_nodes_are_gone(cluster)
        assert run("verify", write(tmp_path), cluster) > 1
        wait_until_nodes_are_gone(cluster)
        killed = tmp_path / "killed"
        killed.mkdir()
        driver = start("synthesize", write(killed), cluster)
        wait_for(lambda: cluster.size > 1, "a node", alive=lambda: driver.poll() is None)
        driver.kill()
        driver.wait()
        # What it waited for is no longer needed, so the nodes cost nothing more.
        wait_until_nodes_are_gone(cluster)
    published = current(open_storage(str(tmp_path / "run")).child("data/vanilla"))
    assert published is not None
    assert published.facts["shards"] == 8
    assert verify(published) == []


def test_a_study_gets_a_node_for_each_student(tmp_path: Path) -> None:
    axes = [{"name": "Method", "values": {"Baseline": tiny_study.METHODS["Baseline"]}}]
    # So many epochs that the first student is still training when the second node comes.
    changes = {"cluster": {"workers": WORKERS}, "distillation": {"epochs": 150}}
    start: dict[str, Any] = merge(tiny_study.BASE, changes)
    start["storage"] = {"root": str(tmp_path / "root")}
    file = tiny_study.write(tmp_path, start, axes=axes, seeds=list(range(WORKERS)))
    with Autoscaled() as cluster:
        assert run("reproduce", file, cluster) == 1 + WORKERS
    # A node has room for one, so the second was not asked for by the data set's workers only.
    log = file.with_name("reproduce.log").read_text()
    assert len(set(re.findall(r"StudentDistiller pid=(\d+)", log))) == WORKERS
