import os
import signal
from pathlib import Path

import pytest

from dfkd.cluster.tasks import ray_map
from dfkd.config.manifest import Manifest
from dfkd.dataset.verification import verify
from dfkd.errors import CorruptionError, Exit, InfrastructureError
from tests.helpers.jobs import run_here
from tests.helpers.tiny_version import publish, write_manifest


@pytest.mark.usefixtures("two_cpus")
def test_results_come_in_order_and_an_error_is_that_of_the_function() -> None:
    def halve(number: int) -> int:
        if number % 2:
            raise CorruptionError(f"{number} is odd")
        return number // 2

    assert list(ray_map(halve, range(0, 40, 2))) == list(range(20))
    with pytest.raises(CorruptionError, match=r"^3 is odd$"):
        list(ray_map(halve, [0, 2, 3, 4]))


@pytest.mark.usefixtures("two_cpus")
def test_a_lost_worker_is_replaced_and_one_that_always_dies_ends_the_run(tmp_path: Path) -> None:
    def die_once(name: str) -> str:
        mark = tmp_path / name
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return name

    assert list(ray_map(die_once, ["a", "b"])) == ["a", "b"]

    def die(name: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(InfrastructureError, match=r"lost again and again .* the same command"):
        list(ray_map(die, ["a"]))


@pytest.mark.usefixtures("two_cpus")
def test_a_cluster_finds_what_one_process_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_head: str
) -> None:
    path = write_manifest(tmp_path)
    version = publish(Manifest.read(path))
    assert verify(version, ray_map) == []
    next(tmp_path.glob("run/data/vanilla/versions/*/shards/0001-00000.tar")).unlink()
    assert verify(version, ray_map) == verify(version) != []
    monkeypatch.setenv("RAY_ADDRESS", ray_head)
    found = run_here("verify", path)
    assert found.returncode == Exit.FAILED
    assert "shards/0001-00000.tar: missing" in found.stdout
