"""Fault 3: the store is killed and restarted, throttles, falls silent, is cut off, in mid-run."""

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ceph as servers
import filling
from ceph import Ceph
from dfkd.dataset import PublishedVersion, current, verify
from dfkd.errors import InfrastructureError
from dfkd.storage import open_storage
from proxy import Proxy

pytestmark = [pytest.mark.faults, pytest.mark.s3, pytest.mark.timeout(1200)]

SEEDS = (52, 24, 27)
"""Whose storms hold every kind of fault within the first twenty requests."""


def published(root: str, head: str) -> PublishedVersion:
    version = current(open_storage(root).child(head))
    assert version is not None
    return version


@pytest.fixture(scope="module")
def mortal() -> Iterator[Ceph]:
    """A server whose objects outlive that it is killed."""
    if absent := servers.missing():
        pytest.skip(absent)
    with Ceph(persistent=True) as server:
        yield server


@pytest.fixture
def mortal_root(mortal: Ceph, monkeypatch: pytest.MonkeyPatch) -> str:
    """As `s3_root`, on `mortal`."""
    for name, value in mortal.environment.items():
        monkeypatch.setenv(name, value)
    return mortal.new_root()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Proxy]:
    """In front of the server that the test's other fixtures have put into the environment."""
    request.getfixturevalue("mortal_root" if "mortal" in request.fixturenames else "s3_root")
    with Proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
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
    proxy.inject("lost", method="PUT", target="/manifest.json")
    proxy.inject("lost", method="PUT", target="/current/")
    kinds = {"busy", "throttled", "cut request", "cut answer", "lost", "slow"}
    proxy.storm(seed, share=0.3, kinds=sorted(kinds))
    return kinds


def fill(root: str) -> PublishedVersion:
    """A version without models, in this process; again, as a scheduler does, where that helps."""
    for _ in range(20):
        with contextlib.suppress(InfrastructureError):
            return filling.fill(root)
    raise AssertionError("the store did not come back")


def require_filled(root: str, folder: Path) -> None:
    """Byte for byte what a directory holds after an undisturbed run, and nothing beside it."""
    filling.fill(folder)
    storage = open_storage(root)
    assert {key: storage.get(key) for key in storage.list()} == filling.tree(folder)
    assert verify(published(root, "data/vanilla")) == []
    assert storage.abort_uploads(older_than=0) == 0


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
def test_writes_in_bad_weather(s3_root: str, proxy: Proxy, tmp_path: Path, seed: int) -> None:
    kinds = make_weather(proxy, seed)
    fill(s3_root)
    assert set(proxy.struck) == kinds
    proxy.storm(0, share=0, kinds=[])
    require_filled(s3_root, tmp_path)
