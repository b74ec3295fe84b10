"""Memory over time, sampled by a thread.

The measure is PSS: memory shared by n processes counts 1/n for each, so sums are correct.
"""

import os
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
    watch, ended, begun = Watch(), threading.Event(), time.monotonic()

    def sample() -> None:
        """Add a sample."""
        driver = _pss(os.getpid())
        tree = driver + sum(map(_pss, descendants(os.getpid())))
        watch.samples.append(Memory(time.monotonic() - begun, driver, tree))

    def watch_on() -> None:
        """Add samples until the block has ended."""
        while not ended.wait(interval):
            sample()

    sample()
    # A daemon thread does not keep a process alive that has died of an error.
    thread = threading.Thread(target=watch_on, name="dfkd-memory", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()
        sample()


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
        # A name is any bytes, and Linux cuts it after 15 of them, perhaps inside a character.
        return path.read_text(errors="replace")
    except OSError:
        return ""
