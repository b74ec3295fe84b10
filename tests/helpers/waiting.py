"""Waiting for what other processes do."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def wait_for(
    condition: Callable[[], Any],
    what: str = "",
    *,
    alive: Callable[[], object] = lambda: True,
    limit: float = 600.0,
    pause: float = 0.05,
) -> Any:
    """Poll until a condition holds; returns what it gave.

    Args:
        what: what is waited for, for the error.
        alive: whether the process that must bring it about still runs.
        limit: seconds.
    """
    end = time.monotonic() + limit
    while True:
        last = not alive()  # before the condition, which the process may fulfil as it ends
        if found := condition():
            return found
        assert not last, f"the process has ended before that: {what}"
        assert time.monotonic() < end, f"not within {limit:g} s: {what}"
        time.sleep(pause)


def gone(process: int) -> bool:
    """Whether a process has ended."""
    return not Path(f"/proc/{process}").exists()
