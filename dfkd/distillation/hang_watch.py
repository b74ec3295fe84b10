"""Ends a process whose training does not advance.

A read from a dead file system, a collective call whose peer is stuck, or a broken GPU may never
return. Nothing is raised then, so the training would hold its GPUs for ever.
"""

import faulthandler
import os
import sys
import threading

from dfkd.errors import Exit
from dfkd.utils.progress import Closing

TICK_SECONDS = 1.0
"""Seconds between two looks at the training."""
LATER_SECONDS = 1200.0
"""Seconds that any step after the first may take. An upload to Azure or Google may use 900 of them
for an attempt, see `dfkd.storage.retries`."""
FACTOR = 10.0
"""A step may also take so many times as long as the slowest one before it."""
MESSAGE_SECONDS = 10.0
"""Seconds for the message, which waits for ever if stderr is what hangs."""


class HangWatch(Closing):
    """Ends this process if it makes no step for too long.

    The end counts as that of a killed process: ranks, and students that train side by side, restart
    from the newest checkpoint, and a job that trains alone ends with exit code 4. The traceback of
    each thread is printed, because it shows what did not return.
    """

    def __init__(self, limit: float, later: float = LATER_SECONDS) -> None:
        """Begin to watch.

        Args:
            limit: seconds that a step may take, also the first, which loads; 0: without end.
            later: seconds that any step after the first may take, if `limit` is longer.
        """
        self._longest = self._limit = limit
        self._later, self._idle, self._slowest = later, 0.0, 0.0
        self._closed = threading.Event()
        if limit:
            threading.Thread(target=self._watch, name="dfkd-hang-watch", daemon=True).start()

    def advanced(self) -> None:
        """Say that a step was made."""
        self._slowest, self._idle = max(self._slowest, self._idle), 0.0
        self._limit = min(self._longest, max(self._later, FACTOR * self._slowest))

    def close(self) -> None:
        """End the watch."""
        self._closed.set()

    def _watch(self) -> None:
        """Count seconds, and end the process when there are too many."""
        # Ticks are counted, because a clock also counts the time for which a person has stopped the
        # process.
        while not self._closed.wait(TICK_SECONDS):
            self._idle += TICK_SECONDS
            if self._idle >= self._limit:
                self._end()

    def _end(self) -> None:
        """End the process at once, because a thread that hangs cannot be interrupted."""
        threading.Timer(MESSAGE_SECONDS, os._exit, [Exit.RETRY]).start()
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        hint = "; if a step takes so long, raise cluster.task_timeout"
        # Without tqdm, whose lock the thread that hangs may hold.
        print(
            f"error: distillation: no step within {self._limit:g} seconds; run the same command "
            f"again, it resumes{hint if self._limit == self._longest else ''}",
            file=sys.__stderr__,
            flush=True,
        )
        os._exit(Exit.RETRY)
