"""What storage in a bucket has in common, whoever's bucket it is."""

import threading
from dataclasses import dataclass, field, replace
from typing import Any, Self

from dfkd.storage.base import MAX_UPLOADS, OPENING_ATTEMPTS, Observer, check_key, ignore


@dataclass
class BucketConnection:
    """The clients of a storage and all of its children; a subclass makes them."""

    limits: Any
    """Retries (`limits.retries`) and timeouts of the requests."""
    observe: Observer = ignore
    slots: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(MAX_UPLOADS)
    )
    """Limits the number of bodies that are sent at the same time."""

    def __reduce__(self) -> tuple[type[Self], tuple[Any]]:
        return type(self), (self.limits,)  # clients and observers cannot be pickled


@dataclass(frozen=True)
class BucketStorage:
    """A prefix of a bucket, and the storages that derive from it."""

    bucket: str
    prefix: str = ""
    # Clients hold credentials, so they are in no repr.
    connection: Any = field(default=None, repr=False, compare=False)

    @property
    def _head(self) -> str:
        """What every key in the bucket begins with."""
        return self.prefix and f"{self.prefix}/"

    def child(self, prefix: str) -> Self:
        """See `Storage.child`."""
        return replace(self, prefix=self._head + check_key(prefix))

    def with_few_attempts(self) -> Self:
        """The same storage with only `OPENING_ATTEMPTS` attempts for each request."""
        retries = replace(self.connection.limits.retries, attempts=OPENING_ATTEMPTS)
        limits = replace(self.connection.limits, retries=retries)
        return replace(self, connection=replace(self.connection, limits=limits))

    def observed(self, observe: Observer) -> Self:
        """See `Storage.observed`."""
        return replace(self, connection=replace(self.connection, observe=observe))
