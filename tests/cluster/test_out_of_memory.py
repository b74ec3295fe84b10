"""Workers that Ray's memory monitor kills, on a Ray that thinks any use of memory too much."""

import sys
import time
from typing import Any

import pytest
import ray

from dfkd.cluster.capacity import WorkerResources
from dfkd.cluster.engine import Actor, Engine
from dfkd.config.plan import PromptPart
from dfkd.errors import InfrastructureError
from tests.helpers.own_ray import own_ray


class Patient(Actor):
    """Is at work until it is killed."""

    def begin(self, *work: Any) -> None:
        pass

    def run(self, part: PromptPart) -> None:
        time.sleep(60)


@pytest.mark.heavy
def test_a_run_that_lacks_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.001")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    with own_ray(num_cpus=1):
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        engine: Engine[PromptPart] = Engine(Patient, (), 1, 1, WorkerResources(1.0, 0.0))
        with engine, pytest.raises(InfrastructureError, match="memory is nearly full"):
            list(engine.run(PromptPart(number) for number in range(4)))
