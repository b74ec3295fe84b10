"""The actors of a pool: where they are, whether they can begin, and how many there should be."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic

import ray

from dfkd.cluster.actors.failures import T
from dfkd.cluster.capacity import (
    CAPACITY_WAIT_SECONDS,
    POLL_SECONDS,
    WorkerResources,
    enter_folder,
    has_autoscaler,
    no_capacity_error,
    node_id,
    require_room,
    schedulable_nodes,
    see_reserved_gpus,
)
from dfkd.cluster.ray_internals import avoiding
from dfkd.errors import DfkdError, InfrastructureError
from dfkd.utils.progress import say

MAX_WAITING_ACTORS = 256
"""Actors at most that wait for room on an autoscaling cluster, whose own maximum caps the cost."""

BEGIN_SECONDS = 900.0
"""Seconds for an actor to begin: to import torch, perhaps from a slow disk, and to start CUDA."""


class Actor:
    """Base class of the actors of a pool; a subclass adds the method `run(task)`."""

    def locate(self) -> str:
        """The id of this node."""
        return node_id()

    def begin(self, folder: str, *work: Any) -> None:
        """Enter the driver's working directory and start CUDA. Called in each run.

        `work` is the pool's `assignment`.
        """
        enter_folder(folder)
        see_reserved_gpus()


@dataclass(eq=False)
class ActorSlot(Generic[T]):
    """An actor of the pool and what it is doing."""

    actor: Any
    awaited: Any = None
    """Object reference of the call that the pool waits for; None while the actor is idle."""
    since: float = 0.0
    """Start of the current call in seconds (`time.monotonic`)."""
    node: str = ""
    """Id of its node; empty until a node had room for it."""
    begun: bool = False
    """Whether it can be given a task."""
    bad: bool = False
    """Whether it cannot begin. It stays and holds its GPU, so that no other actor gets it."""
    task: T | None = None

    @property
    def beginning(self) -> bool:
        """Whether a node had room for it and it cannot be given a task yet."""
        return bool(self.node) and not self.begun


@dataclass
class ActorGroup(Generic[T]):
    """At most `size` actors of class `kind`, as many as the usable nodes hold.

    A draining node gets no new task, and one on which none can begin is used no more. With an
    autoscaler, further actors wait for room: they are the demand for which it adds nodes, and it
    ends with the driver.
    """

    kind: type[Actor]
    arguments: tuple[Any, ...]
    attempts: int
    """Actors in a row that may die while they begin on a node, before it is given up."""
    resources: WorkerResources
    size: int = 0
    """The largest number of actors in the present run."""
    slots: list[ActorSlot[T]] = field(default_factory=list)
    """The actors, started or waiting for room."""
    nodes: dict[str, dict[str, float]] = field(default_factory=dict)
    """Resources of the usable nodes by node id, as of the last refresh."""
    fitting: int = 0
    """The number of actors that fit the nodes, at most `size`."""
    largest: int = 0
    """The largest number of actors that were running at the same time."""
    _assignment: tuple[Any, ...] = ()
    """Further arguments of `begin`."""
    _wanted: int = 0
    """With an autoscaler, how many actors are started whether or not they fit yet; else 0."""
    _unusable: set[str] = field(default_factory=set)
    """Ids of nodes that are used no more, because no actor can begin there."""
    _failed_begins: Counter[str] = field(default_factory=Counter)
    """By node id the actors in a row that failed to begin there, and may yet."""
    _begin_error: DfkdError | None = None
    """The error of the last actor that could not begin."""
    _last_poll: float = 0.0
    _last_placed: float = 0.0
    """When an actor was last known to have a node (monotonic)."""
    _finished_seconds: float = 0.0
    """Busy seconds of the tasks that are no longer in flight."""

    def begin_run(self, size: int, assignment: tuple[Any, ...]) -> None:
        """Let the actors left of an earlier run begin anew, for a run of at most `size` actors."""
        self.size, self._assignment = size, assignment
        self.largest, self._finished_seconds = 0, 0.0
        self._last_placed, self._last_poll = time.monotonic(), 0.0
        for slot in [each for each in self.slots if not each.bad]:
            # One that is still beginning may hang.
            self.remove(slot) if slot.beginning else self._begin(slot)

    def require_room(self) -> None:
        """Find out whether there is room for actors, or an autoscaler that may make some.

        Raises:
            ManifestError: there is neither.
        """
        require_room(self.resources)
        self._wanted = min(self.size, MAX_WAITING_ACTORS) if has_autoscaler() else 0

    @property
    def in_flight(self) -> list[T]:
        """The tasks in flight."""
        return [slot.task for slot in self.slots if slot.task is not None]

    @property
    def busy_seconds(self) -> float:
        """Seconds of work on tasks, summed over actors, failed attempts included."""
        running = (time.monotonic() - each.since for each in self.slots if each.task is not None)
        return self._finished_seconds + sum(running)

    @property
    def idle(self) -> list[ActorSlot[T]]:
        """The actors that can be given a task; none of them is on a draining node."""
        free = (slot for slot in self.slots if slot.begun and slot.awaited is None)
        return [slot for slot in free if slot.node in self.nodes]

    def give(self, slot: ActorSlot[T], task: T) -> None:
        """Give an idle actor a task."""
        slot.task, slot.since = task, time.monotonic()
        slot.awaited = slot.actor.run.remote(task)

    def answers(self) -> Iterator[tuple[ActorSlot[T], Any]]:
        """Wait up to `POLL_SECONDS` for an answer; yield its actor and object reference, if any.

        At most one, because the next thing to do is to give its actor a new task.
        """
        awaited = {slot.awaited: slot for slot in self.slots if slot.awaited is not None}
        if not awaited:
            time.sleep(POLL_SECONDS)
            return
        done, _ = ray.wait(list(awaited), num_returns=1, timeout=POLL_SECONDS)
        for reference in done:
            yield awaited[reference], reference

    def release(self, slot: ActorSlot[T]) -> T | None:
        """Mark a slot as idle; returns the task that it had, if any."""
        task, slot.task, slot.awaited = slot.task, None, None
        if task is not None:
            self._finished_seconds += time.monotonic() - slot.since
        return task

    def remove(self, slot: ActorSlot[T]) -> None:
        """Kill an actor and forget it; the seconds of its task still count."""
        self.release(slot)
        self.slots.remove(slot)
        ray.kill(slot.actor)

    def remove_if_leaving(self, slot: ActorSlot[T]) -> None:
        """Remove an actor whose node is draining or gone."""
        if slot.node not in self.nodes and slot.node not in self.refresh():
            self.remove(slot)

    def due(self) -> bool:
        """Whether `POLL_SECONDS` have passed since this was last True."""
        now = time.monotonic()
        if now - self._last_poll < POLL_SECONDS:
            return False
        self._last_poll = now
        return True

    def refresh(self) -> dict[str, dict[str, float]]:
        """Read the usable nodes from Ray; returns them."""
        nodes = schedulable_nodes().items()
        self.nodes = {name: node for name, node in nodes if name not in self._unusable}
        return self.nodes

    def follow_nodes(self) -> None:
        """Refresh the nodes and remove idle actors on others; busy ones go after their task."""
        self.refresh()
        for slot in list(self.slots):
            if slot.awaited is None and slot.node not in self.nodes:
                self.remove(slot)

    def overdue(self, timeout: float) -> list[ActorSlot[T]]:
        """The actors whose task takes longer than `timeout` seconds (0: no limit), or that have
        not begun in time.
        """
        now, found = time.monotonic(), []
        for slot in self.slots:
            limit = timeout if slot.begun else BEGIN_SECONDS
            if slot.node and slot.awaited is not None and 0 < limit < now - slot.since:
                found.append(slot)
        return found

    def resize(self, ready: int, undrawn: int) -> None:
        """Start or remove actors until as many are there as fit the nodes, or may wait for room.

        Args:
            ready: number of tasks that are in flight or start next.
            undrawn: number of tasks after these.

        Raises:
            InfrastructureError: no actor had room for `CAPACITY_WAIT_SECONDS` (or the error of the
                last one that could not begin).
        """
        self.fitting = min(self.size, self._count_fitting())
        # An actor without a task would keep its GPU, or ask an autoscaler for one, until all end.
        target = min(max(self.fitting, self._wanted), ready + undrawn)
        # Actors on draining nodes end after their task, so replacements start already.
        present = [slot for slot in self.slots if not slot.bad]
        staying = [slot for slot in present if not slot.node or slot.node in self.nodes]
        for _ in range(target - len(staying)):
            self.slots.append(slot := ActorSlot[T](self._start()))
            self._begin(slot)
        # To shrink, remove first actors that have not started, then those that no task waits for.
        waiting = [slot for slot in staying if not slot.begun]
        spare = [slot for slot in staying if slot.begun and not (slot.task or undrawn)]
        for slot in (waiting + spare)[: max(0, len(staying) - target)]:
            self.remove(slot)
        # Ray waits for room without end and without a message, so the seconds are counted here.
        if any(slot.node and not slot.bad for slot in self.slots):
            self._last_placed = time.monotonic()
        elif time.monotonic() - self._last_placed > CAPACITY_WAIT_SECONDS:
            raise self._begin_error or no_capacity_error(self.resources)

    def _count_fitting(self) -> int:
        """The number of actors that the usable nodes hold, without the places of bad ones."""
        bad = sum(slot.bad and slot.node in self.nodes for slot in self.slots)
        return self.resources.count_fitting(self.nodes) - bad

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

    def advance(self, slot: ActorSlot[T], answer: Any) -> None:
        """Let an actor that has answered `locate` begin; note one that has begun."""
        if slot.node:
            slot.begun, self._failed_begins[slot.node] = True, 0
            self.largest = max(self.largest, sum(each.begun for each in self.slots))
        else:
            slot.node, slot.since = answer, time.monotonic()
            slot.awaited = slot.actor.begin.remote(os.getcwd(), *self._assignment)

    def refuse_hanging(self, slot: ActorSlot[T]) -> None:
        """As `refuse_place`, for an actor that has not begun in time."""
        told = f"cluster: a worker did not begin within {BEGIN_SECONDS:g} seconds; "
        error = InfrastructureError(f"{told}run the same command again, it resumes")
        self.refuse_place(slot, error)

    def refuse_place(self, slot: ActorSlot[T], error: DfkdError) -> None:
        """Give up the place of an actor that cannot begin, and its node if that has no other place.

        Raises:
            DfkdError: `error`, if no actor can begin anywhere.
        """
        self.release(slot)
        slot.bad = True
        here = [each for each in self.slots if each.node == slot.node]
        places = self.resources.count_fitting({slot.node: self.nodes.get(slot.node, {})})
        if len(here) >= places and all(each.bad for each in here):
            self._give_up_node(slot.node, error)
        else:
            self._go_on_without("a worker", error)

    def count_failed_begin(self, slot: ActorSlot[T], error: DfkdError) -> None:
        """Remove an actor that failed while it began; its node is given up after `attempts` in a
        row.

        Raises:
            DfkdError: `error`, if no actor can begin anywhere.
        """
        self.remove(slot)
        # An actor that died with its node says nothing about the node.
        self._failed_begins[slot.node] += slot.node in self.refresh()
        if self._failed_begins[slot.node] >= self.attempts:
            self._give_up_node(slot.node, error)

    def _give_up_node(self, node: str, error: DfkdError) -> None:
        """Use a node no more; raises `error` if no actor can begin anywhere."""
        self._unusable.add(node)
        for slot in [each for each in self.slots if each.bad and each.node == node]:
            self.remove(slot)
        self._go_on_without("a node", error)

    def _go_on_without(self, lost: str, error: DfkdError) -> None:
        """Print that the run goes on; raises `error` if no actor can begin anywhere."""
        self._begin_error = error
        self.refresh()
        if not self._may_begin():
            raise error
        say(f"note: the run goes on without {lost}: {error}")

    def _may_begin(self) -> bool:
        """Whether an actor has begun or may begin on a usable node."""
        if any(each.node in self.nodes and not each.bad for each in self.slots):
            return True
        # Two nodes, and none on which an actor has ever begun: the fault is not in the nodes.
        failing = self._unusable | {each.node for each in self.slots if each.bad}
        if len(failing) > 1 and not self.largest:
            return False
        return bool(self._count_fitting() or self._wanted)
