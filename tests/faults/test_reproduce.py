"""A study killed between and within its cells goes on, and finds what one that lived finds."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from dfkd.errors import Exit
from dfkd.lab.benchmarks.memory import descendants
from tests.helpers.jobs import environment, kill_when, run_here, start
from tests.helpers.machines import title
from tests.helpers.tiny_study import METHODS, write
from tests.helpers.waiting import wait_for

MOMENTS = ("*/data/random/versions/*/receipts/*", "*/students/random*")
"""Objects after whose appearance the job is killed; the second one comes after a finished cell."""
ONE_BY_ONE = ("--threads", "1")


def rows(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())["rows"]


@pytest.mark.faults
@pytest.mark.timeout(800)
def test_killed_again_and_again_it_finds_the_same(
    tmp_path: Path, ray_head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_head)
    path = write(tmp_path / "killed", teacher="CLIP", seeds=[0])
    root = tmp_path / "killed" / "root"
    own = environment() | {"RAY_ADDRESS": ray_head}
    for moment in MOMENTS:
        kill_when(
            lambda moment=moment: any(root.glob(moment)), "reproduce", path, *ONE_BY_ONE, env=own
        )
        assert not (tmp_path / "killed" / "results.json").exists(), moment
    done = run_here("reproduce", path, *ONE_BY_ONE)
    assert done.returncode == Exit.DONE, done.stderr
    assert ": found vanilla-s0-" in done.stdout

    undisturbed = write(tmp_path / "whole", teacher="CLIP", seeds=[0])
    # Latencies are measured, so the tables are compared with those of one measurement.
    shutil.copy(tmp_path / "killed" / "latency.json", tmp_path / "whole")
    whole = run_here("reproduce", undisturbed, *ONE_BY_ONE)
    assert whole.returncode == Exit.DONE, whole.stderr
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    tables = [(tmp_path / name / "table.md").read_bytes() for name in ("killed", "whole")]
    assert tables[0] == tables[1]


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_student_whose_process_is_killed_is_taken_up_again(tmp_path: Path) -> None:
    """Two are trained side by side; the process of one is killed after its first checkpoint."""
    axes = [{"name": "Method", "values": {"Baseline": METHODS["Baseline"]}}]
    long = {"distillation": {"epochs": 40, "batch_size": 2}}
    study = write(tmp_path, axes=axes, settings=long)
    process = start("reproduce", study, "--threads", "1")

    def trainer() -> int | None:
        if not list(tmp_path.glob("root/*/students/*/checkpoints/*")):
            return None
        return next(
            (p for p in descendants(process.pid) if "ray::StudentDistiller.run" in title(p)), None
        )

    os.kill(wait_for(trainer, alive=lambda: process.poll() is None), signal.SIGKILL)
    out, err = process.communicate()
    assert process.returncode == Exit.DONE, err
    assert out.count(": finished ") == 2
