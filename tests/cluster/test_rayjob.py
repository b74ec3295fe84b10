"""The schedule's pod against an HTTP server that answers as Kubernetes does."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import certifi
import pytest

import submit
from tests.helpers.jobs import ROOT
from tests.helpers.loopback import Handler, Loopback

RAYJOBS = "/apis/ray.io/v1/namespaces/dfkd/rayjobs"
RAYJOB = ROOT / "cluster" / "kubernetes" / "rayjob.yaml"


class Api(Loopback):
    """Keeps what was created; its RayJob goes through `states`, the last of which stays.

    It is deleted when a state is None. The next answers fail as `faults` says: `busy` is 503,
    `silent` closes the connection without an answer, `cut` within one, `away URL` redirects. The
    next requests of any kind get the codes in `refusals`, but for 0, which is none.
    """

    def __init__(self, states: list[dict[str, str] | None]) -> None:
        super().__init__(ApiHandler)
        self.states = states
        self.faults: list[str] = []
        self.refusals: list[int] = []
        self.created: dict[str, dict[str, Any]] = {}
        self.tokens: set[str | None] = set()


class ApiHandler(Handler, BaseHTTPRequestHandler):
    server: Api

    def reply(self, code: int, body: object) -> None:
        self.server.tokens.add(self.headers["Authorization"])
        self.answer(code, json.dumps(body))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = body["metadata"]["name"]
        if self.refused():
            return
        if self.path != RAYJOBS:
            self.reply(404, {})
        elif name in self.server.created:
            self.reply(409, {"reason": "AlreadyExists"})
        else:
            self.server.created[name] = body
            self.reply(201, body)

    def refused(self) -> bool:
        """Whether this request gets one of the `refusals`."""
        code = self.server.refusals.pop(0) if self.server.refusals else 0
        if code:
            self.reply(code, {})
        return bool(code)

    def do_GET(self) -> None:
        if self.refused():
            return
        name = self.path.removeprefix(f"{RAYJOBS}/")
        if name not in self.server.created:
            self.reply(404, {})
        elif self.server.faults:
            self.fail(self.server.faults.pop(0))
        else:
            states = self.server.states
            state = states.pop(0) if len(states) > 1 else states[0]
            if state is None:
                del self.server.created[name]
                self.reply(404, {})
            else:
                self.reply(200, self.server.created[name] | {"status": state})

    def fail(self, fault: str) -> None:
        if fault == "busy":
            self.reply(503, {})
        elif fault.startswith("away "):
            self.server.tokens.add(self.headers["Authorization"])
            self.send_response(302)
            self.send_header("Location", fault.removeprefix("away "))
            self.end_headers()
        elif fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"{")


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("a-token\n")
    (tmp_path / "namespace").write_text("dfkd")
    (tmp_path / "ca.crt").write_text(Path(certifi.where()).read_text())
    return tmp_path


@pytest.fixture
def api() -> Iterator[Api]:
    with Api([]) as server:
        yield server


def run(api: Api, account: Path) -> int:
    words = [str(RAYJOB), "--name", "dfkd-29384", "--uid", "0a1b", "--api", api.address]
    return submit.main([*words, "--account", str(account), "--pause", "0.01"])


RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
SUCCEEDED = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}


def test_the_pod_creates_a_rayjob_of_its_own_job_and_waits_for_its_end(
    api: Api, account: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.states = [{}, RUNNING, RUNNING, SUCCEEDED]
    api.faults = ["busy", "silent", "cut"]
    assert run(api, account) == 0
    ((name, made),) = api.created.items()
    assert name == "dfkd-29384"
    assert made["kind"] == "RayJob"
    assert made["metadata"]["labels"] == {"app.kubernetes.io/part-of": "dfkd"}
    (owner,) = made["metadata"]["ownerReferences"]
    assert owner == {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": "0a1b"}
    assert api.tokens == {"Bearer a-token"}
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [f"{name}: Running", f"{name}: Complete"]
    assert [line.partition(":")[0] for line in printed.err.splitlines()] == ["waiting"] * 3
    assert "a-token" not in printed.out + printed.err


def test_the_token_does_not_follow_a_redirect(api: Api, account: Path) -> None:
    api.states = [SUCCEEDED]
    with Api([]) as elsewhere:
        api.faults = [f"away {elsewhere.address}/"]
        assert run(api, account) == 1  # it answers 404
        assert elsewhere.tokens == {None}
    assert api.tokens == {"Bearer a-token"}


def test_a_pod_that_replaces_another_finds_its_rayjob(api: Api, account: Path) -> None:
    api.states = [SUCCEEDED]
    assert run(api, account) == 0
    assert run(api, account) == 0
    assert len(api.created) == 1


@pytest.mark.parametrize(
    "last",
    [
        {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "deadline"},
        {"jobDeploymentStatus": "Failed"},
        {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"},
        {"jobDeploymentStatus": "ValidationFailed"},
    ],
)
def test_a_run_that_did_not_succeed_is_a_failed_job(
    api: Api, account: Path, last: dict[str, str]
) -> None:
    api.states = [RUNNING, last]
    assert run(api, account) == 1


def test_a_deleted_rayjob_is_a_failed_job_and_not_created_again(
    api: Api, account: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.states = [RUNNING, None]
    assert run(api, account) == 1
    assert api.created == {}
    assert capsys.readouterr().err == "dfkd-29384: was deleted\n"


@pytest.mark.parametrize(
    ("refusals", "code", "left"),
    [([503, 500], 0, 0), ([503] * 4, 4, 1)],
    ids=["comes", "stays away"],
)
def test_an_operator_that_restarts_is_waited_for_a_while(
    api: Api,
    account: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusals: list[int],
    code: int,
    left: int,
) -> None:
    monkeypatch.setattr(submit, "CREATIONS", 3)
    api.states, api.refusals = [SUCCEEDED], refusals
    assert run(api, account) == code
    assert (len(api.created), len(api.refusals)) == (code == 0, left)


@pytest.mark.parametrize("code", [400, 401, 403, 422])
@pytest.mark.parametrize("before", [0, 1], ids=["at the creation", "later"])
def test_a_refusal_is_not_repeated(api: Api, account: Path, code: int, before: int) -> None:
    api.states = [SUCCEEDED]
    api.refusals = [*[0] * before, code]
    assert run(api, account) == 1
    assert len(api.created) == before


def test_an_api_that_does_not_answer_is_worth_a_retry(
    account: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "CREATIONS", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: server.accept()[0].close(), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        words = [str(RAYJOB), "--name", "dfkd-29384", "--uid", "0a1b", "--api", url]
        assert submit.main([*words, "--account", str(account)]) == 4
        thread.join()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {url}: ")


def test_what_the_api_refuses_is_one_line(
    api: Api, account: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (account / "namespace").write_text("elsewhere")
    assert run(api, account) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {api.address}: HTTP Error 404")
