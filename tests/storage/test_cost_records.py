"""What a run cost: entries are appended, and an invalid record is refused by its name."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from dfkd.errors import CorruptionError, InfrastructureError
from dfkd.storage import cost_records
from dfkd.storage.base import Storage
from dfkd.storage.cost_records import CostRecord, add, read, record_cost
from dfkd.storage.local import open_storage

ENTRY = CostRecord(
    stage="distill",
    method="contrastive",
    seed=3,
    seconds=12.5,
    worker_seconds=25.0,
    images=4800,
    bytes=44_000_000,
    workers=2,
    device="cpu",
)
KEY = "records/distill-contrastive-s3.json"


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def test_entries_are_appended_and_come_back(storage: Storage) -> None:
    assert read(storage) == []
    synthesis = replace(ENTRY, stage="synthesize", seed=None)
    for entry in (ENTRY, synthesis, replace(ENTRY, images=7)):
        add(storage, entry)
    assert read(storage) == [ENTRY, replace(ENTRY, images=7), synthesis]
    assert list(storage.list()) == [KEY, "records/synthesize-contrastive.json"]
    tree = json.loads(storage.get(KEY))
    assert tree["schema"] == 1
    assert tree["entries"][0] == asdict(ENTRY)


def test_a_stage_is_timed_and_counted(storage: Storage) -> None:
    with record_cost(storage, "synthesize", "mix") as cost:
        cost.worker_seconds, cost.images, cost.bytes, cost.workers = 4.0, 6, 600, 2
    with record_cost(storage, "distill", "mix", 0) as cost:
        cost.images, cost.workers, cost.device = 48, 3, "H100"
    trained, made = read(storage)
    assert (made.seed, made.worker_seconds, made.images, made.bytes) == (None, 4.0, 6, 600)
    assert (trained.seed, trained.workers, trained.device) == (0, 3, "H100")
    assert trained.worker_seconds == pytest.approx(3 * trained.seconds, abs=0.01)


def test_no_work_leaves_no_entry_and_half_of_it_does(storage: Storage) -> None:
    with record_cost(storage, "synthesize", "mix"):
        pass
    assert read(storage) == []

    def half() -> None:
        with record_cost(storage, "synthesize", "mix") as cost:
            cost.images = 5
            raise InfrastructureError("the disk is full")

    with pytest.raises(InfrastructureError):
        half()
    assert [entry.images for entry in read(storage)] == [5]


def test_work_without_a_finished_image_has_cost_something(storage: Storage) -> None:
    with record_cost(storage, "synthesize", "mix") as cost:
        cost.worker_seconds = 3.5
    assert [(entry.images, entry.worker_seconds) for entry in read(storage)] == [(0, 3.5)]


@pytest.mark.parametrize(
    "error", [OSError("no space left"), InfrastructureError("storage: busy; run it again")]
)
def test_a_cost_that_cannot_be_recorded_hides_no_error_of_the_work(
    storage: Storage,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    def work() -> None:
        with record_cost(storage, "synthesize", "mix") as cost:
            cost.images = 5
            raise CorruptionError("shard x: cut; restore it")

    monkeypatch.setattr(cost_records, "add", fail)
    with pytest.raises(CorruptionError, match="shard x: cut"):
        work()
    assert f"synthesize: its cost was not recorded ({error})" in capsys.readouterr().err


def changed(**fields: Any) -> dict[str, Any]:
    return {"schema": 1, "entries": [asdict(ENTRY) | fields]}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not strict JSON: Expecting value"),
        ('{"schema": 2, "entries": []}', "schema"),
        (json.dumps(changed(seconds=-1.0)), "entries.0.seconds"),
        (json.dumps(changed(seconds=1e308)), "entries.0.seconds"),
    ],
)
def test_a_damaged_record_is_named(storage: Storage, text: str, problem: str) -> None:
    storage.put(KEY, text.encode())
    for use in (lambda: read(storage), lambda: add(storage, ENTRY)):
        with pytest.raises(CorruptionError) as caught:
            use()
        assert str(caught.value).startswith(storage.location(KEY))
        assert problem in str(caught.value)
    assert storage.get(KEY) == text.encode()


def test_a_damaged_record_is_refused_before_the_work_that_it_would_lose(storage: Storage) -> None:
    storage.put(KEY, b"torn")
    with (
        pytest.raises(CorruptionError, match="delete it"),
        record_cost(storage, "distill", "contrastive", 3),
    ):
        raise AssertionError("work began")
