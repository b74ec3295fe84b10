"""A bounded pool of actors: one task in flight for each, retries with a cap, quarantine."""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from dfkd.errors import DfkdError, InfrastructureError, ManifestError


class Identified(Protocol):
    """What a pool runs: a task, or anything else with a name of its own."""

    @property
    def id(self) -> str:
        """Its name, unique in the run."""


T = TypeVar("T", bound=Identified)


@dataclass(frozen=True)
class Quarantined(Generic[T]):
    """A task that failed at every try, and why it did the last time."""

    task: T
    reason: str


@dataclass
class Pool(Generic[T]):
    """Runs tasks on `size` actors that `start` makes; an actor has a method `run(task)`.

    One task an actor is in flight, whatever the number of tasks: the driver's memory is bounded,
    and a death has exactly one suspect. (A task takes seconds, so the driver's millisecond between
    two is no loss.) Ray itself retries nothing: a task whose actor died or which raised is tried
    again on any actor, `attempts` times in all, and then quarantined. When so many tries fail in a
    row that the fault cannot be a task's, the run ends.
    """

    start: Callable[[], Any]
    size: int
    attempts: int
    quarantine: list[Quarantined[T]] = field(default_factory=list)
    _idle: list[Any] = field(default_factory=list)
    _flying: dict[Any, tuple[T, Any]] = field(default_factory=dict)
    _tries: Counter[str] = field(default_factory=Counter)
    _failures: int = 0

    def run(self, tasks: Iterator[T]) -> Iterator[Any]:
        """Yield each result as it comes, in no order; see `quarantine` afterwards.

        Raises:
            ManifestError: raised by an actor; no retry of a task can mend it.
            InfrastructureError: raised by an actor, or `attempts` for each actor and once more
                failed without a success between them.
        """
        again: deque[T] = deque()
        self._idle = [self.start() for _ in range(self.size)]
        try:
            while True:
                self._fill(tasks, again)
                if not self._flying:
                    return
                done, _ = ray.wait(list(self._flying), num_returns=1)
                task, actor = self._flying.pop(done[0])
                try:
                    result = ray.get(done[0])
                except RayError as error:
                    self._failed(task, actor, error, again)
                else:
                    self._failures = 0
                    self._idle.append(actor)
                    yield result
        finally:
            for actor in [*self._idle, *(actor for _, actor in self._flying.values())]:
                ray.kill(actor)

    def _fill(self, tasks: Iterator[T], again: deque[T]) -> None:
        while self._idle:
            task = again.popleft() if again else next(tasks, None)
            if task is None:
                return
            actor = self._idle.pop()
            self._flying[actor.run.remote(task)] = (task, actor)

    def _failed(self, task: T, actor: Any, error: RayError, again: deque[T]) -> None:
        if isinstance(error, RayActorError):
            self._idle.append(self.start())
        else:
            self._idle.append(actor)
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, InfrastructureError | ManifestError):
            raise cause
        words = str(cause) if isinstance(cause, DfkdError) else repr(cause)
        reason = " ".join(words.split())[:300]
        self._failures += 1
        if self._failures >= self.attempts * (self.size + 1):
            raise InfrastructureError(
                f"workers: {self._failures} tries in a row failed, the last with {reason}; "
                "mend that and run the same command again, it resumes"
            )
        self._tries[task.id] += 1
        if self._tries[task.id] < self.attempts:
            again.append(task)
        else:
            self.quarantine.append(Quarantined(task, reason))
