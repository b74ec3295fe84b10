"""The storage on a real S3 server."""

import pytest

from dfkd.storage.local import Storage, open_storage
from dfkd.storage.s3 import S3Storage
from tests.helpers.storage_contract import FaultTests, StorageTests

pytestmark = pytest.mark.s3


@pytest.fixture
def root(s3_root: str) -> str:
    return s3_root


@pytest.fixture
def storage(root: str) -> Storage:
    return open_storage(root)


class TestStorage(StorageTests):
    pass


class TestFaults(FaultTests):
    pass


def test_unfinished_uploads_are_removed(storage: Storage) -> None:
    assert isinstance(storage, S3Storage)
    client, place = storage._client, {"Bucket": storage.bucket, "Key": "runs/one/a/big"}
    client.create_multipart_upload(**place)
    client.create_multipart_upload(Bucket=storage.bucket, Key="runs/two/big")
    assert storage.abort_uploads(older_than=1e9) == 0
    assert storage.abort_uploads(older_than=0) == 1
    assert storage.abort_uploads(older_than=0) == 0
    kept = client.list_multipart_uploads(Bucket=storage.bucket)["Uploads"]
    assert [upload["Key"] for upload in kept] == ["runs/two/big"]
