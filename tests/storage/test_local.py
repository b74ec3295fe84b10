import errno
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfkd.errors import CorruptionError, Exit, InfrastructureError, ManifestError
from dfkd.storage.base import KEY, split_root
from dfkd.storage.local import LocalStorage, open_storage, open_to_read
from tests.helpers.jobs import ROOT
from tests.helpers.storage_contract import StorageTests

BIG = 3 << 20


def process(script: str, *words: object) -> subprocess.Popen[str]:
    """A script in a process of its own, which imports no more than it needs."""
    command = [sys.executable, "-c", script, *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)


def leftovers(root: Path) -> list[Path]:
    return list((root / ".partial").iterdir())


class TestStorage(StorageTests):
    @pytest.fixture
    def root(self, tmp_path: Path) -> str:
        return str(tmp_path / "runs/one")


KEYS = st.lists(
    st.text("ab.-_0", min_size=1, max_size=3).filter(lambda name: name[0] not in ".-"),
    min_size=1,
    max_size=3,
).map("/".join)


@settings(max_examples=40)
@given(st.lists(KEYS, max_size=12), st.sampled_from(["", "a", "a/", "a/b", "b.", "0/a/"]))
def test_list_is_sorted_and_complete(keys: list[str], prefix: str) -> None:
    # No key may be a directory of another one: S3 allows that, a file system does not.
    chosen = [k for k in set(keys) if not any(other.startswith(f"{k}/") for other in keys)]
    with tempfile.TemporaryDirectory() as root:
        storage = LocalStorage(Path(root))
        storage.prepare()
        for key in chosen:
            storage.put(key, b"")
        assert list(storage.list(prefix)) == sorted(k for k in chosen if k.startswith(prefix))


@given(st.from_regex(KEY, fullmatch=True))
def test_no_accepted_key_leaves_the_root(key: str) -> None:
    assert all(part and not part.startswith(".") for part in key.split("/"))
    assert key.isprintable()
    assert "\\" not in key


def test_files_that_no_key_names_are_not_listed(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.put("a", b"")
    (tmp_path / "contact sheet.png").write_bytes(b"")
    (tmp_path / ".hidden").write_bytes(b"")
    assert list(storage.list()) == ["a"]


WRITER = """
import sys
from dfkd.storage.local import open_storage
storage, data = open_storage(sys.argv[1]), bytes([int(sys.argv[2])]) * int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
print(storage.put_if_absent("prize", data))
"""


def test_exactly_one_of_racing_processes_wins(tmp_path: Path) -> None:
    """`StorageTests` has the race of threads."""
    storage = open_storage(str(tmp_path))
    seen: set[bytes] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            if storage.exists("prize"):
                seen.add(storage.get("prize"))

    reader = threading.Thread(target=read)
    reader.start()
    writers = [process(WRITER, tmp_path, number, BIG) for number in range(8)]
    assert [writer.stdout.readline() for writer in writers] == ["ready\n"] * 8
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    won = [writer.communicate()[0] == "True\n" for writer in writers]
    done.set()
    reader.join()
    assert sum(won) == 1
    assert storage.get("prize") == bytes([won.index(True)]) * BIG
    assert seen <= {storage.get("prize")}
    assert leftovers(tmp_path) == []


def test_a_link_whose_answer_was_lost_has_won(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS sends the request again, and the server finds the name that the first one made."""
    link = os.link

    def repeated(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    storage = open_storage(str(tmp_path))
    monkeypatch.setattr(os, "link", repeated)
    assert storage.put_if_absent("prize", b"mine")
    assert not storage.put_if_absent("prize", b"yours")
    assert storage.get("prize") == b"mine"


@pytest.mark.parametrize(("write", "call"), [("put", "replace"), ("put_if_absent", "link")])
def test_bytes_are_on_the_disk_before_their_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str, call: str
) -> None:
    """After a power cut an object is whole or absent, and one that was written is there."""
    storage = open_storage(str(tmp_path))
    steps: list[str] = []
    fsync, give_name = os.fsync, getattr(os, call)
    root = tmp_path.stat()

    def watched_sync(descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        folders = {"root": root, "folder": (tmp_path / "a").stat()}
        synced = [name for name, of in folders.items() if os.path.samestat(status, of)]
        steps.append(synced[0] if synced else f"{status.st_size} bytes")

    def watched_name(source: Path, target: Path) -> None:
        give_name(source, target)
        steps.append("name")

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(os, call, watched_name)
    getattr(storage, write)("a/b", b"12345")
    assert steps == ["root", "5 bytes", "name", "folder"]


def test_readers_see_the_old_or_the_new_object(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    storage.put("a", b"0" * BIG)
    done = threading.Event()

    def write() -> None:
        for value in (b"1", b"2", b"3", b"4"):
            storage.put("a", value * BIG)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        data = storage.get("a")
        assert data == data[:1] * BIG
    writer.join()


def test_opening_removes_what_dead_writers_left_but_not_what_live_ones_write(
    tmp_path: Path,
) -> None:
    storage = open_storage(str(tmp_path))
    assert isinstance(storage, LocalStorage)
    (tmp_path / ".partial" / ("0" * 32)).write_bytes(b"half")
    with storage._written(tmp_path / "target", b"mine") as partial:
        open_storage(str(tmp_path))
        assert leftovers(tmp_path) == [partial]
    assert leftovers(tmp_path) == []


def test_a_run_of_a_stranger_leads_to_no_file_of_this_machine(tmp_path: Path) -> None:
    """Opening it removes nothing, and no object is read or written through a link in it."""
    private, root = tmp_path / "private", tmp_path / "run"
    private.mkdir()
    (private / "thesis.docx").write_bytes(b"years of work")
    (private / ("0" * 32)).write_bytes(b"years of work")
    root.mkdir()
    (root / ".partial").symlink_to(private)
    with pytest.raises(ManifestError, match=r"must have no link in place of \.partial"):
        open_storage(str(root))
    (root / ".partial").unlink()
    (root / "student").symlink_to(private)
    (root / "results.json").symlink_to(private / "thesis.docx")
    storage = open_storage(str(root))
    for key in ("student/thesis.docx", "results.json"):
        for use in (storage.get, storage.delete, lambda key: storage.put(key, b"x")):
            with pytest.raises(CorruptionError, match="through a link"):
                use(key)
    assert (list(storage.list()), storage.folders()) == ([], ())
    assert sorted(private.iterdir()) == [private / ("0" * 32), private / "thesis.docx"]
    (tmp_path / "moved").symlink_to(root)  # the root itself may be one
    open_storage(str(tmp_path / "moved")).put("a/b", b"x")
    assert (root / "a/b").read_bytes() == b"x"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_waited_for_neither_once_nor_again_and_again(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """A stranger's run may hold a pipe, or a folder that has the name of an object."""
    storage, place = open_storage(str(tmp_path)), tmp_path / "current" / "00000002.json"
    place.parent.mkdir()
    make(place)
    with pytest.raises(CorruptionError, match=r"00000002\.json: (must be a file|no such object)"):
        storage.get("current/00000002.json")
    with pytest.raises(CorruptionError, match=r"00000002\.json: must be a file; remove it"):
        storage.put_if_absent("current/00000002.json", b"x")
    assert place.exists()


LIMITED_READER = """
import resource, sys
from dfkd.errors import CorruptionError
from dfkd.storage.local import open_to_read
resource.setrlimit(resource.RLIMIT_AS, (1 << 36, 1 << 36))
try:
    open_to_read(sys.argv[1]).get("results.json")
except CorruptionError as error:
    print(error)
"""


def test_an_object_beyond_all_memory_is_named(tmp_path: Path) -> None:
    """A sparse file takes no space on the disk of the stranger who sends it."""
    (tmp_path / "results.json").touch()
    os.truncate(tmp_path / "results.json", 1 << 40)
    message, _ = process(LIMITED_READER, tmp_path).communicate()
    assert "results.json: its 1099511627776 bytes do not fit into memory" in message


def test_a_full_disk_is_one_line_and_loses_nothing(small_disk: Path) -> None:
    storage = open_storage(str(small_disk))
    storage.put("first", b"1" * (100 << 10))
    for write in (storage.put, storage.put_if_absent):
        with pytest.raises(InfrastructureError, match=r"no room for .*second.*free disk") as caught:
            write("second", b"2" * (200 << 10))
        assert caught.value.exit_code == Exit.RETRY
        assert "204800 bytes" in str(caught.value)
    assert list(storage.list()) == ["first"]
    assert leftovers(small_disk) == []
    assert storage.put_if_absent("second", b"2" * (100 << 10))


LIMITED_WRITER = """
import resource, sys
from dfkd.errors import InfrastructureError
from dfkd.storage.local import open_storage
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    open_storage(sys.argv[1]).put_if_absent("big", b"x" * 5000)
except InfrastructureError as error:
    print(error)
"""


def test_a_file_size_limit_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    message, _ = process(LIMITED_WRITER, tmp_path).communicate()
    assert "no room for" in message
    assert "5000 bytes" in message
    assert list(open_storage(str(tmp_path)).list()) == []
    assert leftovers(tmp_path) == []


def test_roots_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for root in (str(tmp_path / "file"), "/proc/here"):
        with pytest.raises(ManifestError, match=r"storage\.root: must be a writable directory"):
            open_storage(root)


def test_a_disk_that_fails_for_a_moment_says_nothing_about_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job ends with exit code 4, after which a repetition may succeed."""

    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "link", stale)
    with pytest.raises(OSError, match="Stale file handle"):
        open_storage(str(tmp_path))


@pytest.mark.parametrize(
    ("root", "rule"),
    [
        ("ftp://x/y", "must be a directory, s3://bucket/prefix, az://"),
        ("S3://bucket", "must be a directory, s3://bucket/prefix, az://"),
        ("s3:/bucket", "must be a directory, s3://bucket/prefix, az://"),
        ("s3://", "must name a bucket"),
        ("az://two--hyphens/prefix", "must name a bucket or container"),
        ("az://ab", "must name a bucket or container"),
        ("gs://Bucket", "must name a bucket or container"),
        ("az://container/a?b", "must have a prefix of names"),
        ("s3://bucket/a/../b", "must have a prefix of names"),
    ],
)
def test_a_root_that_no_storage_serves_is_refused(root: str, rule: str) -> None:
    with pytest.raises(ManifestError) as caught:
        split_root("--output", root)
    assert str(caught.value).startswith(f"--output: {rule}")
    assert f", got {root!r}; " in str(caught.value)


def test_a_root_is_a_bucket_with_a_prefix_or_a_directory() -> None:
    assert split_root("x", "s3://bucket") == split_root("x", "s3://bucket/") == ("s3", "bucket", "")
    assert split_root("x", "s3://bucket/a/b/") == ("s3", "bucket", "a/b")
    assert split_root("x", "az://con-tainer/a/b/") == ("az", "con-tainer", "a/b")
    assert split_root("x", "gs://a.bucket_1/a") == ("gs", "a.bucket_1", "a")
    assert split_root("x", "runs/a:b") == ("", "", "runs/a:b")


def test_a_root_that_is_only_read_is_left_as_it_is(tmp_path: Path) -> None:
    assert list(open_to_read(str(tmp_path / "nowhere")).entries()) == []
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / "a").write_bytes(b"abc")
    storage = open_to_read(str(tmp_path / "copied"))
    (entry,) = storage.entries()
    assert (entry.key, entry.size) == ("a", 3)
    assert 0 <= entry.age < 60
    assert storage.get("a") == b"abc"
    assert [file.name for file in (tmp_path / "copied").iterdir()] == ["a"]
