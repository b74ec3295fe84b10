"""Runs benchmarks by name, and keeps the records that they leave."""

import datetime
import json
from collections.abc import Iterator, Sequence
from importlib import import_module

import torch

from dfkd.config.manifest import Manifest
from dfkd.lab.benchmarks import BENCHMARKS
from dfkd.lab.benchmarks.measure import Effort, page, table
from dfkd.lab.benchmarks.memory import watched
from dfkd.storage import layout
from dfkd.storage.local import open_storage
from dfkd.utils.device import configure_process
from dfkd.utils.hardware import describe_machine, environment
from dfkd.utils.strict_json import canonical


def run(
    names: Sequence[str], manifest: Manifest, effort: Effort, threads: int, command: str
) -> Iterator[tuple[list[str], str]]:
    """Run benchmarks and store a record of each as `benchmarks/NAME.json` under the run's root.

    `benchmarks/table.md` shows all records that are there.

    Yields the lines of a table and the record's location.

    Args:
        names: among `BENCHMARKS`.
        threads: CPU threads of torch.
        command: the command line, which the records contain.
    """
    storage = open_storage(manifest.storage.root)
    configure_process(threads)  # as workers do
    for name in names:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with watched() as watch:  # memory of workers counts too
            results = import_module(f"dfkd.lab.benchmarks.{name}").measure(manifest, effort)
        results["memory"] = watch.summary()
        if torch.cuda.is_available():
            results["memory"]["gpu_most"] = torch.cuda.max_memory_allocated()
        record = {
            "benchmark": name,
            "command": command,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": describe_machine(),
            "environment": environment(),
            "results": results,
        }
        key = f"{layout.BENCHMARKS}{name}.json"
        storage.put(key, canonical(record))
        # After each benchmark, so that the page is complete however many of them run.
        keys = (f"{layout.BENCHMARKS}{each}.json" for each in BENCHMARKS)
        records = [json.loads(storage.get(each)) for each in keys if storage.exists(each)]
        storage.put(f"{layout.BENCHMARKS}table.md", page(records).encode())
        yield table(results), storage.location(key)
