"""Memory over time, sampled by another process, so that the watched process is not slowed down.

The measure is PSS: memory shared by n processes counts 1/n for each, so sums are correct.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROC = Path("/proc")


@dataclass(frozen=True)
class Memory:
    """Memory in bytes (PSS) at one moment."""

    seconds: float
    """Seconds since the watch began."""
    driver: int
    """Memory of the watched process alone."""
    tree: int
    """Memory of the watched process and all its descendants."""


@dataclass
class Watch:
    """The samples, oldest first; complete when the watch has ended."""

    samples: list[Memory] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Maximum of `driver` and of `tree`, and the driver's median in each tenth of the time."""
        end = self.samples[-1].seconds or 1.0
        parts: list[list[int]] = [[] for _ in range(10)]
        for sample in self.samples:
            parts[min(9, int(10 * sample.seconds / end))].append(sample.driver)
        return {
            "driver_most": max(sample.driver for sample in self.samples),
            "tree_most": max(sample.tree for sample in self.samples),
            "driver_by_tenth": [sorted(part)[len(part) // 2] for part in parts if part],
            "samples": len(self.samples),
        }


@contextmanager
def watched(interval: float = 1.0) -> Iterator[Watch]:
    """Sample this process and its descendants while the block runs; Linux only.

    Args:
        interval: seconds between two samples; there is always one at the start and one at the end.
    """
    watch = Watch()
    words = [sys.executable, "-m", "dfkd.utils.memory", str(os.getpid()), str(interval)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as watcher:  # noqa: S603
        assert watcher.stdin is not None  # noqa: S101 - both are pipes
        assert watcher.stdout is not None  # noqa: S101
        watcher.stdout.readline()  # wait for the first sample
        try:
            yield watch
        finally:
            watcher.stdin.close()
            watch.samples += [Memory(*values) for values in json.loads(watcher.stdout.read())]


def _watch(pid: int, interval: float) -> None:
    """Sample `pid` until stdin ends, then print all samples."""
    ended = threading.Event()

    # The watched process closes the pipe when its block ends, and the kernel does so when it dies.
    # Nothing is written to it, so `read` returns only then.
    def wait() -> None:
        """Set `ended` at the end of stdin."""
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    begun = time.monotonic()
    samples = [_sample(pid, begun)]
    print("watching", flush=True)
    while not ended.wait(interval):
        samples.append(_sample(pid, begun))
    samples.append(_sample(pid, begun))
    print(json.dumps(samples), flush=True)


def _sample(pid: int, begun: float) -> tuple[float, int, int]:
    """The fields of `Memory` at this moment."""
    driver = _pss(pid)
    return (
        time.monotonic() - begun,
        driver,
        driver + sum(map(_pss, descendants(pid) - {os.getpid()})),
    )


def descendants(pid: int) -> set[int]:
    """The process ids of all descendants of a process; Linux only."""
    parents = {}
    for folder in PROC.iterdir():
        if folder.name.isdecimal():
            # The second field is the program's name in parentheses and may hold anything; after it
            # come the state and the parent.
            words = _read(folder / "stat").rpartition(")")[2].split()
            parents[int(folder.name)] = int(words[1]) if words else 0
    # Generation after generation, until one has no children.
    found: set[int] = set()
    new = {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def _pss(pid: int) -> int:
    """PSS of a process in bytes; 0 if it has ended."""
    for line in _read(PROC / str(pid) / "smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(path: Path) -> str:
    """The text of a file of /proc; empty if the process has ended."""
    try:
        return path.read_text()
    except OSError:
        return ""


if __name__ == "__main__":  # python -m dfkd.utils.memory PID SECONDS
    _watch(int(sys.argv[1]), float(sys.argv[2]))
