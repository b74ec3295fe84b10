"""What a storage must do, wherever it is: the tests that a directory, moto and Ceph share.

A subclass has fixtures `root` (for `open_storage`, empty) and `storage`, opened there.
"""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import filling
from dfkd.dataset import current, verify
from dfkd.storage import MissingObject, Storage, open_storage


class StorageTests:
    """The protocol's promises."""

    @pytest.fixture
    def storage(self, root: str) -> Storage:
        return open_storage(root)

    def test_opening_leaves_nothing_to_be_seen(self, storage: Storage) -> None:
        assert list(storage.list()) == []
        assert storage.folders() == ()

    def test_put_replaces_and_put_if_absent_does_not(self, storage: Storage) -> None:
        storage.put("a/b", b"1")
        storage.put("a/b", b"2")
        assert not storage.put_if_absent("a/b", b"3")
        assert storage.get("a/b") == b"2"
        assert storage.put_if_absent("empty", b"")
        assert storage.get("empty") == b""

    def test_objects_from_files_and_into_files(self, storage: Storage, tmp_path: Path) -> None:
        (tmp_path / "in").write_bytes(b"x" * 9999)
        assert storage.child("a").put_if_absent("c.d", tmp_path / "in")
        storage.get_file("a/c.d", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == b"x" * 9999

    def test_listing(self, storage: Storage) -> None:
        for key in ("a/b", "a-b", "a/c.d"):
            storage.put(key, b"")
        assert list(storage.list()) == ["a-b", "a/b", "a/c.d"]
        assert list(storage.child("a").list("c")) == ["c.d"]
        assert storage.folders() == ("a",)
        assert storage.location("a/b").endswith("/runs/one/a/b")

    def test_entries_have_sizes_and_ages_by_the_clock_of_the_store(self, storage: Storage) -> None:
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
        storage.put("a/b", b"")
        storage.delete("a/b")
        storage.delete("a/b")
        assert not storage.exists("a/b")
        for read in (storage.get, lambda key: storage.get_file(key, tmp_path / "out")):
            with pytest.raises(MissingObject, match="no such object"):
                read("a/b")

    def test_it_travels_to_other_processes(self, storage: Storage) -> None:
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
        filling.fill(tmp_path / "elsewhere")
        published = filling.fill(root)
        assert current(storage.child("data/vanilla")) == published
        assert verify(published) == []
        copy = {key: storage.get(key) for key in storage.list()}
        assert copy == filling.tree(tmp_path / "elsewhere")
