"""Students side by side: actors that train and score one each, on a GPU or some of the CPUs."""

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from dfkd.cluster import distillation
from dfkd.cluster.capacity import WorkerResources, request_resources_for, schedulable_nodes
from dfkd.cluster.pool import Actor, Pool
from dfkd.cluster.synthesis import environment
from dfkd.config.manifest import Manifest
from dfkd.errors import DfkdError, InfrastructureError, PartialError
from dfkd.evaluation.scoring import evaluate
from dfkd.studies import cells
from dfkd.studies.cells import CellResult, CellStore
from dfkd.studies.study import Cell
from dfkd.utils.hardware import describe_machine


@dataclass(frozen=True)
class Order:
    """A cell whose data set is there and whose student is not."""

    cell: Cell
    place: CellStore
    """Of its outcome."""
    version: str
    """Id of the data set."""

    @property
    def id(self) -> str:
        """What messages call it."""
        return self.cell.label


@dataclass(frozen=True)
class StudentResult:
    """An order, and what came of it."""

    order: Order
    outcome: CellResult | None
    failure: str = ""
    """Why there is no outcome."""


def make(order: Order, threads: int = 0, share: WorkerResources | None = None) -> CellResult:
    """The scores of a cell's student, which is trained first unless it is there.

    Args:
        threads: that decode images for scoring; 0 is one for each processor.
        share: what this process has reserved to train one rank in it; see `train.distill`.

    Raises:
        DfkdError: as `train.distill` and `score`.
    """
    cell = order.cell
    distillation.distill(cell.manifest, cell.method, cell.seed, order.version, share)
    return score(cell.manifest, order.place, order.version, threads)


def score(manifest: Manifest, place: CellStore, version: str = "", threads: int = 0) -> CellResult:
    """The outcome of the one model that a manifest's evaluation names, which is kept.

    Raises:
        PartialError: an image cannot be read.
    """
    results = evaluate(manifest, threads or None, version, place.folder).results
    unreadable = results["data"]["unreadable"]
    if unreadable:
        raise PartialError(
            f"evaluation.data: {len(unreadable)} images could not be read, the first is "
            f"{unreadable[0]}; fix or remove them"
        )
    return place.keep(
        CellResult(
            model=place.model,
            version=place.version,
            data=place.data,
            scores=cells.scores(results["rows"]),
            notes=tuple(results["data"]["notes"]),
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
            machine=describe_machine(),
            environment=environment(),
        )
    )


def attempt(order: Order, threads: int = 0, share: WorkerResources | None = None) -> StudentResult:
    """What comes of an order, by `make`; only a lost machine or storage is raised."""
    try:
        return StudentResult(order, make(order, threads, share))
    except InfrastructureError:
        raise
    except DfkdError as error:
        return StudentResult(order, None, " ".join(str(error).split()))


class StudentTrainer(Actor):
    """An actor that makes one student after the other."""

    def __init__(self, share: WorkerResources, threads: int) -> None:
        """`share` is what it has reserved."""
        self.share, self.threads = share, threads or max(1, int(share.cpus))

    def run(self, order: Order) -> StudentResult:
        """See `attempt`."""
        return attempt(order, self.threads, self.share)


def abreast(orders: Sequence[Order], most: int = 0, threads: int = 0) -> Iterator[StudentResult]:
    """What came of each order, in no order; all have one rank, and the caller has connected.

    Args:
        most: students that are trained at once; 0 is as many as there are GPUs, or CPUs.
        threads: as for `make`; 0 is those that the actor has reserved.

    Raises:
        InfrastructureError: as `Pool.run`.
    """
    count, share = shares(schedulable_nodes(), len(orders), most)
    remote: Callable[..., Any] = ray.remote(**share.options)(StudentTrainer).remote  # type: ignore[call-overload]
    attempts = orders[0].cell.manifest.cluster.attempts
    pool: Pool[Order] = Pool(lambda: remote(share, threads), count, attempts, share)
    with request_resources_for(share, count):
        yield from pool.run(iter(orders))
    for each in pool.quarantine:
        yield StudentResult(each.task, None, each.reason)


def shares(
    nodes: Mapping[str, Mapping[str, float]], students: int, most: int = 0
) -> tuple[int, WorkerResources]:
    """How many of some students of one rank train at once, and what each of these reserves.

    Each gets a GPU where there are any, and as many whole CPUs as all of them can have.

    Args:
        nodes: their resources, as `schedulable_nodes` gives them.
        most: students at once; 0 is any number.
    """
    gpus = 1.0 if WorkerResources(0.0, 1.0).slots(nodes) else 0.0
    count = min(students, most or students, max(1, WorkerResources(1.0, gpus).slots(nodes)))
    return count, WorkerResources(max(1.0, distillation.cpus_per_rank(nodes, count, gpus)), gpus)
