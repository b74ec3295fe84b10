"""Repeats and their spread, figures beside limits and peers, and the record of a benchmark.

A record is a JSON object: `benchmark`, `command`, `date` (UTC), `machine`, `environment` (library
versions) and `results`; what is in `results` is told by the module that measured it. Where there
are `figures`, each is a `Figure`.
"""

import datetime
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dfkd.machine import machine
from dfkd.shards import canonical
from dfkd.storage import Storage

LITTLE, REST = 0.01, "all others"
"""What a profile does not name: operations with less than this share of the time."""

Call = Callable[[], float]
"""Does some work; returns how many units it did."""


@dataclass(frozen=True)
class Figure:
    """A quantity that was measured, and what it is to be compared with."""

    name: str
    unit: str
    values: tuple[float, ...]
    """Of each repeat."""
    limit: str = ""
    """What bounds it on this machine: the name of another figure."""
    share: float | None = None
    """Of that limit, the median over repeats; both were measured in turns."""
    peer: str = ""
    """What does the same otherwise: the name of another figure."""
    ratio: float | None = None
    """Times as fast as the peer, the median over repeats."""

    def as_dict(self) -> dict[str, Any]:
        """As a record has it; without what there is nothing to compare with."""
        found: dict[str, Any] = {"name": self.name, "unit": self.unit, **spread(self.values)}
        if self.share is not None:
            found |= {"limit": self.limit, "share": round(self.share, 4)}
        if self.ratio is not None:
            found |= {"peer": self.peer, "ratio": round(self.ratio, 3)}
        return found


def turns(calls: Mapping[str, Call], repeats: int) -> dict[str, tuple[float, ...]]:
    """Units a second of each call at each repeat, by name.

    The calls take turns, so that a machine that is busy for a while is so for all of them. The
    first turn warms up and is not counted.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            begun = time.perf_counter()
            done = call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                found[name].append(done / (time.perf_counter() - begun))
    return {name: tuple(values) for name, values in found.items()}


def quotient(values: Sequence[float], others: Sequence[float], factor: float = 1.0) -> float:
    """The median over turns of `factor` * value / other."""
    return statistics.median(factor * a / b for a, b in zip(values, others, strict=True))


def beside(peer: str, name: str, unit: str, found: Mapping[str, Sequence[float]]) -> Figure:
    """The figure `name` of what `turns` has found, compared with the figure `peer`."""
    ratio = quotient(found[name], found[peer])
    return Figure(name, unit, tuple(found[name]), peer=peer, ratio=ratio)


class _Whole(AbstractContextManager[None]):
    """Tells no modules apart; torch's tracker cannot follow `autograd.grad` to a module's input."""

    parents = frozenset({"Global"})

    def __exit__(self, *error: object) -> None:
        """Nothing to undo."""


def operations(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of a call, counted."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _Whole()  # type: ignore[assignment]
    with counter:
        call()
    return int(counter.get_total_flops())


def profile(call: Callable[[], object]) -> dict[str, float]:
    """Seconds that a second call spends in each kind of operation itself, the longest first.

    Those of the GPU where there is one, else of the CPU; the operations below `LITTLE` are one.
    """
    call()
    gpu = torch.cuda.is_available()
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CPU, *[activity.CUDA] * gpu]) as profiler:
        call()
    spent = {
        each.key: (each.self_device_time_total if gpu else each.self_cpu_time_total) / 1e6
        for each in profiler.key_averages()
    }
    whole = sum(spent.values())
    found = {name: s for name, s in spent.items() if s >= LITTLE * whole}
    rest = whole - sum(found.values())
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return {name: round(seconds, 6) for name, seconds in [*ordered, (REST, rest)]}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """`median`, `least` and `most` of some values, and the `values` themselves."""
    return {
        "median": round(statistics.median(values), 6),
        "least": round(min(values), 6),
        "most": round(max(values), 6),
        "values": [round(value, 6) for value in values],
    }


def keep(
    storage: Storage,
    benchmark: str,
    command: str,
    environment: Mapping[str, Any],
    results: Mapping[str, Any],
) -> str:
    """Write the record as `benchmarks/{benchmark}.json` under a run's root; returns its place."""
    record = {
        "benchmark": benchmark,
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "environment": dict(environment),
        "results": dict(results),
    }
    key = f"benchmarks/{benchmark}.json"
    storage.put(key, canonical(record))
    return storage.location(key)
