"""Addresses at which no cluster is: refused at once, in a process that is not connected."""

import pytest

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


def test_an_address_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(ManifestError, match="RAY_ADDRESS: must be an address"), connected():
        pass


@pytest.mark.parametrize("address", ["", "auto", "local", "ray://127.0.0.1:1", "anyscale://x"])
def test_other_kinds_of_address_are_left_to_ray(address: str) -> None:
    _check_reachable(address)
