"""Addresses at which no cluster is: refused at once, in a process that is not connected."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import ray
from ray._private.utils import check_version_info
from ray.exceptions import AuthenticationError

from dfkd.cluster.connection import _check_reachable, connected
from dfkd.errors import InfrastructureError, ManifestError


@pytest.mark.parametrize("address", ["127.0.0.2:1", "[::1]:1", "no-such-host.invalid:6379"])
def test_a_cluster_that_does_not_answer_is_worth_retrying(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and before Ray is asked, which would take minutes to say so."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(InfrastructureError, match="RAY_ADDRESS: no Ray cluster answered at"),
        connected(),
    ):
        pass


def test_a_handler_of_sigterm_survives_the_start_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own would abort the process; and threads of workers shall not spin while they wait."""
    ended: list[bool] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(ray, "init", lambda **_: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))

    def own(*_: object) -> None:
        """The handler of a job."""

    before = signal.signal(signal.SIGTERM, own)
    try:
        with connected():
            assert signal.getsignal(signal.SIGTERM) is own
            assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
            assert ended == []
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == [True]


def test_an_address_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(ManifestError, match="RAY_ADDRESS: must be host:port or auto"), connected():
        pass


def another_version(**options: Any) -> None:
    check_version_info({"ray_version": "1.0.0", "python_version": "3.6.0"}, "Ray Client")


def no_token(**options: Any) -> None:
    raise AuthenticationError("Token authentication is enabled but no token was found")


@pytest.mark.parametrize(
    ("connect", "reason"),
    [(another_version, "Version mismatch: .* Ray: 1.0.0"), (no_token, "no token was found")],
)
def test_a_cluster_of_another_environment_is_not_worth_retrying(
    connect: Callable[..., None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(ray, "init", connect)
    with pytest.raises(ManifestError, match=f"RAY_ADDRESS: must be .*{reason}"), connected():
        pass


@pytest.mark.parametrize(
    ("reason", "expected", "text"),
    [
        ("AF_UNIX path length cannot exceed 107 bytes", ManifestError, "set RAY_TMPDIR=/tmp"),
        ("The current node timed out during startup", InfrastructureError, "Ray does not start"),
    ],
)
def test_a_ray_that_does_not_start_here_is_no_matter_of_an_address(
    reason: str, expected: type[Exception], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**options: Any) -> None:
        raise OSError(reason)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(expected, match=text) as found, connected():
        pass
    assert "RAY_ADDRESS" not in str(found.value)


@pytest.mark.parametrize("address", ["", "auto", "local"])
def test_other_kinds_of_address_are_left_to_ray(address: str) -> None:
    _check_reachable(address)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:1", "anyscale://x"])
def test_ray_s_client_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has connected when its process finds out that it knows nothing of the nodes."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(ManifestError, match=r"^RAY_ADDRESS: must be host:port or auto"),
        connected(),
    ):
        pass


@pytest.mark.parametrize(("address", "digits"), [("", 64), ("auto", 0)])
def test_a_local_ray_gets_a_token_and_a_cluster_has_its_own(
    address: str, digits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "init", lambda **options: None)
    with connected():
        assert len(os.environ.get("RAY_AUTH_TOKEN", "")) == digits
