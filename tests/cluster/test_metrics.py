"""Measures as Prometheus gets them, from a real Ray's endpoint: those of driver and actors."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from dfkd.cluster import metrics
from dfkd.cluster.metrics import ALL, Count, Level, Measure, Pace
from dfkd.objects import Request
from dfkd.storage import open_storage
from prometheus import scraped

PATIENCE = 240.0
"""Seconds for Ray's agent to come up and export, on a machine that does other things too."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=100 << 20,
        _system_config={"metrics_report_interval_ms": 1000},
    )
    (node,) = ray.nodes()
    yield f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    ray.shutdown()


def wait_for(url: str, names: set[str]) -> dict[str, list[tuple[dict[str, str], float]]]:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            found = scraped(url)
        except OSError:
            found = {}
        if found.keys() >= names:
            return found
        time.sleep(0.5)
    raise AssertionError(f"{url} has no {names - found.keys()}")


def say(measure: Measure) -> None:
    labels = {key: f"some {key}" for key in measure.labels}
    if isinstance(measure, Count):
        measure.add(2.0, **labels)
        measure.add(1.5, **labels)
    elif isinstance(measure, Level):
        measure.set(7.0, **labels)
        measure.set(0.25, **labels)


def test_the_endpoint_shows_what_processes_measure(endpoint: str) -> None:
    @ray.remote(num_cpus=1)
    class Worker:
        def work(self) -> None:
            metrics.WORKER_RATE.set(3.5, manifest="other", method="mix")
            metrics.UPLOADS.add(4)

    for measure in ALL:
        say(measure)
    worker = Worker.remote()  # kept: a level of a process that ended is no longer shown
    ray.get(worker.work.remote())
    names = {f"ray_{m.name}" + "_total" * isinstance(m, Count) for m in ALL}
    found = wait_for(endpoint, names)
    for measure in ALL:
        name = f"ray_{measure.name}"
        series = found.get(name) or found[f"{name}_total"]
        wanted = {key: f"some {key}" for key in measure.labels}
        (value,) = {
            value
            for labels, value in series
            if wanted.items() <= labels.items() and "other" not in labels.values() and value != 4.0
        }
        assert value == (3.5 if isinstance(measure, Count) else 0.25), name
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = scraped(endpoint)
        rates = found.get("ray_dfkd_worker_images_per_second", [])
        uploads = [value for _, value in found.get("ray_dfkd_uploads_total", [])]
        if sorted(uploads) == [3.5, 4.0] and len(rates) == 2:
            break
        time.sleep(0.5)
    assert sorted(value for _, value in rates) == [0.25, 3.5]
    assert len({labels["WorkerId"] for labels, _ in rates}) == 2


def test_what_storage_writes_and_sends_again_is_counted(endpoint: str, tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path)).observed(metrics.count_request)
    storage.put("a", b"12345")
    storage.child("below").put("b", b"678")
    storage.get("a")
    metrics.count_request(Request("part", attempt=2, bytes=100, seconds=0.5))
    metrics.count_request(Request("finish", attempt=3, error="SlowDown"))
    names = {"uploads", "upload_bytes", "upload_seconds", "storage_retries"}
    found = wait_for(endpoint, {f"ray_dfkd_{name}_total" for name in names})
    values = {name: found[f"ray_dfkd_{name}_total"][0][1] for name in names}
    seconds = values.pop("upload_seconds")
    assert values == {"uploads": 2, "upload_bytes": 108, "storage_retries": 2}
    assert seconds > 0.5


def test_without_ray_nothing_is_measured_and_nothing_started() -> None:
    for measure in ALL:
        say(measure)
    assert not ray.is_initialized()


def test_a_pace_divides_time_into_steps_and_waiting() -> None:
    pace = Pace(8, manifest="m", method="mix")

    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.02)
            yield number

    for number in pace.timed(slow()):
        if number < 2:
            time.sleep(0.04)
    assert pace.steps == 3
    assert pace.waited >= 0.06
    assert pace.worked >= 0.08
    pace.report()
    assert (pace.steps, pace.worked, pace.waited) == (0, 0.0, 0.0)
