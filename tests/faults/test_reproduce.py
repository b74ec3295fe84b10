"""A study killed between and within its cells goes on, and finds what one that lived finds."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from dfkd.errors import Exit
from jobs import command, environment
from studies import write

MOMENTS = ("cells/vanilla-s0-*/cell.json", "data/random/versions/*/receipts/*", "students/random*")
"""Objects after whose appearance the job is killed."""


def start(study: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command("reproduce", study, "--threads", "1"),
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=environment(),
        start_new_session=True,
    )


def rows(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())["rows"]


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_killed_again_and_again_it_finds_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "killed", teacher="CLIP")
    root = tmp_path / "killed" / "root"
    for moment in MOMENTS:
        process = start(path)
        while not list(root.glob(moment)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "killed" / "results.json").exists(), moment
    process = start(path)
    out, err = process.communicate()
    assert process.returncode == Exit.DONE, err
    assert ": found vanilla-s0-" in out

    whole = start(write(tmp_path / "whole", teacher="CLIP"))
    _, err = whole.communicate()
    assert whole.returncode == Exit.DONE, err
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    tables = [(tmp_path / name / "table.md").read_bytes() for name in ("killed", "whole")]
    assert tables[0] == tables[1]
