"""One cluster of two worker nodes for all tests that kill parts of it."""

from collections.abc import Iterator

import pytest

from tests.helpers.machines import Nodes, two_nodes


@pytest.fixture(scope="session")
def nodes() -> Iterator[Nodes]:
    with two_nodes() as cluster:
        yield cluster
