"""Memory over time, watched by another process, so that the watched one pays nothing for it.

PSS is what counts: memory that n processes share counts 1/n for each, so that sums are true.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROC = Path("/proc")


@dataclass(frozen=True)
class Memory:
    """Bytes (PSS) at a moment."""

    seconds: float
    """Since the watch began."""
    driver: int
    """Of the watched process alone."""
    tree: int
    """Of it and all processes below it."""


@dataclass
class Watch:
    """What was seen, oldest first; complete when the watch has ended."""

    samples: list[Memory] = field(default_factory=list)

    def summary(self, tenths: int = 10) -> dict[str, Any]:
        """Most of `driver` and of `tree`, and the driver's median in each tenth of the time."""
        end = self.samples[-1].seconds or 1.0
        parts: list[list[int]] = [[] for _ in range(tenths)]
        for sample in self.samples:
            parts[min(tenths - 1, int(sample.seconds / end * tenths))].append(sample.driver)
        return {
            "driver_most": max(sample.driver for sample in self.samples),
            "tree_most": max(sample.tree for sample in self.samples),
            "driver_by_tenth": [sorted(part)[len(part) // 2] for part in parts if part],
            "samples": len(self.samples),
        }


@contextmanager
def watched(interval: float = 1.0) -> Iterator[Watch]:
    """Watch this process and all below it while the block runs; Linux only.

    Args:
        interval: seconds between two samples; there is one at the start and one at the end.
    """
    watch = Watch()
    words = [sys.executable, "-m", "dfkd.benchmarks.memory", str(os.getpid()), str(interval)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as watcher:  # noqa: S603
        assert watcher.stdin is not None  # noqa: S101 - both are pipes
        assert watcher.stdout is not None  # noqa: S101
        watcher.stdout.readline()  # the first sample is there
        try:
            yield watch
        finally:
            watcher.stdin.close()
            watch.samples += [Memory(*values) for values in json.loads(watcher.stdout.read())]


def _watch(pid: int, interval: float) -> None:
    """Sample `pid` until stdin ends, then print all samples."""
    over = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    begun = time.monotonic()
    samples = [_sample(pid, begun)]
    print("watching", flush=True)
    while not over.wait(interval):
        samples.append(_sample(pid, begun))
    samples.append(_sample(pid, begun))
    print(json.dumps(samples), flush=True)


def _sample(pid: int, begun: float) -> tuple[float, int, int]:
    driver = _pss(pid)
    return time.monotonic() - begun, driver, driver + sum(map(_pss, _below(pid)))


def _below(pid: int) -> set[int]:
    """All descendants of a process but this one."""
    parents = {}
    for folder in PROC.iterdir():
        if folder.name.isdecimal():
            words = _read(folder / "stat").rpartition(")")[2].split()
            parents[int(folder.name)] = int(words[1]) if words else 0
    found: set[int] = set()
    new = {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found - {os.getpid()}


def _pss(pid: int) -> int:
    for line in _read(PROC / str(pid) / "smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # it has ended meanwhile


def main(words: Sequence[str]) -> None:
    """`python -m dfkd.benchmarks.memory PID SECONDS`."""
    _watch(int(words[0]), float(words[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
