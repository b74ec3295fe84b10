"""An elastic pool of actors with one task in flight each, limited retries and quarantine."""

import operator
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic

import ray
from ray.exceptions import RayError, RayTaskError

from dfkd.cluster.capacity import (
    CAPACITY_WAIT_SECONDS,
    POLL_SECONDS,
    Actor,
    WorkerResources,
    has_autoscaler,
    no_capacity_error,
    ping,
    require_room,
    schedulable_nodes,
)
from dfkd.cluster.pool_state import ActorSlot, Failures, Quarantined, T
from dfkd.cluster.ray_internals import avoiding, ray_reason
from dfkd.errors import DEFECTS, DfkdError, InfrastructureError, ManifestError, conceal, shorten
from dfkd.utils.progress import Closing, say

MAX_WAITING_ACTORS = 256
"""Actors at most that wait for room on an autoscaling cluster, whose own maximum caps the cost."""

BEGIN_SECONDS = 900.0
"""Seconds for an actor to begin: to import torch, perhaps from a slow disk, and to start CUDA."""

_END: Any = object()
"""What `next` returns for an iterator that has ended; None means that no task is ready."""


@dataclass
class Pool(Closing, Generic[T]):
    """Runs tasks on at most `size` actors of class `kind`.

    A task is what one call of an actor does: a unit of synthesis, or a `StudentTask`. There are as
    many actors as fit the nodes, which may join and leave. A draining node gets no new task, and
    one on which no actor can begin is used no more. With an autoscaler, further actors wait for
    room: they are the demand for which it adds nodes, and it ends with the driver.

    Each actor has at most one task in flight, so the driver's memory is bounded and a death has
    exactly one suspect. A task whose actor died, hung or raised is retried on any actor, `attempts`
    times in all, and then quarantined; an attempt lost with its node does not count. The run ends
    when too many attempts in a row fail for any single task to be the cause.
    """

    kind: type[Actor]
    arguments: tuple[Any, ...]
    """What each actor is made with."""
    size: int
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
    succeeded: set[type] = field(default_factory=set)
    """Kinds of tasks that have succeeded, here or in an earlier run that the caller knows of."""
    quarantine: list[Quarantined[T]] = field(default_factory=list)
    largest: int = 0
    """The largest number of actors that were running at the same time."""
    stopped: bool = False
    """Whether the last run ended early because `may_start` returned False."""
    _slots: list[ActorSlot[T]] = field(default_factory=list)
    """The actors, started or waiting for room."""
    _next_tasks: deque[T] = field(default_factory=deque)
    """Tasks to start next: failed ones, and one that `_has_next` has drawn already."""
    _failures: Failures[T] = field(default_factory=Failures)
    _undrawn: int = 0
    """Number of tasks that are not drawn yet; `size` if their iterator does not tell it."""
    _unusable: set[str] = field(default_factory=set)
    """Ids of nodes that are used no more, because no actor can begin there."""
    _failed_begins: Counter[str] = field(default_factory=Counter)
    """By node id the actors in a row that failed to begin there, and may yet."""
    _begin_error: DfkdError | None = None
    """The error of the last actor that could not begin."""
    _nodes: dict[str, dict[str, float]] = field(default_factory=dict)
    """Resources of the usable nodes by node id, as of the last refresh."""
    _wanted: int = 0
    """With an autoscaler, how many actors are started whether or not they fit yet; else 0."""
    _fitting: int = 0
    """The number of actors that fit the nodes, at most `size`."""
    _last_poll: float = 0.0
    _last_placed: float = 0.0
    """When an actor was last known to have a node (monotonic)."""
    _finished_seconds: float = 0.0
    """Busy seconds of the tasks that are no longer in flight."""

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
                require_room(self.resources)
                self._wanted = min(self.size, MAX_WAITING_ACTORS) if has_autoscaler() else 0
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
        for slot in list(self._slots):
            self._remove(slot)

    def _begin_run(self, undrawn: int) -> None:
        """Forget the tasks of the run before, and begin anew with the actors left of it."""
        self.stopped, self.largest, self._undrawn = False, 0, undrawn
        self.quarantine, self._failures = [], Failures()
        self._next_tasks.clear()
        self._finished_seconds = 0.0
        self._last_placed, self._last_poll = time.monotonic(), 0.0
        for slot in [each for each in self._slots if not each.bad]:
            # One that is still beginning may hang.
            self._begin(slot) if slot.begun or not slot.node else self._remove(slot)

    @property
    def in_flight(self) -> list[T]:
        """The tasks in flight."""
        return [slot.task for slot in self._slots if slot.task is not None]

    @property
    def busy_seconds(self) -> float:
        """Seconds of work on tasks, summed over actors, failed attempts included."""
        running = (time.monotonic() - each.since for each in self._slots if each.task is not None)
        return self._finished_seconds + sum(running)

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
        """Give each idle actor a task while there are any; skip actors on draining nodes."""
        for slot in self._slots:
            if slot.begun and slot.awaited is None and slot.node in self._nodes:
                if not self._has_next(tasks, may_start):
                    return
                task = self._next_tasks.popleft()
                slot.task, slot.since = task, time.monotonic()
                slot.awaited = slot.actor.run.remote(task)

    def _collect(self) -> Iterator[Any]:
        """Wait up to `POLL_SECONDS` for one actor; yield its result if it succeeded."""
        awaited = {slot.awaited: slot for slot in self._slots if slot.awaited is not None}
        if not awaited:
            time.sleep(POLL_SECONDS)
            return
        done, _ = ray.wait(list(awaited), num_returns=1, timeout=POLL_SECONDS)
        # At most one result a call, because the next thing to do is to give its actor a new task.
        for reference in done:
            slot = awaited[reference]
            task = self._release(slot)
            try:
                result = ray.get(reference)
            except RayError as error:
                self._handle_error(slot, task, error)
                continue
            if task is not None:
                self.succeeded.add(type(task))
                self._failures.succeed()
            elif slot.node:  # the answer of `begin`
                slot.begun, self._failed_begins[slot.node] = True, 0
                self.largest = max(self.largest, sum(each.begun for each in self._slots))
            else:  # the answer of `locate`: a node had room
                slot.node, slot.since = result, time.monotonic()
                slot.awaited = slot.actor.begin.remote(os.getcwd(), *self.assignment)
            # Remove an actor on a draining node now, before `_fill` looks for idle ones.
            if slot.node not in self._nodes and slot.node not in self._refresh_nodes():
                self._remove(slot)
            if task is not None:
                yield result

    def _release(self, slot: ActorSlot[T]) -> T | None:
        """Mark a slot as idle; returns the task that it had, if any."""
        task, slot.task, slot.awaited = slot.task, None, None
        if task is not None:
            self._finished_seconds += time.monotonic() - slot.since
        return task

    def _poll(self) -> None:
        """Every `POLL_SECONDS`: adapt to the cluster's size and replace actors that hang."""
        now = time.monotonic()
        if now - self._last_poll < POLL_SECONDS:
            return
        self._last_poll = now
        self._refresh_nodes()
        # Idle actors on leaving nodes go at once; busy ones go when their task has ended.
        for slot in list(self._slots):
            if slot.awaited is None and slot.node not in self._nodes:
                self._remove(slot)
            elif slot.node and slot.awaited is not None:
                limit = self.timeout if slot.begun else BEGIN_SECONDS
                if 0 < limit < now - slot.since:
                    self._time_out(slot)
        self._resize()
        # Ray waits for room without end and without a message, so the pool counts the seconds.
        if any(slot.node and not slot.bad for slot in self._slots):
            self._last_placed = now
        elif now - self._last_placed > CAPACITY_WAIT_SECONDS:
            raise self._begin_error or no_capacity_error(self.resources)

    def _refresh_nodes(self) -> dict[str, dict[str, float]]:
        """Read the usable nodes from Ray; returns them."""
        nodes = schedulable_nodes().items()
        self._nodes = {name: node for name, node in nodes if name not in self._unusable}
        return self._nodes

    def _count_fitting(self) -> int:
        """The number of actors that the usable nodes hold, without the places of bad ones."""
        bad = sum(slot.bad and slot.node in self._nodes for slot in self._slots)
        return self.resources.count_fitting(self._nodes) - bad

    def _fail_to_begin(self, slot: ActorSlot[T], error: DfkdError, retry: bool) -> None:
        """Give up the place of an actor that cannot begin; its node if that has no other place.

        With `retry` others try first, and the node is given up after `attempts` of them.
        Raises `error` if there is no other place, or for the second node before any has begun.
        """
        node, here = slot.node, [each for each in self._slots if each.node == slot.node]
        self._release(slot)
        slot.bad = True
        if retry:
            self._remove(slot)
            self._failed_begins[node] += node in self._refresh_nodes()  # else it died with its node
            if self._failed_begins[node] < self.attempts:
                return
        places = self.resources.count_fitting({node: self._nodes.get(node, {})})
        if given_up := retry or (len(here) >= places and all(each.bad for each in here)):
            self._unusable.add(node)
            for each in [each for each in here if each.bad and each in self._slots]:
                self._remove(each)
        self._begin_error = error
        self._refresh_nodes()
        bad = self._unusable | {each.node for each in self._slots if each.bad}
        broken = not self.largest and len(bad) > 1
        if not any(each.node in self._nodes and not each.bad for each in self._slots) and (
            broken or not (self._count_fitting() or self._wanted)
        ):
            raise error
        say(f"note: the run goes on without {'a node' if given_up else 'a worker'}: {error}")

    def _resize(self) -> None:
        """Start or remove actors until as many are there as fit the nodes, or may wait for room."""
        self._fitting = min(self.size, self._count_fitting())
        # An actor without a task would keep its GPU, or ask an autoscaler for one, until all end.
        tasks = len(self.in_flight) + len(self._next_tasks) + self._undrawn
        target = min(max(self._fitting, self._wanted), tasks)
        # Actors on draining nodes end after their task, so replacements start already.
        present = [slot for slot in self._slots if not slot.bad]
        staying = [slot for slot in present if not slot.node or slot.node in self._nodes]
        for _ in range(target - len(staying)):
            self._slots.append(slot := ActorSlot[T](self._start()))
            self._begin(slot)
        # To shrink, remove first actors that have not started, then those that no task waits for.
        waiting = [slot for slot in staying if not slot.begun]
        idle = [slot for slot in staying if slot.begun and not (slot.task or self._undrawn)]
        for slot in (waiting + idle)[: max(0, len(staying) - target)]:
            self._remove(slot)

    def _start(self) -> Any:
        """A new actor, anywhere but on an unusable node."""
        # Ray restarts and retries nothing: the pool does both, and counts them.
        options = {"max_restarts": 0, "max_task_retries": 0} | avoiding(self._unusable)
        actor: Any = ray.remote(self.kind)
        return actor.options(**options, **self.resources.options).remote(*self.arguments)

    def _begin(self, slot: ActorSlot[T]) -> None:
        """Let an actor begin once a node has room."""
        slot.node, slot.begun, slot.since = "", False, time.monotonic()
        slot.awaited = slot.actor.locate.remote()

    def _remove(self, slot: ActorSlot[T]) -> None:
        """Kill an actor and forget it; the seconds of its task still count."""
        self._release(slot)
        self._slots.remove(slot)
        ray.kill(slot.actor)

    def _time_out(self, slot: ActorSlot[T]) -> None:
        """Replace an actor that takes too long; that counts as a failed attempt at its task.

        Raises as `_fail_to_begin`, or `ManifestError` if the first tasks of a kind time out.
        """
        # A result may be ready, and only the driver was busy or suspended for so long.
        if ray.wait([slot.awaited], timeout=0)[0]:
            return
        if slot.task is None:
            told = f"cluster: a worker did not begin within {BEGIN_SECONDS:g} seconds; "
            error = InfrastructureError(f"{told}run the same command again, it resumes")
            self._fail_to_begin(slot, error, retry=False)
            return
        # A hanging actor cannot be asked to stop; `_resize` replaces it.
        task = slot.task
        self._remove(slot)
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
        beginning, known = bool(slot.node) and not slot.begun, isinstance(cause, DfkdError)
        if isinstance(cause, InfrastructureError) and beginning:
            self._fail_to_begin(slot, cause, retry=False)
            return
        if isinstance(cause, InfrastructureError | ManifestError):
            raise cause
        # The first traceback of several in a row, because every attempt may raise the same.
        if isinstance(error, RayTaskError) and not (known or self._failures.in_a_row(self._nodes)):
            say(conceal(str(error)))
        reason = ray_reason(error) if died else shorten(str(cause) if known else repr(cause), 300)
        may_pass = not isinstance(cause, (DfkdError, *DEFECTS))
        if beginning:
            told = f"workers: none can begin on a node, the last ended with {reason}; fix that and "
            kind = InfrastructureError if may_pass else DfkdError
            self._fail_to_begin(slot, kind(f"{told}run the same command again"), retry=True)
            return
        # An unexpected exception may be the actor's fault: an actor whose GPU is lost would fail
        # every further task immediately.
        if died or task is None or not known:
            self._remove(slot)
        self._refresh_nodes()
        self._record_failure(task, reason, slot.node if died else "", may_pass)

    def _record_failure(
        self, task: T | None, reason: str, node: str, may_pass: bool = True
    ) -> None:
        """Retry a task or quarantine it; `node` is the node of an actor that died, else empty.

        `may_pass`: whether a repetition of the run might cure it.
        """
        self._failures.add(task, node, self.progress(task) if task is not None else 0)
        # A broken cluster would quarantine task after task, so the run ends instead. Even if every
        # actor had a bad task, one of these attempts should have succeeded.
        most = self.attempts * (max(1, self._fitting) + 1)
        self._failures.require_success(self._nodes, most, reason, may_pass)
        if task is None:
            return
        # Before quarantining, make sure that the actor did not die with its node: Ray may report
        # the actor's death seconds before the node's.
        if node and self._failures.of(task, self._nodes) >= self.attempts:
            ping(node)
            self._refresh_nodes()
        if self._failures.exhausted(task, self._nodes, self.attempts):
            self.quarantine.append(Quarantined(task, reason, may_pass))
        else:
            self._next_tasks.append(task)
