"""The log of a job for programs: one line of JSON for each task that has ended.

The lines go through `logging`, to the logger `dfkd`. A job prints them on stderr. If stderr is a
terminal, which then shows the progress bar, the lines go to a file instead. Each line has `time`
(UTC), `event`, and the event's fields:

    task         a finished synthesis task: run, task, attempt, seconds, images, failed, bytes, node
    quarantined  a task that failed in every attempt: run, task, images, reason

`run` is the version's id, `task` also the name of the shard. `attempt` counts from 1 and is the one
that succeeded, `seconds` is its worker's time, `node` the address of the worker's node. `images`
are those in the shard, or those that a quarantined task would have made; `failed` are images that
diverged in every attempt. `bytes` is the size of the shard, `reason` that of the last failure.
"""

import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from dfkd.utils.progress import say

LOGGER = logging.getLogger("dfkd")

FOLDER = "logs"
OWN = re.compile(r"\d{8}T\d{6}Z-[a-z_]+\.jsonl")
"""Names of log files."""
MAX_FILES = 20
"""Number of log files kept in that folder; a new one replaces the oldest."""


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = getattr(record, "fields", {})
        return json.dumps({"time": time, "event": record.getMessage(), **fields})


class LogFile(logging.Handler):
    """Writes the lines to a file; the first line creates the file and prints its path."""

    def __init__(self, job: str, root: str) -> None:
        super().__init__()
        self.job, self.root = job, root
        self.stream: TextIO | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`; raises `OSError` if the file cannot be written."""
        # Not before the first line: a job that ends without a task leaves no empty file.
        if self.stream is None:
            self.stream = _open_new(self.job, self.root)
            say(f"a line of JSON for each task: {self.stream.name}")
        self.stream.write(f"{self.format(record)}\n")
        self.stream.flush()

    def close(self) -> None:
        """See `logging.Handler.close`."""
        if self.stream is not None:
            self.stream.close()
        super().close()


def _open_new(job: str, root: str) -> TextIO:
    """A new log file; deletes the oldest ones in its folder.

    The file is `logs/{time}-{job}.jsonl` under `root`, or in this machine's temporary folder if
    `root` is a bucket or empty, that folder is a link, or there is such a file already.
    """
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{job}"
    # A run may come from a stranger, and its links must not lead to places of this machine.
    if root and "://" not in root and not Path(root, FOLDER).is_symlink():
        folder = Path(root, FOLDER)
        folder.mkdir(parents=True, exist_ok=True)
        # Names begin with the time, so the first in order are the oldest. Other files are not ours.
        own = (path for path in folder.glob("*.jsonl") if OWN.fullmatch(path.name))
        for old in sorted(own)[: 1 - MAX_FILES]:
            old.unlink(missing_ok=True)
        with suppress(FileExistsError):
            return (folder / f"{name}.jsonl").open("x", encoding="utf-8")
    descriptor, path = tempfile.mkstemp(".jsonl", f"dfkd-{name}-")
    os.close(descriptor)
    return Path(path).open("w", encoding="utf-8")


@contextmanager
def json_log(job: str, root: str) -> Iterator[None]:
    """Inside the block, log lines go to stderr, or to a file if stderr is a terminal.

    Args:
        job: name of the job, which becomes part of the file's name.
        root: root of the run, which holds the file; empty for a temporary file.
    """
    handler = LogFile(job, root) if sys.stderr.isatty() else logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    level, propagate = LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False  # else a handler of the root logger would print each line again
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        handler.close()
        LOGGER.setLevel(level)
        LOGGER.propagate = propagate


def log_event(event: str, **fields: object) -> None:
    """Log that a task has ended; the module's docstring has the events and their fields."""
    LOGGER.info(event, extra={"fields": fields})
