"""A regeneration killed at some moments goes on with the same salt; two at once are one."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from dfkd.dataset.published import current
from dfkd.dataset.verification import verify
from dfkd.errors import Exit
from dfkd.storage.base import Storage
from dfkd.storage.lease import newest_lease
from dfkd.storage.local import open_storage
from dfkd.utils.strict_json import canonical
from tests.helpers import jobs
from tests.helpers.jobs import environment, run_here
from tests.helpers.waiting import wait_for
from tests.jobs.test_regenerate import manifest

__all__ = ["manifest"]

MOMENTS = ("regenerations/00000000/claim.json", "regenerations/00000000/challenger/results.json")
"""Objects after whose appearance the job is killed."""


def settings(root: Path) -> list[str]:
    return ["--set", f"storage.root={root}"]


def start(manifest: Path, root: Path, ray: str) -> subprocess.Popen[str]:
    own = environment() | {"RAY_ADDRESS": ray}
    return jobs.start("regenerate", manifest, *settings(root), env=own)


def running(process: subprocess.Popen[str]) -> Callable[[], bool]:
    """Whether a job still runs."""
    return lambda: process.poll() is None


def expire(root: Path) -> None:
    """As if its length had passed since the dead holder's last renewal."""
    storage = open_storage(str(root))
    key, held = newest_lease(storage, "regenerate")
    assert held is not None
    storage.put(key, canonical(asdict(held) | {"expires": time.time()}))


def finish(manifest: Path, root: Path) -> None:
    """The same command, in this process, once it is no longer refused: a dead job had the lease."""
    found = run_here("regenerate", manifest, *settings(root))
    assert found.returncode == Exit.RETRY
    assert "lease regenerate" in found.stderr
    expire(root)
    found = run_here("regenerate", manifest, *settings(root))
    assert found.returncode == Exit.DONE, found.stderr


def require_whole(root: Storage) -> None:
    version = current(root.child("data/vanilla"))
    assert version is not None
    assert verify(version) == []
    assert root.folders("regenerations/") == ("00000000",)
    decision = json.loads(root.get("regenerations/00000000/decision.json"))
    assert decision["challenger"] == version.id
    assert root.exists("regenerations/00000000/finished.json")


@pytest.mark.faults
@pytest.mark.timeout(700)
def test_killed_at_some_moments_it_goes_on_with_the_same_salt(
    manifest: Path, tmp_path: Path, ray_head: str, two_cpus: None
) -> None:
    root = tmp_path / "run"
    for moment in MOMENTS:
        process = start(manifest, root, ray_head)
        wait_for((root / moment).exists, moment, alive=running(process))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if moment != MOMENTS[-1]:
            expire(root)
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
