"""What needs no server of the storage on Azure and Google Cloud."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from dfkd.errors import ManifestError
from dfkd.storage.azure_gcs import ObstoreStorage
from dfkd.storage.azure_gcs_client import STORES, reason, status
from dfkd.storage.local import open_storage, open_to_read


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
        return iter([[{"path": "a/b"}, {"path": "a-b"}]])


def test_a_store_in_which_both_writers_win_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STORES, "gs", Forgetful)
    with pytest.raises(ManifestError, match="a store that honours If-None-Match or x-goog"):
        open_storage("gs://bucket/run")


def test_a_store_that_lists_by_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STORES, "az", Unordered)
    with pytest.raises(ManifestError, match="must be a store that lists objects by name"):
        list(ObstoreStorage("container", scheme="az").list())


def test_a_store_that_may_only_be_read_shows_its_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    class ReadOnly:
        """A store that refuses a put, as with the role of a reader."""

        def __init__(self, *_: object, **__: object) -> None:
            self.memory = MemoryStore()
            self.memory.put("run/a", b"data")

        def put(self, *_: object, **__: object) -> None:
            raise GenericError("Server returned non-2xx status code: 403 Forbidden: ")

        def list(self, *arguments: Any, **options: Any) -> Any:
            return self.memory.list(*arguments, **options)

    monkeypatch.setitem(STORES, "az", ReadOnly)
    (entry,) = open_to_read("az://container/run").entries()
    assert (entry.key, entry.size) == ("a", 4)
    assert 0 <= entry.age < 60


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
