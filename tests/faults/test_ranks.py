"""Fault 9: ranks are killed or hang at known steps, so that what is tested does not depend on time.

Each run has two ranks with unevenly many images, a checkpoint every ten steps, and the same student
as the run that nobody disturbed.
"""

import functools
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dfkd.cluster import launch
from dfkd.cluster import students as module
from dfkd.cluster.rank import train
from dfkd.cluster.students import distill
from dfkd.config.manifest import Manifest
from dfkd.distillation.distiller import Distiller, Schedule
from dfkd.distillation.student_store import StudentLocation, locate_student
from dfkd.errors import InfrastructureError
from dfkd.models.student import WEIGHTS, load_student
from dfkd.storage.checkpoints import Checkpoints
from tests.helpers.tiny_models import write_backbone
from tests.helpers.tiny_version import publish, write_manifest

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(800),
    pytest.mark.usefixtures("two_cpus"),
]

STEPS, INTERVAL = 5, 10
"""Of an epoch (30 images in batches of 6), and between two checkpoints."""
WARMUP, TOTAL = 20, 50
FAR_SECONDS = 1.5
"""More than the second in which Ray Train itself would lose a checkpoint."""


def prepare(folder: Path, **cluster: object) -> Manifest:
    """A run of which one rank reads 4 + 4 + 2 images more often than the other its own."""
    folder.mkdir()
    path = write_manifest(
        folder,
        synthesis={"images_per_class": 10},
        cluster=cluster,
        distillation={
            "workers": 2,
            "weights": str(write_backbone(folder / "backbone.safetensors")),
            "warmup_epochs": WARMUP // STEPS,
            "epochs": (TOTAL - WARMUP) // STEPS,
            "checkpoint_epochs": INTERVAL // STEPS,
        },
    )
    manifest = Manifest.read(path)
    publish(manifest)
    assert Schedule.of(manifest.distillation, STEPS) == Schedule(STEPS, WARMUP, TOTAL)
    return manifest


Deaths = dict[int, tuple[int, float]]
"""Before which step which rank dies, and after how many idle seconds; without end if it hangs."""


def doomed(deaths: Deaths, marks: Path) -> Callable[[dict[str, Any]], None]:
    """`train`, in which a rank kills itself once before each of some steps.

    A function within a function travels to the ranks by value: they know no module of tests.
    """

    def loop(config: dict[str, Any]) -> None:
        advance = Distiller.advance

        @functools.wraps(advance)
        def dying(self: Distiller, batch: Any) -> Any:
            rank, seconds = deaths.get(self.step, (-1, 0.0))
            mark = marks / str(self.step)
            if rank == self.rank and not mark.exists():
                time.sleep(min(seconds, FAR_SECONDS))
                mark.touch()
                while seconds == math.inf:
                    time.sleep(FAR_SECONDS)
                os.kill(os.getpid(), signal.SIGKILL)
            return advance(self, batch)

        Distiller.advance = dying  # type: ignore[method-assign]
        try:
            train(config)
        finally:
            Distiller.advance = advance  # type: ignore[method-assign]

    return loop


def run(
    manifest: Manifest, deaths: Deaths, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> StudentLocation:
    marks.mkdir()
    monkeypatch.setattr(module, "train", doomed(deaths, marks))
    try:
        return distill(manifest, "vanilla", 0).student
    finally:
        assert sorted(int(path.name) for path in marks.iterdir()) == sorted(deaths)


def whole(student: StudentLocation) -> None:
    """All steps were made, its curve lacks none of them, and no checkpoint is left."""
    _, card = load_student(student.storage)
    assert card["steps"] == TOTAL
    assert Checkpoints(student.storage.child("checkpoints")).newest() == 0
    events = EventAccumulator(student.storage.location("tensorboard"))
    events.Reload()
    steps = [event.step for event in events.Scalars("loss")]
    assert steps[-1] == TOTAL
    assert set(steps) == set(range(STEPS, TOTAL + 1, STEPS))


DEATHS: Deaths = {
    # Right after the checkpoint before that step: rank 1 while rank 0 may still be writing it.
    INTERVAL: (1, 0.0),
    WARMUP + INTERVAL: (0, 0.0),
    # Half-way to the next one, and longer than a second after it.
    INTERVAL + 5: (0, FAR_SECONDS),
    WARMUP + INTERVAL + 7: (1, FAR_SECONDS),
}


@pytest.fixture(scope="module")
def undisturbed(two_cpus: None, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a student whose ranks nothing has happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    student = distill(prepare(folder / "run"), "vanilla", 0).student
    whole(student)
    return student.storage.get(WEIGHTS)


def test_ranks_killed_in_both_phases_change_no_bit_of_the_student(
    undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In warm-up and in fine-tuning, the leading rank and the other, by a checkpoint or far off.

    These are more deaths than may come without a new checkpoint between them.
    """
    assert len(DEATHS) > launch.MAX_RANK_FAILURES
    student = run(prepare(tmp_path / "run"), DEATHS, tmp_path / "marks", monkeypatch)
    whole(student)
    assert student.storage.get(WEIGHTS) == undisturbed
    print(f"ranks killed before steps {sorted(DEATHS)} of {TOTAL}: the same student")


def test_a_rank_that_hangs_is_ended_and_changes_no_bit_of_the_student(
    undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging: Deaths = {WARMUP + INTERVAL + 3: (1, math.inf)}
    student = run(
        prepare(tmp_path / "run", task_timeout=20), hanging, tmp_path / "marks", monkeypatch
    )
    whole(student)
    assert student.storage.get(WEIGHTS) == undisturbed


def test_after_too_many_deaths_the_same_command_goes_on_with_another_number_of_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "MAX_RANK_FAILURES", 0)
    manifest = prepare(tmp_path / "run")
    with pytest.raises(
        InfrastructureError, match="died more than 0 times without a new checkpoint"
    ):
        run(manifest, {WARMUP + INTERVAL + 3: (1, 0.0)}, tmp_path / "marks", monkeypatch)
    target = locate_student(manifest, "vanilla", 0)
    assert Checkpoints(target.storage.child("checkpoints")).newest() == WARMUP + INTERVAL
    narrower = Manifest.read(tmp_path / "run" / "manifest.yaml", ("distillation.workers=1",))
    assert locate_student(narrower, "vanilla", 0).name == target.name
    whole(run(narrower, {}, tmp_path / "none", monkeypatch))
