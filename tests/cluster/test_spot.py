"""The watch for EC2's notice, against an HTTP server that answers as its metadata service does."""

import http.client
import shlex
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import ray
import yaml

import spot
from dfkd.cluster.capacity import schedulable_nodes
from tests.helpers.jobs import ROOT
from tests.helpers.loopback import Handler, Loopback
from tests.helpers.machines import Nodes, two_nodes
from tests.helpers.waiting import wait_for


class Metadata(Loopback):
    """Gives the notice at the request for it with the number `notice`; before, there is no page.

    A request for it needs a token of its own. `faults` are what the next requests get instead.
    """

    def __init__(self, notice: int) -> None:
        super().__init__(MetadataHandler)
        self.notice, self.asked, self.tokens = notice, 0, 0
        self.faults: list[int] = []


class MetadataHandler(Handler, BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        if self.server.faults:
            self.answer(self.server.faults.pop(0))
        elif self.path != "/latest/api/token" or not self.seconds():
            self.answer(400)
        else:
            self.server.tokens += 1
            self.answer(200, f"token {self.server.tokens}")

    def seconds(self) -> int:
        """For how long a token is asked for."""
        return int(self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "0"))

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != f"token {self.server.tokens}":
            self.answer(401)
            return
        assert self.path == "/latest/meta-data/spot/instance-action"
        self.server.asked += 1
        if self.server.asked < self.server.notice:
            self.answer(404)
        else:
            self.answer(200, '{"action": "terminate", "time": "2026-12-01T08:22:00Z"}')


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with Metadata(notice=3) as server:
        yield server


def watch(metadata: Metadata, *command: str) -> int:
    return spot.main(["--metadata", metadata.address, "--pause", "0.01", *command])


def test_the_command_runs_at_the_notice_and_not_before(
    metadata: Metadata,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # nobody is there
    log = tmp_path / "log"
    program = f"open({str(log)!r}, 'a').write('run ')"
    metadata.faults = [503, 500]
    assert watch(metadata, sys.executable, "-c", program, "--option=1") == 0
    assert metadata.asked == 3
    assert log.read_text() == "run "
    # The usual answer before a notice, 404, is not worth a line every five seconds.
    told = [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    assert [line[:15] for line in told] == ["HTTP Error 503:", "HTTP Error 500:"]


@pytest.mark.parametrize(
    "error",
    [TimeoutError(), http.client.IncompleteRead(b""), http.client.BadStatusLine("x")],
    ids=lambda error: type(error).__name__,
)
def test_a_service_that_does_not_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    limits: list[float | None] = []

    def fail(request: object, timeout: float | None = None) -> None:
        limits.append(timeout)
        raise error

    monkeypatch.setattr(spot.DIRECT, "open", fail)
    assert not spot.announced("http://metadata")
    assert limits == [5]


def test_a_command_that_fails_runs_again(metadata: Metadata, tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = f"log = open({str(log)!r}, 'a+'); log.write('x'); exit(log.tell() < 3)"
    metadata.notice = 1
    assert watch(metadata, sys.executable, "-c", program) == 0
    assert log.read_text() == "xxx"


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A cluster that this process has joined."""
    with two_nodes() as nodes:
        ray.init(address=nodes.cluster.address)
        yield nodes
        ray.shutdown()


@pytest.mark.slow
def test_a_worker_of_aws_is_drained(metadata: Metadata, nodes: Nodes) -> None:
    """By the command of aws.yaml, which here must name the node: a machine of AWS has one only."""
    aws = yaml.safe_load((ROOT / "cluster" / "aws.yaml").read_text())
    line = aws["worker_start_ray_commands"][-1]
    assert line.startswith("RAY_AUTH_MODE=token nohup python /home/ray/dfkd/cluster/spot.py ray ")
    words = shlex.split(line.partition("spot.py")[2].partition(">")[0])
    words[0] = str(Path(sys.executable).with_name("ray"))
    node = nodes.workers[0].node_id
    assert node in schedulable_nodes()
    named = [f"--address={nodes.cluster.address}", f"--node-id={node}"]
    assert watch(metadata, *words, *named) == 0
    wait_for(lambda: node not in schedulable_nodes(), limit=60)
