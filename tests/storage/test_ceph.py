"""The storage on a real S3 server."""

import pytest
from botocore.awsrequest import AWSPreparedRequest

from dfkd.storage.local import open_storage
from dfkd.storage.s3 import S3Storage
from tests.helpers.storage_contract import S3FaultTests, StorageTests

pytestmark = pytest.mark.s3


@pytest.fixture
def root(s3_root: str) -> str:
    return s3_root


class TestStorage(StorageTests):
    pass


class TestFaults(S3FaultTests):
    pass


def test_a_body_that_changes_on_its_way_is_refused_by_the_store_and_sent_again(root: str) -> None:
    storage = open_storage(root)
    assert isinstance(storage, S3Storage)
    sent = []

    def flip(request: AWSPreparedRequest, **_: object) -> None:
        """Change the first body after it has been signed."""
        sent.append(request)
        if len(sent) == 1:
            request.body = b"hellp"

    storage.connection.client.meta.events.register("before-send.s3.PutObject", flip)
    assert storage.put_if_absent("object", b"hello")
    assert len(sent) == 2
    assert storage.get("object") == b"hello"
