"""A synthesis tells of each of its tasks once."""

import json
import logging
from pathlib import Path

import pytest

from dfkd import logs
from dfkd.cluster.capacity import Share
from dfkd.cluster.pool import Pool, Quarantined
from dfkd.cluster.tell import Teller
from dfkd.dataset import begin
from dfkd.fingerprint import identity
from dfkd.manifest import Manifest
from dfkd.plan import tasks
from dfkd.shards import Receipt
from dfkd.storage import open_storage
from prometheus import wait_for
from surrogates import publish, write_manifest


class Kept(logging.Handler):
    """The lines that a job would show."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logs.Lines())
        self.lines: list[dict[str, object]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    handler = Kept()
    monkeypatch.setattr(logs.LOGGER, "handlers", [handler])
    monkeypatch.setattr(logs.LOGGER, "level", logging.INFO)
    return handler


def test_each_task_is_told_of_once(tmp_path: Path, kept: Kept, endpoint: str) -> None:
    manifest = Manifest.read(write_manifest(tmp_path))
    published = publish(manifest)
    home = open_storage(manifest.storage.root).child("data/vanilla")
    version = begin(home, identity(manifest, {}))
    poisoned, *_ = tasks(manifest)
    pool: Pool = Pool(lambda: None, 1, 3, Share(1.0))
    teller = Teller(manifest, version, pool)
    receipt: Receipt = published.shards[1]
    teller.done(receipt, steps=40, seconds=1.25, node="10.0.0.7")
    teller.quarantined()
    pool.quarantine.append(Quarantined(poisoned, "no luck"))
    teller.quarantined()
    teller.quarantined()
    done, quarantined = kept.lines
    assert done["event"] == "task"
    assert done["run"] == quarantined["run"] == published.id
    assert (done["task"], done["images"], done["failed"]) == (receipt.task, 4, 0)
    assert (done["bytes"], done["attempt"], done["node"]) == (receipt.bytes, 1, "10.0.0.7")
    assert quarantined["event"] == "quarantined"
    assert (quarantined["task"], quarantined["images"]) == (poisoned.id, poisoned.count)
    assert quarantined["reason"] == "no luck"

    found = wait_for(endpoint, lambda found: len(found.get("ray_dfkd_images_total", ())) == 2)
    images = {own["outcome"]: value for own, value in found["ray_dfkd_images_total"]}
    assert images == {"done": 4, "quarantined": poisoned.count}
    ((labels, seconds),) = found["ray_dfkd_synthesis_seconds_total"]
    assert (labels["manifest"], labels["method"], seconds) == ("tiny", "vanilla", 1.25)
