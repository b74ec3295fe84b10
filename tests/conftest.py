"""Shared fixtures: the miniature models, an S3 server. Puts this folder's modules on the path."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

import ceph as servers
from ceph import Ceph
from dfkd.models.generator import VQGAN
from dfkd.models.teacher import Teacher
from tests.helpers.tiny_models import GENERATOR, TEACHER

# Ray's workers otherwise wait for all else that runs on the machine, and tests for them. Ray reads
# this when it is first imported, by the modules of tests or by the jobs they start.
os.environ.setdefault("RAY_worker_niceness", "0")
# A node of Ray gives itself half a minute to start, which a busy machine does not always hold.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")

pytest.register_assert_rewrite("tests.helpers.storage_contract")

# Examples take as long as the machine lets them.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def teacher() -> Teacher:
    """The miniature teacher, on the CPU."""
    return Teacher.load(TEACHER, torch.device("cpu"))


@pytest.fixture(scope="session")
def generator() -> VQGAN:
    """The miniature generator, on the CPU."""
    return VQGAN.load(GENERATOR, torch.device("cpu"))


@pytest.fixture(scope="session")
def ceph() -> Iterator[Ceph]:
    """A real S3 server, for all tests together; one that is to be killed is a test's own."""
    if absent := servers.missing():
        pytest.skip(absent)
    with Ceph() as server:
        yield server


@pytest.fixture
def s3_root(ceph: Ceph, monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://bucket/prefix` in an empty bucket of `ceph`, with the environment that reaches it."""
    for name, value in ceph.environment.items():
        monkeypatch.setenv(name, value)
    return ceph.new_root()


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder on a disk of 256 KiB, or of what a test's parameter says."""
    disk, size = tmp_path / "disk", getattr(request, "param", "256k")
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in the quiet report too that tests were skipped for want of a server."""
    reasons = {str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])}
    absent = servers.missing()
    if absent and any(absent in reason for reason in reasons):
        terminalreporter.write_line(f"skipped the tests marked s3: {absent}")
