"""Shared fixtures: the miniature models, a Ray, an S3 server, an Azure server, a browser."""

import gc
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, settings

import azurite as azure_servers
import ceph as servers
from azurite import Azurite
from ceph import Ceph
from dfkd.models.generators.vqgan import VQGAN
from dfkd.models.teacher import Teacher
from tests.helpers.jobs import ROOT
from tests.helpers.tiny_models import TEACHER
from tests.helpers.tiny_models import VQGAN as SETTINGS

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

# Ray's workers otherwise wait for all else that runs on the machine, and tests for them. Ray reads
# this when it is first imported, by the modules of tests or by the jobs they start.
os.environ.setdefault("RAY_worker_niceness", "0")
# The controller of a training asks its ranks every two seconds whether they have ended.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# A node of Ray gives itself half a minute to start, which a busy machine does not always hold.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
# `ray.init()` that starts a Ray makes this process expect a token of every later Ray too: actors in
# one without a token would be cancelled. `Cluster` uses tokens only if the environment asks for it.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
# The tests ask what happens on a CPU, to the bit; those of a GPU are run with it made visible.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

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
    return VQGAN.load(SETTINGS, torch.device("cpu"))


@pytest.fixture(scope="session")
def ray_head() -> Iterator[str]:
    """The address of a Ray of two CPUs, for all tests that need none of their own."""
    from ray.cluster_utils import Cluster  # not before Ray's variables above are set

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # so that its workers know the package
        patch.delenv("RAY_ADDRESS", raising=False)
        small = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 << 20}
        cluster = Cluster(initialize_head=True, head_node_args=small)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="module")
def two_cpus(ray_head: str) -> Iterator[None]:
    """A connection of this process to `ray_head`, which jobs in this process use too."""
    import ray

    ray.init(address=ray_head)
    yield
    ray.shutdown()


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


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    """A real Azure Blob server, for all tests together."""
    if absent := azure_servers.missing():
        pytest.skip(absent)
    with Azurite() as server:
        yield server


@pytest.fixture
def azure_root(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> str:
    """`az://container/prefix` in an empty container, with the environment that reaches it."""
    for name, value in azurite.environment.items():
        monkeypatch.setenv(name, value)
    return azurite.new_root()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Chrome]":
    """A real browser, for all tests of pages."""
    from tests.helpers import browsers  # selenium is for them alone

    if absent := browsers.missing():
        pytest.skip(absent)
    with browsers.open_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make quick` leaves out, and put long files first, so that processes end together.

    Only what is expensive is shared, so a test is heavy if it uses a fixture that others use too.
    """
    order: dict[Path, tuple[float, bool]] = {}
    for item in items:
        assert isinstance(item, pytest.Function)
        fixtures = [each[-1] for each in item._fixtureinfo.name2fixturedefs.values()]
        if any(each.baseid and each.scope in ("module", "session") for each in fixtures):
            item.add_marker("heavy")
        limit = item.get_closest_marker("timeout")
        found = (-limit.args[0] if limit else 0.0, "ray_head" not in item.fixturenames)
        order[item.path] = min(found, order.get(item.path, found))
    items.sort(key=lambda item: order[item.path])


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep what all tests have imported out of garbage collections, which take a second with it."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in the quiet report too that tests were skipped for want of a server."""
    reasons = {str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])}
    for marker, absent in (("s3", servers.missing()), ("azure", azure_servers.missing())):
        if absent and any(absent in reason for reason in reasons):
            terminalreporter.write_line(f"skipped the tests marked {marker}: {absent}")
