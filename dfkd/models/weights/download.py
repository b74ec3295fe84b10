"""Published files into the cache: tried again, verified, and not there before they are whole.

A file whose hash nobody has published is trusted on first use: what is found is pinned in
`{file}.sha256`, which `sha256sum --check` reads, and a later download must be the same.
"""

import contextlib
import fcntl
import http.client
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

from dfkd.config.fingerprint import sha256_file
from dfkd.errors import CorruptionError, DfkdError, InfrastructureError, ManifestError, conceal
from dfkd.models.weights.artifacts import Artifact
from dfkd.models.weights.http import PartialFile, Refusal, copy, is_safe, receive
from dfkd.storage.retries import RetryPolicy

Check = Callable[[Path], object]
"""Reads a file; raises `DfkdError` if it is not what it should be."""


@dataclass(frozen=True)
class Fetched:
    """A file in the cache."""

    path: Path
    sha256: str
    reused: bool
    """Whether it was there."""
    pin: Path | None
    """Where its hash is pinned, as none is published."""


@dataclass(frozen=True)
class Fetcher:
    """Fills a cache, which one process does at a time."""

    cache: str | Path
    mirror: str = ""
    """A base URL or a directory that holds files under their names in the cache; empty for where
    they are published."""
    tell: Callable[[str], object] = lambda note: None
    """Is told of what went wrong and is tried again."""
    patience: RetryPolicy = field(default_factory=RetryPolicy)
    """With tries in a row that bring nothing."""
    silence: float = 60.0
    """Seconds without a byte after which a connection counts as dead."""

    def fetch(self, artifact: Artifact, check: Check) -> Fetched:
        """Have a file in the cache, verified; what an interrupted call has got of it is kept.

        Args:
            check: tells a file whose hash nobody has published from something else.

        Raises:
            ManifestError: the mirror cannot be used.
            CorruptionError: not the published file, or not the one that was pinned.
            DfkdError: no place gives it.
            InfrastructureError: the network or the disk failed; the same call resumes.
        """
        folder, target = Path(self.cache).expanduser(), artifact.within(self.cache)
        folder.mkdir(parents=True, exist_ok=True)
        pin = None if artifact.sha256 else target.with_name(f"{target.name}.sha256")
        with self._alone(folder):
            reused = target.is_file()
            if reused:
                digest = sha256_file(target)
                if problem := _problem(artifact, digest, pin):
                    raise CorruptionError(f"{target}: {problem}; delete it and run again")
                if pin and not pin.exists():
                    _check(artifact, target, check)
            else:
                digest = self._download(artifact, target, pin, check)
            if pin and not pin.exists():
                pin.write_text(f"{digest}  {target.name}\n", "utf-8")
        return Fetched(target, digest, reused, pin)

    @contextlib.contextmanager
    def _alone(self, folder: Path) -> Iterator[None]:
        """Wait for another process; the kernel lets go of what a dead one held."""
        with (folder / ".lock").open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.tell(f"waiting for another process that fetches into {folder}")
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _download(self, artifact: Artifact, target: Path, pin: Path | None, check: Check) -> str:
        """The sha256 of the file, which is at `target` then and complete."""
        with PartialFile(artifact, target.parent) as part:
            old = part.done > 0
            self._fill(artifact, part)
            problem = _problem(artifact, part.sha256, pin)
            if problem and old:
                self.tell(f"{artifact.file}: {problem}, fetching it from the start")
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
                part.restart()
                raise
            part.settle(target)
            return part.sha256

    def _fill(self, artifact: Artifact, part: PartialFile) -> None:
        """Whatever is missing, from the mirror or from where it is published."""
        if not self.mirror:
            self._receive(artifact, part, artifact.addresses)
        elif "://" in self.mirror:
            self._receive(artifact, part, (_at_mirror(self.mirror, artifact),))
        else:
            source = Path(self.mirror).expanduser() / artifact.file
            if not source.is_file():
                rule = f"must hold {artifact.file}"
                raise ManifestError("--mirror", rule, self.mirror, "copy it there")
            try:
                copy(source, artifact, part)
            except Refusal as refusal:
                raise _given_up(artifact, f"{source} {refusal}") from None

    def _receive(self, artifact: Artifact, part: PartialFile, addresses: tuple[str, ...]) -> None:
        """From the first address that gives it, tried again while patience lasts."""
        left, failures = list(addresses), 0
        while True:
            host, before = urlsplit(left[0]).hostname, part.done
            try:
                return receive(left[0], artifact, part, self.silence)
            except Refusal as refusal:
                reason = f"{host} {refusal}"
                del left[0]
                if not left:
                    raise _given_up(artifact, reason) from None
            except (OSError, http.client.HTTPException) as error:
                reason = f"{host} {_words(error)}"
                failures = 1 if part.done > before else failures + 1
                if failures >= self.patience.attempts:
                    raise InfrastructureError(
                        f"{artifact.file}: {reason}; run the same command again, it resumes, or "
                        "give another --mirror"
                    ) from None
                if part.done == before:
                    left.append(left.pop(0))  # the next one may be up
                self.tell(f"{artifact.file}: {reason}, trying again")
                self.patience.wait(failures)


def _at_mirror(mirror: str, artifact: Artifact) -> str:
    try:
        base = urlsplit(mirror)
        usable = bool(base.hostname) and "@" not in base.netloc and not base.query
    except ValueError:
        usable = False
    if not usable or base.scheme not in ("http", "https"):
        rule = "must be a directory, or a plain http or https address without credentials"
        raise ManifestError("--mirror", rule, mirror, "give one of these")
    address = f"{mirror.rstrip('/')}/{quote(artifact.file)}"
    if not is_safe(address, artifact):
        rule = f"must be https, as nobody has published the sha256 of {artifact.file}"
        raise ManifestError("--mirror", rule, mirror, "give an https address or a directory")
    return address


def _problem(artifact: Artifact, digest: str, pin: Path | None) -> str:
    """What is wrong with a hash; empty if nothing is."""
    if pin is None:
        right, whose = artifact.sha256, "that was published"
    else:
        right, whose = _pinned(pin), f"in {pin}"
    return "" if digest.startswith(right) else f"sha256 {digest} is not {right} {whose}"


def _pinned(pin: Path) -> str:
    if not pin.is_file():
        return ""
    with pin.open(encoding="utf-8", errors="replace") as stream:
        digest = stream.read(64)
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise CorruptionError(f"{pin}: holds no sha256; delete it and run again")
    return digest


def _check(artifact: Artifact, path: Path, check: Check) -> None:
    try:
        check(path)
    except DfkdError as error:
        reason = str(error).partition(", got ")[0]
        raise CorruptionError(
            f"{artifact.file}: is something else ({reason}); run again, or give another --mirror"
        ) from None


def _given_up(artifact: Artifact, reason: str) -> DfkdError:
    return DfkdError(f"{artifact.file}: {reason}; give a --mirror that has it")


def _words(error: Exception) -> str:
    """Why a try failed, in a few printable words."""
    said = str(getattr(error, "reason", "") or error) or type(error).__name__
    return conceal(" ".join("".join(c if c.isprintable() else " " for c in said).split()))[:160]
