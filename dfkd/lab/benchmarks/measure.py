"""How much is measured, timed repeats, and figures with their limits and peers.

A record is a JSON object: `benchmark`, `command`, `date` (UTC), `machine`, `environment` (library
versions) and `results`. The module that measures describes its `results`. Each entry of its
`figures` is from `figure`.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dfkd.utils.markdown import align

MIN_SHARE, REST = 0.01, "all others"
"""A profile combines operations with a smaller share of the time under this name."""

Results = dict[str, Any]
"""The `results` of a record; each benchmark's module describes them."""

Call = Callable[[], float]
"""Does some work; returns the number of units of work."""
HEAD = ("figure", "median", "least", "most", "unit", "of its limit", "of its peer")
UNITS = ("", "k", "M", "G", "T", "P")
"""Prefixes of units, each a thousand times the one before."""


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    repeats: int
    """Number of timed repeats."""
    per_class: int
    """Images of each class in the versions that are read."""
    batches: tuple[int, ...]
    """Batch sizes for several ranks, relative to the manifest's."""
    classes: int = 0
    """Number of made-up classes of the run at scale; 0 uses the manifest's classes."""


FULL = Effort(7, 64, (1, 2, 4))
"""For measurements; takes less than a quarter of an hour on two cores."""
QUICK = Effort(1, 16, (1,))
"""For a check within minutes that everything runs; its figures say little."""


def figure(
    name: str,
    unit: str,
    values: Sequence[float],
    limit: tuple[str, float] | None = None,
    peer: tuple[str, float] | None = None,
) -> dict[str, Any]:
    """A measured quantity, and what it is compared with.

    Args:
        values: one for each repeat.
        limit: name of the figure that bounds this one on the machine, and the share of it that is
            reached, median over turns.
        peer: name of the figure of an alternative that does the same work, and the speed relative
            to it, median over turns.
    """
    tree: dict[str, Any] = {"name": name, "unit": unit, **spread(values)}
    if limit:
        tree |= {"limit": limit[0], "share": round(limit[1], 4)}
    if peer:
        tree |= {"peer": peer[0], "ratio": round(peer[1], 3)}
    return tree


def time_in_turns(
    calls: Mapping[str, Call], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, tuple[float, ...]]:
    """Units per second of each call in each repeat, by name.

    The calls take turns, so other load on the machine affects all of them, and ratios within a turn
    are fair. The first turn is a warm-up and is not counted.

    Args:
        clock: gives seconds; `time.thread_time` those of a CPU in this thread.
    """
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            begun = clock()
            units = call()
            # A call returns once its kernels are queued; the clock must wait for their end.
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            # Turn 0 pays for kernel selection, compilation and page faults.
            if turn:
                rates[name].append(units / (clock() - begun))
    return {name: tuple(values) for name, values in rates.items()}


def median_ratio(values: Sequence[float], others: Sequence[float], factor: float = 1.0) -> float:
    """The median over turns of `factor` * value / other."""
    return statistics.median(factor * a / b for a, b in zip(values, others, strict=True))


def compared_with_peer(
    peer: str, name: str, unit: str, rates: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """The figure `name` of the results of `time_in_turns`, compared with the figure `peer`."""
    return figure(name, unit, rates[name], peer=(peer, median_ratio(rates[name], rates[peer])))


def time_loop(
    name: str,
    unit: str,
    ours: Call,
    variants: Mapping[str, Call],
    peer: str,
    limit: tuple[str, Call],
    repeats: int,
) -> Results:
    """Time one of our loops in turns with variants of it, a plain loop, and what bounds it.

    Args:
        name: name of our loop's figure.
        ours: not compiled: one whose first call is counted stays uncompiled
            (pytorch/pytorch#190286).
        unit: unit of the rates.
        variants: other loops by name, among them the plain loop.
        peer: the key of the plain loop in `variants`.
        limit: name and call of what bounds our loop; its units are floating-point operations.
        repeats: number of counted turns.

    Returns:
        `figures`; `flop_per_unit`, counted in our loop; and `profile`, the seconds of one call of
        our loop and of the plain loop by operation, without those that the profiler cannot see.
    """
    units: list[float] = []
    flop_per_unit = operations(lambda: units.append(ours())) / units[0]
    limit_name, limit_call = limit
    # The limit takes turns with the loops, so that a share compares speeds of the same minutes.
    rates = time_in_turns({name: ours, **variants, limit_name: limit_call}, repeats)
    share = median_ratio(rates[name], rates[limit_name], flop_per_unit)
    ratio = median_ratio(rates[name], rates[peer])
    figures = [
        figure(name, unit, rates[name], (limit_name, share), (peer, ratio)),
        *(compared_with_peer(name, other, unit, rates) for other in variants),
        figure(limit_name, "FLOP/s", rates[limit_name]),
    ]
    profiles = {}
    for timed, call in ((name, ours), (peer, variants[peer])):
        # The figures are worth keeping without a profile.
        with contextlib.suppress(RuntimeError):
            profiles[timed] = profile(call)
    return {"flop_per_unit": flop_per_unit, "figures": figures, "profile": profiles}


class _NoModules(contextlib.AbstractContextManager[None]):
    """Replaces torch's module tracker, which cannot follow `autograd.grad` to a module's input."""

    parents = frozenset({"Global"})

    def __exit__(self, *error: object) -> None:
        """Nothing to undo."""


def operations(call: Callable[[], object]) -> int:
    """Number of floating-point operations in the matrix products and convolutions of a call."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with counter:
        call()
    return int(counter.get_total_flops())


def profile(call: Callable[[], object]) -> dict[str, float]:
    """Seconds that a second call spends in each kind of operation itself, the longest first.

    GPU time if there is a GPU, else CPU time. Shares below `MIN_SHARE` are combined.

    Raises:
        RuntimeError: the profiler saw no kernel (without a GPU: no operation).
    """
    # The first call is not profiled: kernel selection and compilation would hide the rest.
    call()
    gpu = torch.cuda.is_available()
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CPU, *[activity.CUDA] * gpu]) as profiler:
        call()
    # The time of each operation without the operations that it calls, so that the sum is the whole
    # time. The profiler counts microseconds. On a GPU only kernels and copies count, because the
    # profiler adds their time again to the operation and to the named block that started them.
    cpu = torch.autograd.DeviceType.CPU  # type: ignore[attr-defined]
    spent = {
        operation.key: (operation.self_device_time_total if gpu else operation.self_cpu_time_total)
        / 1e6
        for operation in profiler.key_averages()
        if not gpu or not (operation.device_type == cpu or operation.is_user_annotation)
    }
    total = sum(spent.values())
    if not total:
        raise RuntimeError("the profiler saw no kernel")
    named = {name: seconds for name, seconds in spent.items() if seconds >= MIN_SHARE * total}
    rest = total - sum(named.values())
    ordered = sorted(named.items(), key=lambda item: -item[1])
    return {name: round(seconds, 6) for name, seconds in [*ordered, (REST, rest)]}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """`median`, `least` and `most` of some values, and the `values` themselves."""
    return {
        "median": round(statistics.median(values), 6),
        "least": round(min(values), 6),
        "most": round(max(values), 6),
        "values": [round(value, 6) for value in values],
    }


def table(results: Mapping[str, Any]) -> list[str]:
    """One line for each of the `figures` of results, below a heading."""
    return align([HEAD, *map(figure_cells, results["figures"])], gap="  ")


def page(records: Iterable[Mapping[str, Any]]) -> str:
    """Markdown: for each record how it was measured, a table of its figures, and its profile."""
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
            *(f"| {' | '.join(figure_cells(each))} |" for each in record["results"]["figures"]),
            "",
            *profile_table(record["results"].get("profile", {})),
        ]
    return "\n".join(lines)


def profile_table(calls: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Lines of a table: share of each call's time by operation, in the order of the first call."""
    if not calls:
        return
    yield f"| share of the time | {' | '.join(calls)} |"
    yield f"|---|{'---:|' * len(calls)}"
    # A stored record may have a profile without any time.
    totals = [sum(spent.values()) or 1.0 for spent in calls.values()]
    for name in dict.fromkeys(name for spent in calls.values() for name in spent):
        shares = zip((spent.get(name, 0.0) for spent in calls.values()), totals, strict=True)
        yield f"| {name} | {' | '.join(f'{part / total:.1%}' for part, total in shares)} |"
    yield ""


def figure_cells(found: Mapping[str, Any]) -> list[str]:
    """The cells of a figure, below `HEAD`."""
    return [
        found["name"],
        *(scaled(found[key]) for key in ("median", "least", "most")),
        found["unit"],
        f"{found['share']:.0%} of {found['limit']}" if "share" in found else "-",
        f"{found['ratio']:.2f} x {found['peer']}" if "ratio" in found else "-",
    ]


def scaled(value: float) -> str:
    """The value with three digits and a unit prefix: 12.3 k."""
    power = 0
    while abs(value) >= 1000 and power < len(UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {UNITS[power]}".strip()
