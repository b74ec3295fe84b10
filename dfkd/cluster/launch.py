"""Ranks under Ray Train: how they start and restart, and which error is reported."""

import logging
import os
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import ray.train
import torch
from ray.exceptions import RayActorError
from ray.train import TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchConfig
from torch.distributed import DistError

from dfkd.cluster.capacity import Ranks, schedulable_nodes, wait_for_nodes
from dfkd.cluster.ray_internals import (
    draining_nodes,
    local_torch_trainer,
    ray_reason,
)
from dfkd.errors import DfkdError, InfrastructureError
from dfkd.storage.base import scratch_folder
from dfkd.utils.hardware import thread_limit
from dfkd.utils.progress import say

TRAIN: Any = ray.train
"""`ray.train` untyped: type checkers confuse its classes with those of an older API."""

MAX_RANK_FAILURES = 2
"""Rank deaths tolerated without a new checkpoint between them; all ranks restart after each."""

MAX_START_ATTEMPTS = 30
"""Attempts, of about a minute each, to get resources for all ranks before the run gives up."""

RESIZE_SECONDS = 300.0
"""Seconds between two checks whether more ranks fit; to grow, all of them restart."""

GRACE_SECONDS = 30.0
"""Seconds for the first rank to finish its checkpoint after another rank's node was taken away."""

WITHOUT_END = 10_000_000
"""Seconds of a wait that nothing shall end."""

Loop = Callable[[dict[str, Any]], bool]
"""The function of each rank. It returns `restart`: True if all ranks must start again, because the
node of one of them is about to be taken away and a checkpoint is written; False at the end."""


class PreemptedError(InfrastructureError):
    """The node of the only rank is about to be taken away; its checkpoint is written."""


def run_ranks(
    loop: Loop,
    config: dict[str, Any],
    name: str,
    ranks: Ranks,
    newest: Callable[[], int] = lambda: 0,
    timeout: float = 0.0,
) -> None:
    """Run `loop(config)` on every rank, until the first rank's `restart` is False.

    Args:
        newest: the step of the newest checkpoint, from which ranks restart.
        timeout: seconds that ranks wait for each other; 0: without end.

    Raises:
        DfkdError: a rank raised it.
        PreemptedError: the rank runs in this process, whose node is about to be taken away.
        InfrastructureError: ranks died too often or did not fit, or what watches them died.
        Exception: any other exception of a rank, with that rank's traceback as a note.
    """
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    deaths = reached = 0
    # Local mode runs in this process, where the rank sets its own number of threads.
    with thread_limit(0):
        while True:
            if ranks.elastic:
                # Ray itself would wait without a limit or a message.
                wait_for_nodes(ranks.share, ranks.elastic[0])
            try:
                if not _fit(loop, config, name, ranks, timeout):
                    return
            except WorkerGroupError as error:
                failures = list(error.worker_failures.values())
                # An error of the code or of the data would come again.
                if (cause := root_cause(failures)) is not None:
                    raise cause from None
                # A long training on spot nodes may see any number of deaths as it makes progress.
                before, reached = reached, newest()
                deaths = 1 if reached > before else deaths + 1
                reason = ray_reason(max(failures, key=_is_of_ray))
                if deaths > MAX_RANK_FAILURES:
                    raise InfrastructureError(
                        f"distillation: ranks died more than {MAX_RANK_FAILURES} times without a "
                        f"new checkpoint ({reason}); run the same command again, it resumes"
                    ) from None
                say(
                    f"note: distillation: a rank died ({reason}); all ranks restart from step "
                    f"{reached}"
                )
            except (TrainingFailedError, RayActorError) as error:
                # Ray's controller has died or given up. It is not started again here: without a
                # dashboard nobody frees what it has reserved.
                raise InfrastructureError(
                    f"distillation: Ray gave up on the ranks ({ray_reason(error)}); free or add "
                    "nodes, check the network between them, and run the same command again, it "
                    "resumes"
                ) from None
            else:
                if ranks.local:  # this process cannot go to another node
                    raise PreemptedError(
                        "distillation: this node is about to be taken away; run the same command "
                        "again on another one, it resumes"
                    )


def _fit(loop: Loop, config: dict[str, Any], name: str, ranks: Ranks, timeout: float) -> bool:
    """Run the ranks once; returns `restart` of the first one, see `Loop`.

    Ray itself restarts ranks only if a node was taken away or there was no room yet. Other failures
    are left to `run_ranks`, because Ray would retry an error of the code like a death.
    """
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths mean the same in ranks and driver
    with scratch_folder("dfkd-ray-train-") as scratch:
        trainer: Any = local_torch_trainer()(
            loop if ranks.local else _with_traceback(loop),
            train_loop_config=config,
            torch_config=TorchConfig(
                backend="nccl" if ranks.gpu else "gloo", timeout_s=int(timeout) or WITHOUT_END
            ),
            scaling_config=_scaling(ranks),
            run_config=TRAIN.RunConfig(
                name=name,
                # Ray's own notes on the run; nothing is resumed from them.
                storage_path=str(scratch),
                failure_config=TRAIN.FailureConfig(
                    max_failures=0,
                    controller_failure_limit=MAX_START_ATTEMPTS,
                    preemption_grace_s=GRACE_SECONDS,
                ),
                logging_config=TRAIN.LoggingConfig(log_level="WARNING"),
            ),
        )
        return bool(trainer.fit().return_value)


def _scaling(ranks: Ranks) -> Any:
    """Ray Train's description of the ranks: none (local mode), a fixed number, or a range."""
    if ranks.local:
        return TRAIN.ScalingConfig(num_workers=0)
    number: int | tuple[int, int] = ranks.count
    if ranks.elastic:
        least, most = ranks.elastic
        if draining_nodes():  # Ray counts draining nodes and would wait for room on them
            most = max(least, min(most, ranks.share.count_fitting(schedulable_nodes())))
        number = least, most
    return TRAIN.ScalingConfig(
        num_workers=number,
        use_gpu=ranks.gpu,
        resources_per_worker=ranks.share.bundle,
        elastic_resize_monitor_interval_s=RESIZE_SECONDS,
    )


def _with_traceback(loop: Loop) -> Loop:
    """Wrap `loop` so that exceptions carry their traceback to the driver and Ray does not log them.

    Ray would print a traceback for errors that users get as one line, and one for each rank that
    lost its connection because another rank failed.
    """

    def run(config: dict[str, Any]) -> Any:
        """`loop`, whose exceptions carry their traceback as a note."""
        try:
            return loop(config)
        except Exception as error:
            error.add_note(f"Raised in a rank:\n{traceback.format_exc()}")
            # The driver prints the error, so Ray's own report of it is not needed.
            logging.getLogger("ray.train").setLevel(logging.CRITICAL)
            raise

    return run


def root_cause(failures: Sequence[Exception]) -> Exception | None:
    """The exception that explains the others; None if the cause is a dead rank.

    A `DfkdError` takes precedence. After a death the other ranks raise various errors of a broken
    connection, possibly before Ray has noticed the death.
    """
    for failure in failures:
        if isinstance(failure, DfkdError):
            return failure
    for failure in failures:
        # Ray found a rank dead, or a rank lost its GPU or the connection to another rank: gloo
        # raises a plain RuntimeError whose text names gloo's source file.
        lost = isinstance(failure, DistError | torch.AcceleratorError)
        if lost or "gloo/transport" in str(failure) or _is_of_ray(failure):
            return None
    return failures[0]


def _is_of_ray(failure: Exception) -> bool:
    """Whether an exception is one of Ray's own."""
    return type(failure).__module__.partition(".")[0] == "ray"
