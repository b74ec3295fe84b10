"""Repeats and their spread, figures beside limits and peers, and the record of a benchmark.

A record is a JSON object: `benchmark`, `command`, `date` (UTC), `machine`, `environment` (library
versions) and `results`; what is in `results` is told by the module that measured it. Where there
are `figures`, each is a `Figure`.
"""

import datetime
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dfkd.storage import layout
from dfkd.storage.local import Storage
from dfkd.utils.hardware import machine
from dfkd.utils.strict_json import canonical

LITTLE, REST = 0.01, "all others"
"""What a profile does not name: operations with less than this share of the time."""

Call = Callable[[], float]
"""Does some work; returns how many units it did."""
HEAD = ("figure", "median", "least", "most", "unit", "of its limit", "of its peer")
UNITS = ("", "k", "M", "G", "T", "P")


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
    key = f"{layout.BENCHMARKS}{benchmark}.json"
    storage.put(key, canonical(record))
    return storage.location(key)


def table(results: Mapping[str, Any]) -> list[str]:
    """A line for each of the `figures` of results, below a head; nothing where there are none."""
    figures = results.get("figures", ())
    if not figures:
        return []
    rows = [HEAD, *(tuple(_row(figure)) for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if HEAD[place] in ("figure", "unit", *HEAD[5:]) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def page(records: Iterable[Mapping[str, Any]]) -> str:
    """Markdown: for each record how it was measured, and a table of its figures."""
    lines: list[str] = []
    for record in records:
        machine = record["machine"]
        lines += [
            f"## {record['benchmark']}",
            "",
            f"`{record['command']}`, {record['date']}, {machine['processor']} with "
            f"{machine['cpus']} CPUs, torch {record['environment']['torch']}, "
            f"most memory of all processes {scaled(record['results']['memory']['tree_most'])}B",
            "",
            f"| {' | '.join(HEAD)} |",
            f"|---|{'---:|' * 3}{'---|' * 3}",
            *(f"| {' | '.join(_row(each))} |" for each in record["results"].get("figures", ())),
            "",
            *_profile(record["results"].get("profile", {})),
        ]
    return "\n".join(lines)


def _profile(calls: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """What share of each call's time goes where; the operations of the first lead."""
    if not calls:
        return
    yield f"| share of the time | {' | '.join(calls)} |"
    yield f"|---|{'---:|' * len(calls)}"
    for name in dict.fromkeys(name for spent in calls.values() for name in spent):
        shares = (spent.get(name, 0.0) / sum(spent.values()) for spent in calls.values())
        yield f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} |"
    yield ""


def _row(figure: Mapping[str, Any]) -> Iterator[str]:
    yield figure["name"]
    for key in ("median", "least", "most"):
        yield scaled(figure[key])
    yield figure["unit"]
    yield f"{figure['share']:.0%} of {figure['limit']}" if "share" in figure else "-"
    yield f"{figure['ratio']:.2f} x {figure['peer']}" if "ratio" in figure else "-"


def scaled(value: float) -> str:
    """Three digits and a prefix: 12.3 k."""
    power = 0
    while abs(value) >= 1000 and power < len(UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {UNITS[power]}".strip()
