"""How much of a run's budget its pools have spent."""

from dataclasses import dataclass
from typing import Any

from dfkd.cluster.pool import Pool
from dfkd.errors import BudgetError
from dfkd.storage.cost_records import CostCounter


@dataclass
class BudgetTracker:
    """The budget of a run and what has been spent of it."""

    limit: float | None
    """Worker-seconds at which no more work starts; None for no limit."""
    cost: CostCounter
    spent: float = 0.0
    """Worker-seconds of the finished pools, failed attempts included."""

    def __post_init__(self) -> None:
        # The workers' seconds are added up; None would mean the stage's time x their number.
        self.cost.worker_seconds = 0.0

    def allows(self, pool: Pool[Any]) -> bool:
        """Whether more work may start, given the work of `pool`."""
        return self.limit is None or self.spent + pool.busy_seconds < self.limit

    def count(self, seconds: float, device: str) -> None:
        """Add a worker's time on a device to the cost of the stage."""
        self.cost.worker_seconds = (self.cost.worker_seconds or 0.0) + seconds
        self.cost.device = device

    def finish(self, pool: Pool[Any]) -> None:
        """Add a finished pool's time; raises `BudgetError` if the budget stopped the pool."""
        self.spent += pool.busy_seconds
        if pool.stopped:
            raise BudgetError(
                f"budget: {self.cost.images} images and {self.spent:.0f} worker-seconds were "
                f"spent, and the limit is {self.limit:g} worker-seconds; run the same command "
                "again, it resumes"
            )
