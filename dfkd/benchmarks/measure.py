"""Repeats and their spread, and the record that a benchmark leaves.

A record is a JSON object: `benchmark`, `command`, `date` (UTC), `machine`, `environment` (library
versions) and `results`; what is in `results` is told by the module that measured it.
"""

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dfkd.shards import canonical
from dfkd.storage import Storage


def rates(call: Callable[[], int], repeats: int) -> list[float]:
    """Units a second of each repeat of `call`, which returns how many it did.

    The first call warms up and is not counted.
    """
    found = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        done = call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(done / (time.perf_counter() - begun))
    return found[1:]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """`median`, `least` and `most` of some values, and the `values` themselves."""
    return {
        "median": round(statistics.median(values), 6),
        "least": round(min(values), 6),
        "most": round(max(values), 6),
        "values": [round(value, 6) for value in values],
    }


def machine() -> dict[str, Any]:
    """Processor, CPUs that this process may use, memory in bytes, GPU if there is one."""
    facts = {
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "torch_threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


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
