"""Download of published files into the cache, with retries and verification.

A file appears in the cache only when it is complete. A file without a published hash is trusted on
first use: its hash is pinned in `{file}.sha256`, in the format of `sha256sum --check`, and a later
download must match it.
"""

import contextlib
import fcntl
import http.client
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from dfkd.config.hashing import sha256_file
from dfkd.config.paths import local_path
from dfkd.errors import CorruptionError, DfkdError, InfrastructureError, ManifestError, shorten
from dfkd.models.weights.artifacts import Artifact
from dfkd.models.weights.http import PartialFile, Refusal, copy, receive
from dfkd.storage.retries import RetryPolicy

Check = Callable[[Path], object]
"""Reads a file; raises `DfkdError` if it is not a file of the expected kind."""


@dataclass(frozen=True)
class Fetched:
    """A file in the cache."""

    path: Path
    sha256: str
    reused: bool
    """Whether the file was already in the cache."""
    pin: Path | None
    """The file with its pinned hash; None if a hash is published."""


@dataclass(frozen=True)
class Fetcher:
    """Fills a cache; a lock makes processes do so one after the other."""

    cache: str | Path
    mirror: str = ""
    """A directory with the files under their names in the cache; empty to use the published
    addresses."""
    report: Callable[[str], object] = lambda note: None
    """Called with a sentence about every failure that is tried again."""
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    """Limit and pauses of consecutive attempts that receive nothing."""
    timeout: float = 60.0
    """Seconds without a byte after which a connection counts as dead."""

    def fetch(self, artifact: Artifact, check: Check) -> Fetched:
        """Download and verify a file, or verify it if it is in the cache already.

        The bytes that an interrupted call has received are kept.

        Args:
            check: recognises the right kind of file if no hash is published.

        Raises:
            ManifestError: the mirror cannot be used.
            CorruptionError: the file has not the published or pinned hash, or fails `check`.
            DfkdError: its address does not serve the file.
            InfrastructureError: the network or the disk failed; the same call resumes.
        """
        folder, target = local_path(self.cache), artifact.within(self.cache)
        target.parent.mkdir(parents=True, exist_ok=True)
        pin = None if artifact.certain else target.with_name(f"{target.name}.sha256")
        with self._locked(folder):
            reused = target.is_file()
            # A file in the cache is verified too, because people also copy files there by hand.
            if reused:
                digest = sha256_file(target)
                if problem := _problem(artifact, digest, pin):
                    raise CorruptionError(f"{target}: {problem}; delete it and run again")
                if pin and not pin.exists():
                    _check(artifact, target, check)
            else:
                digest = self._download(artifact, target, pin, check)
            if pin and not pin.exists():
                # Whole or not at all, because an empty pin would refuse the file ever after.
                written = pin.with_name(f"{pin.name}.new")
                written.write_text(f"{digest}  {target.name}\n", "utf-8")
                written.replace(pin)
        return Fetched(target, digest, reused, pin)

    @contextlib.contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """Hold the folder's lock; the kernel releases the lock of a process that has died."""
        with (folder / ".lock").open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.report(f"waiting for another process that fetches into {folder}")
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _download(self, artifact: Artifact, target: Path, pin: Path | None, check: Check) -> str:
        """Download the complete file to `target`; returns its sha256."""
        with PartialFile(artifact, local_path(self.cache)) as part:
            resumed = part.done > 0
            self._fill(artifact, part)
            problem = _problem(artifact, part.sha256, pin)
            # The bytes of an earlier call may belong to another version of the file.
            if problem and resumed:
                self.report(f"{artifact.file}: {problem}, fetching it from the start")
                part.restart()
                self._fill(artifact, part)
                problem = _problem(artifact, part.sha256, pin)
            try:
                if problem:
                    raise CorruptionError(
                        f"{artifact.file}: {problem}; run again, or give another --mirror"
                    )
                if pin:
                    _check(artifact, part.path, check)
            except CorruptionError:
                part.restart()  # else the next call would resume from wrong bytes
                raise
            part.commit(target)
            return part.sha256

    def _fill(self, artifact: Artifact, part: PartialFile) -> None:
        """Fetch the missing bytes, from the mirror or from the published address."""
        if not self.mirror:
            self._receive(artifact, part)
            return
        source = local_path(self.mirror) / artifact.file
        if not source.is_file():
            rule = f"must be a directory with {artifact.file}"
            raise ManifestError("--mirror", rule, self.mirror, "copy it there")
        try:
            copy(source, artifact, part)
        except Refusal as refusal:
            raise _given_up(artifact, f"{source} {refusal}") from None

    def _receive(self, artifact: Artifact, part: PartialFile) -> None:
        """Fetch the missing bytes from the published address, with retries."""
        host, furthest, failures = urlsplit(artifact.address).hostname, part.done, 0
        while True:
            try:
                return receive(artifact, part, self.timeout)
            except Refusal as refusal:
                raise _given_up(artifact, f"{host} {refusal}") from None
            except (OSError, http.client.HTTPException) as error:
                reason = f"{host} {_words(error)}"
                # A slow network that still delivers bytes may fail any number of times. Bytes that
                # an earlier attempt had received, too, are no progress: some servers cannot resume.
                failures = 1 if part.done > furthest else failures + 1
                furthest = max(furthest, part.done)
                if failures >= self.retries.attempts:
                    raise InfrastructureError(
                        f"{artifact.file}: {reason}; run the same command again, it resumes, or "
                        "give a --mirror that has it"
                    ) from None
                self.report(f"{artifact.file}: {reason}, trying again")
                self.retries.wait(failures)


def _problem(artifact: Artifact, digest: str, pin: Path | None) -> str:
    """The problem with the hash `digest` of a file; empty if it is right or not known."""
    if not digest.startswith(artifact.sha256):
        return f"sha256 {digest} is not {artifact.sha256} that was published"
    # A published hash of a few digits can be met by other files, so the first one is pinned too.
    pinned = _pinned(pin) if pin else ""
    return "" if digest.startswith(pinned) else f"sha256 {digest} is not {pinned} in {pin}"


def _pinned(pin: Path) -> str:
    """The hash of the first download; empty before it."""
    if not pin.is_file():
        return ""
    with pin.open(encoding="utf-8", errors="replace") as stream:
        digest = stream.read(64)
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise CorruptionError(f"{pin}: holds no sha256; delete it and run again")
    return digest


def _check(artifact: Artifact, path: Path, check: Check) -> None:
    """Raise `CorruptionError` if the file is of another kind, such as the page of a portal."""
    try:
        check(path)
    except DfkdError as error:
        reason = str(error).partition(", got ")[0]
        raise CorruptionError(
            f"{artifact.file}: is something else ({reason}); run again, or give another --mirror"
        ) from None


def _given_up(artifact: Artifact, reason: str) -> DfkdError:
    """The error about a file that its address or the mirror does not serve."""
    return DfkdError(f"{artifact.file}: {reason}; give a --mirror that has it")


def _words(error: Exception) -> str:
    """The reason of a failed attempt in at most 160 printable characters."""
    text = str(getattr(error, "reason", "") or error) or type(error).__name__
    return shorten("".join(c if c.isprintable() else " " for c in text))
