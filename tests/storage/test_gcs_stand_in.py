"""The storage on a stand-in for Google Cloud Storage."""

from collections.abc import Iterator

import pytest

from dfkd.errors import ManifestError
from dfkd.storage.base import Storage
from dfkd.storage.local import open_storage
from tests.helpers.gcs_stand_in import TOKEN, GcsStandIn, Stored
from tests.helpers.s3_proxy import Proxy
from tests.helpers.storage_contract import FaultTests, StorageTests


@pytest.fixture(scope="module")
def server() -> Iterator[GcsStandIn]:
    with GcsStandIn() as server:
        yield server


@pytest.fixture
def root(server: GcsStandIn, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GOOGLE_BASE_URL", server.address)
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", TOKEN)
    return server.new_root()


class TestStorage(StorageTests):
    def test_a_listing_of_several_pages_is_whole(self, storage: Storage) -> None:
        keys = [f"a/{number:02d}" for number in range(12)]
        for key in keys:
            storage.put(key, b"")
        assert list(storage.list("a/")) == keys


class TestFaults(FaultTests):
    @pytest.fixture
    def proxy(
        self, server: GcsStandIn, root: str, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Proxy]:
        with Proxy(server.address) as proxy:
            monkeypatch.setenv("GOOGLE_BASE_URL", proxy.address)
            yield proxy


def test_objects_of_others_are_passed_over_or_named(server: GcsStandIn, root: str) -> None:
    storage, bucket = open_storage(root), server.buckets[root.split("/")[2]]
    storage.put("a", b"")
    for name in ("runs/one/", "runs/one/with space", "runs/one/.hidden"):
        bucket[name] = Stored(b"", {})
    assert list(storage.list()) == ["a"]
    bucket["runs/one/x//y"] = Stored(b"", {})
    with pytest.raises(ManifestError, match=r"must hold no object that has an empty .*runs/one"):
        list(storage.list())


def test_buckets_that_cannot_be_used_are_refused(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ManifestError, match=r"must be a bucket you may use.*NoSuchBucket"):
        open_storage("gs://no-such-bucket/x")
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "hunter2")
    with pytest.raises(ManifestError, match=r"you may use, got .*AuthenticationRequired") as caught:
        open_storage(root)
    assert "hunter2" not in str(caught.value)
