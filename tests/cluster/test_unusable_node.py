"""A node on which no worker can begin, beside another one."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from dfkd.cluster.capacity import Actor, WorkerResources, node_id
from dfkd.cluster.pool import Pool
from dfkd.config.plan import PromptPart
from dfkd.errors import InfrastructureError
from tests.helpers.own_ray import own_ray


class Picky(Actor):
    """Cannot begin on some nodes; dies once at its first part."""

    def __init__(self, bad: tuple[str, ...], hangs: bool, notes: Path) -> None:
        self.bad, self.hangs, self.notes = bad, hangs, notes

    def begin(self, folder: str, *work: Any) -> None:
        super().begin(folder)
        if node_id() in self.bad:
            with (self.notes / "refused").open("a") as stream:
                stream.write("x")
            if self.hangs:
                time.sleep(600)
            raise InfrastructureError("cluster: torch cannot use the GPU; run it again")

    def run(self, part: PromptPart) -> str:
        while not (self.notes / "refused").exists():
            time.sleep(0.05)
        time.sleep(0.5 * self.hangs)  # so that the run outlasts `BEGIN_SECONDS`
        if not (self.notes / "died").exists():
            (self.notes / "died").touch()
            os._exit(1)
        return node_id()


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[list[str]]:
    """The ids of two nodes of one CPU each."""
    with own_ray() as cluster:
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
        yield sorted(node["NodeID"] for node in ray.nodes())


@pytest.mark.parametrize("hangs", [False, True], ids=["refuses", "hangs"])
def test_the_run_goes_on_without_it(
    two_nodes: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    hangs: bool,
) -> None:
    """Also after an actor has died, whose replacement would find room there first."""
    if hangs:
        monkeypatch.setattr("dfkd.cluster.pool.BEGIN_SECONDS", 1.0)
    good, bad = two_nodes
    pool: Pool[PromptPart] = Pool(Picky, ((bad,), hangs, tmp_path), 2, 3, WorkerResources(1.0))
    with pool:
        found = list(pool.run(PromptPart(number) for number in range(6)))
    assert found == [good] * 6
    assert pool.quarantine == []
    assert (tmp_path / "refused").read_text() == "x"
    reason = "a worker did not begin within 1 seconds" if hangs else "torch cannot use the GPU"
    assert f"note: the run goes on without a node: cluster: {reason}" in capfd.readouterr().err


def test_a_cluster_of_such_nodes_ends_the_run(two_nodes: list[str], tmp_path: Path) -> None:
    pool: Pool[PromptPart] = Pool(Picky, (two_nodes, False, tmp_path), 2, 3, WorkerResources(1.0))
    with pool, pytest.raises(InfrastructureError, match="torch cannot use the GPU"):
        list(pool.run(PromptPart(number) for number in range(6)))
