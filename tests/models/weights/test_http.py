"""One attempt at a download: what is asked for, what is tried again, and what is too large."""

import urllib.error
from email.message import Message
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from dfkd.models.weights import http
from dfkd.models.weights.artifacts import Artifact
from dfkd.models.weights.http import PartialFile, Refusal, receive
from tests.helpers.http_server import Publisher
from tests.helpers.loopback import Loopback

FILE = "w.ckpt"


@pytest.mark.parametrize("code", [400, 403, 404, 410, 408, 425, 429, 500, 503])
def test_a_status_that_may_pass_is_worth_another_attempt(code: int, tmp_path: Path) -> None:
    """Too early, too many requests, and all that is the server's fault."""
    error = urllib.error.HTTPError("https://a.org/w", code, "", Message(), None)
    with PartialFile(Artifact(FILE, "", "MIT"), tmp_path) as part:
        if code in (408, 425, 429, 500, 503):
            assert http._is_worth_retrying(error, part)
        else:
            with pytest.raises(Refusal, match=f"answers {code}"):
                http._is_worth_retrying(error, part)


def test_bytes_are_asked_for_as_they_are(tmp_path: Path) -> None:
    """Those of a compressed answer could not be counted."""
    with PartialFile(Artifact(FILE, "", "MIT"), tmp_path) as part:
        part.add(b"123")
        asked = http._request("https://a.org/w", part)
    assert asked.get_header("Accept-encoding") == "identity"
    assert asked.get_header("Range") == "bytes=3-"


def test_an_answer_of_any_size_is_refused_before_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_BYTES", 1000)
    with Publisher(**{FILE: bytes(1001)}) as server:
        artifact = server.artifact(FILE, known=False)
        with (
            PartialFile(artifact, tmp_path) as part,
            pytest.raises(Refusal, match="has 1001 bytes, at most 1000"),
        ):
            receive(artifact, part, 5)
        assert part.done == 0


class Boastful(BaseHTTPRequestHandler):
    """Answers with a length of more digits than Python converts."""

    def do_GET(self) -> None:
        self.send_response_only(200)
        self.send_header("Content-Length", "9" * 5000)
        self.end_headers()
        self.wfile.write(b"short")


def test_a_length_of_thousands_of_digits_is_no_length(tmp_path: Path) -> None:
    with Loopback(Boastful) as server:
        artifact = Artifact(FILE, f"{server.address}/{FILE}", "MIT")
        with PartialFile(artifact, tmp_path) as part:
            receive(artifact, part, 5)
            assert part.path.read_bytes() == b"short"
