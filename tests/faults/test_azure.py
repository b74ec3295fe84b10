"""Fault 3 on Azure Blob: the store stops and starts again, throttles, and loses answers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import azurite as servers
from azurite import Azurite
from tests.faults.test_object_store import SEEDS, fill, make_weather, require_filled
from tests.helpers.s3_proxy import Proxy

pytestmark = [pytest.mark.faults, pytest.mark.azure, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def mortal() -> Iterator[Azurite]:
    """A server whose objects outlive a restart."""
    if absent := servers.missing():
        pytest.skip(absent)
    with Azurite(persistent=True) as server:
        yield server


@pytest.fixture
def mortal_root(mortal: Azurite, monkeypatch: pytest.MonkeyPatch) -> str:
    """`az://container/prefix` in an empty container, with the environment that reaches it."""
    for name, value in mortal.environment.items():
        monkeypatch.setenv(name, value)
    return mortal.new_root()


@pytest.fixture
def proxy(mortal: Azurite, mortal_root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """In front of `mortal`."""
    with Proxy(mortal.endpoint) as proxy:
        through = mortal.environment["AZURE_STORAGE_ENDPOINT"]
        monkeypatch.setenv(
            "AZURE_STORAGE_ENDPOINT", through.replace(mortal.endpoint, proxy.address)
        )
        yield proxy


@pytest.mark.parametrize("held", ["/shards/", "/receipts/"])
def test_a_store_that_stops_with_a_write_in_flight(
    mortal: Azurite, mortal_root: str, proxy: Proxy, tmp_path: Path, held: str
) -> None:
    proxy.inject("held", method="PUT", target=held)
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(fill, mortal_root)
        proxy.held.wait()
        mortal.stop()
        proxy.released.set()
        mortal.restart()
        writer.result()
    require_filled(mortal_root, tmp_path)


def test_writes_in_bad_weather(mortal_root: str, proxy: Proxy, tmp_path: Path) -> None:
    kinds = make_weather(proxy, SEEDS[1])
    fill(mortal_root)
    assert set(proxy.struck) == kinds
    proxy.storm(0, share=0, kinds=[])
    require_filled(mortal_root, tmp_path)
