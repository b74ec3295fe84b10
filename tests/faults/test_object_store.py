"""Fault 3: the store is killed and restarted, throttles, falls silent, is cut off, in mid-run."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import ceph as servers
from ceph import Ceph
from dfkd.dataset.published import PublishedVersion, current
from dfkd.dataset.verification import verify
from dfkd.errors import InfrastructureError
from dfkd.storage.local import open_storage
from dfkd.storage.s3 import S3Storage
from tests.helpers import jobs, partial_version, small_manifest
from tests.helpers.jobs import contents, run_here
from tests.helpers.s3_proxy import Proxy

pytestmark = [pytest.mark.faults, pytest.mark.s3, pytest.mark.timeout(800)]

TREE: dict[str, Any] = {
    "classes": ["dog", "house", "car"],
    "prompts": {"method": "random"},
    "synthesis": {
        "images_per_class": 4,
        "shard_size": 2,
        "batch_size": 2,
        "image_size": 64,
        "views": 1,
    },
    "generator": small_manifest.vqgan(steps=2),
    "cluster": {"workers": 1},
}
HEAD = "data/random"
TASKS = 6
SEEDS = (24, 27)
"""Whose storms hold every kind of fault within the first twenty requests."""
RETRY = 4
"""The exit code that asks for the same command again."""


def write(folder: Path, root: str) -> Path:
    return small_manifest.write(folder, storage={"root": root}, **TREE)


def start(folder: Path, root: str) -> subprocess.Popen[str]:
    """The job that makes the version."""
    return jobs.start("synthesize", write(folder, root))


def finish(job: subprocess.Popen[str], folder: Path, root: str) -> None:
    """Wait, and as a scheduler does, start again what asks for it."""
    for _ in range(6):
        try:
            said = job.communicate()
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
        if job.returncode != RETRY:
            break
        job = start(folder, root)
    assert job.returncode == 0, said


def published(root: str, head: str = HEAD) -> PublishedVersion:
    version = current(open_storage(root).child(head))
    assert version is not None
    return version


@pytest.fixture(scope="module")
def undisturbed(two_cpus: None, tmp_path_factory: pytest.TempPathFactory) -> PublishedVersion:
    folder = tmp_path_factory.mktemp("undisturbed")
    root = str(folder / "run")
    found = run_here("synthesize", write(folder, root))
    assert found.returncode == 0, found.stderr
    return published(root)


def require_undisturbed(root: str, undisturbed: PublishedVersion) -> None:
    """The same shards by sha256, each once, whole, and nothing beside them."""
    version = published(root)
    assert list(version.receipts()) == list(undisturbed.receipts())
    assert version.facts["shards"] == TASKS
    assert verify(version) == []
    storage = version.storage
    assert isinstance(storage, S3Storage)
    assert set(storage.list("shards/")) == {receipt.shard for receipt in version.receipts()}
    assert len(list(storage.list("receipts/"))) == TASKS
    assert list(version.home.list("current/")) == ["current/00000001.json"]


@pytest.fixture(scope="module")
def mortal() -> Iterator[Ceph]:
    """A server whose objects outlive that it is killed."""
    if absent := servers.missing():
        pytest.skip(absent)
    with Ceph(persistent=True) as server:
        yield server


@pytest.fixture
def mortal_root(mortal: Ceph, monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://bucket/prefix` in an empty bucket of `mortal`, with the environment that reaches it."""
    for name, value in mortal.environment.items():
        monkeypatch.setenv(name, value)
    return mortal.new_root()


@pytest.fixture
def proxy(mortal_root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """In front of `mortal`."""
    with Proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        yield proxy


def kill_while_held(server: Ceph, proxy: Proxy) -> None:
    """Once the store has done what was to be held: kill it, drop the answer, start it again."""
    server.kill()
    proxy.released.set()
    server.restart()


def make_weather(proxy: Proxy, seed: int) -> set[str]:
    """Faults at the writes that count, and anywhere; the kinds."""
    proxy.inject("busy", "busy", "lost", "cut request", method="PUT", target="/shards/")
    proxy.inject("lost", "busy", "lost", method="PUT", target="/receipts/")
    proxy.inject("lost", method="PUT", target="/version.json")
    proxy.inject("lost", method="PUT", target="/current/")
    kinds = {"busy", "throttled", "cut request", "cut answer", "lost", "slow"}
    proxy.storm(seed, share=0.3, kinds=sorted(kinds))
    return kinds


def fill(root: str) -> PublishedVersion:
    """A version without models, in this process; again, as a scheduler does, where that helps."""
    for _ in range(20):
        with contextlib.suppress(InfrastructureError):
            return partial_version.fill(root)
    raise AssertionError("the store did not come back")


def require_filled(root: str, folder: Path) -> None:
    """Byte for byte what a directory holds after an undisturbed run, and nothing beside it."""
    partial_version.fill(folder)
    storage = open_storage(root)
    assert {key: storage.get(key) for key in storage.list()} == contents(folder)
    assert verify(published(root, "data/vanilla")) == []


@pytest.mark.parametrize("held", ["/shards/", "/receipts/"])
def test_a_store_that_dies_with_a_write_in_flight(
    mortal: Ceph, mortal_root: str, proxy: Proxy, tmp_path: Path, held: str
) -> None:
    proxy.inject("held", method="PUT", target=held)
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(fill, mortal_root)
        proxy.held.wait()
        kill_while_held(mortal, proxy)
        writer.result()
    require_filled(mortal_root, tmp_path)


@pytest.mark.parametrize("seed", SEEDS)
def test_writes_in_bad_weather(mortal_root: str, proxy: Proxy, tmp_path: Path, seed: int) -> None:
    kinds = make_weather(proxy, seed)
    fill(mortal_root)
    assert set(proxy.struck) == kinds
    proxy.storm(0, share=0, kinds=[])
    require_filled(mortal_root, tmp_path)


def test_a_run_whose_store_is_killed_and_restarted(
    mortal: Ceph,
    mortal_root: str,
    proxy: Proxy,
    undisturbed: PublishedVersion,
    tmp_path: Path,
) -> None:
    proxy.inject("held", method="PUT", target="/shards/0001-")
    job = start(tmp_path, mortal_root)
    try:
        while not proxy.held.wait(0.5):
            assert job.poll() is None, job.communicate()
        kill_while_held(mortal, proxy)
    except BaseException:
        os.killpg(job.pid, signal.SIGKILL)
        raise
    finish(job, tmp_path, mortal_root)
    require_undisturbed(mortal_root, undisturbed)
