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
    share: WorkerResources
    """What an actor reserves."""
    timeout: float = 0.0
    """Seconds that a task may take; 0 is any."""
    quarantine: list[Quarantined[T]] = field(default_factory=list)
    largest: int = 0
    """Actors that were there at once."""
    stopped: bool = False
    """Whether the last run left tasks because it was told to."""
    _members: list[ActorSlot[T]] = field(default_factory=list)
    _again: deque[T] = field(default_factory=deque)
    _tries: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _row: list[str] = field(default_factory=list)
    _nodes: dict[str, dict[str, float]] = field(default_factory=dict)
    _wanted: int = 0
    _glanced: float = 0.0
    _placed: float = 0.0
    _spent: float = 0.0

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
        self._placed = time.monotonic()
        try:
            # Without a task no actor is worth its start.
            while self.flying or self._peek(tasks, may_start):
                self._glance()
                self._fill(tasks, may_start)
                yield from self._collect()
        finally:
            while self._members:
                self._end(self._members[0])

    @property
    def flying(self) -> list[T]:
        """The tasks in flight."""
        return [member.task for member in self._members if member.task is not None]

    @property
    def busy_seconds(self) -> float:
        """Summed over actors: at work on tasks until now, failed tries included."""
        now = time.monotonic()
        return self._spent + sum(now - m.since for m in self._members if m.task is not None)

    def tries(self, task: str) -> int:
        """How often the task of that id was begun, if its last try succeeded."""
        return len(self._tries.get(task, ())) + 1

    def _peek(self, tasks: Iterator[T | None], may_start: Callable[[T], bool]) -> bool:
        """Whether a task may be begun; it is the first of `_again` then."""
        if self.stopped:
            return False
        if not self._again and (task := next(tasks, None)) is not None:
            self._again.append(task)
        if not self._again:
            return False
        self.stopped = not may_start(self._again[0])
        return not self.stopped

    def _fill(self, tasks: Iterator[T | None], may_start: Callable[[T], bool]) -> None:
        """Give every idle actor a task while there are any, but none on a node that leaves."""
        for member in self._members:
            if member.awaited is None and member.node in self._nodes:
                if not self._peek(tasks, may_start):
                    return
                task = self._again.popleft()
                member.task, member.since = task, time.monotonic()
                member.awaited = member.actor.run.remote(task)

    def _collect(self) -> Iterator[Any]:
        """Wait a little for any actor; yield its result if it has one."""
        awaited = {m.awaited: m for m in self._members if m.awaited is not None}
        if not awaited:
            time.sleep(POLL_SECONDS)
        done, _ = (
            ray.wait(list(awaited), num_returns=1, timeout=POLL_SECONDS) if awaited else ([], [])
        )
        for reference in done:
            member = awaited[reference]
            task = self._freed(member)
            try:
                result = ray.get(reference)
            except RayError as error:
                self._failed(member, task, error)
                continue
            if task is None:
                member.node = result
                self._placed = time.monotonic()
            else:
                self._row.clear()
            if member.node not in self._nodes and member.node not in self._look():
                self._end(member)
            if task is not None:
                yield result

    def _freed(self, member: ActorSlot[T]) -> T | None:
        """Make a member idle; returns the task that it had."""
        task, member.task, member.awaited = member.task, None, None
        if task is not None:
            self._spent += time.monotonic() - member.since
        return task

    def _glance(self) -> None:
        """Now and then: follow the cluster's size, and replace what hangs."""
        now = time.monotonic()
        if now - self._glanced < POLL_SECONDS:
            return
        self._glanced = now
        self._look()
        for member in list(self._members):
            if member.awaited is None and member.node not in self._nodes:
                self._end(member)
            elif member.task is not None and 0 < self.timeout < now - member.since:
                self._late(member)
        self._resize()
        if any(member.node for member in self._members):
            self._placed = now
        elif now - self._placed > CAPACITY_WAIT_SECONDS:
            raise no_capacity_error(self.share)

    def _look(self) -> dict[str, dict[str, float]]:
        self._nodes = schedulable_nodes()
        return self._nodes

    def _resize(self) -> None:
        """As many actors as fit: those on leaving nodes do not count, waiting ones may go."""
        wanted = self._wanted = min(self.size, self.share.slots(self._nodes))
        lasting = [m for m in self._members if not m.node or m.node in self._nodes]
        for _ in range(wanted - len(lasting)):
            actor = self.start()
            # Ray keeps it waiting until it has room for it, and only then is it given a task.
            self._members.append(ActorSlot(actor, actor.node_id.remote(), time.monotonic()))
        waiting = [member for member in lasting if not member.node]
        for member in waiting[: max(0, len(lasting) - wanted)]:
            self._end(member)
        self.largest = max(self.largest, sum(bool(member.node) for member in self._members))

    def _end(self, member: ActorSlot[T]) -> None:
        self._members.remove(member)
        ray.kill(member.actor)

    def _late(self, member: ActorSlot[T]) -> None:
        task = self._freed(member)
        self._end(member)
        if task is not None:
            self._judge(
                task,
                f"no result within {self.timeout:g} seconds (a worker that hangs, or tasks that "
                "need a larger cluster.task_timeout)",
                "",
            )

    def _failed(self, member: ActorSlot[T], task: T | None, error: RayError) -> None:
        died = not isinstance(error, RayTaskError)  # of itself, its node, or Ray's memory monitor
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, InfrastructureError | ManifestError):
            raise cause
        # What nobody foresaw may be the actor's fault: one whose GPU is lost fails every task from
        # now on, in no time.
        if died or task is None or not isinstance(cause, DfkdError):
            self._end(member)
        words = str(cause) if isinstance(cause, DfkdError) else repr(cause)
        self._look()
        self._judge(task, " ".join(words.split())[:300], member.node if died else "")

    def _judge(self, task: T | None, reason: str, node: str) -> None:
        """Try a task again or quarantine it; `node` is that of an actor that died."""
        self._row.append(node)
        row = self._held(self._row)
        if row >= self.attempts * (max(1, self._wanted) + 1):
            raise InfrastructureError(
                f"workers: {row} tries in a row failed, the last with {reason}; "
                "fix that and run the same command again, it resumes"
            )
        if task is None:
            return
        tries = self._tries[task.id]
        tries.append(node)
        if node and self._held(tries) >= self.attempts:
            self._call(node)
        if self._held(tries) < self.attempts and len(tries) < self.attempts + MAX_NODE_LOSSES:
            self._again.append(task)
        else:
            self.quarantine.append(Quarantined(task, reason))

    def _call(self, node: str) -> None:
        """Find out whether a node still answers, which Ray itself may notice only seconds later."""
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        ask: Any = ray.remote(_node_id).options(
            num_cpus=0, max_retries=0, scheduling_strategy=there
        )
        with contextlib.suppress(RayError):
            ray.get(ask.remote(), timeout=PING_SECONDS)
        self._look()

    def _held(self, tries: list[str]) -> int:
        """How many are held against a task: not those that ended with their node."""
        return sum(not node or node in self._nodes for node in tries)


def _node_id() -> str:
    return str(ray.get_runtime_context().get_node_id())
