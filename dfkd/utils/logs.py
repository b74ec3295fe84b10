"""Lines of JSON for whatever reads a job's log: one for each task that ended.

Written through `logging`, under the logger `dfkd`. A job shows them on stderr, and writes them to a
file where stderr is a terminal, which belongs to the progress bar. The fields are those of
`task_done` and `task_quarantined`, `time` (UTC) and `event`: "task" or "quarantined".
"""

import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from dfkd.utils.progress import say

LOGGER = logging.getLogger("dfkd")

FOLDER = "logs"
MAX_FILES = 20
"""Files in that folder of a run's root; the next one replaces the oldest."""


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = getattr(record, "fields", {})
        return json.dumps({"time": time, "event": record.getMessage(), **fields})


class LogFile(logging.Handler):
    """Writes the lines to a file, which the first line makes and whose path is then told once."""

    def __init__(self, job: str, root: str) -> None:
        super().__init__()
        self.job, self.root = job, root
        self.stream: TextIO | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`; raises `OSError` where the file cannot be written."""
        if self.stream is None:
            path = _new_file(self.job, self.root)
            self.stream = path.open("a", encoding="utf-8")
            say(f"a line of JSON for each task: {path}")
        self.stream.write(f"{self.format(record)}\n")
        self.stream.flush()

    def close(self) -> None:
        """See `logging.Handler.close`."""
        if self.stream is not None:
            self.stream.close()
        super().close()


def _new_file(job: str, root: str) -> Path:
    """`logs/{time}-{job}.jsonl` under a directory; for a bucket a new file in a temporary folder.

    Of the files in `logs/` the newest stay.
    """
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{job}"
    if not root or "://" in root:
        descriptor, path = tempfile.mkstemp(".jsonl", f"dfkd-{name}-")
        os.close(descriptor)
        return Path(path)
    folder = Path(root, FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("*.jsonl"))[: 1 - MAX_FILES]:
        old.unlink(missing_ok=True)
    return folder / f"{name}.jsonl"


@contextmanager
def json_log(job: str, root: str) -> Iterator[None]:
    """Within, the lines go to stderr, or to a file where that is a terminal.

    Args:
        job: its name, for that of the file.
        root: of the run, which the file lies under; empty if there is none.
    """
    handler = LogFile(job, root) if sys.stderr.isatty() else logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    level, propagate = LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        handler.close()
        LOGGER.setLevel(level)
        LOGGER.propagate = propagate


def task_done(
    *,
    run: str,
    task: str,
    attempt: int,
    seconds: float,
    images: int,
    failed: int,
    bytes: int,
    node: str,
) -> None:
    """Log a finished synthesis task.

    Args:
        run: the first 16 digits of the version's fingerprint.
        task: its id, which is its shard's name.
        attempt: the try that succeeded, from 1.
        seconds: of work, on one worker.
        images: in its shard.
        failed: images that diverged at every try.
        bytes: of its shard.
        node: address of the node whose worker did it.
    """
    fields = {
        "run": run,
        "task": task,
        "attempt": attempt,
        "seconds": round(seconds, 3),
        "images": images,
        "failed": failed,
        "bytes": bytes,
        "node": node,
    }
    LOGGER.info("task", extra={"fields": fields})


def task_quarantined(*, run: str, task: str, images: int, reason: str) -> None:
    """Log a task that failed at every try, and why it did the last time."""
    fields = {"run": run, "task": task, "images": images, "reason": reason}
    LOGGER.info("quarantined", extra={"fields": fields})
