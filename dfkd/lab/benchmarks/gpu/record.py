"""Runs rows within a time limit; writes `gpu.json` and `gpu.md` anew after each of them.

A record is a JSON object: `benchmark`, `command`, `date` (UTC), `machine`, `environment`, `limit`
(seconds) and `rows`. A row has `name`, `state` and `seconds`, and what it has found:

    figure    as `dfkd.lab.benchmarks.measure.Figure.as_dict`
    memory    most bytes that tensors took on the GPU
    passed    of a check
    profile   seconds by kernel
    remark    a sentence for the table

`error` is the error of a row that failed, or why a row was skipped.
"""

import contextlib
import datetime
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dfkd.errors import DfkdError, Exit, one_line
from dfkd.lab.benchmarks.gpu.kit import Kit, Result
from dfkd.lab.benchmarks.measure import figure_cells, profile_table, scaled
from dfkd.storage.base import Storage
from dfkd.utils.hardware import describe_machine, environment
from dfkd.utils.strict_json import canonical

JSON, PAGE = "gpu.json", "gpu.md"
"""The files in the folder."""
WAITING, RUNNING, DONE, FAILED, SKIPPED = "waiting", "running", "done", "failed", "skipped"
"""States of a row."""
HEAD = (
    *("row", "median", "least", "most", "unit", "of its limit", "memory", "of its peer"),
    *("seconds", "remark"),
)
WRITE_SECONDS = 5.0
"""Seconds at the limit after which a folder that hangs is not waited for."""
MAX_NAME = 90
"""Most characters of a kernel's name; those of templates have hundreds."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    name: str
    measure: Callable[[Kit], Result]
    seconds: float = 10.0
    """Seconds that it may take on a GPU; with less time left it is skipped."""
    check: bool = False
    """Whether later rows can be trusted only if it passes."""


class RunRecord:
    """The rows of a run and what they have found; it outlives whatever stops the process."""

    def __init__(
        self,
        storage: Storage,
        rows: Sequence[Row],
        command: str,
        limit: float,
        begun: float,
    ) -> None:
        """Write the first record, in which all rows wait.

        Args:
            storage: the folder.
            command: the command line, which the record contains.
            limit: seconds from `begun` until the process ends by itself.
            begun: the start of the run on the clock `time.monotonic`.
        """
        self.storage, self.planned = storage, rows
        self.limit, self.begun = limit, begun
        self.lock = threading.Lock()
        self.rows: list[dict[str, Any]] = [{"name": row.name, "state": WAITING} for row in rows]
        self.facts = {
            "benchmark": "gpu",
            "command": command,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": describe_machine(),
            "environment": environment() | {"cuda": str(torch.version.cuda)},
            "limit": limit,
        }
        self.write()

    @property
    def left(self) -> float:
        """Seconds until the limit."""
        return self.limit - (time.monotonic() - self.begun)

    def run(self, kit: Kit) -> Iterator[dict[str, Any]]:
        """Measure row after row; yields each entry once it is written.

        At the limit the process ends, whatever it is doing: with `Exit.FAILED` if a check has not
        passed, else with `Exit.PARTIAL`.
        """
        # In a thread, because a kernel or a compiler that hangs would let no signal handler run.
        watchdog = threading.Timer(max(0.0, self.left), self._stop)
        watchdog.daemon = True
        watchdog.start()
        try:
            for row, entry in zip(self.planned, self.rows, strict=True):
                self._measure(row, entry, kit)
                yield entry
        finally:
            watchdog.cancel()

    def _measure(self, row: Row, entry: dict[str, Any], kit: Kit) -> None:
        """Fill in the entry of a row, and write the record."""
        if self.left < row.seconds:
            reason = f"may take {row.seconds:.0f} s, and {self.left:.0f} s are left of --limit"
            self._update(entry, {"state": SKIPPED, "error": reason})
            return
        self._update(entry, {"state": RUNNING})
        begun = time.monotonic()
        found: Result
        try:
            found = {"state": DONE, **_with_memory(row.measure, kit)}
            canonical(found)
        except Exception as error:  # a row that fails must not take the others with it
            found = {"state": FAILED, "error": f"{type(error).__name__}: {one_line(error)}"}
        self._update(entry, {**found, "seconds": round(time.monotonic() - begun, 2)})
        # What a failed row had allocated is freed only now that its traceback is gone.
        gc.collect()
        if kit.device.type == "cuda":
            # An illegal memory access leaves its error in the process, for every later call.
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()

    def _update(self, entry: dict[str, Any], values: Mapping[str, Any]) -> None:
        """Change an entry and write the record."""
        with self.lock:
            entry.update(values)
            self.write()

    def _stop(self) -> None:
        """End the process at the limit; all finished rows are on the disk."""
        # Nothing is waited for without end: a folder may hang, and keeps the lock of its writer.
        if self.lock.acquire(timeout=WRITE_SECONDS):
            for entry in self.rows:
                if entry["state"] in (WAITING, RUNNING):
                    entry.update(state=SKIPPED, error="the time of --limit was over")
            writing = threading.Thread(target=self.write, daemon=True)
            writing.start()
            writing.join(WRITE_SECONDS)
        try:
            self.require_passed()
        except DfkdError as error:
            # stdout stays as it is, because the thread that hangs may hold its lock.
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(Exit.FAILED)
        os._exit(Exit.PARTIAL)

    def require_passed(self) -> None:
        """Raise `DfkdError` if a check has not passed, or could not be made."""
        checks = {row.name for row in self.planned if row.check}
        wrong = [
            entry["name"]
            for entry in self.rows
            if entry.get("passed") is False
            or (entry["state"] == FAILED and entry["name"] in checks)
        ]
        if wrong:
            raise DfkdError(
                f"{', '.join(wrong)}: images differ more than they may, or could not be made; "
                f"read {self.storage.location(PAGE)}, and use settings whose checks have passed"
            )

    def write(self) -> None:
        """Write both files, each at once."""
        tree = {**self.facts, "rows": self.rows}
        self.storage.put(JSON, canonical(tree))
        self.storage.put(PAGE, page(tree).encode())


def _with_memory(measure: Callable[[Kit], Result], kit: Kit) -> Result:
    """What a row has found, with the most memory that it took on a GPU."""
    if kit.device.type != "cuda":
        return measure(kit)
    torch.cuda.reset_peak_memory_stats()
    found = measure(kit)
    return {**found, "memory": torch.cuda.max_memory_allocated()}


def page(record: Mapping[str, Any]) -> str:
    """Markdown: a table of all rows, and the profiles."""
    machine = record["machine"]
    lines = [
        "# GPU",
        "",
        f"`{record['command']}`, {record['date']}, {machine.get('gpu', 'no GPU')}, "
        f"{machine['processor']} with {machine['cpus']} CPUs, "
        f"torch {record['environment']['torch']}, CUDA {record['environment']['cuda']}",
        "",
        f"| {' | '.join(HEAD)} |",
        f"|---|{'---:|' * 3}{'---|' * (len(HEAD) - 4)}",
        *(f"| {' | '.join(cells(row))} |" for row in record["rows"]),
        "",
    ]
    for row in record["rows"]:
        if spent := row.get("profile"):
            named = {f"`{name[:MAX_NAME]}`": seconds for name, seconds in spent.items()}
            lines += profile_table({f"{row['name']}: {row['remark']}": named})
    return "\n".join(lines)


def cells(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the cells of a row, below `HEAD`."""
    *numbers_and_unit, share, peer = figure_cells(row["figure"]) if "figure" in row else ["-"] * 6
    yield from (row["name"], *numbers_and_unit, share)
    yield f"{scaled(row['memory'])}B" if "memory" in row else "-"
    yield peer
    yield f"{row['seconds']:.1f}" if "seconds" in row else "-"
    yield " ".join(filter(None, _remarks(row))).replace("|", "/")


def _remarks(row: Mapping[str, Any]) -> Iterator[str]:
    """State, verdict and sentence of a row, in words."""
    if row["state"] != DONE:
        yield f"{row['state']}:" if "error" in row else row["state"]
    if "passed" in row:
        yield "passed:" if row["passed"] else "NOT PASSED:"
    if "batch" in row:
        yield f"batch of {row['batch']}"
    yield row.get("error") or row.get("remark", "")
