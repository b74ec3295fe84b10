"""A regeneration killed at some moments goes on with the same salt; two at once are one."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dfkd.dataset.published import current
from dfkd.dataset.verification import verify
from dfkd.errors import Exit
from dfkd.storage.base import Storage
from dfkd.storage.local import open_storage
from tests.helpers import jobs
from tests.helpers.jobs import environment, run_here
from tests.helpers.waiting import wait_for
from tests.jobs.test_regenerate import manifest

__all__ = ["manifest"]

MOMENTS = ("regenerations/00000000/claim.json", "regenerations/00000000/candidate/results.json")
"""Objects after whose appearance the job is killed."""


def settings(root: Path) -> list[str]:
    return ["--set", f"storage.root={root}", "--set", "regeneration.lease_seconds=3"]


def start(manifest: Path, root: Path, ray: str) -> subprocess.Popen[str]:
    own = environment() | {"RAY_ADDRESS": ray}
    return jobs.start("regenerate", manifest, *settings(root), env=own)


def running(process: subprocess.Popen[str]) -> Callable[[], bool]:
    """Whether a job still runs."""
    return lambda: process.poll() is None


def finish(manifest: Path, root: Path) -> None:
    """The same command, in this process, until the dead holder's lease has expired."""
    while (found := run_here("regenerate", manifest, *settings(root))).returncode == Exit.RETRY:
        assert "lease regenerate" in found.stderr
        time.sleep(0.2)
    assert found.returncode == Exit.DONE, found.stderr


def require_whole(root: Storage) -> None:
    version = current(root.child("data/vanilla"))
    assert version is not None
    assert verify(version) == []
    assert root.folders("regenerations/") == ("00000000",)
    decision = json.loads(root.get("regenerations/00000000/decision.json"))
    assert decision["candidate"] == version.id
    assert root.exists("regenerations/00000000/finished.json")


@pytest.mark.faults
@pytest.mark.timeout(700)
def test_killed_at_some_moments_it_goes_on_with_the_same_salt(
    manifest: Path, tmp_path: Path, ray_head: str, two_cpus: None
) -> None:
    root = tmp_path / "run"
    for moment in MOMENTS:
        while True:
            process = start(manifest, root, ray_head)
            try:
                wait_for((root / moment).exists, moment, alive=running(process))
            except AssertionError:
                if process.returncode != Exit.RETRY:
                    raise
                continue  # the lease of the one that was killed before
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            break
    finish(manifest, root)
    require_whole(open_storage(str(root)))


@pytest.mark.faults
@pytest.mark.timeout(700)
def test_of_two_at_once_one_works_and_the_other_is_to_come_again(
    manifest: Path, tmp_path: Path, ray_head: str
) -> None:
    root = tmp_path / "run"
    processes = [start(manifest, root, ray_head) for _ in range(2)]
    ends = [(process.communicate(), process.returncode) for process in processes]
    codes = sorted(code for _, code in ends)
    assert codes == [Exit.DONE, Exit.RETRY], ends
    require_whole(open_storage(str(root)))
