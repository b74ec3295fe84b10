"""One cluster of two worker nodes for all tests that kill parts of it."""

import os
from collections.abc import Iterator

import pytest

from tests.helpers.machines import Nodes


@pytest.fixture(scope="session")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # to have it put back
        cluster = Nodes(2)
        yield cluster
        cluster.close()
