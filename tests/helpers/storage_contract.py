"""What a storage must do, wherever it is: the tests that a directory, moto, Ceph and Azurite share.

A subclass has fixtures `root` (for `open_storage`, empty) and `storage`, opened there.
"""

import dataclasses
import os
import pickle
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dfkd.dataset import versions
from dfkd.dataset.published import current
from dfkd.dataset.random_access import Examples, parse
from dfkd.dataset.verification import verify
from dfkd.errors import CorruptionError, DfkdError, Exit, InfrastructureError, ManifestError
from dfkd.storage.azure_gcs import ObstoreConnection, ObstoreStorage
from dfkd.storage.base import MAX_UPLOADS, MissingObject, Request, Storage, split_root
from dfkd.storage.bucket import BucketStorage
from dfkd.storage.local import LocalStorage, open_storage
from dfkd.storage.retries import Limits, RetryPolicy
from dfkd.storage.s3 import S3Connection, S3Storage
from tests.helpers import partial_version
from tests.helpers.jobs import contents
from tests.helpers.s3_proxy import Proxy


class StorageTests:
    """The protocol's promises."""

    @pytest.fixture
    def storage(self, root: str) -> Storage:
        return open_storage(root)

    def test_a_new_storage_is_empty(self, storage: Storage) -> None:
        assert list(storage.list()) == []
        assert storage.folders() == ()

    def test_put_replaces_and_put_if_absent_does_not(self, storage: Storage) -> None:
        storage.put("a/b", b"1")
        storage.put("a/b", b"2")
        assert not storage.put_if_absent("a/b", b"3")
        assert storage.get("a/b") == b"2"
        assert storage.put_if_absent("empty", b"")
        assert storage.get("empty") == b""

    def test_no_more_of_an_object_is_read_than_is_asked_for(self, storage: Storage) -> None:
        storage.put("a/b", b"12345")
        limits = (1, 5, 6, 1 << 50)  # the last one is of a stranger's receipt
        assert [storage.get("a/b", limit) for limit in limits] == [b"1", *3 * [b"12345"]]
        assert storage.size("a/b") == 5
        with pytest.raises(MissingObject):
            storage.get("a/c", 1)

    def test_a_range_is_cut_where_the_object_ends(self, storage: Storage) -> None:
        storage.put("a/b", b"12345")
        ranges = [(0, 5), (1, 3), (3, 1 << 50), (5, 9), (7, 9), (2, 2)]
        found = [storage.get_range("a/b", *each) for each in ranges]
        assert found == [b"12345", b"23", b"45", b"", b"", b""]
        with pytest.raises(MissingObject):
            storage.get_range("a/c", 0, 1)

    def test_objects_from_files_and_into_files(self, storage: Storage, tmp_path: Path) -> None:
        (tmp_path / "in").write_bytes(b"x" * 9999)
        assert storage.child("a").put_if_absent("c.d", tmp_path / "in")
        storage.get_file("a/c.d", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == b"x" * 9999

    def test_keys_are_listed_in_order(self, storage: Storage) -> None:
        for key in ("a/b", "a-b", "a/c.d"):
            storage.put(key, b"")
        assert list(storage.list()) == ["a-b", "a/b", "a/c.d"]
        assert storage.folders() == ("a",)
        assert storage.location("a/b").endswith("/runs/one/a/b")

    def test_a_child_sees_its_own_keys_only(self, storage: Storage) -> None:
        child = storage.child("data/mix").child("versions")
        child.put("x", b"1")
        child.put("y", b"")
        storage.put("data/mixed", b"2")
        assert list(child.list()) == ["x", "y"]
        assert list(child.list("y")) == ["y"]
        assert list(storage.list("data/mix/")) == ["data/mix/versions/x", "data/mix/versions/y"]
        assert child.location("x").endswith("/runs/one/data/mix/versions/x")
        assert storage.folders("data/") == ("mix",)
        assert storage.folders("none/") == ()

    def test_a_child_may_be_named_with_the_slash_of_its_folder(self, storage: Storage) -> None:
        storage.child("data/").child("mix/").put("x", b"1")
        assert storage.get("data/mix/x") == b"1"
        assert storage.child("data/") == storage.child("data")

    @pytest.mark.parametrize("name", [".ipynb_checkpoints", "my copy"])
    def test_folders_that_dfkd_cannot_have_made_are_left_out(
        self, storage: LocalStorage | BucketStorage, name: str
    ) -> None:
        storage.put("data/mix/x", b"")
        data = storage.child("data")
        dataclasses.replace(data, prefix=f"{data.prefix}/{name}").put("x", b"")
        assert storage.folders("data/") == ("mix",)

    def test_entries_have_sizes_and_ages(self, storage: Storage) -> None:
        def ages() -> dict[str, float]:
            return {entry.key: entry.age for entry in storage.entries("b")}

        storage.put("a", b"")
        storage.put("b/old", b"123")
        while ages()["b/old"] < 1:
            pass
        storage.put("b/young", b"")
        found = ages()
        assert 0 <= found["b/young"] < found["b/old"]
        sizes = [(entry.key, entry.size) for entry in storage.entries()]
        assert sizes == [("a", 0), ("b/old", 3), ("b/young", 0)]

    def test_missing_objects(self, storage: Storage, tmp_path: Path) -> None:
        """Never written, deleted, a folder of another key, and below another key."""
        storage.put("a/b", b"")
        storage.put("deleted", b"")
        storage.delete("deleted")
        storage.delete("deleted")
        for key in ("nothing", "deleted", "a", "a/b/c"):
            assert not storage.exists(key)
            for read in (storage.get, lambda key: storage.get_file(key, tmp_path / "out")):
                with pytest.raises(MissingObject, match="no such object"):
                    read(key)

    def test_a_folder_that_is_not_there_is_no_missing_object(
        self, storage: Storage, tmp_path: Path
    ) -> None:
        storage.put("a", b"1")
        with pytest.raises(FileNotFoundError, match="no folder"):
            storage.get_file("a", tmp_path / "no folder" / "a")

    def test_a_copy_that_does_not_fit_is_refused(self, storage: Storage, small_disk: Path) -> None:
        storage.put("big", b"x" * (400 << 10))
        reason = r"no room for .*copy \(409600 bytes, \d+ bytes fr"
        with pytest.raises(InfrastructureError, match=reason):
            storage.get_file("big", small_disk / "copy")

    def test_a_storage_can_be_pickled(self, storage: Storage) -> None:
        storage.child("a").put("b", b"1")
        assert pickle.loads(pickle.dumps(storage)).get("a/b") == b"1"
        assert pickle.loads(pickle.dumps(storage.child("a"))).get("b") == b"1"

    def test_exactly_one_of_sixteen_racing_writers_wins(self, storage: Storage) -> None:
        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(lambda n: storage.put_if_absent("prize", bytes([n])), range(16)))
        assert sum(won) == 1
        assert storage.get("prize") == bytes([won.index(True)])

    def test_a_version_is_the_same_bytes_everywhere(
        self, storage: Storage, root: str, tmp_path: Path
    ) -> None:
        partial_version.fill(tmp_path / "elsewhere")
        published = partial_version.fill(root)
        assert current(storage.child("data/vanilla")) == published
        assert verify(published) == []
        copy = {key: storage.get(key) for key in storage.list()}
        assert copy == contents(tmp_path / "elsewhere")

    def test_single_samples_are_verified_wherever_they_lie(
        self, storage: Storage, root: str
    ) -> None:
        version = partial_version.fill(root)
        examples, receipt = Examples(version), next(iter(version.receipts()))
        whole = [sample.key for sample in version.samples(receipt)]
        found = enumerate(examples.read(np.arange(3)))
        assert [parse(data).key for sample, data in found] == whole
        data = storage.get(f"data/vanilla/{receipt.key}")
        for kept in (data[:1000], data[:-1], data[:600] + b"x" + data[601:]):
            storage.put(f"data/vanilla/{receipt.key}", kept)
            with pytest.raises(CorruptionError, match=f"{receipt.shard}: a sample of"):
                [examples.read(np.array([sample])) for sample in range(3)]


def opened(root: str, **limits: float) -> BucketStorage:
    """The storage in a bucket, which was not asked yet, with short pauses and these limits."""
    scheme, bucket, prefix = split_root("root", root)
    quick = Limits(RetryPolicy(pause=0.01), **limits)  # type: ignore[arg-type]
    if scheme == "s3":
        return S3Storage(bucket, prefix, S3Connection(quick))
    return ObstoreStorage(bucket, prefix, ObstoreConnection(quick), scheme=scheme)


class FaultTests:
    """What a storage in a bucket makes of a bad network.

    A subclass has fixtures `root` as above, and `proxy` between it and the store.
    """

    @pytest.fixture
    def storage(self, root: str, proxy: Proxy) -> BucketStorage:
        return opened(root)

    @pytest.fixture
    def impatient(self, root: str, proxy: Proxy) -> BucketStorage:
        """Waits a second for an answer."""
        return opened(root, read=1.0)

    def test_busy_stores_are_asked_again(self, storage: Storage, proxy: Proxy) -> None:
        seen: list[Request] = []
        watched = storage.child("a").observed(seen.append)
        for kinds in (("busy", "busy", "throttled"), ("cut answer", "lost")):
            proxy.inject(*kinds)
            watched.put("b", b"12345")
            proxy.inject(*kinds)
            assert watched.get("b") == b"12345"
            proxy.inject(*kinds)
            assert list(watched.list()) == ["b"]
            proxy.inject(*kinds)
            assert watched.exists("b")
            proxy.inject(*kinds)
            watched.delete("b")
        assert len(proxy.struck) == 5 * (3 + 2)
        assert len(seen) == len(proxy.seen)
        first = [(each.operation, each.attempt, each.error, each.bytes) for each in seen[:4]]
        busy = ["SlowDown", "SlowDown", "TooManyRequests"]
        assert first[:3] == [("put", n, code, 0) for n, code in enumerate(busy, 1)]
        assert first[3] == ("put", 4, "", 5)
        assert all(each.seconds > 0 for each in seen)
        assert pickle.loads(pickle.dumps(watched)).put_if_absent("c", b"")
        assert len(seen) == len(proxy.seen) - 1  # an observer stays behind

    def test_bodies_that_break_off_are_sent_and_read_again(
        self, storage: Storage, proxy: Proxy, tmp_path: Path
    ) -> None:
        data = random.Random(0).randbytes(3 << 20)
        (tmp_path / "in").write_bytes(data)
        proxy.inject("cut request", "cut request")
        storage.put("a", tmp_path / "in")
        proxy.inject("cut request")
        assert storage.put_if_absent("b", data)
        proxy.inject("cut answer", "cut answer", "slow")
        assert storage.get("a") == data
        proxy.inject("cut answer", "slow")
        storage.get_file("b", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == data

    def test_a_range_is_read_again(self, storage: Storage, proxy: Proxy) -> None:
        storage.put("a", b"12345")
        proxy.inject("busy", "throttled", "cut answer")
        assert storage.get_range("a", 1, 3) == b"23"
        assert len(proxy.struck) == 3

    def test_an_answer_that_never_comes_is_given_up(self, impatient: Storage, proxy: Proxy) -> None:
        proxy.inject("silent", "silent")
        assert impatient.put_if_absent("a", b"1")
        assert impatient.get("a") == b"1"

    def test_a_put_whose_answer_was_lost_is_known_again(
        self, storage: Storage, proxy: Proxy
    ) -> None:
        for name, kinds in (("one", ["lost"]), ("ours", ["lost", "busy", "lost"])):
            proxy.inject(*kinds)
            assert storage.put_if_absent(name, b"same")
        assert not storage.put_if_absent("ours", b"same")

    def test_an_answer_that_was_lost_makes_no_second_winner(
        self, storage: Storage, proxy: Proxy
    ) -> None:
        assert storage.put_if_absent("theirs", b"same")
        proxy.inject("lost", "lost", "busy")
        assert not storage.put_if_absent("theirs", b"same")
        proxy.storm(seed=1, share=0.4, kinds=["lost", "busy", "cut answer", "cut request"])
        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(lambda n: storage.put_if_absent("prize", bytes([n])), range(16)))
        proxy.storm(seed=1, share=0, kinds=[])
        assert sum(won) == 1
        assert storage.get("prize") == bytes([won.index(True)])
        assert "lost" in proxy.struck

    def test_an_object_too_large_for_one_request_is_refused(
        self, storage: BucketStorage, proxy: Proxy, tmp_path: Path
    ) -> None:
        most = storage.max_put_bytes
        with (tmp_path / "huge").open("wb") as stream:
            stream.truncate(most + 1)
        limit = f"at most {most} bytes, got {most + 1}; .*shard_size"
        with pytest.raises(DfkdError, match=limit) as caught:
            storage.put_if_absent("huge", tmp_path / "huge")
        assert caught.value.exit_code == Exit.FAILED
        assert proxy.seen == []

    def test_few_bodies_are_sent_at_once(self, storage: Storage, proxy: Proxy) -> None:
        proxy.gate = threading.Barrier(MAX_UPLOADS)  # so that as many as may be are there
        with ThreadPoolExecutor(3 * MAX_UPLOADS) as pool:
            list(pool.map(lambda n: storage.put(f"a{n}", b"1"), range(3 * MAX_UPLOADS)))
        assert proxy.most_uploads == MAX_UPLOADS

    def test_opening_costs_one_request_after_the_first_time(self, root: str, proxy: Proxy) -> None:
        assert [len(proxy.seen) for _ in range(3) if open_storage(root)] == [2, 3, 4]

    def test_a_shard_costs_four_requests(self, root: str, proxy: Proxy) -> None:
        """Whether there is a receipt, the shard, its length in the store, the receipt."""
        version = versions.begin(partial_version.home(root), partial_version.IDENTITY)
        before = len(proxy.seen)
        for task in partial_version.TASKS:
            partial_version.commit(version, task)
        assert len(proxy.seen) - before == 4 * len(partial_version.TASKS)


class S3FaultTests(FaultTests):
    """The same on S3; the environment of `root` reaches the store."""

    @pytest.fixture
    def proxy(self, root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
        with Proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
            yield proxy

    def test_a_store_in_which_both_writers_win_is_refused(
        self, root: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        open_storage(root)
        with Proxy(os.environ["AWS_ENDPOINT_URL"], drop_conditions=True) as ignorant:
            monkeypatch.setenv("AWS_ENDPOINT_URL", ignorant.address)
            for place in (root, f"{root}/never-opened"):
                with pytest.raises(ManifestError, match="a store that honours If-None"):
                    open_storage(place)
