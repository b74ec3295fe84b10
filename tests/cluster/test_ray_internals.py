"""What is used of Ray beyond its public API still does what it is for, and is in one module."""

import logging
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.authentication import authentication_token_setup
from ray.cluster_utils import Cluster
from ray.train import ScalingConfig

from dfkd.cluster import ray_internals
from dfkd.cluster.capacity import has_autoscaler, schedulable_nodes
from dfkd.cluster.engine import Actor
from tests.helpers.draining import drain
from tests.helpers.waiting import wait_for

ROOT = Path(__file__).parents[2]
PRIVATE = re.compile(
    r"\bray[.\w]*\.(_\w+|experimental|autoscaler|v2)\b|\b_internal\b|\b__ray_\w+__"
    r"|from ray import .*\b_\w+"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        small = {"object_store_memory": 80 << 20}
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "include_dashboard": False, **small},
        )
        cluster.add_node(num_cpus=1, **small)
        ray.init(address=cluster.address)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def test_only_one_module_uses_what_is_not_public() -> None:
    files = [file for folder in ("dfkd", "jobs") for file in (ROOT / folder).rglob("*.py")]
    found = {file.name for file in files if PRIVATE.search(file.read_text())}
    assert found == {"ray_internals.py"}


def kinds(callbacks: list[Any]) -> set[str]:
    """The names of the callbacks' classes."""
    return {type(each).__name__ for each in callbacks}


def test_nothing_asks_for_a_dashboard_that_is_not_there(cluster: Cluster) -> None:
    """Ray's own default would complain each second, and start an actor for data sets."""
    local = ray_internals.local_torch_trainer()
    trainer = local(lambda: None, scaling_config=ScalingConfig(num_workers=2))
    default = super(local, trainer)._create_default_callbacks()
    without = {"PlacementGroupCleanerCallback", "DatasetsCallback"}
    assert kinds(default) - kinds(trainer._create_default_callbacks()) == without
    assert "BackendSetupCallback" in kinds(trainer._create_default_callbacks())


def test_ctrl_c_stays_with_the_job(cluster: Cluster) -> None:
    """Ray's own handler exits with 0, and after the training it ignores Ctrl-C."""
    before = signal.getsignal(signal.SIGINT)
    local = ray_internals.local_torch_trainer()
    local(lambda: None, scaling_config=ScalingConfig(num_workers=1)).fit()
    assert signal.getsignal(signal.SIGINT) is before


def test_without_an_autoscaler_a_type_is_named_after_each_node(cluster: Cluster) -> None:
    wait_for(lambda: len(list(ray_internals.node_types())) == 2)
    assert all(name.startswith("node_") for name in ray_internals.node_types())
    assert not has_autoscaler()


def test_a_bar_of_an_actor_shows_on_the_terminal_of_the_driver(
    cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        bar = ray_internals.relayed_bar("far away", 10, "img", 3)
        bar.update(4)
        time.sleep(0.5)
        bar.close()

    ray.get(ray.remote(work).remote())
    told = []

    def shown() -> bool:
        told.append(capfd.readouterr().err)
        return re.search(r"far away.*7.*10", "".join(told)) is not None

    wait_for(shown)


def test_a_start_says_nothing_of_tokens(caplog: pytest.LogCaptureFixture) -> None:
    # As before any connection of this process, which silences the logger; undone after the test.
    caplog.set_level(logging.INFO, "ray._private.authentication")
    authentication_token_setup._warn_token_auth_enabled()
    assert "Token authentication" in caplog.text
    caplog.clear()
    ray_internals.quiet_authentication()
    authentication_token_setup._warn_token_auth_enabled()
    assert caplog.text == ""


def test_a_node_that_is_being_drained_is_known(cluster: Cluster) -> None:
    node = cluster.add_node(num_cpus=1, resources={"leaving": 1}, object_store_memory=80 << 20)
    assert node.node_id in schedulable_nodes()
    assert ray_internals.draining_nodes() == set()
    actor = ray.remote(resources={"leaving": 1})(Actor).remote()  # an idle node would go at once
    assert ray.get(actor.locate.remote()) == node.node_id  # type: ignore[attr-defined]
    drain(cluster, node)
    wait_for(lambda: ray_internals.draining_nodes() == {node.node_id})
    assert node.node_id not in schedulable_nodes()
