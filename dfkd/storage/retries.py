"""Retries of a request: how many, and with which pauses."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from dfkd.storage.base import Observer, Request

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """How often a request is tried, and how long the pauses are."""

    attempts: int = 12
    """Maximal number of attempts. All pauses together take 53 to 105 s, so a store can restart."""
    pause: float = 0.2
    """Maximal pause in seconds before the second attempt; doubled after each further failure."""
    longest_pause: float = 20.0
    """Upper limit of a pause in seconds."""

    def wait(self, attempt: int) -> None:
        """Pause after the failed attempt number `attempt`.

        The pause is random, so that many processes do not retry at the same moment.
        """
        longest = min(self.pause * 2 ** (attempt - 1), self.longest_pause)
        time.sleep(longest * random.SystemRandom().uniform(0.5, 1))

    def attempt(
        self,
        operation: str,
        send: Callable[[Request], T],
        error_name: Callable[[Exception], str],
        is_transient: Callable[[Exception], bool],
        observe: Observer,
    ) -> T:
        """Call `send` until it succeeds; returns its result or raises its last error.

        Args:
            operation: name of the operation, for the observer.
            send: makes the request and sets `Request.bytes`.
            error_name: the name of an error, for the observer.
            is_transient: whether the same request may succeed later after this error.
            observe: called after every attempt.
        """
        number = 1
        while True:
            request = Request(operation, number)
            begun = time.perf_counter()
            # The observer sees each attempt, so that a slow store shows before it fails.
            try:
                return send(request)
            except Exception as error:
                request.error = error_name(error)
                if number >= self.attempts or not is_transient(error):
                    raise
            finally:
                request.seconds = time.perf_counter() - begun
                observe(request)
            self.wait(number)
            number += 1


@dataclass(frozen=True)
class Limits:
    """Retries and timeouts of the requests to a store."""

    retries: RetryPolicy = field(default_factory=RetryPolicy)
    connect: float = 10.0
    """Timeout in seconds for connecting; on S3 also for a body that is sent without progress."""
    read: float = 60.0
    """Timeout in seconds for an answer without progress; on Azure and Google also for sending a
    small object."""
    write: float = 900.0
    """Timeout in seconds for sending a large object until the answer begins (Azure, Google)."""
    large: int = 16 << 20
    """Bytes from which an object is large."""
