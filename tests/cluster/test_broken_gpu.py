"""A broken GPU beside a working one, on a Ray that is told of two GPUs."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from dfkd.cluster.capacity import WorkerResources
from dfkd.cluster.engine import Actor, Engine
from dfkd.config.plan import PromptPart
from dfkd.errors import InfrastructureError
from tests.helpers.own_ray import own_ray


class OneBadGpu(Actor):
    """Cannot begin with the first GPU, and takes longer with others."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def begin(self, folder: str, *work: Any) -> None:
        (gpu,) = ray.get_gpu_ids()
        with (self.notes / f"begun {gpu}").open("a") as stream:
            stream.write("x")
        if int(gpu) == 0:
            raise InfrastructureError("cluster: torch cannot use the GPU; run it again")
        while not (self.notes / "begun 0").exists():
            time.sleep(0.05)
        time.sleep(1)

    def run(self, part: PromptPart) -> int:
        if part.number == 1 and not (self.notes / "died").exists():
            (self.notes / "died").touch()
            os._exit(1)
        return part.number


def test_a_broken_gpu_costs_its_own_place_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Although it fails first, and the replacement of a dead actor would get it again."""
    # So that it wants three actors.
    monkeypatch.setattr("dfkd.cluster.engine.has_autoscaler", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # for Ray, which would refuse two of none
    with own_ray(num_cpus=3, num_gpus=2):
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        engine: Engine[PromptPart] = Engine(OneBadGpu, (tmp_path,), 3, 3, WorkerResources(1.0, 1.0))
        with engine:
            found = sorted(engine.run(PromptPart(number) for number in range(4)))
    assert found == [0, 1, 2, 3]
    assert engine.quarantine == []
    assert (tmp_path / "begun 0").read_text() == "x"
    assert (tmp_path / "begun 1").read_text() == "xx"
    notes = capfd.readouterr().err
    assert notes.count("note: the run goes on without a worker: cluster: torch") == 1
