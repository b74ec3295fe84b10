"""A file on its way: what has arrived, and one try to get the rest, by HTTP or from a folder."""

import contextlib
import hashlib
import ipaddress
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from dfkd.models.weights.artifacts import Artifact
from dfkd.storage.base import disk_full_error, require_disk_space
from dfkd.utils import progress

CHUNK = 1 << 16
MAX_BYTES = 64 << 30
"""Bytes; no model that a manifest can name is larger, and an endless answer ends here."""
TRANSIENT_STATUSES = (408, 425, 429)
"""Answers below 500 after which the same request may succeed."""


class Refusal(Exception):  # noqa: N818 - reads as what it is
    """A place that will not give the file, however often it is asked."""


class PartialFile(progress.Closing):
    """What has arrived of an artifact, in `{file}.part` of the cache, and the hash of that.

    Attributes:
        done: bytes.
        tag: the server's mark of the file that they belong to, or empty.
    """

    def __init__(self, artifact: Artifact, folder: Path) -> None:
        self.path = folder / f"{artifact.file}.part"
        self._tag = folder / f"{artifact.file}.part.tag"
        self._hash, self.done = hashlib.sha256(), 0
        self._stream: IO[bytes] = self.path.open("a+b")
        self._stream.seek(0)
        while chunk := self._stream.read(CHUNK):
            self._count(chunk)
        self.tag = _mark(self._tag.read_text("utf-8", "replace")) if self._tag.is_file() else ""
        if self.done and not self.tag and not artifact.sha256:
            self.restart()  # nothing would tell whether what comes next belongs to it

    @property
    def sha256(self) -> str:
        """Of what has arrived."""
        return self._hash.hexdigest()

    def restart(self, tag: str = "") -> None:
        """Keep nothing; what comes now has the mark `tag`."""
        self._stream.truncate(0)
        self._hash, self.done, self.tag = hashlib.sha256(), 0, tag
        self._tag.write_text(tag, "utf-8")

    def add(self, chunk: bytes) -> None:
        """Append what comes."""
        self._stream.write(chunk)
        self._count(chunk)

    def flush(self) -> None:
        """Let a reader of the file see all of it."""
        self._stream.flush()

    def settle(self, target: Path) -> None:
        """Become the file `target`, in one step."""
        self.flush()
        os.fsync(self._stream.fileno())
        os.replace(self.path, target)
        self._tag.unlink(missing_ok=True)

    def close(self) -> None:
        """Stay for the next try, if anything has arrived."""
        with contextlib.suppress(OSError):  # of a full disk: what is there is hashed again
            self._stream.close()
        if not self.done:
            self.path.unlink(missing_ok=True)
            self._tag.unlink(missing_ok=True)

    def _count(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self.done += len(chunk)


def is_safe(address: str, artifact: Artifact) -> bool:
    """Whether nobody on the way could give another file unnoticed: https, or a hash to hold to."""
    place = urlsplit(address)
    loopback = place.hostname == "localhost" or _is_loopback(place.hostname or "")
    return place.scheme == "https" or (place.scheme == "http" and (artifact.certain or loopback))


def copy(source: Path, artifact: Artifact, part: PartialFile) -> None:
    """All of a local file.

    Raises:
        InfrastructureError: the disk is full.
    """
    part.restart()
    with source.open("rb") as stream:
        _store_body(stream.read, source.stat().st_size, artifact, part)


def receive(address: str, artifact: Artifact, part: PartialFile, silence: float) -> None:
    """What is missing of a file, from where the last try ended if the server can do that.

    Args:
        silence: seconds without a byte after which the connection counts as dead.

    Raises:
        Refusal: this address will not give it.
        OSError, http.client.HTTPException: it did not arrive whole, another try may do.
        InfrastructureError: the disk is full.
    """
    opener = urllib.request.build_opener(_Redirects(artifact))
    try:
        answer = opener.open(_request(address, part), timeout=silence)
    except urllib.error.HTTPError as error:
        with error:
            if not _explain(error, part):
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
    headers = {"User-Agent": "dfkd", "Accept-Encoding": "identity"}
    if part.done:
        headers["Range"] = f"bytes={part.done}-"
        if part.tag:
            headers["If-Range"] = part.tag
    return urllib.request.Request(address, headers=headers)  # noqa: S310 - `is_safe` has seen it


def _explain(error: urllib.error.HTTPError, part: PartialFile) -> bool:
    """Whether a new try is worth it; False if nothing is missing; `Refusal` if none is."""
    if error.code == 416:
        if error.headers.get("Content-Range") == f"bytes */{part.done}":
            return False
        part.restart()
    elif error.code < 500 and error.code not in TRANSIENT_STATUSES:
        raise Refusal(f"answers {error.code}")
    return True


def _prepare(answer: HTTPResponse, part: PartialFile) -> int | None:
    """The size of the whole file, if the answer tells; the part is ready for its body."""
    length = answer.headers.get("Content-Length", "")
    if answer.status != 206:
        etag, date = answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", "")
        part.restart(_mark(etag if etag and not etag.startswith("W/") else date))
    elif not answer.headers.get("Content-Range", "").startswith(f"bytes {part.done}-"):
        part.restart()
        raise OSError("answers with another part than it was asked for")
    return part.done + int(length) if length.isdecimal() else None


def _store_body(
    read: Callable[[int], bytes], size: int | None, artifact: Artifact, part: PartialFile
) -> None:
    """The body of an answer, or of a file, of which `size` bytes are to be there at the end."""
    if size is not None and artifact.bytes not in (None, size):
        raise Refusal(f"has {size} bytes, not {artifact.bytes}")
    limit = artifact.bytes or MAX_BYTES if size is None else size
    if size is not None:
        require_disk_space(part.path, size - part.done)
    with (
        progress.bar(artifact.file, _kilo(size or 0), "kB", _kilo(part.done)) as shown,
        disk_full_error(part.path, limit),
    ):
        while chunk := read(CHUNK):
            before = part.done
            part.add(chunk)
            shown.update(_kilo(part.done) - _kilo(before))
            if part.done > limit:
                raise Refusal(f"sends more than {limit} bytes")
        part.flush()
    if size is not None and part.done < size:
        raise OSError(f"was cut off at {part.done} of {size} bytes")


def _kilo(size: int) -> int:
    return -(-size // 1000)


def _mark(text: str) -> str:
    """A tag that can be sent back in a header, or none."""
    return text if text.isascii() and text.isprintable() and len(text) < 1000 else ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows where an answer leads, but not into the open."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """See `urllib.request.HTTPRedirectHandler.redirect_request`."""
        if not is_safe(newurl, self.artifact):
            raise Refusal("leads to an address that is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
