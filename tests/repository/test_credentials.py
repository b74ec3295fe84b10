"""What no message, file or report may tell: keys, passwords and tokens."""

import json
import pickle
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from dfkd.commands.command_line import parser, run
from dfkd.config.manifest import Manifest
from dfkd.errors import DfkdError, InfrastructureError, ManifestError, conceal, one_line
from dfkd.models.student import build, card, save_student
from dfkd.report.facts import note_origin
from dfkd.storage.cost_records import record_cost
from dfkd.storage.local import open_storage
from dfkd.utils.yaml import read_tree
from tests.helpers.loopback import Loopback
from tests.helpers.tiny_version import publish, write_manifest

KEY, SECRET, TOKEN = (
    "AKIAIOSFODNN7EXAMPLE",
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "FwoGZXIvYXdz",
)


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def harmless(text: str) -> None:
    for secret in (KEY, SECRET, TOKEN, "hunter2"):
        assert secret not in text


ROOTS = [
    f"s3://{KEY}:{SECRET}@bucket/x",
    "https://user:hunter2@host/bucket",
    "https://user:p@hunter2@host/bucket",
    "https://user:p/@hunter2@host/bucket",
    "s3://hunter2@bucket",
    "https://host/bucket?X-Amz-Signature=hunter2&x=1",
    f"https://host/bucket?X-Amz-Credential={KEY}%2F2026&X-Amz-Security-Token={TOKEN}",
    f"s3://bucket/{KEY}",
    "az://container/x?sv=2025-01-05&sig=hunter2%3D",
    "AccountName=x;AccountKey=hunter2==;EndpointSuffix=core.windows.net",
    "https://host/file?token=hunter2",
    "https://host/file?access_token=hunter2&x=1",
    "sv=2025-01-05;sig=hunter2",
    "Authorization: Bearer hunter2",
    f"hf_{'hunter2' * 4}",
    *(f"{name}=hunter2" for name in ("password", "secret", "credential", "API_KEY", "apikey")),
]


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize(
    "field", ["storage.root", "teacher.weights", "evaluation.data", "prompts.styles.0"]
)
def test_a_manifest_with_a_credential_is_refused_without_saying_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], root: str, field: str
) -> None:
    key, value = (field.removesuffix(".0"), [root, "x"]) if field[-1] == "0" else (field, root)
    manifest = write_manifest(tmp_path)
    arguments = [str(manifest), "--print-manifest", "--set", f"{key}={json.dumps(value)}"]
    assert run(parser("pipeline", ""), lambda *_: "", lambda *_: {}, arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {field}: must not hold credentials, got ")
    assert printed.err.count("\n") == 1
    harmless(printed.err)


def test_a_path_to_a_secret_does_not_print_it(tmp_path: Path) -> None:
    """The base of a study, or generator.vqgan.config, may name any file of this machine."""
    for text in ("hf_AbCdEfGh", "[default]\naws_secret_access_key = hunter2", "a: b\n\thunter2"):
        (tmp_path / "token").write_text(text)
        with pytest.raises(ManifestError) as caught:
            read_tree(tmp_path / "token")
        assert "hf_AbC" not in str(caught.value)
        harmless(str(caught.value))


def test_every_error_class_conceals_credentials() -> None:
    for root in ROOTS:
        harmless(conceal(root))
        for error in (
            DfkdError(f"cannot read {root}"),
            InfrastructureError(f'storage: Could not connect to "{root}"; run again'),
            ManifestError("x", f"must not be {root}", f"{root} " * 50, f"use {root}"),
            ManifestError("x", "must be", {"a": [root]}, "fix"),
        ):
            harmless(str(error))
            harmless(repr(error))
            harmless(str(pickle.loads(pickle.dumps(error))))


def test_a_secret_at_the_cut_of_a_text_is_concealed() -> None:
    for place in range(320):
        text = "x" * place + " https://user:hunter2@host/bucket" + "y" * 300
        for shown in (ManifestError("x", "must be", text, "fix it"), one_line(ValueError(text))):
            assert "hun" not in str(shown)


def test_text_without_credentials_is_not_concealed() -> None:
    for text in (
        "s3://bucket/a@b/c",
        "s3://bucket/pre-fix/b",
        "s3://bucket",
        "runs/@home",
        "/a:b/c@d",
        "https://a.b/c@d",
        "manifests/a.yaml",
        "a:b@c",
        "x=1&y=2",
        "design=1",
    ):
        assert conceal(text) == text


def refusing(status: int) -> type[BaseHTTPRequestHandler]:
    """An S3 server that says no, and repeats in its answers what it was told, as AWS does."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.rfile.read(length)
            told = self.headers.get("Authorization", "") + TOKEN + SECRET
            body = (
                "<?xml version='1.0'?><Error><Code>SignatureDoesNotMatch</Code>"
                f"<Message>told {told}</Message><AWSAccessKeyId>{KEY}</AWSAccessKeyId></Error>"
            ).encode()
            self.send_response_only(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/xml")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer  # noqa: N815

    return Handler


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_store_that_repeats_the_credentials_is_not_quoted(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    with Loopback(refusing(status)) as server:
        address = server.address.replace("//", "//user:hunter2@")
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        with pytest.raises(DfkdError, match="SignatureDoesNotMatch") as caught:
            open_storage("s3://bucket/run")
    harmless(str(caught.value))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.usefixtures("credentials")
def test_a_run_writes_no_credentials_of_its_environment(tmp_path: Path) -> None:
    manifest = Manifest.read(write_manifest(tmp_path))
    publish(manifest)
    root = open_storage(manifest.storage.root)
    with record_cost(root, "distill", "vanilla", 0) as cost:
        cost.images = 1
    student = build(manifest.distillation, 3, 32, 0)
    save_student(root.child("students/x"), student, card(manifest.distillation, ("a", "b"), 32))
    note_origin(root, manifest, "python jobs/pipeline.py")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 15
    for path in files:
        data = path.read_bytes()
        assert not any(secret.encode() in data for secret in (KEY, SECRET, TOKEN)), path
