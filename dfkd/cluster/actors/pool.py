"""An elastic pool of actors with one task in flight each, limited retries and quarantine."""

import operator
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic

import ray
from ray.exceptions import RayError, RayTaskError

from dfkd.cluster.actors.failures import Failures, Quarantined, T
from dfkd.cluster.actors.group import Actor, ActorGroup, ActorSlot
from dfkd.cluster.capacity import WorkerResources, ping
from dfkd.cluster.ray_internals import ray_reason
from dfkd.errors import DfkdError, InfrastructureError, ManifestError, conceal, may_pass, shorten
from dfkd.utils.progress import Closing, say

_END: Any = object()
"""What `next` returns for an iterator that has ended; None means that no task is ready."""


@dataclass
class Pool(Closing, Generic[T]):
    """Runs tasks on at most `size` actors of class `kind`.

    A task is what one call of an actor does: a unit of synthesis, or a `StudentTask`. Actors come
    and go with the cluster's nodes, see `ActorGroup`.

    Each actor has at most one task in flight, so the driver's memory is bounded and a death has
    exactly one suspect. A task whose actor died, hung or raised is retried on any actor, `attempts`
    times in all, and then quarantined; an attempt lost with its node does not count. The run ends
    when too many attempts in a row fail for any single task to be the cause.
    """

    kind: type[Actor]
    arguments: tuple[Any, ...]
    """What each actor is made with."""
    size: int
    """Actors at most; this, `timeout` and `assignment` may change between runs."""
    attempts: int
    resources: WorkerResources
    """The resources that an actor reserves."""
    timeout: float = 0.0
    """Seconds that a task may take; 0 means no limit."""
    assignment: tuple[Any, ...] = ()
    """What each actor works on in the next run: further arguments of its `begin`."""
    lasting: bool = False
    """Whether a run without an error leaves its actors for the next one; `close` ends them."""
    progress: Callable[[T], int] = lambda task: 0
    """How far earlier attempts have brought a task. Once that grows, they no longer count."""
    on_start: Callable[[T], None] = lambda task: None
    """Called with a task when an actor is given it, at each attempt."""
    succeeded: set[type] = field(default_factory=set)
    """Kinds of tasks that have succeeded, here or in an earlier run that the caller knows of."""
    quarantine: list[Quarantined[T]] = field(default_factory=list)
    stopped: bool = False
    """Whether the last run ended early because `may_start` returned False."""
    _next_tasks: deque[T] = field(default_factory=deque)
    """Tasks to start next: failed ones, and one that `_has_next` has drawn already."""
    _failures: Failures[T] = field(default_factory=Failures)
    _undrawn: int = 0
    """Number of tasks that are not drawn yet; `size` if their iterator does not tell it."""
    _actors: ActorGroup[T] = field(init=False)

    def __post_init__(self) -> None:
        self._actors = ActorGroup(self.kind, self.arguments, self.attempts, self.resources)

    def run(
        self, tasks: Iterator[T | None], may_start: Callable[[T], bool] = lambda task: True
    ) -> Iterator[Any]:
        """Yield each result when it arrives, in any order; see `quarantine` afterwards.

        Args:
            tasks: consumed lazily, one at a time. None: nothing is ready yet; the pool asks
                again, and ends if it gets None while no task is in flight.
            may_start: called before each task; after False no more are started.

        Raises:
            ManifestError: an actor raised it; or no node can hold an actor and there is no
                autoscaler; or no task succeeded and `timeout` is too short.
            InfrastructureError: an actor raised it; or no actor can begin, or finds room; or
                `attempts` x (actors + 1) attempts in a row failed (or `DfkdError`).
        """
        self._begin_run(operator.length_hint(tasks, self.size))
        ended = False
        try:
            # Draw a task before starting actors: a finished run needs no room and starts none.
            if self._has_next(tasks, may_start):
                self._actors.require_room()
            while self.in_flight or self._has_next(tasks, may_start):
                self._poll()
                self._fill(tasks, may_start)
                yield from self._collect()
            ended = True
        finally:
            # Always after an error or when the caller stops reading: an actor may be at work.
            if not (ended and self.lasting):
                self.close()

    def close(self) -> None:
        """End all actors."""
        for slot in list(self._actors.slots):
            self._actors.remove(slot)

    def _begin_run(self, undrawn: int) -> None:
        """Forget the tasks of the run before, and begin anew with the actors left of it."""
        self.stopped, self._undrawn = False, undrawn
        self.quarantine, self._failures = [], Failures()
        self._next_tasks.clear()
        self._actors.begin_run(self.size, self.assignment)

    @property
    def in_flight(self) -> list[T]:
        """The tasks in flight."""
        return self._actors.in_flight

    @property
    def busy_seconds(self) -> float:
        """Seconds of work on tasks, summed over actors, failed attempts included."""
        return self._actors.busy_seconds

    @property
    def largest(self) -> int:
        """The largest number of actors that were running at the same time."""
        return self._actors.largest

    def tries(self, task: str) -> int:
        """The number of attempts for the task id `task`, given that its last attempt succeeded."""
        return self._failures.tries(task) + 1

    def _has_next(self, tasks: Iterator[T | None], may_start: Callable[[T], bool]) -> bool:
        """Whether a task may start; if so, it is the first one in `_next_tasks`."""
        if self.stopped:
            return False
        # Retries come before new tasks, so that a task which always fails is known early.
        if not self._next_tasks and (task := next(tasks, _END)) is not None:
            ended = task is _END
            self._next_tasks.extend([] if ended else [task])
            self._undrawn = 0 if ended else operator.length_hint(tasks, self.size)
        if not self._next_tasks:
            return False
        self.stopped = not may_start(self._next_tasks[0])
        return not self.stopped

    def _fill(self, tasks: Iterator[T | None], may_start: Callable[[T], bool]) -> None:
        """Give each idle actor a task while there are any."""
        for slot in self._actors.idle:
            if not self._has_next(tasks, may_start):
                return
            task = self._next_tasks.popleft()
            self.on_start(task)
            self._actors.give(slot, task)

    def _collect(self) -> Iterator[Any]:
        """Wait a moment for one actor; yield its result if it succeeded."""
        for slot, reference in self._actors.answers():
            task = self._actors.release(slot)
            try:
                result = ray.get(reference)
            except RayError as error:
                self._handle_error(slot, task, error)
                continue
            if task is None:
                self._actors.advance(slot, result)
            else:
                self.succeeded.add(type(task))
                self._failures.succeed()
            # Now, before `_fill` looks for idle actors.
            self._actors.remove_if_leaving(slot)
            if task is not None:
                yield result

    def _poll(self) -> None:
        """Adapt to the cluster's size and replace actors that hang, if it is time to."""
        if not self._actors.due():
            return
        self._actors.follow_nodes()
        for slot in self._actors.overdue(self.timeout):
            self._time_out(slot)
        self._actors.resize(len(self.in_flight) + len(self._next_tasks), self._undrawn)

    def _time_out(self, slot: ActorSlot[T]) -> None:
        """Replace an actor that takes too long; that counts as a failed attempt at its task.

        Raises as `ActorGroup.refuse_hanging`, or `ManifestError` if the first tasks of a kind time
        out.
        """
        # A result may be ready, and only the driver was busy or suspended for so long.
        if ray.wait([slot.awaited], timeout=0)[0]:
            return
        if slot.task is None:
            self._actors.refuse_hanging(slot)
            return
        # A hanging actor cannot be asked to stop; another one takes its place.
        task = slot.task
        self._actors.remove(slot)
        self._failures.time_out(type(task), type(task) in self.succeeded, self.timeout)
        hint = "a worker that hangs, or tasks that need a larger cluster.task_timeout"
        self._record_failure(task, f"no result within {self.timeout:g} seconds ({hint})", "")

    def _handle_error(self, slot: ActorSlot[T], task: T | None, error: RayError) -> None:
        """Count a failed attempt, and decide whether its actor goes on.

        Raises:
            ManifestError, InfrastructureError: the actor raised it; every task would end so.
        """
        # Any other error is a death: by itself, with its node, or by Ray's memory monitor.
        died = not isinstance(error, RayTaskError)
        cause = error.cause if isinstance(error, RayTaskError) else error
        known = isinstance(cause, DfkdError)
        if isinstance(cause, InfrastructureError) and slot.beginning:
            self._actors.refuse_place(slot, cause)
            return
        if isinstance(cause, InfrastructureError | ManifestError):
            raise cause
        # The first traceback of several in a row, because every attempt may raise the same.
        if not (died or known or self._failures.in_a_row(self._actors.nodes)):
            say(conceal(str(error)))
        reason = ray_reason(error) if died else shorten(str(cause) if known else repr(cause), 300)
        curable = may_pass(cause)
        if slot.beginning:
            told = f"workers: none can begin on a node, the last ended with {reason}; fix that and "
            kind = InfrastructureError if curable else DfkdError
            self._actors.count_failed_begin(slot, kind(f"{told}run the same command again"))
            return
        # An unexpected exception may be the actor's fault: an actor whose GPU is lost would fail
        # every further task immediately.
        if died or task is None or not known:
            self._actors.remove(slot)
        self._actors.refresh()
        self._record_failure(task, reason, slot.node if died else "", curable)

    def _record_failure(self, task: T | None, reason: str, node: str, curable: bool = True) -> None:
        """Retry a task or quarantine it; `node` is the node of an actor that died, else empty.

        `curable`: whether a repetition of the run might cure it.
        """
        self._failures.add(task, node, self.progress(task) if task is not None else 0)
        # A broken cluster would quarantine task after task, so the run ends instead. Even if every
        # actor had a bad task, one of these attempts should have succeeded.
        most = self.attempts * (max(1, self._actors.fitting) + 1)
        self._failures.require_success(self._actors.nodes, most, reason, curable)
        if task is None:
            return
        # Before quarantining, make sure that the actor did not die with its node: Ray may report
        # the actor's death seconds before the node's.
        if node and self._failures.of(task, self._actors.nodes) >= self.attempts:
            ping(node)
            self._actors.refresh()
        if self._failures.exhausted(task, self._actors.nodes, self.attempts):
            self.quarantine.append(Quarantined(task, reason, curable))
        else:
            self._next_tasks.append(task)
