"""An elastic pool of actors: one task in flight for each, retries with a cap, quarantine."""

import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dfkd.cluster.capacity import (
    CAPACITY_WAIT_SECONDS,
    POLL_SECONDS,
    WorkerResources,
    no_capacity_error,
    schedulable_nodes,
)
from dfkd.errors import DfkdError, InfrastructureError, ManifestError

PING_SECONDS = 30.0
"""Seconds within which a node answers, or is known to be dead."""

MAX_NODE_LOSSES = 10
"""Tries of a task that nodes took with them, beyond which it is suspected of killing them."""


class Identified(Protocol):
    """What a pool runs: a task, or anything else with a name of its own."""

    @property
    def id(self) -> str:
        """Its name, unique in the run."""


T = TypeVar("T", bound=Identified)


class Actor:
    """The base of what a pool runs tasks on; a subclass adds the method `run(task)`."""

    def node_id(self) -> str:
        """Of the node that it is on; the pool's first question, answered once it has started."""
        return _node_id()


@dataclass(frozen=True)
class Quarantined(Generic[T]):
    """A task that failed at every try, and why it did the last time."""

    task: T
    reason: str


@dataclass(eq=False)
class ActorSlot(Generic[T]):
    """An actor of the pool."""

    actor: Any
    awaited: Any
    """Reference to what it does: at first its own start, then a task; None while it is idle."""
    since: float
    """When that was begun (monotonic)."""
    node: str = ""
    """Id of its node; empty until the cluster had room for it, and no task is given to it."""
    task: T | None = None


@dataclass
class Pool(Generic[T]):
    """Runs tasks on at most `size` actors (see `Actor`) that `start` makes.

    The pool follows the cluster: it has as many actors as shares fit the nodes that are there, so
    that nodes may join and leave while it runs. A node that is being drained gets no new task.

    One task an actor is in flight, whatever the number of tasks: the driver's memory is bounded,
    and a death has exactly one suspect. (A task takes seconds, so the driver's millisecond between
    two is no loss.) Ray itself retries nothing: a task whose actor died, hung or raised is tried
    again on any actor, `attempts` times in all, and then quarantined. A try that ended with its
    node is not held against the task. When so many tries fail in a row that the fault cannot be a
    task's, the run ends.
    """

    start: Callable[[], Any]
    size: int
    attempts: int
    resources: WorkerResources
    """What an actor reserves."""
    timeout: float = 0.0
    """Seconds that a task may take; 0 is any."""
    quarantine: list[Quarantined[T]] = field(default_factory=list)
    largest: int = 0
    """Actors that were there at once."""
    stopped: bool = False
    """Whether the last run left tasks because it was told to."""
    _slots: list[ActorSlot[T]] = field(default_factory=list)
    _retry_queue: deque[T] = field(default_factory=deque)
    _tries: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _consecutive_failures: list[str] = field(default_factory=list)
    _nodes: dict[str, dict[str, float]] = field(default_factory=dict)
    _target_size: int = 0
    _last_poll: float = 0.0
    _last_placed: float = 0.0
    _finished_seconds: float = 0.0

    def run(
        self, tasks: Iterator[T | None], may_start: Callable[[T], bool] = lambda task: True
    ) -> Iterator[Any]:
        """Yield each result as it comes, in no order; see `quarantine` afterwards.

        Args:
            tasks: as many as there are; drawn one at a time. None is for now: asked again once a
                task in flight is done.
            may_start: asked before each; once it says no, what is in flight is the last.

        Raises:
            ManifestError: raised by an actor; no retry of a task can fix it.
            InfrastructureError: raised by an actor, or `attempts` for each actor and once more
                failed without a success between them, or no node had room for an actor.
        """
        self.stopped = False
        self._last_placed = time.monotonic()
        try:
            # Without a task no actor is worth its start.
            while self.in_flight or self._peek(tasks, may_start):
                self._poll()
                self._fill(tasks, may_start)
                yield from self._collect()
        finally:
            while self._slots:
                self._remove(self._slots[0])

    @property
    def in_flight(self) -> list[T]:
        """The tasks in flight."""
        return [slot.task for slot in self._slots if slot.task is not None]

    @property
    def busy_seconds(self) -> float:
        """Summed over actors: at work on tasks until now, failed tries included."""
        now = time.monotonic()
        return self._finished_seconds + sum(now - m.since for m in self._slots if m.task is not None)

    def tries(self, task: str) -> int:
        """How often the task of that id was begun, if its last try succeeded."""
        return len(self._tries.get(task, ())) + 1

    def _peek(self, tasks: Iterator[T | None], may_start: Callable[[T], bool]) -> bool:
        """Whether a task may be begun; it is the first of `_retry_queue` then."""
        if self.stopped:
            return False
        if not self._retry_queue and (task := next(tasks, None)) is not None:
            self._retry_queue.append(task)
        if not self._retry_queue:
            return False
        self.stopped = not may_start(self._retry_queue[0])
        return not self.stopped

    def _fill(self, tasks: Iterator[T | None], may_start: Callable[[T], bool]) -> None:
        """Give every idle actor a task while there are any, but none on a node that leaves."""
        for slot in self._slots:
            if slot.awaited is None and slot.node in self._nodes:
                if not self._peek(tasks, may_start):
                    return
                task = self._retry_queue.popleft()
                slot.task, slot.since = task, time.monotonic()
                slot.awaited = slot.actor.run.remote(task)

    def _collect(self) -> Iterator[Any]:
        """Wait a little for any actor; yield its result if it has one."""
        awaited = {m.awaited: m for m in self._slots if m.awaited is not None}
        if not awaited:
            time.sleep(POLL_SECONDS)
        done, _ = (
            ray.wait(list(awaited), num_returns=1, timeout=POLL_SECONDS) if awaited else ([], [])
        )
        for reference in done:
            slot = awaited[reference]
            task = self._release(slot)
            try:
                result = ray.get(reference)
            except RayError as error:
                self._handle_error(slot, task, error)
                continue
            if task is None:
                slot.node = result
                self._last_placed = time.monotonic()
            else:
                self._consecutive_failures.clear()
            if slot.node not in self._nodes and slot.node not in self._refresh_nodes():
                self._remove(slot)
            if task is not None:
                yield result

    def _release(self, slot: ActorSlot[T]) -> T | None:
        """Make a slot idle; returns the task that it had."""
        task, slot.task, slot.awaited = slot.task, None, None
        if task is not None:
            self._finished_seconds += time.monotonic() - slot.since
        return task

    def _poll(self) -> None:
        """Now and then: follow the cluster's size, and replace what hangs."""
        now = time.monotonic()
        if now - self._last_poll < POLL_SECONDS:
            return
        self._last_poll = now
        self._refresh_nodes()
        for slot in list(self._slots):
            if slot.awaited is None and slot.node not in self._nodes:
                self._remove(slot)
            elif slot.task is not None and 0 < self.timeout < now - slot.since:
                self._time_out(slot)
        self._resize()
        if any(slot.node for slot in self._slots):
            self._last_placed = now
        elif now - self._last_placed > CAPACITY_WAIT_SECONDS:
            raise no_capacity_error(self.resources)

    def _refresh_nodes(self) -> dict[str, dict[str, float]]:
        self._nodes = schedulable_nodes()
        return self._nodes

    def _resize(self) -> None:
        """As many actors as fit: those on leaving nodes do not count, waiting ones may go."""
        wanted = self._target_size = min(self.size, self.resources.slots(self._nodes))
        lasting = [m for m in self._slots if not m.node or m.node in self._nodes]
        for _ in range(wanted - len(lasting)):
            actor = self.start()
            # Ray keeps it waiting until it has room for it, and only then is it given a task.
            self._slots.append(ActorSlot(actor, actor.node_id.remote(), time.monotonic()))
        waiting = [slot for slot in lasting if not slot.node]
        for slot in waiting[: max(0, len(lasting) - wanted)]:
            self._remove(slot)
        self.largest = max(self.largest, sum(bool(slot.node) for slot in self._slots))

    def _remove(self, slot: ActorSlot[T]) -> None:
        self._slots.remove(slot)
        ray.kill(slot.actor)

    def _time_out(self, slot: ActorSlot[T]) -> None:
        task = self._release(slot)
        self._remove(slot)
        if task is not None:
            self._record_failure(
                task,
                f"no result within {self.timeout:g} seconds (a worker that hangs, or tasks that "
                "need a larger cluster.task_timeout)",
                "",
            )

    def _handle_error(self, slot: ActorSlot[T], task: T | None, error: RayError) -> None:
        died = not isinstance(error, RayTaskError)  # of itself, its node, or Ray's memory monitor
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, InfrastructureError | ManifestError):
            raise cause
        # What nobody foresaw may be the actor's fault: one whose GPU is lost fails every task from
        # now on, in no time.
        if died or task is None or not isinstance(cause, DfkdError):
            self._remove(slot)
        words = str(cause) if isinstance(cause, DfkdError) else repr(cause)
        self._refresh_nodes()
        self._record_failure(task, " ".join(words.split())[:300], slot.node if died else "")

    def _record_failure(self, task: T | None, reason: str, node: str) -> None:
        """Try a task again or quarantine it; `node` is that of an actor that died."""
        self._consecutive_failures.append(node)
        row = self._count_charged(self._consecutive_failures)
        if row >= self.attempts * (max(1, self._target_size) + 1):
            raise InfrastructureError(
                f"workers: {row} tries in a row failed, the last with {reason}; "
                "fix that and run the same command again, it resumes"
            )
        if task is None:
            return
        tries = self._tries[task.id]
        tries.append(node)
        if node and self._count_charged(tries) >= self.attempts:
            self._ping(node)
        if self._count_charged(tries) < self.attempts and len(tries) < self.attempts + MAX_NODE_LOSSES:
            self._retry_queue.append(task)
        else:
            self.quarantine.append(Quarantined(task, reason))

    def _ping(self, node: str) -> None:
        """Find out whether a node still answers, which Ray itself may notice only seconds later."""
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        ask: Any = ray.remote(_node_id).options(
            num_cpus=0, max_retries=0, scheduling_strategy=there
        )
        with contextlib.suppress(RayError):
            ray.get(ask.remote(), timeout=PING_SECONDS)
        self._refresh_nodes()

    def _count_charged(self, tries: list[str]) -> int:
        """How many are held against a task: not those that ended with their node."""
        return sum(not node or node in self._nodes for node in tries)


def _node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())
