"""Facts about this machine, and the time that a model takes on one of its cores."""

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

K = TypeVar("K")

WARMUP_CALLS, TIMED_CALLS = 3, 21
"""Untimed calls of each model, and timed calls after them."""

LIBRARIES = (
    "dfkd",
    "torch",
    "torchvision",
    "open_clip_torch",
    "taming-transformers",
    "diffusers",
    "timm",
    "transformers",
    "pillow",
    "numpy",
    "pyarrow",
)
"""Libraries whose version can change a pixel, a student or an index; recorded if installed."""

CGROUP = Path("/sys/fs/cgroup")
"""Where the kernel tells the limits of this container (cgroup v2)."""

MEMINFO = Path("/proc/meminfo")
"""Where the kernel tells the memory of the machine."""


def describe_machine() -> dict[str, Any]:
    """Processor name, usable CPUs, memory in bytes, system, torch's threads, and GPU if any."""
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


def environment() -> dict[str, Any]:
    """Versions of Python and libraries, for published versions and scores."""
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {"python": platform.python_version(), "machine": platform.machine(), **versions}


def cpu_count() -> int:
    """Number of CPUs that this process may use; on macOS the number of all CPUs."""
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    # A container may see all CPUs of its machine and yet get the time of a few: `400000 100000`
    # are four CPUs, and `max 100000` is no limit.
    file = CGROUP / "cpu.max"
    quota, period = file.read_text().split() if file.is_file() else ("max", "")
    return count if quota == "max" else max(1, min(count, int(quota) // int(period)))


def available_memory() -> int:
    """Bytes that machine and container can still give this process; 0 if the system does not tell.

    Cached files count as free, because the kernel drops them when it needs memory.
    """
    available = 1024 * _numbers(MEMINFO).get("MemAvailable:", 0)
    file = CGROUP / "memory.max"
    limit = file.read_text().strip() if file.is_file() else "max"
    if limit == "max":
        return available
    files = _numbers(CGROUP / "memory.stat").get("inactive_file", 0)
    used = int((CGROUP / "memory.current").read_text()) - files
    return max(0, min(available, int(limit) - used))


def _numbers(file: Path) -> dict[str, int]:
    """The numbers in a file of the kernel by the word before each; none if there is no file."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return {name: int(number) for name, number, *_ in map(str.split, lines)}


def processor_name() -> str:
    """The processor's model name, or its architecture if the system does not give a name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def time_on_one_core(calls: Mapping[K, Callable[[], object]]) -> dict[str, Any]:
    """Time each call on one core.

    Returns the median milliseconds by name under `ms`, and under `batch`, `threads`, `runs` and
    `machine` how they were measured. torch is limited to one thread here; the caller must limit
    every other library that a call uses. The calls take turns, so a momentary load affects all.
    """
    seconds: dict[K, list[float]] = {name: [] for name in calls}
    with thread_limit(1):
        # The first turns only fill caches and trigger lazy initialisation, so they are not timed.
        for turn in range(WARMUP_CALLS + TIMED_CALLS):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if turn >= WARMUP_CALLS:
                    seconds[name].append(time.perf_counter() - start)
    medians = {name: 1000 * statistics.median(times) for name, times in seconds.items()}
    return {
        "ms": medians,
        "batch": 1,
        "threads": 1,
        "runs": TIMED_CALLS,
        "machine": processor_name(),
    }


def time_on_gpu(call: Callable[[], object]) -> float:
    """Median milliseconds of a call that computes on the GPU, with its launch and its end."""
    seconds = []
    for _ in range(WARMUP_CALLS + TIMED_CALLS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[WARMUP_CALLS:])


@contextmanager
def thread_limit(threads: int) -> Iterator[int]:
    """Let torch use `threads` threads inside the block (0: all allowed); yields their number."""
    before = torch.get_num_threads()
    # Ray starts the driver of a submitted job with OMP_NUM_THREADS=1 unless CPUs are reserved for
    # it, however many CPUs its node has.
    by_ray = before == 1 and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    allowed = cpu_count() if by_ray else min(cpu_count(), before)
    count = threads if threads > 0 else allowed
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)
