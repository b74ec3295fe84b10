"""Published files into the cache: real answers of a real server, cut, wrong, late and lost."""

import hashlib
import multiprocessing
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfkd.errors import CorruptionError, DfkdError, Exit, InfrastructureError, ManifestError
from dfkd.models.weights.artifacts import Artifact
from dfkd.models.weights.download import Fetched, Fetcher
from dfkd.models.weights.http import PartialFile, receive
from dfkd.storage.retries import RetryPolicy
from tests.helpers.http_server import Publisher
from tests.helpers.waiting import wait_for

BODY = bytes(range(256)) * 1000
FILE = "w.ckpt"
HASTE = RetryPolicy(attempts=4, pause=0.001, longest_pause=0.001)


@pytest.fixture
def server() -> Iterator[Publisher]:
    with Publisher(**{FILE: BODY}) as publisher:
        yield publisher


def anything(path: Path) -> None:
    """A check that every file passes."""


def fetch(
    cache: Path, artifact: Artifact, mirror: str = "", told: list[str] | None = None
) -> Fetched:
    tell = (told if told is not None else []).append
    fetcher = Fetcher(cache, mirror, tell, HASTE, timeout=5)
    return fetcher.fetch(artifact, anything)


def failure(cache: Path, artifact: Artifact, mirror: str = "") -> DfkdError:
    """The error of a fetch that leaves no file behind."""
    with pytest.raises(DfkdError) as caught:
        fetch(cache, artifact, mirror)
    assert not artifact.within(cache).exists()
    assert "\n" not in str(caught.value)
    return caught.value


def left(cache: Path) -> set[str]:
    """The names of the files in a cache."""
    return {path.name for path in cache.iterdir()} - {".lock"}


@pytest.mark.parametrize("known", [True, False])
def test_a_file_is_there_whole_and_verified_and_not_fetched_again(
    server: Publisher, tmp_path: Path, known: bool
) -> None:
    artifact, cache = server.artifact(FILE, known), tmp_path / "cache"
    fetched = fetch(cache, artifact)
    assert (fetched.path, fetched.path.read_bytes()) == (cache / FILE, BODY)
    assert fetched.sha256 == hashlib.sha256(BODY).hexdigest()
    assert not fetched.reused
    assert left(cache) == ({FILE} if known else {FILE, f"{FILE}.sha256"})
    assert fetch(cache, artifact).reused
    assert len(server.seen) == 1
    (cache / FILE).write_bytes(BODY[:-1] + b"x")
    with pytest.raises(CorruptionError, match=r"sha256 .* is not .*; delete it and run again"):
        fetch(cache, artifact)
    (cache / FILE).unlink()
    assert not fetch(cache, artifact).reused


def test_a_cut_connection_goes_on_where_it_ended(server: Publisher, tmp_path: Path) -> None:
    server.inject("cut 100000", "cut 7", "busy", "cut 0", "cut 55000")
    told: list[str] = []
    fetched = fetch(tmp_path, server.artifact(FILE), told=told)
    assert fetched.path.read_bytes() == BODY
    assert server.ranges == [
        "", "bytes=100000-", "bytes=100007-", "bytes=100007-", "bytes=100007-", "bytes=155007-",
    ]  # fmt: skip
    assert len(told) == 5
    assert all(FILE in note and "trying again" in note for note in told)


@settings(max_examples=25)
@given(cuts=st.lists(st.integers(0, 40_000), max_size=6), known=st.booleans())
def test_however_it_is_cut_the_file_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], known: bool
) -> None:
    """Each attempt starts from the cache alone, as a new process would."""
    cache = tmp_path_factory.mktemp("cache")
    with Publisher(**{FILE: BODY}) as server:
        artifact = server.artifact(FILE, known)
        for cut in cuts:
            server.inject(f"cut {cut}")
            with PartialFile(artifact, cache) as part, pytest.raises(OSError, match="cut off"):
                receive(artifact, part, 5)
        assert fetch(cache, artifact).path.read_bytes() == BODY
        resumed = known and sum(cuts) > 0
        assert server.ranges[-1] == (f"bytes={sum(cuts)}-" if resumed else "")


def fetch_apart(cache: Path, artifact: Artifact) -> None:
    fetch(cache, artifact)


@pytest.fixture
def other(server: Publisher, tmp_path: Path) -> Iterator[BaseProcess]:
    """A process that fetches the file into `tmp_path` too, and has half of it."""
    server.inject("held")
    arguments = (tmp_path, server.artifact(FILE))
    child = multiprocessing.get_context("spawn").Process(target=fetch_apart, args=arguments)
    child.start()
    assert server.held.wait(120)
    yield child
    child.kill()
    child.join()


def test_a_killed_process_is_resumed_by_the_next(
    server: Publisher, tmp_path: Path, other: BaseProcess
) -> None:
    part = tmp_path / f"{FILE}.part"
    wait_for(lambda: part.exists() and part.stat().st_size >= 60_000, alive=other.is_alive)
    other.kill()
    other.join()
    assert other.exitcode == -signal.SIGKILL
    arrived = part.stat().st_size
    assert fetch(tmp_path, server.artifact(FILE)).path.read_bytes() == BODY
    assert server.ranges == ["", f"bytes={arrived}-"]


@pytest.mark.parametrize("fault", ["whole", "shifted"])
def test_a_server_that_cannot_resume_starts_anew(
    server: Publisher, tmp_path: Path, fault: str
) -> None:
    server.inject("cut 1000", fault)
    assert fetch(tmp_path, server.artifact(FILE)).path.read_bytes() == BODY


def test_a_server_that_never_gets_further_is_given_up(server: Publisher, tmp_path: Path) -> None:
    """Without a known hash each attempt begins anew; some get further than the one before."""
    server.inject("cut 9000", *(f"cut {1000 + 500 * (n % 3)}" for n in range(20)))
    artifact = server.artifact(FILE, known=False)
    assert isinstance(failure(tmp_path, artifact), InfrastructureError)
    assert len(server.seen) == HASTE.attempts


def test_two_files_are_never_mixed(server: Publisher, tmp_path: Path) -> None:
    """A file that changes while it is fetched, and no hash that would tell."""
    artifact = server.artifact(FILE, known=False)
    server.inject("cut 1000")
    with (
        PartialFile(artifact, tmp_path) as part,
        pytest.raises(OSError, match="cut off at 1000 of"),
    ):
        receive(artifact, part, 5)
    server.files[FILE] = changed = BODY[::-1]
    assert fetch(tmp_path, artifact).path.read_bytes() == changed
    assert server.ranges == ["", ""]


@pytest.mark.parametrize("length", [1000, len(BODY), len(BODY) + 1])
def test_an_old_part_of_something_else_does_no_harm(
    server: Publisher, tmp_path: Path, length: int
) -> None:
    (tmp_path / f"{FILE}.part").write_bytes(b"?" * length)
    fetched = fetch(tmp_path, server.artifact(FILE))
    assert fetched.path.read_bytes() == BODY
    assert left(tmp_path) == {FILE}


def test_a_part_that_was_complete_is_only_verified(server: Publisher, tmp_path: Path) -> None:
    (tmp_path / f"{FILE}.part").write_bytes(BODY)
    assert fetch(tmp_path, server.artifact(FILE)).path.read_bytes() == BODY
    assert server.ranges == [f"bytes={len(BODY)}-"]


def test_a_file_with_another_hash_is_refused(server: Publisher, tmp_path: Path) -> None:
    artifact = server.artifact(FILE)
    server.files[FILE] = BODY[:-1] + b"x"
    error = failure(tmp_path, artifact)
    assert isinstance(error, CorruptionError)
    assert artifact.sha256 in str(error)
    assert "give another --mirror" in str(error)
    assert left(tmp_path) == set()


def test_the_beginning_of_a_hash_is_compared_too(server: Publisher, tmp_path: Path) -> None:
    artifact = server.artifact(FILE)
    short = replace(artifact, sha256=artifact.sha256[:8])
    pin = fetch(tmp_path / "right", short).pin
    failure(tmp_path / "wrong", replace(artifact, sha256="0123abcd"))
    # Other files can meet eight digits, so the whole hash of the first one is kept.
    assert pin is not None
    assert pin.read_text().split()[0] == artifact.sha256


def test_a_file_of_another_size_is_refused_before_it_is_taken(
    server: Publisher, tmp_path: Path
) -> None:
    error = failure(tmp_path, replace(server.artifact(FILE), bytes=7))
    assert f"has {len(BODY)} bytes, not 7" in str(error)
    assert left(tmp_path) == set()


def test_an_endless_answer_is_cut_off(server: Publisher, tmp_path: Path) -> None:
    server.inject("endless")
    assert "sends more than 9000 bytes" in str(
        failure(tmp_path, replace(server.artifact(FILE), bytes=9000))
    )


def test_an_address_without_the_file_is_a_failure_and_not_tried_again(
    server: Publisher, tmp_path: Path
) -> None:
    server.inject("gone")
    error = failure(tmp_path, server.artifact(FILE))
    assert "127.0.0.1 answers 404; give a --mirror that has it" in str(error)
    assert error.exit_code == Exit.FAILED
    assert len(server.seen) == 1
    assert left(tmp_path) == set()


def test_a_server_that_stays_busy_is_worth_another_run(server: Publisher, tmp_path: Path) -> None:
    server.inject("cut 1000", *["busy"] * 4)
    error = failure(tmp_path, server.artifact(FILE))
    assert isinstance(error, InfrastructureError)
    assert "answers 503; run the same command again, it resumes" in str(error)
    assert fetch(tmp_path, server.artifact(FILE)).path.read_bytes() == BODY
    assert server.ranges[-1] == "bytes=1000-"


def test_a_silent_server_is_given_up_and_asked_again(server: Publisher, tmp_path: Path) -> None:
    server.inject("silent")
    fetcher = Fetcher(tmp_path, retries=HASTE, timeout=1.0)
    assert fetcher.fetch(server.artifact(FILE), anything).path.read_bytes() == BODY
    assert len(server.seen) >= 2  # a busy machine may be late again


def test_an_unpublished_hash_is_pinned_as_sha256sum_reads_it(
    server: Publisher, tmp_path: Path
) -> None:
    artifact = server.artifact(FILE, known=False)
    fetched = fetch(tmp_path, artifact)
    assert fetched.pin == tmp_path / f"{FILE}.sha256"
    subprocess.run(["sha256sum", "--check", fetched.pin.name], cwd=tmp_path, check=True)
    fetched.path.unlink()
    server.files[FILE] = BODY[::-1]
    error = failure(tmp_path, artifact)
    assert str(fetched.pin) in str(error)
    assert fetched.sha256 in str(error)
    server.files[FILE] = BODY
    assert fetch(tmp_path, artifact).sha256 == fetched.sha256


def test_a_damaged_pin_is_named(server: Publisher, tmp_path: Path) -> None:
    (tmp_path / f"{FILE}.sha256").write_text("no hash")
    assert "holds no sha256; delete it" in str(failure(tmp_path, server.artifact(FILE, False)))


def test_a_page_instead_of_the_file_is_neither_kept_nor_pinned(
    server: Publisher, tmp_path: Path
) -> None:
    def check(path: Path) -> None:
        if path.read_bytes() != BODY:
            raise ManifestError("w", "must be a checkpoint", path, "download it again")

    server.files[FILE] = b"<html>Please log in</html>"
    fetcher = Fetcher(tmp_path, retries=HASTE)
    artifact = server.artifact(FILE, known=False)
    with pytest.raises(CorruptionError, match=r"is something else \(w: must be a checkpoint\)"):
        fetcher.fetch(artifact, check)
    assert left(tmp_path) == set()
    (tmp_path / FILE).write_bytes(b"put there by hand")
    with pytest.raises(CorruptionError, match="is something else"):
        fetcher.fetch(artifact, check)
    assert left(tmp_path) == {FILE}


def test_a_directory_can_be_the_mirror(tmp_path: Path) -> None:
    digest = hashlib.sha256(BODY).hexdigest()
    artifact = Artifact(FILE, "https://nowhere.invalid/w", "MIT", digest, len(BODY))
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for folder in (str(mirror), "https://me:secret@example.org/mirror"):
        error = failure(tmp_path / "cache", artifact, folder)
        assert isinstance(error, ManifestError)
        assert f"--mirror: must be a directory with {FILE}" in str(error)
        assert "secret" not in str(error)
    (mirror / FILE).write_bytes(BODY[:-1])
    error = failure(tmp_path / "cache", artifact, str(mirror))
    assert f"has {len(BODY) - 1} bytes, not {len(BODY)}" in str(error)
    (mirror / FILE).write_bytes(BODY)
    assert fetch(tmp_path / "cache", artifact, str(mirror)).path.read_bytes() == BODY
    assert left(tmp_path / "cache") == {FILE}


@pytest.mark.parametrize("small_disk", ["192k"], indirect=True)
def test_a_file_that_does_not_fit_is_refused_before_it_is_taken(
    server: Publisher, small_disk: Path
) -> None:
    error = failure(small_disk, server.artifact(FILE))
    assert isinstance(error, InfrastructureError)
    assert f"no room for {small_disk / FILE}.part ({len(BODY)} bytes" in str(error)
    assert left(small_disk) == set()


@pytest.mark.parametrize("small_disk", ["192k"], indirect=True)
def test_a_disk_that_fills_up_is_one_line(server: Publisher, small_disk: Path) -> None:
    server.inject("endless")
    error = failure(small_disk, server.artifact(FILE))
    assert isinstance(error, InfrastructureError)
    assert f"no room for {small_disk / FILE}.part" in str(error)
    assert "No space left on device" in str(error)


def test_two_processes_do_not_fetch_a_file_at_once(
    server: Publisher, tmp_path: Path, other: BaseProcess
) -> None:
    told: list[str] = []

    def tell(note: str) -> None:
        told.append(note)
        server.released.set()  # the first goes on with what is missing

    fetcher = Fetcher(tmp_path, report=tell, retries=HASTE)
    assert fetcher.fetch(server.artifact(FILE), anything).reused
    other.join()
    assert other.exitcode == 0
    assert told == [f"waiting for another process that fetches into {tmp_path}"]
    assert server.ranges == ["", f"bytes={len(BODY) // 2}-"]


def test_a_redirect_is_followed_and_not_shown(server: Publisher, tmp_path: Path) -> None:
    """Such addresses may hold tokens; and some are none."""
    server.inject(f"away {server.address}/token/none?Signature=secret")
    assert "token" not in str(failure(tmp_path, server.artifact(FILE)))
    server.inject("away http://[::1")
    assert "no address" in str(failure(tmp_path, server.artifact(FILE)))
    server.files["elsewhere"] = BODY
    server.inject(f"away {server.address}/elsewhere")
    assert fetch(tmp_path, server.artifact(FILE)).path.read_bytes() == BODY
