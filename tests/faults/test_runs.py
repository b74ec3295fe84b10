"""The real synthesis, as jobs on a cluster, through everything that can go wrong with its workers.

Each test ends with the version of an undisturbed run, to the byte.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfkd.dataset.published import PublishedVersion, current
from dfkd.dataset.verification import verify
from dfkd.storage.local import open_storage
from tests.helpers import jobs, small_manifest
from tests.helpers.jobs import contents
from tests.helpers.machines import Nodes
from tests.helpers.waiting import wait_for

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

TREE: dict[str, Any] = {
    "classes": ["dog", "house", "car"],
    "prompts": {"method": "vanilla"},
    "synthesis": {
        "images_per_class": 8,
        "shard_size": 2,
        "batch_size": 2,
        "image_size": 64,
    },
    "generator": small_manifest.vqgan(steps=2),
    "cluster": {"attempts": 20, "workers": 1},
}
METHOD = "data/vanilla"


def write(folder: Path, root: Path | None = None) -> Path:
    """The manifest, of a run in `folder` or in another root."""
    folder.mkdir(parents=True, exist_ok=True)
    return small_manifest.write(folder, storage={"root": str(root or folder / "run")}, **TREE)


def receipts(root: Path) -> int:
    return len(list(root.glob(f"{METHOD}/versions/*/receipts/*.json.gz")))


def version(root: Path) -> PublishedVersion | None:
    return current(open_storage(str(root)).child(METHOD))


def start(nodes: Nodes, manifest: Path, *arguments: str) -> subprocess.Popen[str]:
    """The job on the cluster."""
    return jobs.start("synthesize", manifest, *arguments, env=nodes.environment)


def running(process: subprocess.Popen[str]) -> Callable[[], bool]:
    """Whether a job has not ended yet."""
    return lambda: process.poll() is None


def run(nodes: Nodes, manifest: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The job on the cluster to its end, by a driver in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", nodes.cluster.address)
        return jobs.run_here("synthesize", manifest, *arguments)


@pytest.fixture(scope="module")
def expected(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run publishes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    found = run(nodes, write(folder))
    assert found.returncode == 0, found.stderr
    published = version(folder / "run")
    assert published is not None
    assert verify(published) == []
    return contents(folder / "run/data")


def test_a_worker_and_its_node_are_killed(
    nodes: Nodes, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    process = start(nodes, write(tmp_path), "--set", "cluster.workers=2")
    wait_for(lambda: receipts(tmp_path / "run") >= 2, alive=running(process))
    _, actor = wait_for(lambda: nodes.actors("Worker"), alive=running(process))[0]
    os.kill(actor, signal.SIGKILL)
    wait_for(lambda: receipts(tmp_path / "run") >= 4, alive=running(process))
    nodes.kill(wait_for(lambda: nodes.actors("Worker"), alive=running(process))[0][0])
    nodes.add()
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert contents(tmp_path / "run/data") == expected


def test_two_drivers_at_once_make_one_version(
    nodes: Nodes, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    manifest = write(tmp_path)
    both = [start(nodes, manifest) for _ in range(2)]
    for process in both:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert contents(tmp_path / "run/data") == expected


def fill_up(ballast: Path) -> None:
    """Until its disk has no byte left."""
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as stream:
        while True:
            stream.write(b"x" * 4096)


@pytest.mark.parametrize("small_disk", ["4m"], indirect=True)
def test_a_disk_that_fills_up_half_way(
    nodes: Nodes, tmp_path: Path, small_disk: Path, expected: dict[str, bytes]
) -> None:
    manifest = write(tmp_path, small_disk / "run")
    process = start(nodes, manifest)
    wait_for(lambda: receipts(small_disk / "run") >= 2, alive=running(process))
    ballast = small_disk / "ballast"
    fill_up(ballast)
    _, errors = process.communicate()
    assert process.returncode == 4, errors
    assert "No space left on device" in errors.splitlines()[-1]
    assert version(small_disk / "run") is None

    ballast.unlink()
    found = run(nodes, manifest)
    assert found.returncode == 0, found.stderr
    assert contents(small_disk / "run/data") == expected
