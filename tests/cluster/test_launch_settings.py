"""What Ray Train is told, and which error of several is the cause; no rank is started."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import ActorDiedError
from ray.train import WorkerGroupError
from torch.distributed import DistBackendError

from dfkd.cluster import launch
from dfkd.cluster.capacity import Ranks
from dfkd.cluster.launch import WITHOUT_END, root_cause, run_ranks
from dfkd.errors import CorruptionError, InfrastructureError

DEAD, GLOO = ActorDiedError(), RuntimeError("[../gloo/transport/tcp/pair.cc:534] closed by peer")
GPU = torch.AcceleratorError("CUDA error: unspecified launch failure")
NCCL, DAMAGE, DEFECT = DistBackendError("NCCL"), CorruptionError("x: cut; restore it"), KeyError(1)


@pytest.mark.parametrize(
    ("failures", "cause"),
    [
        ([DEAD], None),
        ([GLOO, DEAD], None),
        ([GLOO], None),  # before Ray has noticed the death
        ([NCCL], None),
        ([GPU], None),
        ([DEFECT, DEAD], None),
        ([DEFECT, NCCL], None),
        ([DEFECT], DEFECT),
        ([GLOO, DAMAGE], DAMAGE),
        ([DEAD, DAMAGE], DAMAGE),
        ([DEFECT, DAMAGE], DAMAGE),
    ],
)
def test_a_lost_connection_is_no_cause(failures: list[Exception], cause: Exception | None) -> None:
    assert root_cause(failures) is cause


@pytest.mark.parametrize(
    ("gpu", "timeout", "backend", "seconds"),
    [(False, 0.0, "gloo", WITHOUT_END), (False, 700.0, "gloo", 700), (True, 60.5, "nccl", 60)],
)
def test_ranks_wait_for_each_other_as_long_as_they_may(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, timeout: float, backend: str, seconds: int
) -> None:
    told: dict[str, Any] = {}

    def trainer(loop: object, **settings: Any) -> Any:
        told.update(settings)
        return SimpleNamespace(fit=lambda: SimpleNamespace(return_value=False))

    monkeypatch.setattr(launch, "local_torch_trainer", lambda: trainer)
    monkeypatch.setattr(launch, "draining_nodes", set)
    ranks = Ranks(2, 1.0, "a GPU" if gpu else "cpu")
    run_ranks(lambda config: False, {}, "student", ranks, timeout=timeout)
    assert (told["torch_config"].backend, told["torch_config"].timeout_s) == (backend, seconds)
    assert told["run_config"].failure_config.max_failures == 0  # `run_ranks` counts them
    scaling = told["scaling_config"]
    assert (scaling.num_workers, scaling.use_gpu) == (2, gpu)
    assert scaling.resources_per_worker == {"CPU": 1.0} | ({"GPU": 1.0} if gpu else {})


@pytest.mark.parametrize(
    ("draining", "cpus", "expected"),
    [(set(), 3.0, (2, 4)), ({"b"}, 3.0, (2, 3)), ({"b"}, 9.0, (2, 4)), ({"b"}, 1.0, (2, 2))],
)
def test_elastic_ranks_are_no_more_than_fit_beside_nodes_that_leave(
    monkeypatch: pytest.MonkeyPatch, draining: set[str], cpus: float, expected: tuple[int, int]
) -> None:
    """Ray counts a draining node, and would wait for room on it."""
    monkeypatch.setattr(launch, "draining_nodes", lambda: draining)
    monkeypatch.setattr(launch, "schedulable_nodes", lambda: {"a": {"CPU": cpus}})
    assert launch._scaling(Ranks(2, 1.0, "cpu", (2, 4))).num_workers == expected


def test_elastic_ranks_wait_for_room_before_each_start(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    restarts = iter([True, False])

    def fit(*_: object) -> bool:
        calls.append("start")
        return next(restarts)

    monkeypatch.setattr(
        launch, "wait_for_nodes", lambda _, least: calls.append(f"room for {least}")
    )
    monkeypatch.setattr(launch, "_fit", fit)
    run_ranks(lambda config: False, {}, "student", Ranks(3, 1.0, "cpu", (2, 4)))
    assert calls == ["room for 2", "start"] * 2


@pytest.mark.parametrize(
    ("checkpoints", "starts"),
    [
        ([0, 0, 0, 0], 3),
        ([7, 7, 7, 7], 3),
        ([0, 0, 5, 5, 9, 9, 9, 9], 7),
        ([1, 2, 3, 4, 5, 6], 7),
    ],
    ids=["no checkpoint", "an old one", "some", "always a new one"],
)
def test_ranks_may_die_again_after_a_new_checkpoint(
    monkeypatch: pytest.MonkeyPatch, checkpoints: list[int], starts: int
) -> None:
    """`checkpoints` are the newest ones at each death; after them, the training ends well."""
    left, started = iter(checkpoints), 0

    def fit(*_: object) -> bool:
        nonlocal started
        started += 1
        if started > len(checkpoints):
            return False
        raise WorkerGroupError("a rank died", {0: DEAD})

    monkeypatch.setattr(launch, "_fit", fit)
    given_up = False
    try:
        run_ranks(lambda config: False, {}, "student", Ranks(2, 1.0, "cpu"), lambda: next(left))
    except InfrastructureError as error:
        given_up = "died more than 2 times without a new checkpoint" in str(error)
    assert (started, given_up) == (starts, starts <= len(checkpoints))
