"""Storage in an S3 bucket through boto3, which finds credentials and endpoint in its usual way.

boto3's own retries are off, for three reasons: they cannot be observed, they end before a store has
restarted, and they hide that an earlier attempt of a conditional write may have succeeded. The
newer checksums are off too, because not every store accepts them: a request is signed with the
sha256 of its body, which the store compares with what it has received.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import boto3
import botocore.config
import botocore.session
from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from dfkd.errors import DfkdError, InfrastructureError, ManifestError
from dfkd.storage.base import (
    KEY,
    WRITER_METADATA,
    Request,
    StoredObject,
    disk_full_error,
    missing_object,
    refused_request,
    require_disk_space,
)
from dfkd.storage.bucket import BucketConnection, BucketStorage, folder_names

T = TypeVar("T")

CREDENTIAL_ERRORS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.NoRegionError,
    boto.InvalidRegionError,
    boto.ProfileNotFound,
    boto.ConfigParseError,
    boto.SSOError,
    boto.TokenRetrievalError,
)
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
        if process in self._clients:
            return self._clients[process]
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
            made = boto3.session.Session(botocore_session=session).client("s3", config=config)
        except boto.BotoCoreError:
            raise  # some of them are a ValueError too
        except ValueError as error:
            raise ManifestError(
                "AWS_*",
                "must be settings of S3, such as AWS_ENDPOINT_URL its URL",
                redact(error),
                "fix or unset them",
            ) from None
        self._clients[process] = made
        return made


@dataclass(frozen=True)
class S3Storage(BucketStorage):
    """A prefix of an S3 bucket. boto3 finds credentials, region and endpoint in its usual way."""

    connection: S3Connection = field(default_factory=S3Connection, repr=False, compare=False)
    scheme: str = field(default="s3", kw_only=True)
    max_put_bytes = 5 << 30

    def _at(self, key: str) -> dict[str, str]:
        """The arguments of a request about an object; `CorruptionError` for an invalid key."""
        return {"Bucket": self.bucket, "Key": self._name(key)}

    @property
    def _client(self) -> Any:
        """boto3's client of this process."""
        return self.connection.client

    def _attempt(self, operation: str, key: str, send: Callable[[Request], T]) -> T:
        """See `BucketStorage._attempt`."""
        limits, observe = self.connection.limits, self.connection.observe

        def name(error: Exception) -> str:
            """The name of an error for an observer."""
            return code(error) if isinstance(error, ClientError) else type(error).__name__

        try:
            return limits.retries.attempt(operation, send, name, _is_transient, observe)
        except ClientError as error:
            raise explain(error, self.location(key)) from None
        except CREDENTIAL_ERRORS as error:
            raise ManifestError(
                "storage.root",
                "needs S3 credentials and a region",
                redact(error),
                "set AWS_* or a profile",
            ) from None
        except (BotoCoreError, ResponseParserError) as error:
            if _untrusted(error):
                raise ManifestError(
                    "AWS_ENDPOINT_URL",
                    "must have a certificate that this machine trusts",
                    redact(error),
                    "set AWS_CA_BUNDLE to the file of its authority",
                ) from None
            raise InfrastructureError(
                f"storage: {self.location(key)}: {redact(error)}; run the same command again, it "
                "resumes"
            ) from None

    def _send(
        self, request: Request, name: str, data: bytes | Path, size: int, writer: str = ""
    ) -> bool:
        """See `BucketStorage._send`."""
        options = {"IfNoneMatch": "*", "Metadata": {WRITER_METADATA: writer}} if writer else {}
        # At most `MAX_UPLOADS` bodies at once: more would share the bandwidth and time out.
        with self.connection.slots, contextlib.ExitStack() as stack:
            body = data if isinstance(data, bytes) else stack.enter_context(data.open("rb"))
            try:
                self._client.put_object(Bucket=self.bucket, Key=name, Body=body, **options)
            except ClientError as error:
                if writer and status(error) == 412:
                    return False
                raise
        request.bytes = size
        return True

    def _writer(self, key: str, name: str) -> str:
        """See `BucketStorage._writer`."""
        answer = self._attempt(
            "head", key, lambda _: self._client.head_object(Bucket=self.bucket, Key=name)
        )
        return str(answer.get("Metadata", {}).get(WRITER_METADATA, ""))

    def get(self, key: str, limit: int | None = None) -> bytes:
        """See `Storage.get`."""
        return self._read(key, self._at(key), limit)

    def _read(self, key: str, arguments: dict[str, str], limit: int | None = None) -> bytes:
        """The body of the answer to a get with these arguments, or its first `limit` bytes."""

        def send(request: Request) -> bytes:
            try:
                answer = self._client.get_object(**arguments)
            except ClientError as error:
                if status(error) != 416:
                    raise
                return b""  # the object ends before the range begins
            with contextlib.closing(answer["Body"]) as body:
                data: bytes = body.read(limit)
            request.bytes = len(data)
            # A read that stops at the limit is shorter than the answer on purpose.
            if len(data) != limit:
                _require_whole(answer, request)
            return data

        return self._attempt("get", key, send)

    def size(self, key: str) -> int:
        """See `Storage.size`."""
        target = self._at(key)
        answer = self._attempt("head", key, lambda _: self._client.head_object(**target))
        return int(answer["ContentLength"])

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """See `Storage.get_range`."""
        if stop <= start:
            return b""
        arguments = self._at(key) | {"Range": f"bytes={start}-{stop - 1}"}
        return self._read(key, arguments)

    def get_file(self, key: str, path: Path) -> None:
        """See `Storage.get_file`."""
        target = self._at(key)

        def send(request: Request) -> None:
            # Opened at each attempt, so that nothing of a failed one stays in the file.
            answer = self._client.get_object(**target)
            with contextlib.closing(answer["Body"]) as body, path.open("wb") as stream:
                size = int(answer["ContentLength"])
                require_disk_space(path, size)
                with disk_full_error(path, size):
                    for chunk in body.iter_chunks(1 << 20):
                        stream.write(chunk)
                        request.bytes += len(chunk)
                    stream.flush()
            _require_whole(answer, request)

        self._attempt("get", key, send)

    def entries(self, prefix: str = "") -> Iterator[StoredObject]:
        """See `Storage.entries`."""
        for page in self._pages(prefix):
            for item in page.get("Contents", ()):
                key = item["Key"].removeprefix(self._head)
                if KEY.fullmatch(key):
                    yield StoredObject(key, item["Size"], item["LastModified"].timestamp())

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """See `Storage.folders`."""
        pages = self._pages(prefix, Delimiter="/")
        below = (item["Prefix"] for page in pages for item in page.get("CommonPrefixes", ()))
        return folder_names(below)

    def _pages(self, prefix: str, **options: str) -> Iterator[Any]:
        """Yield the answers to a listing, each of which has at most a thousand entries."""
        options |= {"Bucket": self.bucket, "Prefix": self._head + prefix}

        def send(request: Request) -> Any:
            return self._client.list_objects_v2(**options)

        while True:
            page = self._attempt("list", prefix, send)
            yield page
            if not page.get("IsTruncated"):
                return
            options["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        target = self._at(key)
        self._attempt("delete", key, lambda _: self._client.delete_object(**target))


def _require_whole(answer: Any, request: Request) -> None:
    """Raise boto3's `IncompleteReadError`, which is tried again, for a body that was cut off."""
    promised = int(answer["ContentLength"])
    if request.bytes != promised:
        raise boto.IncompleteReadError(actual_bytes=request.bytes, expected_bytes=promised)


def _is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, ClientError):
        return status(error) in BUSY_STATUSES or code(error) in BUSY_CODES
    return isinstance(error, (*CONNECTION_ERRORS, boto.SSLError)) and not _untrusted(error)


def _untrusted(error: Exception) -> bool:
    """Whether the server's certificate is not trusted, which no repetition changes."""
    return isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error)


def status(error: Any) -> int:
    """The HTTP status of a `ClientError`; 0 if it has none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code(error: Any) -> str:
    """The code of a `ClientError`, or its status if the answer had no body and so no code."""
    return str(error.response.get("Error", {}).get("Code", "")) or str(status(error))


def redact(error: Exception) -> str:
    """The error's text without the part of a URL before the @, which may hold a password."""
    return re.sub(r"\S*@", "", str(error))


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
