"""The storage on a real S3 server."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from dfkd.storage import open_storage

pytestmark = pytest.mark.s3


def test_exactly_one_of_sixteen_racing_writers_wins(s3_root: str) -> None:
    storage = open_storage(s3_root)
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda n: storage.put_if_absent("prize", bytes([n])), range(16)))
    assert sum(won) == 1
    assert storage.get("prize") == bytes([won.index(True)])
