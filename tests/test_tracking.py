from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dfkd.distillation import Outcome
from dfkd.storage import open_storage
from dfkd.tracking import LineBar, Tracker


def test_scalars_are_means_and_arrive_in_storage(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Tracker(LineBar("student", 40, 0), open_storage(str(tmp_path)), 10) as tracker:
        for loss in (1.0, 2.0):
            tracker.record(Outcome(torch.tensor(loss), torch.tensor(0.5)))
        assert tracker.log(2, rate=0.1) == {"loss": 1.5, "agreement": 0.5}
        tracker.record(Outcome(torch.tensor(4.0), torch.tensor(1.0)))
        tracker.log(3, rate=0.01)
        tracker.upload()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(2, 1.5), (3, 4.0)]
    assert [e.value for e in events.Scalars("learning_rate")] == pytest.approx([0.1, 0.01])
    assert [e.value for e in events.Scalars("agreement")] == [0.5, 1.0]
    assert all(e.value > 0 for e in events.Scalars("images_per_second"))
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "30/40" in lines[0]
