"""Lines of JSON for whatever reads a job's log: one for each task that ended.

Written through `logging`, under the logger `dfkd`; a job shows them on stderr where that is no
terminal, so that no bar is disturbed. The fields are those of `task_done` and `task_quarantined`,
`time` (UTC) and `event`: "task" or "quarantined".
"""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

LOGGER = logging.getLogger("dfkd")


class Lines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = getattr(record, "fields", {})
        return json.dumps({"time": time, "event": record.getMessage(), **fields})


@contextmanager
def shown() -> Iterator[None]:
    """Within, the lines go to stderr, unless that is a terminal."""
    if sys.stderr.isatty():
        yield
        return
    handler = logging.StreamHandler()
    handler.setFormatter(Lines())
    level, propagate = LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
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
