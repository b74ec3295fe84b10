"""How long a model takes for one image on one core."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from dfkd.machine import processor

WARMUP, RUNS = 3, 21
"""Calls of each model before it is timed, and calls that are."""


def one_core(calls: Mapping[str, Callable[[], object]]) -> dict[str, Any]:
    """Median milliseconds of each call, by name under `ms`, and how and where that was measured.

    torch is held to one thread; what else a call uses is to be held to one by who makes it. The
    calls take turns, so that a machine that is busy for a moment is so for all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with _one_thread():
        for turn in range(WARMUP + RUNS):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if turn >= WARMUP:
                    seconds[name].append(time.perf_counter() - start)
    medians = {name: 1000 * statistics.median(found) for name, found in seconds.items()}
    return {"ms": medians, "batch": 1, "threads": 1, "runs": RUNS, "machine": processor()}


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
