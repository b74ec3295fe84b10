"""The connection to an S3 server: boto3's client, its limits, and requests that are tried again,
and what a store's refusals mean, in one line each.

boto3's own retries are off: they cannot be counted, end before a store has come back from a
restart, and hide that an earlier try of a conditional write may have won. Checksums of the newer
kind are off too, since not every store reads them: receipts have their own sha256.
"""

import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import boto3
import botocore.config
import botocore.session
from botocore import exceptions as boto
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from dfkd.errors import DfkdError, InfrastructureError, ManifestError
from dfkd.storage.base import Observer, Request, ignore, missing_object
from dfkd.storage.retries import RetryPolicy

T = TypeVar("T")

CONNECTION_ERRORS = (
    boto.HTTPClientError,
    boto.EndpointConnectionError,
    boto.ConnectTimeoutError,
    boto.ProxyConnectionError,
    boto.IncompleteReadError,
    ResponseParserError,
)
"""No answer, or not all of it."""
MAX_UPLOADS = 4
"""Bodies that are sent at once by a storage and all of its children."""
BUSY_STATUSES = {409, 429, 500, 502, 503, 504}
"""What a store answers when the same request may succeed later; 409: another writer is at work."""
BUSY_CODES = {"RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded"}


@dataclass(frozen=True)
class Limits:
    """What a process bears with, and what it asks for at most."""

    patience: RetryPolicy = field(default_factory=RetryPolicy)
    connect: float = 10.0
    """Seconds to connect, and that a body which is sent may stand still."""
    read: float = 60.0
    """Seconds that an answer may stand still."""
    part: int = 16 << 20
    """Bytes; what is larger is put in parts of this size, of which `MAX_UPLOADS` are in memory."""


@cache
def _models() -> Any:
    """Descriptions of the API that botocore ships: reading them takes most of a client's making."""
    return botocore.session.Session().get_component("data_loader")


@dataclass
class Connection:
    """A client that a storage and all of its children use; another process makes its own."""

    limits: Limits = field(default_factory=Limits)
    observe: Observer = ignore
    slots: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(MAX_UPLOADS)
    )
    """One for each body that may be on its way."""
    _clients: dict[int, Any] = field(default_factory=dict)
    """By process: sockets must not be shared with a fork."""

    def __reduce__(self) -> tuple[type["Connection"], tuple[Limits]]:
        return Connection, (self.limits,)  # neither sockets nor an observer can travel

    @property
    def client(self) -> Any:
        """boto3's, of this process."""
        process = os.getpid()
        if process not in self._clients:
            self._clients[process] = self._make()
        return self._clients[process]

    def _make(self) -> Any:
        config = botocore.config.Config(
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
            connect_timeout=self.limits.connect,
            read_timeout=self.limits.read,
            max_pool_connections=32,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        # Not boto3's default session, which keeps the credentials that it found first.
        session = botocore.session.Session()
        session.register_component("data_loader", _models())
        try:
            return boto3.session.Session(botocore_session=session).client("s3", config=config)
        except ValueError as error:
            raise ManifestError(
                "AWS_ENDPOINT_URL", "must be the URL of an S3 endpoint", redact(error), "fix it"
            ) from None

    def attempt(self, operation: str, send: Callable[[Request], T]) -> T:
        """What `send` returns, tried again while the store is busy or its answers are lost."""
        patience = self.limits.patience
        return patience.attempt(operation, send, _error_name, _is_transient, self.observe)


def _is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    return (
        is_busy(error) if isinstance(error, ClientError) else isinstance(error, CONNECTION_ERRORS)
    )


def _error_name(error: Exception) -> str:
    """For an observer."""
    return code(error) if isinstance(error, ClientError) else type(error).__name__


def status(error: Any) -> int:
    """The HTTP status of a refusal, 0 if it has none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code(error: Any) -> str:
    """The code of a refusal, else its status: an answer without a body has no code."""
    return str(error.response.get("Error", {}).get("Code", "")) or str(status(error))


def is_busy(error: Any) -> bool:
    """Whether a refusal may pass."""
    return status(error) in BUSY_STATUSES or code(error) in BUSY_CODES


def redact(error: Exception) -> str:
    """Its text without what stands before the @ of a URL, where some write a password."""
    return re.sub(r"\S*@", "", str(error))


def explain(error: Any, location: str) -> DfkdError:
    """The refusal of a request about `location`, for a person."""
    reason = code(error)
    if reason in ("NoSuchKey", "NoSuchUpload", "404", "NotFound"):
        return missing_object(location)
    if reason in ("NoSuchBucket", "InvalidBucketName") or status(error) in (301, 401, 403):
        return ManifestError(
            "storage.root", "must be a bucket you may use", f"{location} ({reason})", "check it"
        )
    return InfrastructureError(
        f"storage: {location}: {reason}; run the same command again, it resumes"
    )
