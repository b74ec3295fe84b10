"""The storage on a real S3 server."""

import pytest

from tests.helpers.storage_contract import S3FaultTests, StorageTests

pytestmark = pytest.mark.s3


@pytest.fixture
def root(s3_root: str) -> str:
    return s3_root


class TestStorage(StorageTests):
    pass


class TestFaults(S3FaultTests):
    pass
