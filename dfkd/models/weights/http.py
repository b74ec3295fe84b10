"""A partially downloaded file, and one attempt to get the rest by HTTP or from a folder."""

import contextlib
import hashlib
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPResponse
from pathlib import Path

from dfkd.models.weights.artifacts import Artifact
from dfkd.storage.base import disk_full_error, require_disk_space
from dfkd.utils import progress

CHUNK = 1 << 16
MAX_BYTES = 64 << 30
"""Maximal size of a file, which stops endless answers; every model in `artifacts` is smaller."""
TRANSIENT_STATUSES = (408, 425, 429)
"""HTTP statuses below 500 after which the same request may succeed later."""


class Refusal(Exception):  # noqa: N818 - reads as what it is
    """An address does not serve the file, and trying again would not help."""


class PartialFile(progress.Closing):
    """The bytes of an artifact that have been received, in `{file}.part` of the cache.

    Attributes:
        done: number of bytes.
    """

    def __init__(self, artifact: Artifact, folder: Path) -> None:
        self.path = folder / f"{artifact.file}.part"
        self._stream = self.path.open("a+b")
        self._stream.seek(0)
        self._hash = hashlib.file_digest(self._stream, "sha256")
        self.done = self._stream.tell()

    @property
    def sha256(self) -> str:
        """The hash of the received bytes."""
        return self._hash.hexdigest()

    def restart(self) -> None:
        """Drop all bytes."""
        self._stream.truncate(0)
        self._hash, self.done = hashlib.sha256(), 0

    def add(self, chunk: bytes) -> None:
        """Append received bytes."""
        self._stream.write(chunk)
        self._hash.update(chunk)
        self.done += len(chunk)

    def flush(self) -> None:
        """Write all bytes to the file, for its readers."""
        self._stream.flush()

    def commit(self, target: Path) -> None:
        """Move the complete file to `target` atomically."""
        self.flush()
        os.fsync(self._stream.fileno())
        os.replace(self.path, target)

    def close(self) -> None:
        """Close the file; it is kept for the next attempt unless it is empty."""
        with contextlib.suppress(OSError):  # a full disk; the next attempt hashes what was written
            self._stream.close()
        if not self.done:
            self.path.unlink(missing_ok=True)


def copy(source: Path, artifact: Artifact, part: PartialFile) -> None:
    """Copy a local file into `part`.

    Raises:
        InfrastructureError: the disk is full.
    """
    part.restart()
    with source.open("rb") as stream:
        _store_body(stream.read, source.stat().st_size, artifact, part)


def receive(artifact: Artifact, part: PartialFile, timeout: float) -> None:
    """Download the missing bytes into `part`.

    All bytes are downloaded if the server cannot resume, or if no hash of the file is published.

    Args:
        timeout: seconds without a byte after which the connection counts as dead.

    Raises:
        Refusal: its address does not serve the file.
        OSError, http.client.HTTPException: the download failed; another attempt may succeed.
        InfrastructureError: the disk is full.
    """
    # Without a published hash nothing would show whether the next bytes are of the same file.
    if not artifact.sha256:
        part.restart()
    try:
        request = _request(artifact.address, part)
        answer = urllib.request.urlopen(request, timeout=timeout)  # noqa: S310 - as below
    except urllib.error.HTTPError as error:
        # A refused range may mean that the file is complete already.
        with error:
            if not _is_worth_retrying(error, part):
                return
        raise OSError(f"answers {error.code}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise Refusal("has no valid certificate") from None
        raise
    except ValueError:
        raise Refusal("leads to something that is no address") from None
    with answer:
        size = _prepare(answer, part)
        _store_body(answer.read1, size, artifact, part)


def _request(address: str, part: PartialFile) -> urllib.request.Request:
    """A request for the missing bytes."""
    # `identity`, because the bytes of a compressed answer could not be counted or resumed.
    headers = {"User-Agent": "dfkd", "Accept-Encoding": "identity"}
    if part.done:
        headers["Range"] = f"bytes={part.done}-"
    return urllib.request.Request(address, headers=headers)  # noqa: S310 - one of ours


def _is_worth_retrying(error: urllib.error.HTTPError, part: PartialFile) -> bool:
    """Whether another attempt may succeed; False if `part` is complete already.

    Raises:
        Refusal: no attempt can succeed.
    """
    if error.code == 416:
        if error.headers.get("Content-Range") == f"bytes */{part.done}":
            return False
        part.restart()
    elif error.code < 500 and error.code not in TRANSIENT_STATUSES:
        raise Refusal(f"answers {error.code}")
    return True


def _prepare(answer: HTTPResponse, part: PartialFile) -> int | None:
    """Prepare the part for an answer's body; returns the size of the whole file if it is known."""
    length = answer.headers.get("Content-Length", "")
    if answer.status != 206:
        part.restart()  # the server sends the whole file
    elif not answer.headers.get("Content-Range", "").startswith(f"bytes {part.done}-"):
        part.restart()
        raise OSError("answers with another part than it was asked for")
    # Python refuses to convert thousands of digits, which are no size anyway.
    return part.done + int(length) if length.isdecimal() and len(length) < 20 else None


def _store_body(
    read: Callable[[int], bytes], size: int | None, artifact: Artifact, part: PartialFile
) -> None:
    """Append a body to `part`, until the file has `size` bytes if the size is known."""
    # A wrong size is noticed before the download of gigabytes, a wrong hash only after it.
    if size is not None and artifact.bytes not in (None, size):
        raise Refusal(f"has {size} bytes, not {artifact.bytes}")
    limit = artifact.bytes or MAX_BYTES
    if size is not None:
        if size > limit:
            raise Refusal(f"has {size} bytes, at most {limit}")
        require_disk_space(part.path, size - part.done)
    with (
        progress.bar(artifact.file, size or 0, "B", part.done) as bar,
        disk_full_error(part.path, limit),
    ):
        while chunk := read(CHUNK):
            part.add(chunk)
            bar.update(len(chunk))
            if part.done > limit:
                raise Refusal(f"sends more than {limit} bytes")
        part.flush()
    # http.client ends a body that was cut off without an error when it is read in chunks.
    if size is not None and part.done < size:
        raise OSError(f"was cut off at {part.done} of {size} bytes")
