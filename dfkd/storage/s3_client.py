"""The connection to an S3 server: boto3's client, its limits, retries, and readable errors.

boto3's own retries are off, for three reasons: they cannot be observed, they end before a store has
restarted, and they hide that an earlier attempt of a conditional write may have succeeded. The
newer checksums are off too, because not every store accepts them: a request is signed with the
sha256 of its body, which the store compares with what it has received.
"""

import os
import re
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
from dfkd.storage.base import Request, missing_object, refused_request
from dfkd.storage.bucket import BucketConnection

T = TypeVar("T")

CONNECTION_ERRORS = (
    boto.HTTPClientError,
    boto.EndpointConnectionError,
    boto.ConnectTimeoutError,
    boto.ProxyConnectionError,
    boto.IncompleteReadError,
    boto.CredentialRetrievalError,
    ResponseParserError,
)
"""Errors for a missing or incomplete answer, of the store or of the service that gives credentials
to a machine."""
BUSY_STATUSES = {409, 429, 500, 502, 503, 504, 507}
"""HTTP statuses after which the same request may succeed; 409: another write is in progress."""
BUSY_CODES = {
    "RequestTimeout",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "XAmzContentSHA256Mismatch",  # the body has changed on its way
}
METADATA_SERVICE = {"metadata_service_num_attempts": 5, "metadata_service_timeout": 5}
"""Attempts and seconds for the credentials of a machine's role. By default botocore asks once, for
a second, and then believes that the machine has none."""


@cache
def _models() -> Any:
    """botocore's descriptions of the API, cached because reading them is slow."""
    return botocore.session.Session().get_component("data_loader")


@dataclass
class S3Connection(BucketConnection):
    """The client of a storage and all of its children; each process creates its own."""

    _clients: dict[int, Any] = field(default_factory=dict)
    """Clients by process id, because a fork must not share sockets."""

    @property
    def client(self) -> Any:
        """boto3's client of this process."""
        process = os.getpid()
        if process not in self._clients:
            self._clients[process] = self._make()
        return self._clients[process]

    def _make(self) -> Any:
        """A new client with boto3's own retries off."""
        config = botocore.config.Config(
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
            connect_timeout=self.limits.connect,
            read_timeout=self.limits.read,
            max_pool_connections=32,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        # boto3's default session would keep the first credentials, even after they change.
        session = botocore.session.Session()
        session.register_component("data_loader", _models())
        try:
            for name, least in METADATA_SERVICE.items():
                session.set_config_variable(name, max(least, session.get_config_variable(name)))
            return boto3.session.Session(botocore_session=session).client("s3", config=config)
        except boto.BotoCoreError:
            raise  # some of them are a ValueError too
        except ValueError as error:
            raise ManifestError(
                "AWS_*",
                "must be settings of S3, such as AWS_ENDPOINT_URL its URL",
                redact(error),
                "fix or unset them",
            ) from None

    def attempt(self, operation: str, send: Callable[[Request], T]) -> T:
        """Call `send` again while the store is busy or answers are lost; returns its result."""
        retries = self.limits.retries
        return retries.attempt(operation, send, _error_name, _is_transient, self.observe)


def _is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, ClientError):
        return status(error) in BUSY_STATUSES or code(error) in BUSY_CODES
    return isinstance(error, (*CONNECTION_ERRORS, boto.SSLError)) and not _untrusted(error)


def _untrusted(error: Exception) -> bool:
    """Whether the server's certificate is not trusted, which no repetition changes."""
    return isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error)


def _error_name(error: Exception) -> str:
    """The name of an error for an observer."""
    return code(error) if isinstance(error, ClientError) else type(error).__name__


def status(error: Any) -> int:
    """The HTTP status of a `ClientError`; 0 if it has none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code(error: Any) -> str:
    """The code of a `ClientError`, or its status if the answer had no body and so no code."""
    return str(error.response.get("Error", {}).get("Code", "")) or str(status(error))


def redact(error: Exception) -> str:
    """The error's text without the part of a URL before the @, which may hold a password."""
    return re.sub(r"\S*@", "", str(error))


def explain_connection(error: Exception, location: str) -> DfkdError:
    """The `DfkdError` for a request about `location` without an answer."""
    if _untrusted(error):
        return ManifestError(
            "AWS_ENDPOINT_URL",
            "must have a certificate that this machine trusts",
            redact(error),
            "set AWS_CA_BUNDLE to the file of its authority",
        )
    return InfrastructureError(
        f"storage: {location}: {redact(error)}; run the same command again, it resumes"
    )


def explain(error: Any, location: str) -> DfkdError:
    """The `DfkdError` for the `ClientError` of a request about `location`."""
    reason = code(error)
    if reason in ("NoSuchKey", "404", "NotFound"):
        return missing_object(location)
    if reason == "RequestTimeTooSkewed":
        return InfrastructureError(
            f"storage: {location}: the clock of this machine is wrong ({reason}); set it and run "
            "the same command again, it resumes"
        )
    if reason in ("ExpiredToken", "TokenRefreshRequired"):
        return ManifestError(
            "storage.root",
            "needs credentials that have not expired",
            f"{location} ({reason})",
            "renew them and run the same command again, it resumes",
        )
    if reason in ("NoSuchBucket", "InvalidBucketName") or status(error) in (301, 401, 403):
        return ManifestError(
            "storage.root", "must be a bucket you may use", f"{location} ({reason})", "check it"
        )
    if _is_transient(error):
        return InfrastructureError(
            f"storage: {location}: {reason}; run the same command again, it resumes"
        )
    # For example 501 of a store without conditional writes.
    return refused_request(f"{location} ({reason})")
