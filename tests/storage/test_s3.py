import json
import os
import socket
import ssl
import subprocess
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

import boto3
import pytest
from botocore import exceptions as boto
from botocore.stub import Stubber

from dfkd.errors import DfkdError, InfrastructureError, ManifestError
from dfkd.storage.base import CLEANUP_ATTEMPTS, OPENING_ATTEMPTS, Request, Storage
from dfkd.storage.lease import protecting
from dfkd.storage.local import open_storage
from dfkd.storage.retries import Limits, RetryPolicy
from dfkd.storage.s3 import BUSY_CODES, S3Connection, S3Storage
from tests.helpers.loopback import Handler, Loopback
from tests.helpers.storage_contract import S3FaultTests, StorageTests

server = pytest.importorskip("moto.server", reason="needs moto[server]")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    moto = server.ThreadedMotoServer(port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def root(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = tmp_path.name.replace("_", "-").lower()
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs/one"


class TestStorage(StorageTests):
    def test_a_listing_of_several_pages_is_whole(
        self, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """S3 gives 1,000 keys at once; the server of this test gives five."""
        monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "5")
        keys = [f"a/{number:02d}/x" for number in range(12)]
        for key in keys:
            storage.put(key, b"")
        assert list(storage.list("a/")) == keys
        assert storage.folders("a/") == tuple(f"{number:02d}" for number in range(12))


class TestFaults(S3FaultTests):
    pass


def test_a_bucket_that_is_not_there_is_refused(root: str) -> None:
    with pytest.raises(ManifestError, match=r"must be a bucket you may use.*NoSuchBucket"):
        open_storage("s3://no-such-bucket-here/x")


def test_a_root_that_does_not_answer_is_given_up_soon(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    failed: list[int] = []
    monkeypatch.setattr(RetryPolicy, "wait", lambda _, attempt: failed.append(attempt))
    with pytest.raises(InfrastructureError, match="run the same command again"):
        open_storage(root)
    assert failed == [*range(1, OPENING_ATTEMPTS)]


def test_a_lease_is_given_up_soon_in_a_store_that_is_gone(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(root)
    assert isinstance(storage, S3Storage)
    failed: list[int] = []
    monkeypatch.setattr(RetryPolicy, "wait", lambda _, attempt: failed.append(attempt))
    with protecting(storage, ["mix/a"]):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        storage.connection._clients.clear()
    assert failed == [*range(1, CLEANUP_ATTEMPTS)]


ROLE = {
    "Code": "Success", "AccessKeyId": "of the role", "SecretAccessKey": "secret", "Token": "token",
    "Expiration": "2100-01-01T00:00:00Z",
}  # fmt: skip


class BusyMetadata(Handler, BaseHTTPRequestHandler):
    """EC2's metadata service, which refuses its first requests."""

    refusals = 2
    answers: ClassVar = {
        "/latest/api/token": "a token",
        "/latest/meta-data/iam/security-credentials/": "role",
        "/latest/meta-data/iam/security-credentials/role": json.dumps(ROLE),
    }

    def do_GET(self) -> None:
        BusyMetadata.refusals -= 1
        self.answer(503 if BusyMetadata.refusals >= 0 else 200, self.answers[self.path])

    def do_PUT(self) -> None:
        self.do_GET()


def test_the_role_of_a_machine_is_asked_for_again(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    with Loopback(BusyMetadata) as service:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.address)
        client = S3Connection().client
    assert client._request_signer._credentials.access_key == "of the role"


def test_a_setting_that_is_no_number_is_named(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "soon")
    with pytest.raises(ManifestError, match=r"^AWS_\*: must be settings of S3.*'soon'"):
        open_storage(root)


OTHERS = r"a bucket you may use, got 's3://.*\("


@pytest.mark.parametrize(
    ("code", "status", "kind", "rule"),
    [
        ("NotImplemented", 501, ManifestError, ""),
        ("ExpiredToken", 400, ManifestError, ""),
        ("InvalidRequest", 400, ManifestError, ""),
        ("AccessDenied", 403, ManifestError, OTHERS),
        ("Unauthorized", 401, ManifestError, OTHERS),
        ("PermanentRedirect", 301, ManifestError, OTHERS),
        ("InsufficientStorage", 507, InfrastructureError, ""),
        ("SlowDown", 503, InfrastructureError, ""),
        ("RequestTimeTooSkewed", 403, InfrastructureError, ""),
    ],
)
def test_only_what_may_pass_is_worth_a_repetition(
    root: str, code: str, status: int, kind: type[DfkdError], rule: str
) -> None:
    storage = S3Storage("bucket", connection=S3Connection(Limits(RetryPolicy(1))))
    with Stubber(storage.connection.client) as stub:
        stub.add_client_error("put_object", code, http_status_code=status)
        with pytest.raises(kind, match=rule + code):
            storage.put("key", b"data")


def twice() -> S3Connection:
    """A connection with two attempts for each request, without a pause."""
    return S3Connection(Limits(RetryPolicy(2, 0.0)))


@pytest.mark.parametrize(
    ("code", "status"),
    [
        *((code, 400) for code in sorted(BUSY_CODES)),
        *(("InternalError", status) for status in (500, 502, 503, 504)),
        ("ConditionalRequestConflict", 409),  # another write is in progress, and may fail
    ],
)
def test_what_may_pass_is_tried_again(root: str, code: str, status: int) -> None:
    storage = S3Storage("bucket", connection=twice())
    with Stubber(storage.connection.client) as stub:
        stub.add_client_error("put_object", code, http_status_code=status)
        stub.add_response("put_object", {})
        assert storage.put_if_absent("key", b"data")
        stub.assert_no_pending_responses()


@pytest.mark.parametrize(
    "error",
    [
        boto.ReadTimeoutError(endpoint_url="http://store"),
        boto.IncompleteReadError(actual_bytes=1, expected_bytes=2),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_request_without_an_answer_is_sent_again(error: Exception) -> None:
    def send(request: Request) -> int:
        if request.attempt == 1:
            raise error
        return request.attempt

    assert S3Storage("bucket", connection=twice())._attempt("get", "key", send) == 2


def test_a_client_waits_as_long_as_it_is_told_and_is_of_its_process(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forked process that used its parent's sockets would read the answers of others."""
    connection = S3Connection(Limits(connect=3.0, read=7.0))
    client = connection.client
    assert (client.meta.config.connect_timeout, client.meta.config.read_timeout) == (3.0, 7.0)
    assert connection.client is client
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in a fork
    assert connection.client is not client


@pytest.fixture
def untrusted(tmp_path: Path) -> Iterator[str]:
    """A server with a certificate that it signed itself."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=127.0.0.1"
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    untrusted = Loopback(Handler)
    untrusted.socket = context.wrap_socket(untrusted.socket, server_side=True)
    with untrusted:
        yield untrusted.address.replace("http:", "https:")


def test_a_certificate_that_is_not_trusted_is_not_worth_a_repetition(
    root: str, untrusted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", untrusted)
    with pytest.raises(ManifestError, match=r"^AWS_ENDPOINT_URL: must have a certificate"):
        open_storage(root)


def test_a_connection_lost_during_its_handshake_is_tried_again(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{listener.getsockname()[1]}")

        def hang_up() -> None:
            for _ in range(3):
                connection, _ = listener.accept()
                connection.recv(100)
                connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        policy = RetryPolicy(attempts=3, pause=0.01, longest_pause=0.01)
        storage = S3Storage("bucket", connection=S3Connection(Limits(policy)))
        with pytest.raises(InfrastructureError, match="run the same command again"):
            storage.get("key")
        thread.join(5)
        assert not thread.is_alive()  # it was asked three times


def test_secrets_are_in_no_error_and_no_repr(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    assert "hunter2" not in repr(open_storage(root))
    refused: list[tuple[str, str, type[DfkdError]]] = [
        ("http://me:hunter2@127.0.0.1:9", root, InfrastructureError),
        ("me:hunter2@127.0.0.1", root, ManifestError),
        ("", "s3://AKIA:hunter2@bucket/x", ManifestError),
    ]
    for endpoint, place, kind in refused:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(kind) as caught:
            open_storage(place)
        assert "hunter2" not in "".join(traceback.format_exception(caught.value)[-1:])
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


HALF_A_KEY = "[default]\naws_access_key_id = test\n"
NO_LOGIN = """[default]
sso_start_url = https://x
sso_region = us-east-1
sso_account_id = 1
sso_role_name = reader
"""


@pytest.mark.parametrize(
    ("config", "variables", "reason"),
    [
        ("", {}, ""),
        ("", {"AWS_PROFILE": "nobody"}, "nobody"),
        ("", {"AWS_DEFAULT_REGION": "eu west"}, "eu west"),
        ("[default\nregion", {}, "config"),
        (HALF_A_KEY, {}, "aws_secret_access_key"),
        (NO_LOGIN, {}, "Token for https://x does not exist"),
    ],
)
def test_without_credentials_that_are_of_use_a_store_is_refused(
    root: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    config: str,
    variables: dict[str, str],
    reason: str,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(config)
    files = {"AWS_CONFIG_FILE": "config", "AWS_SHARED_CREDENTIALS_FILE": "none", "HOME": ""}
    own = {name: str(tmp_path / file) for name, file in files.items()}
    for name, value in (own | {"AWS_EC2_METADATA_DISABLED": "true"} | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ManifestError, match=rf"needs S3 credentials and a region, got .*{reason}"):
        open_storage(root)
