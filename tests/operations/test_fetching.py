"""Published files into the cache: real answers of a real server, cut, wrong, late and lost."""

import errno
import socket
import ssl
import urllib.error
from collections.abc import Iterator
from dataclasses import replace
from email.message import Message
from pathlib import Path

import pytest

from dfkd.errors import CorruptionError, DfkdError, Exit, InfrastructureError
from dfkd.models.weights.artifacts import Artifact
from dfkd.operations import fetching
from dfkd.storage.retries import RetryPolicy
from tests.helpers.http_server import Publisher

BODY = bytes(range(256)) * 1000
FILE = "w.ckpt"
HASTE = RetryPolicy(attempts=4, pause=0.001, longest_pause=0.001)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    monkeypatch.setattr(fetching, "RETRIES", HASTE)
    with Publisher(**{FILE: BODY}) as publisher:
        yield publisher


def fetch(cache: Path, artifact: Artifact) -> str:
    return fetching.fetch_file(artifact, str(cache))


def failure(cache: Path, artifact: Artifact) -> DfkdError:
    """The error of a fetch that leaves no file behind."""
    with pytest.raises(DfkdError) as caught:
        fetch(cache, artifact)
    assert list(cache.iterdir()) == []
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_file_is_there_whole_and_verified_and_not_fetched_again(
    server: Publisher, tmp_path: Path
) -> None:
    artifact, cache = server.artifact(FILE), tmp_path / "cache"
    found = f"256000 bytes, sha256 {artifact.sha256} as stated by its publisher"
    assert fetch(cache, artifact) == f"{FILE} fetched, {found}"
    assert fetch(cache, artifact) == f"{FILE} was there, {found}"
    short = replace(artifact, sha256=artifact.sha256[:8])
    assert "in its first 8 digits as stated by" in fetch(cache, short)
    assert len(server.seen) == 1
    assert [path.name for path in cache.iterdir()] == [FILE]
    (cache / FILE).write_bytes(BODY[:-1] + b"x")
    with pytest.raises(CorruptionError, match=r"sha256 .* is not .*; delete it and run again"):
        fetch(cache, artifact)


def test_a_bad_line_is_tried_again(
    server: Publisher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.inject("cut 100000", "busy", "cut 0")
    fetch(tmp_path, server.artifact(FILE))
    assert (tmp_path / FILE).read_bytes() == BODY
    told = capsys.readouterr().err
    assert f"{FILE}: 127.0.0.1: HTTP Error 503" in told
    assert f"{FILE} from 127.0.0.1" in told


def test_a_silent_server_is_asked_again(
    server: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "TIMEOUT", 1.0)
    server.inject("silent")
    fetch(tmp_path, server.artifact(FILE))
    assert len(server.seen) >= 2  # a busy machine may be late again
    assert socket.getdefaulttimeout() is None


def test_a_file_with_another_hash_is_refused(server: Publisher, tmp_path: Path) -> None:
    artifact = replace(server.artifact(FILE), bytes=len(BODY))
    server.files[FILE] = BODY[::-1]
    error = failure(tmp_path, artifact)
    assert isinstance(error, CorruptionError)
    assert f"127.0.0.1 sends a file whose sha256 is not {artifact.sha256}" in str(error)
    assert len(server.seen) == 1


@pytest.mark.parametrize("size", [len(BODY), None])
def test_a_part_of_a_file_or_an_error_page_is_worth_another_run(
    server: Publisher, tmp_path: Path, size: int | None
) -> None:
    """Whether a file is whole is known by its published size or, without one, by its hash alone."""
    artifact = replace(server.artifact(FILE), bytes=size)
    server.inject(*["cut 100"] * HASTE.attempts)
    told = str(failure(tmp_path, artifact))
    assert f"sent 100 of {size or 'an unknown number of'} bytes, whose sha256 is not" in told
    server.files[FILE] = b"<html>Please log in</html>"
    assert isinstance(failure(tmp_path, artifact), InfrastructureError)
    assert len(server.seen) == 2 * HASTE.attempts


def test_an_address_without_the_file_is_a_failure_and_not_tried_again(
    server: Publisher, tmp_path: Path
) -> None:
    server.inject("gone")
    error = failure(tmp_path, server.artifact(FILE))
    assert str(error).startswith(f"{FILE}: 127.0.0.1: HTTP Error 404")
    assert f"copy the file to {tmp_path / FILE}" in str(error)
    assert error.exit_code == Exit.FAILED
    assert len(server.seen) == 1


def test_a_server_that_stays_busy_is_worth_another_run(server: Publisher, tmp_path: Path) -> None:
    server.inject(*["busy"] * HASTE.attempts)
    error = failure(tmp_path, server.artifact(FILE))
    assert isinstance(error, InfrastructureError)
    assert "HTTP Error 503" in str(error)
    assert "run the same command again" in str(error)


@pytest.mark.parametrize("code", [400, 403, 404, 410, 408, 425, 429, 500, 503])
def test_a_status_that_may_pass_is_worth_another_attempt(code: int) -> None:
    """Too early, too many requests, and all that is the server's fault."""
    error = urllib.error.HTTPError("https://a.org/w", code, "", Message(), None)
    assert fetching._may_pass(error) == (code in (408, 425, 429, 500, 503))


def test_neither_a_certificate_nor_a_disk_is_worth_another_attempt() -> None:
    assert fetching._may_pass(urllib.error.URLError("no route"))
    invalid = ssl.SSLCertVerificationError()
    assert not fetching._may_pass(urllib.error.URLError(invalid))  # type: ignore[arg-type]
    assert not fetching._may_pass(OSError(errno.EACCES, "x"))


@pytest.mark.parametrize("small_disk", ["192k"], indirect=True)
def test_a_disk_that_is_too_small_is_one_line(server: Publisher, small_disk: Path) -> None:
    artifact = server.artifact(FILE)
    error = failure(small_disk, replace(artifact, bytes=len(BODY)))
    assert isinstance(error, InfrastructureError)
    assert f"no room for {small_disk / FILE} ({len(BODY)} bytes" in str(error)
    assert server.seen == []
    server.inject("endless")
    error = failure(small_disk, artifact)
    assert isinstance(error, InfrastructureError)
    assert "No space left on device" in str(error)


def test_a_redirect_is_followed_and_not_shown(server: Publisher, tmp_path: Path) -> None:
    """Such addresses may hold tokens; and some are none."""
    server.inject(f"away {server.address}/token/none?Signature=secret")
    assert "token" not in str(failure(tmp_path, server.artifact(FILE)))
    server.inject("away http://[::1")
    assert "127.0.0.1: Invalid IPv6 URL" in str(failure(tmp_path, server.artifact(FILE)))
    server.files["elsewhere"] = BODY
    server.inject(f"away {server.address}/elsewhere")
    fetch(tmp_path, server.artifact(FILE))
    assert (tmp_path / FILE).read_bytes() == BODY
