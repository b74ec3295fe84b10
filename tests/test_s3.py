import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest

import filling
from dfkd.dataset import current, verify
from dfkd.errors import InfrastructureError, ManifestError
from dfkd.s3 import S3Storage
from dfkd.storage import MissingObject, Storage, open_storage

server = pytest.importorskip("moto.server", reason="needs moto[server]")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    moto = server.ThreadedMotoServer(port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def root(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = tmp_path.name.replace("_", "-").lower()
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs/one"


@pytest.fixture
def storage(root: str) -> Storage:
    return open_storage(root)


def test_it_behaves_as_a_directory_does(storage: Storage, tmp_path: Path) -> None:
    assert list(storage.list()) == []  # the probe leaves nothing
    storage.put("a/b", b"1")
    storage.put("a/b", b"2")
    assert not storage.put_if_absent("a/b", b"3")
    (tmp_path / "in").write_bytes(b"x" * 9999)
    assert storage.child("a").put_if_absent("c.d", tmp_path / "in")
    storage.get_file("a/c.d", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"x" * 9999
    assert storage.get("a/b") == b"2"
    storage.put("a-b", b"")
    assert list(storage.list()) == ["a-b", "a/b", "a/c.d"]
    assert list(storage.child("a").list("c")) == ["c.d"]
    assert storage.folders() == ("a",)
    assert storage.location("a/b").endswith("/runs/one/a/b")
    assert pickle.loads(pickle.dumps(storage)).exists("a/b")
    storage.delete("a/b")
    storage.delete("a/b")
    assert not storage.exists("a/b")
    for read in (storage.get, lambda key: storage.get_file(key, tmp_path / "out")):
        with pytest.raises(MissingObject, match="no such object"):
            read("a/b")


def test_a_version_is_the_same_bytes_as_in_a_directory(root: str, tmp_path: Path) -> None:
    filling.fill(tmp_path / "local")
    storage = open_storage(root)
    published = filling.fill(root)  # type: ignore[arg-type]
    assert current(storage.child("data/vanilla")) == published
    assert verify(published) == []
    assert {key: storage.get(key) for key in storage.list()} == filling.tree(tmp_path / "local")


def test_exactly_one_of_racing_writers_wins(storage: Storage) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: storage.put_if_absent("prize", bytes([n])), range(8)))
    assert sum(won) == 1
    assert storage.get("prize") == bytes([won.index(True)])


def test_a_store_in_which_both_writers_win_is_refused(storage: Storage) -> None:
    assert isinstance(storage, S3Storage)

    def ignore(request: Any, **details: Any) -> None:
        del request.headers["If-None-Match"]

    storage._client.meta.events.register("before-send.s3.PutObject", ignore)
    with pytest.raises(ManifestError, match="a store that honours PUT with If-None-Match"):
        storage.probe()
    assert list(storage.list()) == []


def test_buckets_that_cannot_be_used_are_refused(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ManifestError, match=r"must be a bucket you may use.*NoSuchBucket"):
        open_storage("s3://no-such-bucket-here/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(InfrastructureError, match="run the same command again"):
        open_storage(root)
