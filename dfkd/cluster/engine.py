"""Tasks on Ray actors that may die, hang, or lose their node at any moment.

Storage alone says what is done, so an actor may be lost at any moment and a task be made twice. The
loop in `Engine.run` gives each actor one task at a time, and a task that failed to any actor again,
`attempts` times in all. Ray places the actors: those without room are pending, which is the demand
for which an autoscaler adds nodes, and all of them end with the driver.

Ray would also restart actors and repeat their tasks (`max_restarts`, `max_task_retries`). Then the
driver learns neither why a process died (Ray's memory monitor, say) nor how often a task was tried,
and a restarted actor keeps its task while it waits for a node. So a dead actor is replaced here.
"""

import operator
import os
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from dfkd.cluster.capacity import (
    CAPACITY_WAIT_SECONDS,
    POLL_SECONDS,
    WorkerResources,
    enter_folder,
    has_autoscaler,
    no_capacity_error,
    node_id,
    ping,
    require_room,
    schedulable_nodes,
    see_reserved_gpus,
)
from dfkd.cluster.ray_internals import ray_reason
from dfkd.errors import DfkdError, InfrastructureError, ManifestError, conceal, may_pass, shorten
from dfkd.utils.progress import Closing, say

MAX_WAITING_ACTORS = 256
"""Actors at most that wait for room on an autoscaling cluster, whose own maximum caps the cost."""

BEGIN_SECONDS = 900.0
"""Seconds for an actor to begin: to import torch, perhaps from a slow disk, and to start CUDA."""

MAX_NODE_LOSSES = 10
"""Attempts of one task that may be lost with their node before the task itself is suspected."""

MAX_FIRST_TIMEOUTS = 2
"""Attempts that may time out before a task of their kind succeeds. Then the limit is suspected."""

_END: Any = object()
"""What `next` returns for an iterator that has ended; None means that no task is ready."""


class Identified(Protocol):
    """A task: anything with a unique id."""

    @property
    def id(self) -> str:
        """A name that is unique in the run."""


T = TypeVar("T", bound=Identified)


@dataclass(frozen=True)
class Quarantined(Generic[T]):
    """A task that failed at every attempt, with the reason of the last failure."""

    unit: T
    reason: str
    curable: bool = True
    """Whether a repetition of the run might cure it."""


class Actor:
    """Base class of the actors; a subclass adds the method `run(task)`."""

    def locate(self) -> str:
        """The id of this node."""
        return node_id()

    def begin(self, folder: str, *work: Any) -> None:
        """Enter the driver's working directory and start CUDA. Called in each run.

        `work` is the engine's `assignment`.
        """
        enter_folder(folder)
        see_reserved_gpus()


@dataclass(eq=False)
class Place(Generic[T]):
    """An actor: where it is and what it is doing."""

    actor: Any
    call: Any = None
    """Object reference of the call that is awaited; None while the actor is idle."""
    since: float = 0.0
    """Start of the call in seconds (`time.monotonic`)."""
    node: str = ""
    """Id of its node; empty until a node had room for it."""
    begun: bool = False
    """Whether it can be given a task."""
    bad: bool = False
    """Whether it cannot begin. It stays and holds its GPU, so that no other actor gets it."""
    task: T | None = None


@dataclass
class Engine(Closing, Generic[T]):
    """At most `size` actors of class `kind`, as many as the nodes hold, and what they do."""

    kind: type[Actor]
    arguments: tuple[Any, ...]
    """What each actor is made with."""
    size: int
    """Actors at most; this, `timeout` and `assignment` may change between runs."""
    attempts: int
    """How often a task is tried, and actors may die in a row while they begin on a node."""
    resources: WorkerResources
    """What an actor reserves."""
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
    stopped: bool = False
    """Whether the last run ended early because `may_start` returned False."""
    largest: int = 0
    """The largest number of actors that were at work at the same time in the last run."""
    places: list[Place[T]] = field(default_factory=list)
    """The actors, at work or waiting for room."""
    _nodes: dict[str, dict[str, float]] = field(default_factory=dict)
    """Resources of the usable nodes by id: alive, not draining, and actors can begin there."""
    _unusable: set[str] = field(default_factory=set)
    """Ids of nodes on which no actor can begin."""
    _begin_deaths: Counter[str] = field(default_factory=Counter)
    """By node id the actors in a row that died while they began there."""
    _begin_error: DfkdError | None = None
    """The error of the last actor that could not begin."""
    _ready: deque[T] = field(default_factory=deque)
    """Tasks to start next: failed ones, and one that is drawn already."""
    _ended: bool = False
    """Whether no more task will be drawn."""
    _lost: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """By task id the failed attempts: the node of an actor that died, else empty."""
    _in_a_row: list[str] = field(default_factory=list)
    """Failed attempts since the last success, likewise."""
    _reached: dict[str, int] = field(default_factory=dict)
    """By task id how far its last failed attempt came."""
    _timeouts: Counter[type] = field(default_factory=Counter)
    """Attempts that have timed out, by kind of task."""
    _waiting: int = 0
    """Actors that are started whether or not they fit yet; an autoscaler makes room for them."""
    _looked: float = 0.0
    """When the cluster was last looked at."""
    _placed: float = 0.0
    """When an actor was last known to have a node."""
    _finished_seconds: float = 0.0
    """Seconds of the tasks that are no longer in flight."""

    def run(
        self,
        tasks: Iterator[T | None],
        may_start: Callable[[T], bool] = lambda task: True,
        on_start: Callable[[T], object] = lambda task: None,
    ) -> Iterator[Any]:
        """Yield each result when it arrives, in any order; see `quarantine` afterwards.

        Each actor has at most one task in flight, so the driver's memory is bounded and a death has
        exactly one suspect. An attempt that is lost with its node does not count.

        Args:
            tasks: consumed lazily, one at a time. None: nothing is ready yet; it is asked again,
                and the run ends if it gives None while no task is in flight.
            may_start: called before each task; after False no more are started.
            on_start: called with a task when an actor is given it, at each attempt.

        Raises:
            ManifestError: an actor raised it; or no node can hold an actor and there is no
                autoscaler; or no task succeeded and `timeout` is too short.
            InfrastructureError: an actor raised it; or no actor can begin, or finds room; or
                `attempts` x (actors + 1) attempts in a row failed (or `DfkdError`).
        """
        finished = False
        try:
            self._begin_run()
            # Draw a task before starting actors: a finished run needs no room and starts none.
            if self._has_next(tasks, may_start):
                require_room(self.resources)
                self._waiting = MAX_WAITING_ACTORS if has_autoscaler() else 0
            while self.in_flight or self._has_next(tasks, may_start):
                self._look()
                for place in self.places:
                    # None on a draining node gets a task.
                    idle = place.begun and place.call is None and place.node in self._nodes
                    if idle and self._has_next(tasks, may_start):
                        on_start(self._ready[0])
                        place.task, place.since = self._ready.popleft(), time.monotonic()
                        place.call = place.actor.run.remote(place.task)
                calls = {place.call: place for place in self.places if place.call is not None}
                if not calls:
                    time.sleep(POLL_SECONDS)
                    continue
                # One answer at a time, because the next thing to do is to give its actor a task.
                for reference in ray.wait(list(calls), num_returns=1, timeout=POLL_SECONDS)[0]:
                    place = calls[reference]
                    task = self._release(place)
                    try:
                        answer = ray.get(reference)
                    except RayError as error:
                        self._handle_error(place, task, error)
                        continue
                    if task is None:
                        self._advance(place, answer)
                    else:
                        self.succeeded.add(type(task))
                        self._in_a_row.clear()
                    if place.node not in self._nodes and place.node not in self._refresh():
                        self._remove(place)
                    if task is not None:
                        yield answer
            finished = True
        finally:
            # Always after an error or when the caller stops reading: an actor may be at work.
            if not (finished and self.lasting):
                self.close()

    def close(self) -> None:
        """End all actors."""
        for place in list(self.places):
            self._remove(place)

    @property
    def in_flight(self) -> list[T]:
        """The tasks in flight."""
        return [place.task for place in self.places if place.task is not None]

    @property
    def busy_seconds(self) -> float:
        """Seconds of work on tasks, summed over actors, failed attempts included."""
        running = (time.monotonic() - each.since for each in self.places if each.task is not None)
        return self._finished_seconds + sum(running)

    def tries(self, task: str) -> int:
        """The number of attempts for the task id `task`, given that its last attempt succeeded."""
        return len(self._lost.get(task, ())) + 1

    def _begin_run(self) -> None:
        """Forget the tasks of the run before, and let the actors left of it begin anew."""
        self.quarantine, self.stopped, self._ended, self.largest = [], False, False, 0
        for memory in (self._ready, self._lost, self._in_a_row, self._reached, self._timeouts):
            memory.clear()
        self._finished_seconds, self._looked, self._placed = 0.0, 0.0, time.monotonic()
        for place in [each for each in self.places if not each.bad]:
            if place.begun:
                self._locate(place)
            else:
                self._remove(place)  # one that is still beginning may hang

    def _has_next(self, tasks: Iterator[T | None], may_start: Callable[[T], bool]) -> bool:
        """Whether a task may start; if so, it is the first one of `_ready`."""
        if self.stopped:
            return False
        # Failed tasks come before new ones, so that one which always fails is known early.
        if not self._ready and not self._ended and (task := next(tasks, _END)) is not None:
            self._ended = task is _END or operator.length_hint(tasks, 1) == 0
            if task is not _END:
                self._ready.append(task)
        if not self._ready:
            return False
        self.stopped = not may_start(self._ready[0])
        return not self.stopped

    def _start(self) -> Any:
        """A new actor, anywhere but on an unusable node."""
        options: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0}
        if self._unusable:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(self._unusable)})"}
        actor: Any = ray.remote(self.kind)
        return actor.options(**options, **self.resources.options).remote(*self.arguments)

    def _locate(self, place: Place[T]) -> None:
        """Ask an actor where it is, which it answers once a node had room for it."""
        place.node, place.begun = "", False
        place.call, place.since = place.actor.locate.remote(), time.monotonic()

    def _advance(self, place: Place[T], answer: Any) -> None:
        """Let an actor that has answered `locate` begin; note one that has begun."""
        if place.node:
            place.begun, self._begin_deaths[place.node] = True, 0
            self.largest = max(self.largest, sum(each.begun for each in self.places))
        else:
            place.node, place.since = answer, time.monotonic()
            place.call = place.actor.begin.remote(os.getcwd(), *self.assignment)

    def _release(self, place: Place[T]) -> T | None:
        """Mark an actor as idle; returns the task that it had, if any."""
        task, place.task, place.call = place.task, None, None
        if task is not None:
            self._finished_seconds += time.monotonic() - place.since
        return task

    def _remove(self, place: Place[T]) -> None:
        """Kill an actor and forget it; the seconds of its task still count."""
        self._release(place)
        self.places.remove(place)
        ray.kill(place.actor)

    def _refresh(self) -> dict[str, dict[str, float]]:
        """Read the usable nodes from Ray; returns them."""
        nodes = schedulable_nodes().items()
        self._nodes = {name: node for name, node in nodes if name not in self._unusable}
        return self._nodes

    def _look(self) -> None:
        """Adapt to the cluster, and replace actors that hang, if `POLL_SECONDS` have passed.

        Raises:
            InfrastructureError: no actor had room for `CAPACITY_WAIT_SECONDS` (or the error of the
                last one that could not begin).
        """
        now = time.monotonic()
        if now - self._looked < POLL_SECONDS:
            return
        self._looked = now
        self._refresh()
        for place in list(self.places):
            limit = self.timeout if place.begun else BEGIN_SECONDS
            if place.call is None and place.node not in self._nodes:
                self._remove(place)  # the busy ones of a draining node go after their task
            elif place.call is not None and place.node and 0 < limit < now - place.since:
                # A result may be there already, and only the driver was suspended for so long.
                answered, _ = ray.wait([place.call], timeout=0)
                if not answered:
                    self._time_out(place)
        # An actor without a task would keep its GPU, or ask an autoscaler for one, until all end.
        target = self._room()
        if self._ended or self.stopped:
            target = min(target, len(self.in_flight) + len(self._ready))
        # Actors on draining nodes end after their task, so replacements start already.
        present = [each for each in self.places if not each.bad]
        staying = [each for each in present if not each.node or each.node in self._nodes]
        for _ in range(target - len(staying)):
            self.places.append(place := Place[T](self._start()))
            self._locate(place)
        # To shrink, remove first actors that have not begun, then idle ones.
        waiting = [each for each in staying if not each.begun]
        idle = [each for each in staying if each.begun and each.call is None]
        for place in (waiting + idle)[: max(0, len(staying) - target)]:
            self._remove(place)
        # Ray waits for room without end and without a message, so the seconds are counted here.
        if any(each.node and not each.bad for each in self.places):
            self._placed = time.monotonic()
        elif time.monotonic() - self._placed > CAPACITY_WAIT_SECONDS:
            raise self._begin_error or no_capacity_error(self.resources)

    def _room(self) -> int:
        """The number of actors, at most `size`, for which there is room or may soon be."""
        bad = sum(each.bad and each.node in self._nodes for each in self.places)
        fitting = self.resources.count_fitting(self._nodes) - bad
        return min(self.size, max(fitting, self._waiting))

    def _time_out(self, place: Place[T]) -> None:
        """Replace an actor that takes too long; that counts as a failed attempt at its task.

        The driver does it, because a process that is stopped has no timer that runs.

        Raises as `_cannot_begin`, or `ManifestError` if the first tasks of a kind time out.
        """
        if (task := place.task) is None:
            told = f"cluster: a worker did not begin within {BEGIN_SECONDS:g} seconds; "
            error = InfrastructureError(f"{told}run the same command again, it resumes")
            self._cannot_begin(place, error)
            return
        self._remove(place)
        kind = type(task)
        self._timeouts[kind] += 1
        # Further attempts would cost hours and time out as well.
        if kind not in self.succeeded and self._timeouts[kind] >= MAX_FIRST_TIMEOUTS:
            raise ManifestError(
                "cluster.task_timeout",
                "must be longer than a task takes",
                f"{self._timeouts[kind]} tries without a result within {self.timeout:g} seconds",
                "raise it, lower synthesis.shard_size, or find out why workers hang",
            )
        hint = "a worker that hangs, or tasks that need a larger cluster.task_timeout"
        self._fail(task, f"no result within {self.timeout:g} seconds ({hint})", "")

    def _handle_error(self, place: Place[T], task: T | None, error: RayError) -> None:
        """Count a failed attempt, and decide whether its actor goes on.

        Raises:
            ManifestError, InfrastructureError: the actor raised it; every task would end so.
        """
        # Any other error is a death: by itself, with its node, or by Ray's memory monitor.
        died = not isinstance(error, RayTaskError)
        cause = error.cause if isinstance(error, RayTaskError) else error
        known, begins = isinstance(cause, DfkdError), bool(place.node and not place.begun)
        if begins and isinstance(cause, InfrastructureError):
            self._cannot_begin(place, cause)
            return
        if isinstance(cause, InfrastructureError | ManifestError):
            raise cause
        # The first traceback of several in a row, because every attempt may raise the same.
        if not (died or known or self._count(self._in_a_row)):
            say(conceal(str(error)))
        reason = ray_reason(error) if died else shorten(str(cause) if known else repr(cause), 300)
        # An unexpected exception may be the actor's fault: one whose GPU is lost would fail every
        # further task at once.
        if died or task is None or not known:
            self._remove(place)
        self._refresh()
        if begins:
            told = f"workers: none can begin on a node, the last ended with {reason}; fix that and "
            class_ = InfrastructureError if may_pass(cause) else DfkdError
            # An actor that died with its node says nothing about the node.
            self._begin_deaths[place.node] += place.node in self._nodes
            if self._begin_deaths[place.node] >= self.attempts:
                self._cannot_begin(place, class_(f"{told}run the same command again"))
        else:
            self._fail(task, reason, place.node if died else "", may_pass(cause))

    def _cannot_begin(self, place: Place[T], error: DfkdError) -> None:
        """Go on without the place of an actor that cannot begin, and without its node if that has
        no other place.

        Raises:
            DfkdError: `error`, if no actor can begin anywhere.
        """
        self._release(place)
        place.bad, self._begin_error = True, error
        here = [each for each in self.places if each.node == place.node]
        fitting = self.resources.count_fitting({place.node: self._nodes.get(place.node, {})})
        # One that has died gave up its place and is no longer in `here`; then the node is to blame.
        whole = place not in here or (len(here) >= fitting and all(each.bad for each in here))
        if whole:
            self._unusable.add(place.node)
            for each in here:
                if each.bad:
                    self._remove(each)
        self._refresh()
        # Two nodes, and none on which an actor has ever begun: the fault is not in the nodes.
        failing = self._unusable | {each.node for each in self.places if each.bad}
        hopeless = not self._room() or (len(failing) > 1 and not self.largest)
        if hopeless and not any(each.node in self._nodes and not each.bad for each in self.places):
            raise error
        say(f"note: the run goes on without {'a node' if whole else 'a worker'}: {error}")

    def _fail(self, task: T | None, reason: str, node: str, curable: bool = True) -> None:
        """Count a failed attempt at a task (None: of an actor that had none yet), which is tried
        again or quarantined.

        Args:
            node: the node of an actor that died, else empty.
            curable: whether a repetition of the run might cure it.

        Raises:
            DfkdError: so many attempts in a row have failed that no single task can be the cause.
        """
        if task is not None:
            reached = self.progress(task)
            if reached > self._reached.get(task.id, 0):
                self._reached[task.id] = reached
                self._lost[task.id].clear()
                self._in_a_row.clear()
            self._lost[task.id].append(node)
        self._in_a_row.append(node)
        # A broken cluster would quarantine task after task. Even if every actor had a bad task, one
        # of these attempts should have succeeded.
        fitting = min(self.size, self.resources.count_fitting(self._nodes))
        if (failed := self._count(self._in_a_row)) >= self.attempts * (max(1, fitting) + 1):
            told = (
                f"workers: {failed} tries in a row failed, the last with {reason}; "
                "fix that and run the same command again, it resumes"
            )
            raise InfrastructureError(told) if curable else DfkdError(told)
        if task is None:
            return
        lost = self._lost[task.id]
        # Ray may tell of an actor's death seconds before that of its node.
        if node and self._count(lost) >= self.attempts:
            ping(node)
            self._refresh()
        if self._count(lost) >= self.attempts or len(lost) >= self.attempts + MAX_NODE_LOSSES:
            self.quarantine.append(Quarantined(task, reason, curable))
        else:
            self._ready.append(task)

    def _count(self, lost: list[str]) -> int:
        """The number of failed attempts that count: not those that were lost with their node."""
        return sum(not node or node in self._nodes for node in lost)
