"""What the servers of demonstrations and tests wait for."""

import random
import subprocess
import sys

import pytest

import servers
from servers import free_ports, wait_until


def test_a_server_that_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "PATIENCE", 30.0)
    with (
        subprocess.Popen([sys.executable, "-c", "exit(3)"]) as process,
        pytest.raises(RuntimeError, match="ended with 3"),
    ):
        wait_until(lambda: False, [process])


def test_a_server_that_does_not_come_up_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "PATIENCE", 0.1)
    asked: list[int] = []

    def not_yet() -> bool:
        asked.append(len(asked))
        if len(asked) == 1:
            raise ConnectionRefusedError
        return False

    with subprocess.Popen(["sleep", "60"]) as process:
        with pytest.raises(RuntimeError, match=r"did not come up in 0\.1 s"):
            wait_until(not_yet, [process])
        process.kill()
    assert asked


def test_each_port_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = free_ports(2)
    drawn = iter([first, first, second])
    monkeypatch.setattr(random, "randrange", lambda *_: next(drawn))
    assert free_ports(2) == [first, second]
