"""Ranks under Ray Train: how they are started, when again, and what their errors come to."""

import logging
import os
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray.train
import torch
from ray.train import TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchConfig
from torch.distributed import DistError

from dfkd.cluster.capacity import WorkerResources, schedulable_nodes
from dfkd.cluster.ray_internals import LocalTorchTrainer, draining_nodes
from dfkd.errors import DfkdError, InfrastructureError

TRAIN: Any = ray.train
"""Type checkers take its classes for those of an older API, which have the same names."""

MAX_RANK_FAILURES = 2
"""Times that ranks may die in one run; all of them then start again from the last checkpoint."""

MAX_START_ATTEMPTS = 30
"""Times, a minute each, that one run waits for room for all ranks before it gives up."""

RESIZE_SECONDS = 300.0
"""Between two looks whether more ranks have room. To grow, all ranks start again from the last
checkpoint."""

GRACE_SECONDS = 30.0
"""That the first rank may go on writing its checkpoint after another one's node was taken away."""

Loop = Callable[[dict[str, Any]], Any]
"""What each rank runs. If it returns true on the first rank, all ranks are started again."""


@dataclass(frozen=True)
class Workers:
    """How many ranks, and what each has."""

    count: int
    """At the start; 0 is one rank in the calling process, Ray Train's local mode."""
    cpus: float
    device: str
    """`cpu`, or the name of each one's GPU."""
    elastic: tuple[int, int] | None = None
    """The least and the most ranks, if their number follows the nodes that are there."""

    @property
    def gpu(self) -> bool:
        """Whether each has one."""
        return self.device != "cpu"

    @property
    def share(self) -> WorkerResources:
        """What each reserves."""
        return WorkerResources(self.cpus, float(self.gpu))


def run_ranks(loop: Loop, config: dict[str, Any], name: str, workers: Workers) -> None:
    """Run `loop(config)` on every rank, until the first rank returns false.

    Raises:
        DfkdError: a rank raised it.
        InfrastructureError: ranks died more than `MAX_RANK_FAILURES` times, or had no room.
        Exception: any other that a rank raised, with the rank's traceback as a note.
    """
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    threads = torch.get_num_threads()
    deaths = 0
    try:
        while True:
            try:
                if not _fit(loop, config, name, workers):
                    return
            except WorkerGroupError as error:
                failures = list(error.worker_failures.values())
                if (cause := root_cause(failures)) is not None:
                    raise cause from None
                deaths += 1
                if deaths > MAX_RANK_FAILURES:
                    raise InfrastructureError(
                        f"distillation: ranks died more than {MAX_RANK_FAILURES} times "
                        f"({_last_line(failures)}); run the same command again, it resumes"
                    ) from None
            except TrainingFailedError as error:
                raise InfrastructureError(
                    f"distillation: the cluster had no room for all ranks ({_last_line([error])}); "
                    "free or add nodes and run the same command again, it resumes"
                ) from None
    finally:
        torch.set_num_threads(threads)


def _fit(loop: Loop, config: dict[str, Any], name: str, workers: Workers) -> bool:
    """Run the ranks once; whether the first one wants all of them to be started again.

    Ray itself starts them again only where they are not to blame: a node was taken away, or there
    was no room yet. It would repeat an error of the code as it repeats a death.
    """
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # a relative path is the same to ranks and driver
    with tempfile.TemporaryDirectory(prefix="dfkd-ray-train-") as scratch:
        trainer: Any = LocalTorchTrainer(
            _with_traceback(loop) if workers.count else loop,
            train_loop_config=config,
            torch_config=TorchConfig(backend="nccl" if workers.gpu else "gloo"),
            scaling_config=_scaling(workers),
            run_config=TRAIN.RunConfig(
                name=name,
                storage_path=scratch,  # Ray's own notes on the run; nothing is resumed from them
                failure_config=TRAIN.FailureConfig(
                    max_failures=0,
                    controller_failure_limit=MAX_START_ATTEMPTS,
                    preemption_grace_s=GRACE_SECONDS,
                ),
                logging_config=TRAIN.LoggingConfig(log_level="WARNING"),
            ),
        )
        return bool(trainer.fit().return_value)


def _scaling(workers: Workers) -> Any:
    if not workers.count:
        return TRAIN.ScalingConfig(num_workers=0)
    ranks: int | tuple[int, int] = workers.count
    if workers.elastic:
        least, most = workers.elastic
        if draining_nodes():  # Ray counts these nodes too, and would wait for room on them
            most = max(least, min(most, workers.share.slots(schedulable_nodes())))
        ranks = least, most
    return TRAIN.ScalingConfig(
        num_workers=ranks,
        use_gpu=workers.gpu,
        resources_per_worker=workers.share.bundle,
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
    )


def _with_traceback(loop: Loop) -> Loop:
    """`loop`, whose exceptions carry their traceback to the driver, and which Ray does not log.

    Ray would print a traceback of an error that has one line for its user, and of each rank that
    lost its connection because another one failed.
    """

    def run(config: dict[str, Any]) -> Any:
        try:
            return loop(config)
        except Exception as error:
            error.add_note(f"Raised in a rank:\n{traceback.format_exc()}")
            logging.getLogger("ray.train").setLevel(logging.CRITICAL)
            raise

    return run


def root_cause(failures: Sequence[Exception]) -> Exception | None:
    """Which of the ranks' exceptions explains the others; None if a rank died.

    The project's own error comes first. When a rank dies, the others raise whatever their broken
    connection gives; so they do when nobody has noticed the death yet.
    """
    for failure in failures:
        if isinstance(failure, DfkdError):
            return failure
    return None if any(map(_means_dead_rank, failures)) else failures[0]


def _means_dead_rank(failure: Exception) -> bool:
    """Whether Ray found a rank dead, or a rank lost its connection to another one."""
    if type(failure).__module__.partition(".")[0] == "ray":
        return True
    # gloo raises a plain RuntimeError, which names the file of its source.
    return isinstance(failure, DistError) or "gloo/transport" in str(failure)


def _last_line(failures: Sequence[Exception]) -> str:
    """Of the exception that Ray raised, if there is one."""
    first = min(failures, key=lambda failure: type(failure).__module__.partition(".")[0] != "ray")
    lines = str(first).strip().splitlines() or ["no reason given"]
    return lines[-1][:300]
