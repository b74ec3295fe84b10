import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dfkd.utils import hardware
from dfkd.utils.hardware import (
    TIMED_CALLS,
    WARMUP_CALLS,
    available_memory,
    cpu_count,
    describe_machine,
    environment,
    processor_name,
    thread_limit,
    time_on_one_core,
)


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a container's limits; it has none yet."""
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    return tmp_path


@pytest.mark.usefixtures("cgroup")
def test_the_facts_are_this_machine() -> None:
    facts = json.loads(json.dumps(describe_machine()))
    assert facts["processor"] == processor_name() != ""
    assert facts["cpus"] == cpu_count() == len(os.sched_getaffinity(0))
    total = Path("/proc/meminfo").read_text().split()[1]
    assert facts["memory"] == pytest.approx(1024 * int(total), rel=0.05)


def test_libraries_that_are_not_installed_have_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "LIBRARIES", ("numpy", "no-library-of-this-name"))
    found = environment()
    assert found.keys() == {"python", "machine", "numpy"}
    assert found["numpy"] == np.__version__


@pytest.mark.usefixtures("cgroup")
def test_where_the_system_knows_no_affinity_all_cpus_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert describe_machine()["cpus"] == cpu_count() == os.cpu_count()


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max", 8), ("400000", 4), ("350000", 3), ("50000", 1), ("9900000", 8)],
)
def test_a_container_s_share_of_time_limits_its_cpus(
    cgroup: Path, monkeypatch: pytest.MonkeyPatch, limit: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    (cgroup / "cpu.max").write_text(f"{limit} 100000\n")
    assert cpu_count() == expected


MEBI = 1 << 20


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, 800), ("max", 800), (2000 * MEBI, 800), (700 * MEBI, 350), (100 * MEBI, 0)],
)
def test_available_memory_is_that_of_the_machine_or_of_a_smaller_container(
    cgroup: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    limit: int | str | None,
    expected: int,
) -> None:
    """Of the container's memory 400 MiB are in use, of which 50 are cached files."""
    monkeypatch.setattr(hardware, "MEMINFO", tmp_path / "meminfo")
    lines = f"MemTotal: {900 << 10} kB\nMemAvailable:   {800 << 10} kB\nHugePages_Total:   0\n"
    (tmp_path / "meminfo").write_text(lines)
    if limit is not None:
        (cgroup / "memory.max").write_text(f"{limit}\n")
        (cgroup / "memory.current").write_text(f"{400 * MEBI}\n")
        (cgroup / "memory.stat").write_text(f"anon {350 * MEBI}\ninactive_file {50 * MEBI}\n")
    assert available_memory() == expected * MEBI


def test_a_system_that_does_not_tell_its_memory_has_none_available(
    cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert available_memory() > 0
    monkeypatch.setattr(hardware, "MEMINFO", cgroup / "meminfo")
    assert available_memory() == 0


@pytest.mark.parametrize(
    ("variables", "threads", "expected"),
    [
        ({}, 0, 1),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, 0, 3),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, 2, 2),
        ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "OMP_NUM_THREADS": "2"}, 0, 2),
    ],
)
@pytest.mark.usefixtures("own_threads")
def test_ray_s_own_limit_of_one_thread_does_not_bind_a_driver(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], threads: int, expected: int
) -> None:
    monkeypatch.setattr(hardware, "cpu_count", lambda: 3)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    torch.set_num_threads(int(variables.get("OMP_NUM_THREADS", "1")))
    with thread_limit(threads) as count:
        assert count == torch.get_num_threads() == expected


@pytest.mark.usefixtures("own_threads")
def test_calls_take_turns_on_one_thread_which_is_given_back() -> None:
    calls: list[tuple[str, int]] = []
    torch.set_num_threads(2)
    found = time_on_one_core(
        {name: lambda name=name: calls.append((name, torch.get_num_threads())) for name in "ab"}
    )
    assert torch.get_num_threads() == 2
    assert calls == [("a", 1), ("b", 1)] * (WARMUP_CALLS + TIMED_CALLS)
    assert found["ms"].keys() == {"a", "b"}
    assert (found["batch"], found["threads"], found["runs"]) == (1, 1, TIMED_CALLS)
    assert found["machine"] == processor_name() != ""
    with pytest.raises(ZeroDivisionError):
        time_on_one_core({"a": lambda: 1 // 0})
    assert torch.get_num_threads() == 2


def test_a_median_is_in_milliseconds_and_without_the_warm_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A call takes 5 ms by the clock, but a minute during the warm-up and once after it."""
    clock = iter([60.0] * WARMUP_CALLS + [60.0] + [0.005] * (TIMED_CALLS - 1))
    now = 0.0

    def call() -> None:
        nonlocal now
        now += next(clock)

    monkeypatch.setattr("time.perf_counter", lambda: now)
    assert time_on_one_core({"a": call})["ms"]["a"] == pytest.approx(5.0)
