"""The failed attempts at the tasks of a pool, and what is quarantined."""

from collections import Counter, defaultdict
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from dfkd.errors import DfkdError, InfrastructureError, ManifestError

MAX_NODE_LOSSES = 10
"""Attempts of one task that may be lost with their node before the task itself is suspected."""

MAX_FIRST_TIMEOUTS = 2
"""Attempts that may time out before a task of their kind succeeds. Then the limit is suspected."""


class Identified(Protocol):
    """A unit of work for a pool: anything with a unique id."""

    @property
    def id(self) -> str:
        """A name that is unique in the run."""


T = TypeVar("T", bound=Identified)


@dataclass(frozen=True)
class Quarantined(Generic[T]):
    """A unit that failed at every attempt, with the reason of the last failure."""

    unit: T
    reason: str
    curable: bool = True
    """Whether a repetition of the run might cure it."""


@dataclass
class Failures(Generic[T]):
    """The failed attempts of a run. One that was lost with its node does not count."""

    _by_task: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """By task id the failed attempts: the node of an actor that died, else empty."""
    _in_a_row: list[str] = field(default_factory=list)
    """Failed attempts since the last success, likewise."""
    _reached: dict[str, int] = field(default_factory=dict)
    """By task id how far its last failed attempt came."""
    _timeouts: Counter[type] = field(default_factory=Counter)
    """Attempts that have timed out, by kind of task."""

    def add(self, task: T | None, node: str, reached: int) -> None:
        """Record a failed attempt.

        Args:
            task: the task; None if an actor failed without one.
            node: the node of an actor that died; empty if it lives.
            reached: how far the task has come. If it has come further, earlier failures are
                forgotten.
        """
        if task is not None:
            if reached > self._reached.get(task.id, 0):
                self._reached[task.id] = reached
                self._by_task[task.id].clear()
                self._in_a_row.clear()
            self._by_task[task.id].append(node)
        self._in_a_row.append(node)

    def succeed(self) -> None:
        """Record that an attempt at some task has succeeded."""
        self._in_a_row.clear()

    def time_out(self, kind: type, succeeded: bool, limit: float) -> None:
        """Record that an attempt at a task of a kind took longer than `limit` seconds.

        Args:
            succeeded: whether a task of this kind has ever succeeded.

        Raises:
            ManifestError: none has, and this is not the first attempt that timed out.
        """
        self._timeouts[kind] += 1
        # Retries of such tasks would cost hours and time out as well.
        if not succeeded and self._timeouts[kind] >= MAX_FIRST_TIMEOUTS:
            raise ManifestError(
                "cluster.task_timeout",
                "must be longer than a task takes",
                f"{self._timeouts[kind]} tries without a result within {limit:g} seconds",
                "raise it, lower synthesis.shard_size, or find out why workers hang",
            )

    def tries(self, task: str) -> int:
        """The number of failed attempts for the task id `task`, lost ones included."""
        return len(self._by_task.get(task, ()))

    def in_a_row(self, nodes: Container[str]) -> int:
        """The number of failures in a row that count, where `nodes` are those still there."""
        return _count(self._in_a_row, nodes)

    def require_success(self, nodes: Container[str], most: int, reason: str, curable: bool) -> None:
        """Raise an error if `most` attempts in a row have failed, the last one for `reason`.

        Raises:
            InfrastructureError: a repetition of the run may cure it (`curable`); else `DfkdError`.
        """
        if (failures := self.in_a_row(nodes)) >= most:
            told = (
                f"workers: {failures} tries in a row failed, the last with {reason}; "
                "fix that and run the same command again, it resumes"
            )
            raise InfrastructureError(told) if curable else DfkdError(told)

    def of(self, task: T, nodes: Container[str]) -> int:
        """The number of failures of a task that count, where `nodes` are those still there."""
        return _count(self._by_task[task.id], nodes)

    def exhausted(self, task: T, nodes: Container[str], attempts: int) -> bool:
        """Whether a task has had all its `attempts`, where `nodes` are those still there."""
        most = attempts + MAX_NODE_LOSSES
        return self.of(task, nodes) >= attempts or self.tries(task.id) >= most


def _count(tries: list[str], nodes: Container[str]) -> int:
    """The number of failed attempts that count, which excludes those lost with their node."""
    return sum(not node or node in nodes for node in tries)
