"""How often a request is tried, and how long the pauses are."""

import time

import pytest

from dfkd.storage.base import Request, ignore
from dfkd.storage.retries import RetryPolicy


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each pause, which takes no time here."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def test_pauses_double_up_to_the_longest_one(pauses: list[float]) -> None:
    """Each is random between half of its limit and the limit."""
    tried: list[int] = []

    def fail(request: Request) -> None:
        tried.append(request.attempt)
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        RetryPolicy(6, 0.2, 1.0).attempt("get", fail, str, lambda _: True, ignore)
    assert tried == [1, 2, 3, 4, 5, 6]
    limits = (0.2, 0.4, 0.8, 1.0, 1.0)
    for pause, limit in zip(pauses, limits, strict=True):
        assert limit / 2 <= pause <= limit


def test_no_pause_follows_what_succeeds_or_is_no_use(pauses: list[float]) -> None:
    def refused(request: Request) -> None:
        raise OSError

    assert RetryPolicy().attempt("get", lambda _: 7, str, lambda _: True, ignore) == 7
    with pytest.raises(OSError):  # noqa: PT011
        RetryPolicy().attempt("get", refused, str, lambda _: False, ignore)
    assert pauses == []
