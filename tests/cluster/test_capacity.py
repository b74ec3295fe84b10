"""What a process of Ray sees of a GPU that it has reserved or not; no machine has this GPU."""

import os
import sys
from collections.abc import Iterator

import pytest
import ray

from dfkd.cluster.capacity import WorkerResources, plan_ranks
from dfkd.cluster.engine import Actor, Engine
from dfkd.config.manifest import Cluster
from dfkd.config.plan import PromptPart
from dfkd.errors import InfrastructureError
from tests.helpers.own_ray import own_ray

VISIBLE = "CUDA_VISIBLE_DEVICES"


@pytest.fixture(scope="module", autouse=True)
def node() -> Iterator[None]:
    """A node that claims a GPU, which no driver has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VISIBLE, "99")
        # Ray's workers do not have this folder on their path.
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        with own_ray(num_cpus=2, num_gpus=1):
            yield


class Seeing(Actor):
    """Says which GPUs it sees."""

    def run(self, part: PromptPart) -> str | None:
        return os.environ.get(VISIBLE)


def seen(gpus: float) -> list[str | None]:
    """What an actor of a engine sees that has reserved so many GPUs."""
    engine: Engine[PromptPart] = Engine(Seeing, (), 1, 1, WorkerResources(1.0, gpus))
    return list(engine.run(iter([PromptPart(0)])))


def test_an_actor_without_a_gpu_sees_none() -> None:
    by_ray = ray.remote(num_cpus=0)(lambda: os.environ[VISIBLE]).remote()
    assert ray.get(by_ray) == "99"
    assert seen(gpus=0.0) == [""]


REFUSAL = r"torch cannot use the GPU that Ray has reserved on node .* \(.+\); .*resumes"


def test_a_worker_never_takes_the_cpu_in_place_of_its_gpu() -> None:
    with pytest.raises(InfrastructureError, match=REFUSAL):
        seen(gpus=1.0)


@pytest.mark.parametrize("ranks", [(2, 2), (1, 2)])
def test_ranks_never_take_the_cpu_in_place_of_their_gpu(ranks: tuple[int, int]) -> None:
    with pytest.raises(InfrastructureError, match=REFUSAL):
        plan_ranks(ranks, Cluster())
