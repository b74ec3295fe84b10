"""S3 buckets as storage: the only user of boto3."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import boto3
import botocore.config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError

from dfkd.errors import InfrastructureError, ManifestError
from dfkd.objects import KEY, Entry, MissingObject, check_key, missing_object

ATTEMPTS = 5
"""Of a request, and of a conditional write that meets another writer."""

CONFIG = botocore.config.Config(
    retries={"mode": "standard", "max_attempts": ATTEMPTS},
    s3={"addressing_style": "path"},
    max_pool_connections=32,
)


def open_s3(root: str) -> "S3Storage":
    """The storage at `s3://bucket/prefix`; `ManifestError` unless it honours put-if-absent."""
    bucket, _, prefix = root.removeprefix("s3://").strip("/").partition("/")
    if not bucket:
        raise ManifestError("storage.root", "names a bucket", root, "write s3://bucket/prefix")
    store = S3Storage(bucket, prefix and check_key(prefix))
    store.probe()
    return store


@dataclass
class Connection:
    """A client that a storage and all of its children use; another process makes its own."""

    _made: tuple[int, Any] | None = None

    @property
    def client(self) -> Any:
        """boto3's, of this process: sockets must not be shared with a fork."""
        made = self._made
        if made is None or made[0] != os.getpid():
            # Not boto3's default session, which keeps the credentials that it found first.
            made = (os.getpid(), boto3.session.Session().client("s3", config=CONFIG))
            self._made = made
        return made[1]

    def __reduce__(self) -> tuple[type["Connection"], tuple[()]]:
        return Connection, ()


@dataclass(frozen=True)
class S3Storage:
    """A prefix of an S3 bucket. Credentials, region and endpoint come from boto3's own sources."""

    bucket: str
    prefix: str = ""
    connection: Connection = field(default_factory=Connection, repr=False, compare=False)

    @property
    def _client(self) -> Any:
        return self.connection.client

    def _name(self, key: str) -> str:
        return f"{self.prefix}/{check_key(key)}" if self.prefix else check_key(key)

    def probe(self) -> None:
        """Refuse (`ManifestError`) a store in which a second put-if-absent wins too."""
        key = f"probe-{uuid.uuid4().hex}"
        try:
            if not self.put_if_absent(key, b"1") or self.put_if_absent(key, b"2"):
                raise ManifestError(
                    "storage.root",
                    "a store that honours PUT with If-None-Match",
                    self.location(),
                    "use AWS S3, Ceph or a directory: in this store two writers would both win",
                )
        finally:
            self.delete(key)

    def put(self, key: str, data: bytes | Path) -> None:
        """See `Storage.put`."""
        with self._explained(key):
            self._put(key, data)

    def put_if_absent(self, key: str, data: bytes | Path) -> bool:
        """See `Storage.put_if_absent`."""
        for _ in range(ATTEMPTS):
            with self._explained(key):
                try:
                    self._put(key, data, IfNoneMatch="*")
                except ClientError as error:
                    status = _status(error)
                    if status == 412:
                        return False
                    if status != 409:  # 409: another writer is at work and may still fail
                        raise
                else:
                    return True
        raise InfrastructureError(
            f"storage: {self.location(key)} stays contended; run the same command again"
        )

    def _put(self, key: str, data: bytes | Path, **conditions: str) -> None:
        with contextlib.ExitStack() as stack:
            body = data if isinstance(data, bytes) else stack.enter_context(data.open("rb"))
            self._client.put_object(
                Bucket=self.bucket, Key=self._name(key), Body=body, **conditions
            )

    def get(self, key: str) -> bytes:
        """See `Storage.get`."""
        with self._explained(key):
            answer = self._client.get_object(Bucket=self.bucket, Key=self._name(key))
            data: bytes = answer["Body"].read()
            return data

    def get_file(self, key: str, path: Path) -> None:
        """See `Storage.get_file`."""
        with self._explained(key), path.open("wb") as stream:
            answer = self._client.get_object(Bucket=self.bucket, Key=self._name(key))
            shutil.copyfileobj(answer["Body"], stream, 1 << 20)

    def exists(self, key: str) -> bool:
        """See `Storage.exists`."""
        try:
            with self._explained(key):
                self._client.head_object(Bucket=self.bucket, Key=self._name(key))
        except MissingObject:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[str]:
        """See `Storage.list`."""
        return (entry.key for entry in self.entries(prefix))

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """See `Storage.entries`."""
        for page in self._pages("list_objects_v2", prefix):
            for item in page.get("Contents", ()):
                key = item["Key"].removeprefix(self._head)
                if KEY.fullmatch(key):
                    yield Entry(key, item["Size"], _age(page, item["LastModified"]))

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """See `Storage.folders`."""
        pages = self._pages("list_objects_v2", prefix, Delimiter="/")
        below = (item["Prefix"] for page in pages for item in page.get("CommonPrefixes", ()))
        return tuple(sorted(name.rstrip("/").rpartition("/")[2] for name in below))

    @property
    def _head(self) -> str:
        return self.prefix and f"{self.prefix}/"

    def _pages(self, operation: str, prefix: str, **options: str) -> Iterator[Any]:
        with self._explained(prefix):
            pages = self._client.get_paginator(operation)
            yield from pages.paginate(Bucket=self.bucket, Prefix=self._head + prefix, **options)

    def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        with self._explained(key):
            self._client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def abort_uploads(self, older_than: float) -> int:
        """See `Storage.abort_uploads`."""
        aborted = 0
        for page in self._pages("list_multipart_uploads", ""):
            for item in page.get("Uploads", ()):
                if _age(page, item["Initiated"]) >= older_than:
                    aborted += self._abort(item["Key"], item["UploadId"])
        return aborted

    def _abort(self, name: str, upload: str) -> bool:
        """False if it is gone already: it was finished, or another process aborted it."""
        try:
            with self._explained(name.removeprefix(self._head)):
                self._client.abort_multipart_upload(Bucket=self.bucket, Key=name, UploadId=upload)
        except MissingObject:
            return False
        return True

    def location(self, key: str = "") -> str:
        """See `Storage.location`."""
        return f"s3://{self.bucket}/{self._head}{key}"

    def child(self, prefix: str) -> "S3Storage":
        """See `Storage.child`."""
        return S3Storage(self.bucket, self._name(prefix), self.connection)

    @contextlib.contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            raise _explain(error, self.location(key)) from None
        except (NoCredentialsError, NoRegionError) as error:
            raise ManifestError(
                "storage.root", "needs S3 credentials", str(error), "set AWS_* or a profile"
            ) from None
        except BotoCoreError as error:
            raise InfrastructureError(
                f"storage: {self.location(key)}: {error}; run the same command again, it resumes"
            ) from None


def _age(page: Any, written: datetime) -> float:
    """Seconds from `written` to the answer `page`, both by the store's clock."""
    now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
    return max(0.0, (now - written).total_seconds())


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _explain(error: ClientError, location: str) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in ("NoSuchKey", "NoSuchUpload", "404", "NotFound"):
        return missing_object(location)
    if code == "NoSuchBucket" or _status(error) in (301, 401, 403):
        return ManifestError(
            "storage.root", "must be a bucket you may use", f"{location} ({code})", "check it"
        )
    return InfrastructureError(
        f"storage: {location}: {code or _status(error)}; run the same command again, it resumes"
    )
