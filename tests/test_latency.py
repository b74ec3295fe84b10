import pytest
import torch

from dfkd.latency import RUNS, WARMUP, one_core
from dfkd.machine import processor


def test_calls_take_turns_on_one_thread_which_is_given_back() -> None:
    calls: list[tuple[str, int]] = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = one_core(
            {name: lambda name=name: calls.append((name, torch.get_num_threads())) for name in "ab"}
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert calls == [("a", 1), ("b", 1)] * (WARMUP + RUNS)
    assert found["ms"].keys() == {"a", "b"}
    assert (found["batch"], found["threads"], found["runs"]) == (1, 1, RUNS)
    assert found["machine"] == processor() != ""


def test_threads_are_given_back_after_a_failure() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        one_core({"a": lambda: 1 // 0})
    assert torch.get_num_threads() == before


def test_a_median_is_in_milliseconds_and_without_the_warm_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a clock that a call moves by 5 ms, and by a minute while it warms up or once more."""
    clock = iter([60.0] * WARMUP + [60.0] + [0.005] * (RUNS - 1))
    now = 0.0

    def call() -> None:
        nonlocal now
        now += next(clock)

    monkeypatch.setattr("time.perf_counter", lambda: now)
    assert one_core({"a": call})["ms"]["a"] == pytest.approx(5.0)
