"""Storage in an S3 bucket, on top of `dfkd.storage.s3_client`."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from dfkd.errors import ManifestError
from dfkd.storage.base import (
    KEY,
    WRITER_METADATA,
    Request,
    StoredObject,
    disk_full_error,
    require_disk_space,
)
from dfkd.storage.bucket import BucketStorage, folder_names
from dfkd.storage.s3_client import S3Connection, explain, explain_connection, redact, status

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
        """`S3Connection.attempt`, with boto3's errors turned into `DfkdError`."""
        try:
            return self.connection.attempt(operation, send)
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
            raise explain_connection(error, self.location(key)) from None

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

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Storage.list`."""
        return (entry.key for entry in self.entries(prefix))

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
