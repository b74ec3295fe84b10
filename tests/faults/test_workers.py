"""Workers, drivers and nodes die at random moments, and the version is as if nothing had happened.

The cheapest form: the real engine on a real cluster of several nodes, the real commits and the real
publication, of tiny made-up samples. `test_runs` has the same with models.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.helpers.disk_filler import TASKS, Fill, drive, undisturbed
from tests.helpers.draining import drain
from tests.helpers.jobs import contents
from tests.helpers.machines import Nodes, driver
from tests.helpers.waiting import wait_for

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return undisturbed(tmp_path_factory.mktemp("fill"))


def receipts(run: Fill) -> int:
    return len(list(run.root.glob("data/vanilla/versions/*/receipts/*.json.gz")))


def tries(run: Fill) -> dict[str, list[str]]:
    """By task, the nodes on which it was tried."""
    return {file.name: file.read_text().splitlines() for file in run.notes.iterdir()}


def reached(run: Fill, position: int) -> bool:
    return (run.notes / TASKS[position].id).exists()


@pytest.mark.parametrize("seed", [2, 3])
def test_workers_and_nodes_killed_at_random_moments(
    nodes: Nodes, tmp_path: Path, expected: dict[str, bytes], seed: int
) -> None:
    """Four kills in a run, of workers and of nodes."""
    chance = random.Random(seed)
    gates = tuple(sorted(chance.sample(range(len(TASKS) - 1), 4)))
    run = Fill(tmp_path / "run", gates=gates)
    kills = [chance.choice(["worker", "worker", "node"]) for _ in gates]
    with driver(drive, nodes.cluster.address, run) as child:
        for gate, kind in zip(gates, kills, strict=True):
            wait_for(lambda gate=gate: reached(run, gate), alive=child.is_alive)
            time.sleep(chance.uniform(0, 0.2))
            fillers = wait_for(lambda: nodes.actors("Filler"), alive=child.is_alive)
            node, victim = chance.choice(fillers)
            if kind == "node":
                nodes.kill(node)
                nodes.add()
            else:
                os.kill(victim, signal.SIGKILL)
            assert contents(run.root / "data").items() <= expected.items()
            run.gate(gate).touch()
        child.join()
    assert child.exitcode == 0
    assert contents(run.root / "data") == expected
    print(f"killed {', '.join(kills)}: equal, tries {sum(map(len, tries(run).values()))}")


def test_drivers_killed_at_random_moments(
    nodes: Nodes, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """Two kills in a run."""
    chance = random.Random(0)
    gates = tuple(sorted(chance.sample(range(len(TASKS) - 1), 2)))
    run = Fill(tmp_path / "run", gates=gates)
    for gate in gates:
        with driver(drive, nodes.cluster.address, run) as child:
            wait_for(lambda gate=gate: reached(run, gate), alive=child.is_alive)
            time.sleep(chance.uniform(0, 0.2))
            child.kill()
            child.join()
        assert child.exitcode == -signal.SIGKILL
        assert contents(run.root / "data").items() <= expected.items()
        run.gate(gate).touch()
    with driver(drive, nodes.cluster.address, run) as child:
        child.join()
    assert child.exitcode == 0
    assert contents(run.root / "data") == expected
    print("killed driver, driver: equal")


def test_a_node_that_joins_works_and_one_that_is_drained_finishes_what_it_has(
    nodes: Nodes, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """A notice of preemption: the task in flight may end, and no try is lost."""
    run = Fill(tmp_path / "run", attempts=1, gates=(3,), pause=0.3)
    with driver(drive, nodes.cluster.address, run) as child:
        wait_for(lambda: reached(run, 3), alive=child.is_alive)
        joined = nodes.add()  # the two others stand before the gate with a task each
        wait_for(
            lambda: any(joined.node_id in names for names in tries(run).values()), child.is_alive
        )
        drain(nodes.cluster, joined)
        run.gate(3).touch()
        child.join()
    assert child.exitcode == 0
    assert {len(names) for names in tries(run).values()} == {1}
    assert contents(run.root / "data") == expected
    nodes.kill(joined)


def test_a_node_that_dies_is_not_held_against_its_task(
    nodes: Nodes, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    run = Fill(tmp_path / "run", attempts=1, gates=(3,))
    with driver(drive, nodes.cluster.address, run) as child:
        wait_for(lambda: reached(run, 3), alive=child.is_alive)
        nodes.kill(wait_for(lambda: nodes.actors("Filler"), alive=child.is_alive)[0][0])
        nodes.add()
        run.gate(3).touch()
        child.join()
    assert child.exitcode == 0
    assert contents(run.root / "data") == expected
