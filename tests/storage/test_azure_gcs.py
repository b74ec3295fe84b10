"""What needs no server of the storage on Azure and Google Cloud."""

import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from dfkd.errors import DfkdError, InfrastructureError, ManifestError
from dfkd.storage.azure_gcs import (
    STORES,
    ObstoreConnection,
    ObstoreStorage,
    explain,
    is_transient,
    reason,
    status,
)
from dfkd.storage.local import open_storage
from dfkd.storage.retries import Limits, RetryPolicy


class Forgetful:
    """A store that ignores the condition of a put."""

    def __init__(self, *_: object, **__: object) -> None:
        self.memory = MemoryStore()

    def put(self, name: str, data: bytes, **_: object) -> None:
        self.memory.put(name, data)


class Unordered:
    """A store with real folders, whose listing shows `a/b` before `a-b`."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def list(self, *_: object, **__: object) -> Iterator[list[dict[str, Any]]]:
        facts = {"size": 0, "last_modified": datetime.now(UTC)}
        return iter([[{"path": path, **facts} for path in ("a/b", "a-b")]])


def test_a_store_in_which_both_writers_win_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STORES, "gs", Forgetful)
    with pytest.raises(ManifestError, match="a store that honours If-None-Match or x-goog"):
        open_storage("gs://bucket/run")


def test_a_store_that_lists_by_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STORES, "az", Unordered)
    with pytest.raises(ManifestError, match="must be a store that lists objects by name"):
        list(ObstoreStorage("container", scheme="az").list())


def test_a_listing_that_breaks_off_goes_on_behind_what_was_received(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory, offsets = MemoryStore(), []
    keys = [f"a/{number}" for number in range(5)]
    for key in keys:
        memory.put(f"run/{key}", b"")

    class Breaking:
        """A store whose first listing ends after its first page."""

        def __init__(self, *_: object, **__: object) -> None:
            pass

        def list(self, folder: str, *, offset: str | None, chunk_size: int) -> Iterator[Any]:
            offsets.append(offset)
            pages = memory.list(folder, offset=offset, chunk_size=chunk_size)
            yield next(pages)
            if len(offsets) == 1:
                raise GenericError("GET https://x in 1ms - HTTP error")
            yield from pages

    monkeypatch.setattr("dfkd.storage.azure_gcs.PAGE", 2)
    monkeypatch.setattr(RetryPolicy, "wait", lambda *_: None)
    monkeypatch.setitem(STORES, "az", Breaking)
    assert list(ObstoreStorage("container", "run", scheme="az").list()) == keys
    assert offsets == [None, "run/a/1"]


@pytest.mark.parametrize("root", ["az://container/run", "gs://bucket/run"])
def test_without_the_extra_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    for name in [name for name in sys.modules if name.startswith("dfkd.storage.azure_gcs")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ManifestError, match=r"needs the extra obstore.*pip install -e"):
        open_storage(root)


def test_google_credentials_that_cannot_be_read_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(ManifestError, match=r"needs credentials for gs://, got 'OpenCredentials'"):
        open_storage("gs://bucket/run")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", '{"private_key": "hunter2"}')
    with pytest.raises(ManifestError, match="needs credentials for gs://") as caught:
        open_storage("gs://bucket/run")
    assert "hunter2" not in str(caught.value)


def test_of_an_error_only_status_and_code_are_read() -> None:
    """Texts as obstore 0.12 writes them."""
    url = "GET https://x/?sig=hunter2 in 1ms"
    busy = OSError(f"{url} - Server returned non-2xx status code: 503 Service Unavailable: ")
    assert (status(busy), reason(busy)) == (503, "503")
    coded = OSError(f"{busy}<Error><Code>ServerBusy</Code></Error>\n\nDebug source:\nkind: Timeout")
    assert reason(coded) == "ServerBusy"
    dump = (
        "Generic { source: RetryError( HttpError {\n kind: Connect, source: Os { code: 111 } } ) }"
    )
    cut = OSError(f"{url} - HTTP error\n\nDebug source:\n{dump}")
    assert (status(cut), reason(cut)) == (0, "Connect")
    assert reason(OSError(url)) == "OSError"


def test_each_request_has_the_patience_that_its_size_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, str]] = []

    class Noting:
        """A store that takes everything."""

        def __init__(self, bucket: str, *, config: dict[str, str], **_: object) -> None:
            made.append(config)

        def put(self, *_: object, **__: object) -> None:
            pass

    monkeypatch.setitem(STORES, "gs", Noting)
    limits = Limits(connect=3.5, read=7.0, write=90.0, large=10)
    storage = ObstoreStorage("bucket", connection=ObstoreConnection(limits), scheme="gs")
    for size in (9, 10, 9, 11):
        storage.put("key", b"x" * size)
    assert [options["read_timeout"] for options in made] == ["7000ms", "90000ms"]
    assert {options["connect_timeout"] for options in made} == {"3500ms"}
    # The library's own limit for a whole request would cut a large body off.
    assert {options["timeout"] for options in made} == {"3600s"}


def answer(code: int, text: str = "", call: str = "GET") -> GenericError:
    """An error as obstore 0.12 writes it."""
    told = f"Server returned non-2xx status code: {code} Text: {text}"
    return GenericError(f"{call} https://x/?sig=hunter2 in 1ms - {told}")


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504, 507])
def test_what_may_pass_is_worth_a_repetition(code: int) -> None:
    assert is_transient(answer(code))
    assert isinstance(explain(answer(code), "az", "az://c/x"), InfrastructureError)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (answer(400), DfkdError, r"az://c/x \(400\)"),
        (answer(401), ManifestError, r"a bucket you may use, got 'az://c/x \(401\)'"),
        (answer(403), ManifestError, r"a bucket you may use, got 'az://c/x \(403\)'"),
        (GenericError("Error performing token request: HTTP"), ManifestError, "credentials for az"),
    ],
)
def test_what_no_repetition_cures_is_told_as_such(
    error: GenericError, kind: type[DfkdError], text: str
) -> None:
    told = explain(error, "az", "az://c/x")
    assert not isinstance(told, InfrastructureError)
    assert isinstance(told, kind)
    assert re.search(text, str(told))
    assert "hunter2" not in str(told)
