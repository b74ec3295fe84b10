"""What becomes of an error in one of two real ranks."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.train
import safetensors.torch

from dfkd.cluster import students as module
from dfkd.cluster.capacity import Ranks
from dfkd.cluster.launch import run_ranks
from dfkd.cluster.rank import train
from dfkd.cluster.students import distill
from dfkd.config.manifest import Manifest
from dfkd.distillation.distiller import Distiller
from dfkd.errors import CorruptionError, Exit, InfrastructureError, WeightsError
from dfkd.models.student import build
from tests.helpers import jobs
from tests.helpers.published import flip_bit
from tests.helpers.ranks import prepare

STEP = 2
"""Before which a rank fails."""

Loop = Callable[[dict[str, Any]], Any]


pytestmark = pytest.mark.usefixtures("two_cpus")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Loop], None]:
    """Distil with another function in the ranks."""

    def run(loop: Loop) -> None:
        monkeypatch.setattr(module, "train", loop)
        distill(prepare(tmp_path), "vanilla", 0)

    return run


def failing(fail: Callable[[int], None]) -> Loop:
    """`train`, in which `fail(rank)` is called before `STEP`.

    A function within a function travels to the ranks by value: they know no module of tests.
    """
    step = STEP

    def loop(config: dict[str, Any]) -> Any:
        advance = Distiller.advance

        def failing(self: Distiller, batch: Any) -> Any:
            if self.step == step:
                fail(self.rank)
            return advance(self, batch)

        Distiller.advance = failing  # type: ignore[method-assign]
        return train(config)

    return loop


def starts(mark: Path) -> int:
    """How often a rank came to the step of a mark."""
    return len(mark.read_text()) if mark.exists() else 0


def no_traceback(told: str) -> bool:
    """Of a rank or the driver; on a busy machine the controller of Ray may print one of its own."""
    lines = [line for line in told.splitlines() if "TrainController" not in line]
    return not any("Traceback" in line or "Error in training" in line for line in lines)


def test_a_flipped_bit_ends_the_job_with_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = prepare(tmp_path)
    shard = sorted((tmp_path / "run").rglob("*.tar"))[0]
    flip_bit(shard, shard.stat().st_size // 2)
    assert manifest.distillation.rank_limits == (2, 2)
    root = os.path.relpath(tmp_path / "run")  # which ranks are to find as well
    code = jobs.load("distill").main(
        [str(tmp_path / "manifest.yaml"), "--set", f"storage.root={root}"]
    )
    told = capfd.readouterr()
    assert code == Exit.FAILED
    (line,) = [text for text in told.err.splitlines() if text.startswith("error: ")]
    assert shard.stem in line
    assert "sha256" in line
    assert no_traceback(told.out + told.err)


def test_what_only_a_rank_can_see_is_refused_as_any_bad_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A file of initial weights that is on the driver's machine alone."""
    weights = tmp_path / "initial.safetensors"
    manifest = prepare(tmp_path)
    student = build(manifest.distillation, 3, 32, 0)
    safetensors.torch.save_file(student.backbone.state_dict(), weights)

    def loop(config: dict[str, Any]) -> Any:
        if ray.train.get_context().get_world_rank() == 1:
            weights.unlink()
        ray.train.collective.barrier()
        return train(config)

    monkeypatch.setattr(module, "train", loop)
    settings = (f"distillation.weights={weights}",)
    with pytest.raises(
        WeightsError, match=r"distillation\.weights: must be an existing file"
    ) as caught:
        distill(Manifest.read(tmp_path / "manifest.yaml", settings), "vanilla", 0)
    assert caught.value.exit_code == Exit.USAGE
    assert no_traceback(capfd.readouterr().err)


def test_a_defect_keeps_its_traceback_and_is_not_repeated(
    tmp_path: Path, run: Callable[[Loop], None]
) -> None:
    mark = tmp_path / "mark"

    def fail(rank: int) -> None:
        if rank == 1:
            with mark.open("a") as stream:
                stream.write("x")
            [].pop()

    with pytest.raises(IndexError, match="pop from empty list") as caught:
        run(failing(fail))
    (note,) = caught.value.__notes__
    assert "in fail\n    [].pop()" in note
    assert starts(mark) == 1


@pytest.mark.faults
def test_our_own_error_is_told_where_other_ranks_die(
    tmp_path: Path, run: Callable[[Loop], None]
) -> None:
    """Whether Ray notices both at once, or the death alone and the error at the second start."""
    mark = tmp_path / "mark"

    def fail(rank: int) -> None:
        if rank == 1:
            raise CorruptionError("shard x: cut; restore it")
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(CorruptionError, match="shard x: cut; restore it"):
        run(failing(fail))


def test_a_controller_that_dies_is_an_infrastructure_error() -> None:
    """By a signal, as of a system that is short of memory."""

    def loop(config: dict[str, Any]) -> None:
        # The raylet of this Ray has started the ranks and their controller.
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # of a process that has just ended
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                name = (folder / "cmdline").read_bytes()
                if int(parent) == os.getppid() and b"TrainController" in name:
                    os.kill(int(folder.name), signal.SIGKILL)
        time.sleep(60)

    with pytest.raises(InfrastructureError, match=r"gave up on the ranks \(.*has died"):
        run_ranks(loop, {}, "student", Ranks(1, 1.0, "cpu"))
