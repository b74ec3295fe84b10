from typing import Any

import pytest

from dfkd.cluster.capacity import schedulable_nodes
from dfkd.errors import InfrastructureError
from tests.helpers.own_ray import own_ray
from tests.helpers.waiting import wait_for


@pytest.mark.faults
def test_a_cluster_without_any_node_is_an_error_at_once() -> None:
    """Else an engine would wait a quarter of an hour for a node that cannot come."""

    def dead() -> bool:
        try:
            return not schedulable_nodes()
        except InfrastructureError as error:
            return "Ray's last node has died; run the same command again" in str(error)

    with own_ray() as cluster:
        assert not dead()
        head: Any = cluster.head_node
        head.kill_raylet()
        wait_for(dead, "the death of the only node", limit=120)
