"""How much of a run's budget its pools have spent."""

from dataclasses import dataclass
from typing import Any

from dfkd.cluster.pool import Pool
from dfkd.cluster.worker import TaskResult
from dfkd.config.plan import Budget, Unit
from dfkd.errors import BudgetError
from dfkd.storage.cost_records import CostCounter


@dataclass
class BudgetTracker:
    """The budget of a run and what has been spent of it."""

    budget: Budget
    cost: CostCounter
    spent: float = 0.0
    """Worker-seconds of the finished pools, failed attempts included."""

    def __post_init__(self) -> None:
        # The workers' seconds are added up; None would mean the stage's time x their number.
        self.cost.worker_seconds = 0.0

    def allows(self, pool: Pool[Any], images: int = 0) -> bool:
        """Whether work on `images` more images may start, given the work in flight in `pool`."""
        # What is in flight will be spent too: with many workers that is far more than a task.
        in_flight = sum(unit.count for unit in pool.in_flight if isinstance(unit, Unit))
        seconds = self.spent + pool.busy_seconds
        return self.budget.allows(self.cost.images + in_flight + images, seconds)

    def count(self, result: TaskResult[Any]) -> None:
        """Add a worker's time to the cost of the stage."""
        self.cost.worker_seconds = (self.cost.worker_seconds or 0.0) + result.seconds
        self.cost.device = result.device

    def finish(self, pool: Pool[Any]) -> None:
        """Add a finished pool's time; raises `BudgetError` if the budget stopped the pool."""
        self.spent += pool.busy_seconds
        if pool.stopped:
            raise BudgetError(
                f"budget: {self.cost.images} images and {self.spent:.0f} worker-seconds were "
                f"spent, which leaves no room under {self.budget.caps}; run the same command "
                "again, it resumes"
            )
