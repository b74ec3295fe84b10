"""Scalars and images arrive as event files that TensorBoard reads."""

import io
import socket
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dfkd.cluster.tracking import CLASSES, SAMPLES, ShardSummary, ShardTracker, Tracker
from dfkd.dataset.shards import Sample
from dfkd.errors import InfrastructureError
from dfkd.storage.base import CLEANUP_ATTEMPTS
from dfkd.storage.local import open_storage
from dfkd.utils.progress import LineBar
from tests.helpers.partial_version import make_sample


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which stands until a test sets it."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"images": 0})
    found.Reload()
    return found


def points(found: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in found.Scalars(name)]


def picture(found: EventAccumulator, name: str) -> Image.Image:
    (event,) = found.Images(name)
    return Image.open(io.BytesIO(event.encoded_image_string))


def test_scalars_are_means_and_arrive_in_storage(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Tracker(LineBar("student", 40, "img"), open_storage(str(tmp_path)), 10) as tracker:
        for loss in (1.0, 2.0):
            tracker.record(torch.tensor(loss), torch.tensor(0.5))
        assert tracker.log(2, rate=0.1) == {"loss": 1.5, "agreement": 0.5}
        tracker.record(torch.tensor(4.0), torch.tensor(1.0))
        tracker.log(3, rate=0.01)
        tracker.upload()
    found = events(tmp_path)
    assert points(found, "loss") == [(2, 1.5), (3, 4.0)]
    assert [rate for _, rate in points(found, "learning_rate")] == pytest.approx([0.1, 0.01])
    assert points(found, "agreement") == [(2, 0.5), (3, 1.0)]
    assert all(speed > 0 for _, speed in points(found, "images_per_second"))
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "30/40" in lines[0]


def test_images_a_second_are_those_since_the_last_point(tmp_path: Path, clock: list[float]) -> None:
    with Tracker(LineBar("student", 40, "img"), open_storage(str(tmp_path)), 10) as tracker:
        for now, steps in ((4.0, 2), (5.0, 1)):
            for _ in range(steps):
                tracker.record(torch.tensor(1.0), torch.tensor(1.0))
            clock[0] = now
            tracker.log(int(now), rate=0.1)
        tracker.upload()
    assert points(events(tmp_path), "images_per_second") == [(4, 5.0), (5, 10.0)]


def test_the_host_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "b\u00fcro+1 (none)")
    with Tracker(LineBar("student", 1, "img"), open_storage(str(tmp_path)), 1) as tracker:
        tracker.scalars({"loss": 2.0}, 3)
        tracker.upload()
    assert points(events(tmp_path), "loss") == [(3, 2.0)]


def test_images_lie_side_by_side(tmp_path: Path) -> None:
    views = torch.zeros(3, 3, 8, 8)
    views[1] = 1.0
    with Tracker(LineBar("student", 1, "img"), open_storage(str(tmp_path)), 1) as tracker:
        tracker.images("augmented", views, 0)
        tracker.upload()
    shown = np.asarray(picture(events(tmp_path), "augmented"))
    assert shown.shape == (8, 24, 3)
    assert shown[:, 8:16].min() == 255
    assert shown[:, :8].max() == shown[:, 16:].max() == 0


def sample(index: int, loss: float, confidence: float, colour: tuple[int, int, int]) -> Sample:
    made = make_sample(0, index)
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(stream, "PNG")
    facts = made.metadata | {"loss": loss, "confidence": confidence}
    return Sample(made.key, stream.getvalue(), "png", facts, made.arrays)


RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_shards_are_shown_over_the_images_that_are_finished(tmp_path: Path) -> None:
    first = [sample(0, 0.2, 0.9, RED), sample(1, 0.4, 0.7, BLUE)]
    with ShardTracker(open_storage(str(tmp_path)), 16, done=10) as tracker:
        tracker.record(ShardSummary.of("owl", first, 0, show=True))
        tracker.record(ShardSummary.of("owl", [sample(2, 0.6, 0.1, RED)], 1, show=False))
        tracker.record(ShardSummary.of("tree", [], 2, show=True))
        assert (tracker.done, tracker.failed) == (13, 3)
    found = events(tmp_path)
    assert points(found, "loss") == [(12, pytest.approx(0.3)), (13, pytest.approx(0.6))]
    assert points(found, "confidence") == [(12, pytest.approx(0.8)), (13, pytest.approx(0.1))]
    assert points(found, "failed") == [(12, 0.0), (13, 1.0), (13, 3.0)]
    assert all(speed > 0 for _, speed in points(found, "images_per_second"))
    assert found.Tags()["images"] == ["samples/owl"]
    shown = np.asarray(picture(found, "samples/owl"))
    assert shown.shape == (16, 32, 3)
    assert tuple(shown[8, 8]) == RED
    assert tuple(shown[8, 24]) == BLUE


def test_shards_are_uploaded_once_a_minute_and_at_the_end(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads: list[float] = []
    upload = ShardTracker.upload

    def noted(tracker: ShardTracker) -> None:
        uploads.append(clock[0])
        upload(tracker)

    monkeypatch.setattr(ShardTracker, "upload", noted)
    with ShardTracker(open_storage(str(tmp_path)), 16, done=10) as tracker:
        for now in (20.0, 61.0, 80.0, 121.0, 122.0):
            clock[0] = now
            tracker.record(ShardSummary.of("owl", [sample(0, 0.2, 0.9, RED)], 0, show=False))
    assert uploads == [61.0, 122.0, 122.0]
    # Without the images of earlier runs.
    speeds = [1 / 20, 2 / 61, 3 / 80, 4 / 121, 5 / 122]
    found = points(events(tmp_path), "images_per_second")
    assert found == [(11 + n, pytest.approx(speed)) for n, speed in enumerate(speeds)]


def test_a_run_that_ends_with_an_error_keeps_what_it_showed(tmp_path: Path) -> None:
    def fail() -> None:
        with ShardTracker(open_storage(str(tmp_path)), 16) as tracker:
            tracker.record(ShardSummary.of("owl", [sample(0, 0.2, 0.9, RED)], 0, True))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert points(events(tmp_path), "loss") == [(1, pytest.approx(0.2))]


def test_a_store_that_is_gone_neither_hides_nor_delays_the_error_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(str(tmp_path))
    gone = Mock(spec=storage)
    gone.with_attempts.return_value.put.side_effect = InfrastructureError("storage: gone")

    def interrupted() -> None:
        with ShardTracker(gone, 16) as tracker:
            tracker.record(ShardSummary.of("owl", [sample(0, 0.2, 0.9, RED)], 0, True))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    gone.with_attempts.assert_called_once_with(CLEANUP_ATTEMPTS)


def test_nothing_made_leaves_no_file_and_what_is_shown_is_bounded(tmp_path: Path) -> None:
    with ShardTracker(open_storage(str(tmp_path)), 16):
        pass
    assert not list(tmp_path.glob("events*"))
    many = [sample(index, 0.2, 0.9, RED) for index in range(SAMPLES + 3)]
    assert len(ShardSummary.of("owl", many, 0, show=True).images) == SAMPLES
    with ShardTracker(open_storage(str(tmp_path)), 16) as tracker:
        for number in range(CLASSES + 3):
            tracker.record(ShardSummary.of(f"class {number}", many[:1], 0, show=True))
    assert len(events(tmp_path).Tags()["images"]) == CLASSES
