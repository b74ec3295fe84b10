"""What is asked of an autoscaler and of a busy cluster, and how long; no Ray is needed."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import GetTimeoutError

from dfkd.cluster import capacity
from dfkd.cluster.capacity import (
    CAPACITY_WAIT_SECONDS,
    WorkerResources,
    gpu_name,
    plan_ranks,
    wait_for_nodes,
)
from dfkd.config.manifest import Cluster
from dfkd.errors import InfrastructureError, ManifestError


@pytest.mark.parametrize(
    ("answers", "waits"),
    [([True], [1.0]), ([False, True], [1.0, 900.0]), ([False, False], [1.0, 900.0])],
    ids=["room is there", "nodes come", "none comes"],
)
def test_nodes_are_asked_for_all_workers_and_no_longer_than_needed(
    monkeypatch: pytest.MonkeyPatch, answers: list[bool], waits: list[float]
) -> None:
    asked: list[list[dict[str, float]]] = []
    waited: list[float] = []
    removed: list[object] = []

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return answers[len(waited) - 1]

    group = SimpleNamespace(wait=wait)
    monkeypatch.setattr(capacity, "has_autoscaler", lambda: True)
    monkeypatch.setattr(capacity, "placement_group", lambda each: asked.append(each) or group)
    monkeypatch.setattr(capacity, "remove_placement_group", removed.append)
    if answers[-1]:
        wait_for_nodes(WorkerResources(2.0, 1.0), 3)
    else:
        with pytest.raises(InfrastructureError, match=r"no node had room .* for 900 seconds"):
            wait_for_nodes(WorkerResources(2.0, 1.0), 3)
    assert asked == [[{"CPU": 2.0, "GPU": 1.0}] * 3]
    assert waited == waits
    assert removed == [group]  # else it would hold what the workers need


def test_without_an_autoscaler_nobody_is_asked_for_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "has_autoscaler", lambda: False)
    monkeypatch.setattr(capacity, "placement_group", lambda _: pytest.fail("asked"))
    wait_for_nodes(WorkerResources(1.0), 1)


def test_gpus_that_others_hold_are_waited_for_with_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[float] = []

    def get(_: object, timeout: float = 0.0) -> None:
        limits.append(timeout)
        raise GetTimeoutError

    probe = SimpleNamespace(remote=lambda: None)
    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: probe)
    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(InfrastructureError, match=r"no node had room .*'GPU': 1\.0"):
        gpu_name()
    assert limits == [CAPACITY_WAIT_SECONDS]


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: Any = {"a": {"CPU": 8.0, "GPU": 2.0}}
    monkeypatch.setattr(capacity, "schedulable_nodes", lambda: nodes)
    monkeypatch.setattr(capacity, "gpu_name", lambda: "a GPU")
    found = [plan_ranks(limits, Cluster()) for limits in ((2, 2), (1, 4))]
    assert [(each.count, each.cpus, each.device, each.elastic) for each in found] == [
        (2, 4.0, "a GPU", None),
        (2, 4.0, "a GPU", (1, 4)),
    ]
    with pytest.raises(ManifestError, match="must not exceed the cluster's 2 GPUs, got 3"):
        plan_ranks((3, 4), Cluster())
