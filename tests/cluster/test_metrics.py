"""Counts as Prometheus gets them, from a real Ray's endpoint: those of driver and actors."""

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from dfkd.cluster import metrics
from dfkd.cluster.capacity import WorkerResources
from dfkd.cluster.engine import Actor, Engine, Quarantined
from dfkd.cluster.making import _ShardReport
from dfkd.cluster.metrics import ALL_COUNTS, Count, Pace
from dfkd.cluster.tracking import ShardSummary
from dfkd.cluster.worker import UnitResult
from dfkd.config.identity import identity
from dfkd.config.manifest import Manifest
from dfkd.config.plan import units
from dfkd.dataset.receipts import Receipt
from dfkd.dataset.versions import Version, begin
from dfkd.storage.base import Request
from dfkd.storage.cost_records import CostCounter
from dfkd.storage.local import open_storage
from dfkd.utils.logs import json_log
from dfkd.utils.progress import bar
from tests.helpers.prometheus import Found, wait_for
from tests.helpers.tiny_version import publish, write_manifest

BOTH = ("uploads_total", "upload_bytes_total", "upload_seconds_total", "storage_retries_total")
"""What driver and worker count."""


def add_to(count: Count) -> None:
    labels = {key: f"some {key}" for key in count.labels}
    count.add(2.0, **labels)
    count.add(1.5, **labels)


def test_without_ray_nothing_is_counted_and_nothing_started() -> None:
    for count in ALL_COUNTS:
        add_to(count)
    assert not ray.is_initialized()


def test_the_endpoint_shows_what_processes_count(endpoint: str, tmp_path: Path) -> None:
    @ray.remote(num_cpus=1)
    class Worker:
        def work(self) -> None:
            storage = open_storage(str(tmp_path)).observed(metrics.count_request)
            storage.put("a", b"12345")
            storage.child("below").put("b", b"678")
            storage.get("a")
            metrics.count_request(Request("put", attempt=2, bytes=100, seconds=0.5))
            metrics.count_request(Request("put", attempt=3, error="SlowDown"))

    for count in ALL_COUNTS:
        add_to(count)
    worker = Worker.remote()  # type: ignore[attr-defined]
    ray.get(worker.work.remote())
    names = {f"ray_{count.name}_total" for count in ALL_COUNTS}

    def whole(found: Found) -> bool:
        series = [found.get(f"ray_dfkd_{name}", ()) for name in BOTH]
        return found.keys() >= names and {len(each) for each in series} == {2}

    found = wait_for(endpoint, whole)
    (own,) = {labels["WorkerId"] for labels, _ in found["ray_dfkd_images_total"]}
    for count in ALL_COUNTS:
        wanted = {key: f"some {key}" for key in count.labels}
        (value,) = [
            value
            for labels, value in found[f"ray_{count.name}_total"]
            if labels["WorkerId"] == own and wanted.items() <= labels.items()
        ]
        assert value == 3.5, count.name
    others = {
        name: value
        for name, series in found.items()
        for labels, value in series
        if labels["WorkerId"] != own
    }
    assert others.pop("ray_dfkd_upload_seconds_total") > 0.5
    assert others == {
        "ray_dfkd_uploads_total": 3,
        "ray_dfkd_upload_bytes_total": 108,
        "ray_dfkd_storage_retries_total": 2,
    }


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """The name of each counter that something is added to, without `dfkd_`, and the amount."""
    added: list[tuple[str, float]] = []

    def add(count: Count, amount: float, **labels: str) -> None:
        assert set(labels) == set(count.labels)
        added.append((count.name.removeprefix("dfkd_"), amount))

    monkeypatch.setattr(Count, "add", add)
    return added


def test_a_pace_divides_time_into_steps_and_waiting(
    monkeypatch: pytest.MonkeyPatch, counted: list[tuple[str, float]]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(metrics, "REPORT_SECONDS", 7.0)
    pace = Pace(8, manifest="m", method="mix")

    def slow() -> Iterator[int]:
        for number in range(3):
            clock[0] += 2
            yield number

    for _ in pace.timed(slow()):
        clock[0] += 3
    names = [f"distillation_{name}" for name in ("samples", "steps", "step_seconds")]
    names.append("distillation_wait_seconds")
    # Reported after the second step, as more than seven seconds have passed.
    assert counted == list(zip(names, (16, 2, 6.0, 4.0), strict=True))
    assert (pace.steps, pace.waited, pace.worked) == (1, 2.0, 3.0)
    counted.clear()
    pace.report()
    assert counted == list(zip(names, (8, 1, 3.0, 2.0), strict=True))
    assert (pace.steps, pace.worked, pace.waited) == (0, 0.0, 0.0)


def report_of(
    manifest: Manifest, version: Version, engine: Engine, cost: CostCounter
) -> _ShardReport:
    """A report without curves and pictures."""
    tracker = SimpleNamespace(record=lambda summary: None, failed=0, done=0)
    return _ShardReport(manifest, version, engine, cost, bar("images", 8, "img", 0), tracker)


def test_tasks_that_were_made_together_share_their_time(
    tmp_path: Path, counted: list[tuple[str, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Manifest.read(write_manifest(tmp_path))
    receipts = [
        dataclasses.replace(receipt, failed=failed)
        for receipt, failed in zip(list(publish(manifest).receipts()), ((), (3,)), strict=False)
    ]
    version = begin(open_storage(manifest.storage.root).child("b"), identity(manifest, {}))
    engine: Engine = Engine(Actor, (), 1, 3, WorkerResources(1.0))
    engine._lost["a unit"].append("")
    shards = [(each, ShardSummary("dog", 4, 0, 0.1, 0.9, 40, ())) for each in receipts]
    made = UnitResult(shards, 3.0, "cpu", (), "10.0.0.7", "a unit")
    cost = CostCounter()
    with json_log("job", ""):
        report_of(manifest, version, engine, cost).record(made)
    told = [json.loads(each) for each in capsys.readouterr().err.splitlines() if each[0] == "{"]
    assert [(each["seconds"], each["failed"], each["attempt"]) for each in told] == [
        (1.5, 0, 2),
        (1.5, 1, 2),
    ]
    assert counted == [
        (name, amount)
        for failed in (0, 1)
        for name, amount in (
            ("images", 4),
            ("images", failed),
            ("synthesis_image_steps", 40),
            ("synthesis_seconds", 1.5),
        )
    ]
    assert (cost.images, cost.bytes) == (8, sum(each.bytes for each in receipts))


@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("cpu", "all 24 images take about 0.06 worker-hours at the speed of the first 2"),
        ("NVIDIA L4", "all 24 images take about 0.03 GPU-hours at the speed of the first 2"),
    ],
)
@pytest.mark.usefixtures("counted")
def test_what_a_run_will_take_is_told_once_by_workers_that_are_warm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str, told: str
) -> None:
    """Two of them, which share a GPU; four images were made by an earlier process."""
    manifest = Manifest.read(write_manifest(tmp_path))
    receipt = dataclasses.replace(next(publish(manifest).receipts()), samples=1)
    version = begin(open_storage(manifest.storage.root).child("b"), identity(manifest, {}))
    engine: Engine = Engine(Actor, (), 1, 3, WorkerResources(1.0, gpus=0.5))
    engine.largest = 2
    report = report_of(manifest, version, engine, CostCounter())
    report.tracker.done = 4
    made = [(receipt, ShardSummary("dog", 1, 0, 0.1, 0.9, 40, ()))]
    notes = []
    for warm, seconds in ((False, 1000.0), (False, 1000.0), (True, 8.0), (True, 10.0), (True, 7.0)):
        report.tracker.done += 1 if warm else 0
        result = UnitResult(made, seconds, device, (), "10.0.0.7", receipt.task, warm)
        report.record(result)
        lines = capsys.readouterr().err.splitlines()
        notes.append([line for line in lines if line.startswith("note: ")])
    assert [len(each) for each in notes] == [0, 0, 0, 1, 0]
    # 9 seconds an image; 18 images are left, half of them for each worker.
    rest = "; the 18 that are left take 0.0225 hours with 2 workers"
    assert notes[3] == [f"note: vanilla: {told}{rest}"]


def test_each_task_is_told_of_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], endpoint: str
) -> None:
    manifest = Manifest.read(write_manifest(tmp_path))
    published = publish(manifest)
    home = open_storage(manifest.storage.root).child("data/vanilla")
    version = begin(home, identity(manifest, {}))
    poisoned, *_ = units(manifest, ())
    engine: Engine = Engine(Actor, (), 1, 3, WorkerResources(1.0))
    receipt: Receipt = list(published.receipts())[1]
    summary = ShardSummary("dog", 4, 0, 0.1, 0.9, 40, ())
    made = UnitResult([(receipt, summary)], 1.25, "cpu", (), "10.0.0.7", receipt.task)
    with json_log("job", ""):
        report = report_of(manifest, version, engine, CostCounter())
        report.record(made)
        engine.quarantine.append(Quarantined(poisoned, "no luck"))
        report.show_failures()
        report.show_failures()
    told = capsys.readouterr().err.splitlines()
    done, quarantined = (json.loads(line) for line in told if line.startswith("{"))
    assert done["event"] == "task"
    assert done["run"] == quarantined["run"] == published.id
    assert (done["task"], done["images"], done["failed"]) == (receipt.task, 4, 0)
    assert (done["bytes"], done["attempt"], done["node"]) == (receipt.bytes, 1, "10.0.0.7")
    assert quarantined["event"] == "quarantined"
    assert (quarantined["task"], quarantined["images"]) == (poisoned.id, poisoned.count)
    assert quarantined["reason"] == "no luck"

    def own(found: Found, name: str) -> list[tuple[dict[str, str], float]]:
        """Of this test's manifest; the endpoint also has what other tests of this file count."""
        return [each for each in found.get(f"ray_dfkd_{name}", ()) if each[0]["manifest"] == "tiny"]

    found = wait_for(endpoint, lambda found: len(own(found, "images_total")) == 2)
    images = {labels["outcome"]: value for labels, value in own(found, "images_total")}
    assert images == {"done": 4, "quarantined": poisoned.count}
    ((labels, seconds),) = own(found, "synthesis_seconds_total")
    assert (labels["method"], seconds) == ("vanilla", 1.25)
