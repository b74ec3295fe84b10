"""The storage on a real Azure Blob server."""

import gc
import os
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from azurite import Azurite
from dfkd.errors import DfkdError, InfrastructureError, ManifestError
from dfkd.storage.local import open_storage
from tests.helpers.s3_proxy import Proxy
from tests.helpers.storage_contract import FaultTests, StorageTests, opened

pytestmark = pytest.mark.azure


@pytest.fixture
def root(azure_root: str) -> str:
    return azure_root


@pytest.fixture
def proxy(azurite: Azurite, root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(azurite.endpoint) as proxy:
        through = azurite.environment["AZURE_STORAGE_ENDPOINT"]
        through = through.replace(azurite.endpoint, proxy.address)
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", through)
        yield proxy


class TestStorage(StorageTests):
    pass


class TestFaults(FaultTests):
    pass


def anonymous_bytes() -> int:
    """Bytes of this process that are not pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("RssAnon:")]
    return int(line.split()[1]) << 10


def test_a_large_file_is_never_in_memory(root: str, tmp_path: Path) -> None:
    size = 200 << 20
    with (tmp_path / "in").open("wb") as stream:
        for number in range(200):
            stream.write(bytes([number]) * (1 << 20))
    storage = open_storage(root)
    gc.collect()
    before, seen = anonymous_bytes(), []
    watched = storage.observed(lambda request: seen.append(anonymous_bytes()))
    assert watched.put_if_absent("a", tmp_path / "in")
    watched.put("a", tmp_path / "in")
    watched.get_file("a", tmp_path / "out")
    assert len(seen) == 3
    assert max(seen) - before < size // 4
    assert (tmp_path / "out").stat().st_size == size
    assert watched.get_range("a", size - 2, size + 9) == bytes([199, 199])


def test_containers_that_cannot_be_used_are_refused(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ManifestError, match=r"must be a bucket you may use.*ContainerNotFound"):
        open_storage("az://no-such-container/x")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "aHVudGVyMg==")
    for use in (lambda: open_storage(root), lambda: list(opened(root).list())):
        with pytest.raises(ManifestError, match=r"you may use, got .*\(AuthorizationFailure\)"):
            use()
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "http://127.0.0.1:9/tester")
    with pytest.raises(InfrastructureError, match=r"runs/one/\.probe: Connect; run the same"):
        open_storage(root)


@pytest.mark.parametrize(
    ("variables", "rule"),
    [
        (
            {"AZURE_STORAGE_ACCOUNT_KEY": "!hunter2"},
            "needs credentials for az://.*InvalidAccessKey",
        ),
        ({"AZURE_STORAGE_ENDPOINT": "me:hunter2@127.0.0.1"}, r"must be an http\(s\) URL, got '127"),
        ({"AZURE_STORAGE_ENDPOINT": "http://me:hunter2@127.0.0.1:9"}, "Connect; run the same"),
        (
            {
                "AZURE_STORAGE_ACCOUNT_KEY": None,
                "AZURE_STORAGE_SAS_TOKEN": "sv=2021&sig=hunter2",
                "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:9/tester",
            },
            "Connect; run the same",
        ),
        (
            {"AZURE_STORAGE_ACCOUNT_KEY": None, "AZURE_STORAGE_SAS_TOKEN": "hunter2"},
            "needs credentials for az://",
        ),
        (
            {
                "AZURE_STORAGE_ACCOUNT_KEY": None,
                "AZURE_CLIENT_ID": "one",
                "AZURE_TENANT_ID": "two",
                "AZURE_CLIENT_SECRET": "hunter2",
                "AZURE_AUTHORITY_HOST": "http://127.0.0.1:9",
            },
            "needs credentials for az://.*Connect",
        ),
        ({"AZURE_STORAGE_ACCOUNT_NAME": None}, "needs credentials for az://.*MissingAccount"),
    ],
)
def test_secrets_are_in_no_error(
    root: str, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str | None], rule: str
) -> None:
    for name, value in variables.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(DfkdError, match=rule) as caught:
        open_storage(root)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value)[-1:])
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert "\n" not in str(caught.value)


def test_keys_are_in_no_repr(root: str) -> None:
    assert os.environ["AZURE_STORAGE_ACCOUNT_KEY"] not in repr(open_storage(root))
