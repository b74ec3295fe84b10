"""A node on which no worker can begin, beside another one."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from dfkd.cluster.capacity import WorkerResources, node_id
from dfkd.cluster.engine import Actor, Engine
from dfkd.config.plan import PromptPart
from dfkd.errors import InfrastructureError
from tests.helpers.own_ray import own_ray

FAILURES = {"dies": 3}
"""How often an actor cannot begin before its node is given up, if not once."""


class Picky(Actor):
    """Cannot begin on some nodes; dies once at its first part."""

    def __init__(self, bad: Sequence[str], how: str, notes: Path) -> None:
        self.bad, self.how, self.notes = bad, how, notes

    def begin(self, folder: str, *work: Any) -> None:
        super().begin(folder)
        if node_id() in self.bad:
            with (self.notes / "refused").open("a") as stream:
                stream.write("x")
            if self.how == "dies":
                os._exit(1)
            if self.how == "hangs":
                time.sleep(600)
            raise InfrastructureError("cluster: torch cannot use the GPU; run it again")

    def run(self, part: PromptPart) -> str:
        refused = self.notes / "refused"
        while not (refused.exists() and len(refused.read_text()) >= FAILURES.get(self.how, 1)):
            time.sleep(0.05)
        time.sleep(0.5 * (self.how == "hangs"))  # so that the run outlasts `BEGIN_SECONDS`
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


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("refuses", "cluster: torch cannot use the GPU"),
        ("hangs", "cluster: a worker did not begin within 1 seconds"),
        ("dies", "workers: none can begin on a node, the last ended with "),
    ],
)
def test_the_run_goes_on_without_it(
    two_nodes: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    how: str,
    reason: str,
) -> None:
    """Also after an actor has died, whose replacement would find room there first."""
    if how == "hangs":
        monkeypatch.setattr("dfkd.cluster.engine.BEGIN_SECONDS", 1.0)
    good, bad = two_nodes
    engine: Engine[PromptPart] = Engine(Picky, ((bad,), how, tmp_path), 2, 3, WorkerResources(1.0))
    with engine:
        found = list(engine.run(PromptPart(number) for number in range(6)))
    assert found == [good] * 6
    assert engine.quarantine == []
    assert (tmp_path / "refused").read_text() == "x" * FAILURES.get(how, 1)
    assert f"note: the run goes on without a node: {reason}" in capfd.readouterr().err


@pytest.mark.parametrize("how", ["refuses", "dies"])
def test_a_cluster_of_such_nodes_ends_the_run(
    two_nodes: list[str], tmp_path: Path, how: str
) -> None:
    engine: Engine[PromptPart] = Engine(
        Picky, (two_nodes, how, tmp_path), 2, 3, WorkerResources(1.0)
    )
    with engine, pytest.raises(InfrastructureError, match=r"cannot use the GPU|none can begin"):
        list(engine.run(PromptPart(number) for number in range(6)))


def test_a_run_of_lasting_actors_does_not_inherit_one_that_hangs(
    two_nodes: list[str], tmp_path: Path
) -> None:
    good, bad = two_nodes
    arguments = ((bad,), "hangs", tmp_path)
    engine: Engine[PromptPart] = Engine(Picky, arguments, 2, 3, WorkerResources(1.0), lasting=True)
    with engine:
        assert list(engine.run(PromptPart(number) for number in range(2))) == [good] * 2
        assert {each.begun for each in engine.places if each.node == bad} == {False}
        assert list(engine.run(iter([PromptPart(2)]))) == [good]
        assert not [each for each in engine.places if not each.begun and each.call]
