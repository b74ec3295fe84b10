"""Trying a request again: how often, with which pauses, and who is told of it."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from dfkd.storage.base import Observer, Request

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """How long a process bears with a store."""

    attempts: int = 12
    """Tries of a request. The pauses between them add up to over a minute: a store may restart."""
    pause: float = 0.2
    """Seconds before the second try at the most; doubled each time, up to `longest_pause`."""
    longest_pause: float = 20.0

    def wait(self, attempt: int) -> None:
        """Pause after a try that failed, so that many processes do not come back at once."""
        longest = min(self.pause * 2 ** (attempt - 1), self.longest_pause)
        time.sleep(longest * random.SystemRandom().uniform(0.5, 1))

    def attempt(
        self,
        operation: str,
        send: Callable[[Request], T],
        name: Callable[[Exception], str],
        passing: Callable[[Exception], bool],
        observe: Observer,
    ) -> T:
        """What `send` returns, tried again while what it raises may pass.

        Args:
            operation: for the observer.
            send: makes the request, and counts the bytes of bodies in what it is given.
            name: of an error, for the observer.
            passing: whether the same request may succeed later.
            observe: told of every try.
        """
        number = 1
        while True:
            request = Request(operation, number)
            begun = time.perf_counter()
            try:
                return send(request)
            except Exception as error:
                request.error = name(error)
                if number >= self.attempts or not passing(error):
                    raise
            finally:
                request.seconds = time.perf_counter() - begun
                observe(request)
            self.wait(number)
            number += 1
