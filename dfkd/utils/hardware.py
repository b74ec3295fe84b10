"""What machine this is, and how long a model takes for one image on one of its cores."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

WARMUP_CALLS, TIMED_CALLS = 3, 21
"""Calls of each model before it is timed, and calls that are."""


def describe_machine() -> dict[str, Any]:
    """Processor, CPUs that this process may use, memory in bytes, GPU if there is one."""
    facts = {
        "processor": processor_name(),
        "cpus": cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "torch_threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def cpu_count() -> int:
    """CPUs that this process may use; all there are where the system (macOS) tells no more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """The processor's name, as far as the system tells."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def time_on_one_core(calls: Mapping[str, Callable[[], object]]) -> dict[str, Any]:
    """Median milliseconds of each call, by name under `ms`, and how and where that was measured.

    torch is held to one thread; what else a call uses is to be held to one by who makes it. The
    calls take turns, so that a machine that is busy for a moment is so for all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with _one_thread():
        for turn in range(WARMUP_CALLS + TIMED_CALLS):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if turn >= WARMUP_CALLS:
                    seconds[name].append(time.perf_counter() - start)
    medians = {name: 1000 * statistics.median(found) for name, found in seconds.items()}
    return {
        "ms": medians,
        "batch": 1,
        "threads": 1,
        "runs": TIMED_CALLS,
        "machine": processor_name(),
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
