"""S3 buckets as storage, over `dfkd.storage.s3_client`."""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from dfkd.errors import DfkdError, InfrastructureError, ManifestError
from dfkd.storage.base import (
    KEY,
    MissingObject,
    Observer,
    Request,
    StoredObject,
    check_key,
    disk_full_error,
    require_disk_space,
)
from dfkd.storage.s3_client import MAX_UPLOADS, Connection, code, explain, redact, status

T = TypeVar("T")

PROBE = ".probe"
"""Of every prefix that was opened; no key can name it, and no listing shows it."""
WRITER_METADATA = "writer"
"""Metadata of an object: the one call that wrote it, to know it again after a lost answer."""
MAX_PUT_BYTES = 5 << 30
"""The largest object that S3 takes in one request."""
MAX_PARTS = 10_000
"""The most parts that S3 takes."""
PAGE_MARKERS = ("ContinuationToken", "KeyMarker", "UploadIdMarker")
CREDENTIAL_ERRORS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.NoRegionError,
    boto.ProfileNotFound,
)
OPENING_ATTEMPTS = 5
"""Tries at the start: a store that is away then is an error within seconds, later it is awaited."""


def open_s3(bucket: str, prefix: str) -> "S3Storage":
    """The storage at `s3://bucket/prefix`; `ManifestError` unless it honours put-if-absent."""
    store = S3Storage(bucket, prefix)
    store.briefly().probe()
    return store


@dataclass(frozen=True)
class S3Storage:
    """A prefix of an S3 bucket. Credentials, region and endpoint come from boto3's own sources."""

    bucket: str
    prefix: str = ""
    connection: Connection = field(default_factory=Connection, repr=False, compare=False)

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._head + check_key(key)}

    @property
    def _head(self) -> str:
        return self.prefix and f"{self.prefix}/"

    @property
    def _client(self) -> Any:
        return self.connection.client

    def _attempt(self, operation: str, key: str, send: Callable[[Request], T]) -> T:
        """`Connection.attempt`, with errors in words."""
        try:
            return self.connection.attempt(operation, send)
        except ClientError as error:
            raise explain(error, self.location(key)) from None
        except CREDENTIAL_ERRORS as error:
            raise ManifestError(
                "storage.root", "needs S3 credentials", redact(error), "set AWS_* or a profile"
            ) from None
        except (BotoCoreError, ResponseParserError) as error:
            raise InfrastructureError(
                f"storage: {self.location(key)}: {redact(error)}; "
                "run the same command again, it resumes"
            ) from None

    def probe(self) -> None:
        """Refuse (`ManifestError`) a store in which a second put-if-absent wins too.

        One request where an earlier probe has left its object, else two.
        """
        place = {"Bucket": self.bucket, "Key": self._head + PROBE}
        if self._put_once(PROBE, place, b"") and self._put_once(PROBE, place, b""):
            raise ManifestError(
                "storage.root",
                "a store that honours PUT with If-None-Match",
                self.location(),
                "use AWS S3, Ceph or a directory: in this store two writers would both win",
            )

    def put(self, key: str, data: bytes | Path) -> None:
        """See `Storage.put`."""
        place, size = self._at(key), _size(data)
        if size > self.connection.limits.part:
            self._put_parts(key, data, size)
        else:
            self._attempt("put", key, lambda request: self._send(request, place, data, size))

    def put_if_absent(self, key: str, data: bytes | Path) -> bool:
        """See `Storage.put_if_absent`. One request: not every store has conditions on parts."""
        return self._put_once(key, self._at(key), data)

    def _put_once(self, key: str, place: dict[str, str], data: bytes | Path) -> bool:
        size, writer = _size(data), uuid.uuid4().hex
        if size > MAX_PUT_BYTES:
            raise DfkdError(
                f"storage: {self.location(key)}: S3 takes at most {MAX_PUT_BYTES} bytes in the one "
                f"request of a put-if-absent, got {size}; lower synthesis.shard_size"
            )
        options = {"IfNoneMatch": "*", "Metadata": {WRITER_METADATA: writer}}

        def send(request: Request) -> tuple[bool, bool]:
            try:
                self._send(request, place, data, size, **options)
            except ClientError as error:
                if status(error) != 412:
                    raise
                return False, request.attempt > 1
            return True, False

        won, in_doubt = self._attempt("put", key, send)
        # An earlier try may have won although its answer was lost: then the object is ours.
        return won or (in_doubt and self._writer(key, place) == writer)

    def _send(
        self, request: Request, place: dict[str, str], data: bytes | Path, size: int, **options: Any
    ) -> None:
        with self.connection.slots, contextlib.ExitStack() as stack:
            body = data if isinstance(data, bytes) else stack.enter_context(data.open("rb"))
            self._client.put_object(**place, Body=body, **options)
            request.bytes = size

    def _writer(self, key: str, place: dict[str, str]) -> str:
        """Which call wrote an object; empty for another program's."""
        found = self._attempt("head", key, lambda _: self._client.head_object(**place))
        return str(found.get("Metadata", {}).get(WRITER_METADATA, ""))

    def _put_parts(self, key: str, data: bytes | Path, size: int) -> None:
        place, writer = self._at(key), uuid.uuid4().hex
        length = max(self.connection.limits.part, -(-size // MAX_PARTS))
        begun = self._attempt(
            "begin",
            key,
            lambda _: self._client.create_multipart_upload(
                **place, Metadata={WRITER_METADATA: writer}
            ),
        )
        upload = {**place, "UploadId": begun["UploadId"]}

        def send(start: int) -> dict[str, Any]:
            number = start // length + 1

            def one(request: Request) -> dict[str, Any]:
                with self.connection.slots:
                    body = _slice(data, start, length)
                    answer = self._client.upload_part(**upload, PartNumber=number, Body=body)
                request.bytes = len(body)
                return {"PartNumber": number, "ETag": answer["ETag"]}

            return self._attempt("part", key, one)

        try:
            with ThreadPoolExecutor(MAX_UPLOADS) as pool:
                parts = list(pool.map(send, range(0, size, length)))
            self._finish(key, upload, parts, writer)
        except BaseException:
            with contextlib.suppress(DfkdError):
                self.briefly()._abort(upload)
            raise

    def _finish(
        self, key: str, upload: dict[str, str], parts: list[dict[str, Any]], writer: str
    ) -> None:
        def send(request: Request) -> bool:
            try:
                self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
            except ClientError as error:
                if request.attempt == 1 or code(error) != "NoSuchUpload":
                    raise
                return True
            return False

        in_doubt = self._attempt("finish", key, send)
        # A try whose answer was lost may have finished it; or somebody has aborted it.
        if in_doubt and self._writer(key, self._at(key)) != writer:
            raise InfrastructureError(
                f"storage: {self.location(key)}: the upload was aborted by another process; "
                "run the same command again, it resumes"
            )

    def get(self, key: str, limit: int | None = None) -> bytes:
        """See `Storage.get`."""
        return self._read(key, self._at(key), limit)

    def _read(self, key: str, what: dict[str, str], limit: int | None = None) -> bytes:
        def send(request: Request) -> bytes:
            try:
                answer = self._client.get_object(**what)
            except ClientError as error:
                if status(error) != 416:
                    raise
                return b""  # the object ends before the range begins
            with contextlib.closing(answer["Body"]) as body:
                data: bytes = body.read(limit)
            request.bytes = len(data)
            if len(data) != limit:
                _require_whole(answer, request)
            return data

        return self._attempt("get", key, send)

    def size(self, key: str) -> int:
        """See `Storage.size`."""
        place = self._at(key)
        answer = self._attempt("head", key, lambda _: self._client.head_object(**place))
        return int(answer["ContentLength"])

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """See `Storage.get_range`."""
        if stop <= start:
            return b""
        what = self._at(key) | {"Range": f"bytes={start}-{stop - 1}"}
        return self._read(key, what)

    def get_file(self, key: str, path: Path) -> None:
        """See `Storage.get_file`."""
        place = self._at(key)

        def send(request: Request) -> None:
            answer = self._client.get_object(**place)
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

    def exists(self, key: str) -> bool:
        """See `Storage.exists`."""
        place = self._at(key)
        try:
            self._attempt("head", key, lambda _: self._client.head_object(**place))
        except MissingObject:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Storage.list`."""
        return (entry.key for entry in self.entries(prefix))

    def entries(self, prefix: str = "") -> Iterator[StoredObject]:
        """See `Storage.entries`."""
        for page in self._pages("list_objects_v2", prefix):
            for item in page.get("Contents", ()):
                key = item["Key"].removeprefix(self._head)
                if KEY.fullmatch(key):
                    yield StoredObject(key, item["Size"], _age(page, item["LastModified"]))

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """See `Storage.folders`."""
        pages = self._pages("list_objects_v2", prefix, Delimiter="/")
        below = (item["Prefix"] for page in pages for item in page.get("CommonPrefixes", ()))
        return tuple(sorted(name.rstrip("/").rpartition("/")[2] for name in below))

    def _pages(self, operation: str, prefix: str, **options: str) -> Iterator[Any]:
        options |= {"Bucket": self.bucket, "Prefix": self._head + prefix}

        def send(request: Request) -> Any:
            return getattr(self._client, operation)(**options)

        while True:
            page = self._attempt("list", prefix, send)
            yield page
            if not page.get("IsTruncated"):
                return
            options |= {name: page[f"Next{name}"] for name in PAGE_MARKERS if f"Next{name}" in page}

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        place = self._at(key)
        self._attempt("delete", key, lambda _: self._client.delete_object(**place))

    def abort_uploads(self, older_than: float) -> int:
        """See `Storage.abort_uploads`."""
        aborted = 0
        for page in self._pages("list_multipart_uploads", ""):
            for item in page.get("Uploads", ()):
                if _age(page, item["Initiated"]) >= older_than:
                    upload = {"Bucket": self.bucket, "Key": item["Key"]}
                    aborted += self._abort({**upload, "UploadId": item["UploadId"]})
        return aborted

    def _abort(self, upload: dict[str, str]) -> bool:
        """False if it is gone already: it was finished, or another process aborted it."""
        key = upload["Key"].removeprefix(self._head)
        try:
            self._attempt("abort", key, lambda _: self._client.abort_multipart_upload(**upload))
        except MissingObject:
            return False
        return True

    def location(self, key: str = "") -> str:
        """See `Storage.location`."""
        return f"s3://{self.bucket}/{self._head}{key}"

    def child(self, prefix: str) -> "S3Storage":
        """See `Storage.child`."""
        return replace(self, prefix=self._head + check_key(prefix))

    def briefly(self) -> "S3Storage":
        """The same storage with less patience: `OPENING_ATTEMPTS` tries of a request."""
        patience = replace(self.connection.limits.patience, attempts=OPENING_ATTEMPTS)
        limits = replace(self.connection.limits, patience=patience)
        return replace(self, connection=replace(self.connection, limits=limits))

    def observed(self, observe: Observer) -> "S3Storage":
        """See `Storage.observed`."""
        return replace(self, connection=replace(self.connection, observe=observe))


def _size(data: bytes | Path) -> int:
    return len(data) if isinstance(data, bytes) else data.stat().st_size


def _slice(data: bytes | Path, start: int, length: int) -> bytes:
    if isinstance(data, bytes):
        return data[start : start + length]
    with data.open("rb") as stream:
        stream.seek(start)
        return stream.read(length)


def _require_whole(answer: Any, request: Request) -> None:
    promised = int(answer["ContentLength"])
    if request.bytes != promised:
        raise boto.IncompleteReadError(actual_bytes=request.bytes, expected_bytes=promised)


def _age(page: Any, written: datetime) -> float:
    """Seconds from `written` to the answer `page`, both by the store's clock."""
    now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
    return max(0.0, (now - written).total_seconds())
