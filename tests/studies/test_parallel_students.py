"""Students of a study side by side on a Ray of this machine, and how they agree with teachers."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dfkd.cluster.capacity import WorkerResources
from dfkd.config.manifest import Cluster, Manifest
from dfkd.dataset.loader import Stream
from dfkd.errors import Exit
from dfkd.studies import parallel_students as module
from dfkd.studies.parallel_students import agreement, divide_resources, plan_students
from dfkd.utils.device import CPU
from tests.helpers import jobs
from tests.helpers.tiny_study import write
from tests.helpers.tiny_version import publish, write_manifest

job = jobs.load("reproduce")


@pytest.mark.parametrize(
    ("nodes", "students", "most", "expected"),
    [
        ([{"CPU": 2.0}], 5, 0, (2, WorkerResources(1.0))),
        ([{"CPU": 8.0}], 2, 0, (2, WorkerResources(4.0))),
        ([{"CPU": 8.0}], 5, 2, (2, WorkerResources(4.0))),
        ([{"CPU": 8.0}, {"CPU": 4.0}], 3, 0, (3, WorkerResources(4.0))),
        ([{}, {"CPU": 4.0}], 9, 0, (4, WorkerResources(1.0))),
        ([{"CPU": 16.0, "GPU": 4.0}, {"CPU": 64.0}], 30, 0, (4, WorkerResources(4.0, 1.0))),
        ([{"CPU": 16.0, "GPU": 4.0}], 1, 0, (1, WorkerResources(16.0, 1.0))),
        ([{}], 3, 0, (1, WorkerResources(1.0))),
    ],
)
def test_gpus_and_cpus_are_divided_among_students(
    nodes: list[dict[str, float]], students: int, most: int, expected: tuple[int, WorkerResources]
) -> None:
    assert divide_resources(dict(zip("abc", nodes, strict=False)), students, most) == expected


@pytest.mark.parametrize(
    ("gpus", "nodes", "students", "most", "expected"),
    [
        (1.0, [{}, {"CPU": 8.0, "GPU": 1.0}], 20, 0, (20, 8.0)),
        (1.0, [{}, {"CPU": 8.0, "GPU": 4.0}], 20, 6, (6, 2.0)),
        (1.0, [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}], 20, 0, (20, 8.0)),
        (1.0, [{"CPU": 9.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 2.0}], 20, 0, (20, 4.0)),
        (0.0, [{}, {"CPU": 4.0}], 20, 0, (20, 1.0)),
        (0.0, [{}, {"CPU": 4.0}], 2, 0, (2, 2.0)),
        (1.0, [{}], 3, 0, (3, 1.0)),  # the node has gone again
    ],
)
def test_an_autoscaler_is_asked_for_one_node_and_all_students_reserve_a_share_of_it(
    monkeypatch: pytest.MonkeyPatch,
    gpus: float,
    nodes: list[dict[str, float]],
    students: int,
    most: int,
    expected: tuple[int, float],
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(module, "has_autoscaler", lambda: True)
    monkeypatch.setattr(module, "wait_for_nodes", lambda *request: asked.append(request))
    monkeypatch.setattr(module, "schedulable_nodes", lambda: dict(zip("ab", nodes, strict=False)))
    cluster = Cluster(cpus_per_worker=0.5, gpus_per_worker=gpus / 2)
    count, cpus = expected
    assert plan_students(cluster, students, most) == (count, WorkerResources(cpus, gpus))
    assert asked == [(WorkerResources(1.0, gpus), 1)]


@pytest.mark.usefixtures("two_cpus")
def test_students_are_made_side_by_side_and_a_bad_one_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfkd.studies.runner.cpu_count", lambda: 2)  # whatever this machine has
    # The bad one is then refused only where it is trained.
    monkeypatch.setattr("dfkd.studies.runner.check_batches", lambda manifest: None)
    axes = [{"name": "Batch", "values": {str(n): batch(n) for n in (4, 2, 9)}}]
    code = job.main([str(write(tmp_path, axes=axes, seeds=[0], held_out_images=1))])
    printed = capsys.readouterr()
    assert code == Exit.PARTIAL, printed.err
    assert "1 of 3 cells failed (9 seed 0: distillation.batch_size: " in printed.err
    assert printed.out.count(": finished ") == 2
    made = json.loads((tmp_path / "results.json").read_text())
    assert [len(row["cells"]) for row in made["rows"]] == [1, 1]
    for row in made["rows"]:
        assert row["cells"][0]["agreement"] in (0.0, 0.5, 1.0)  # of two classes, an image each
    assert "| agreement |" in (tmp_path / "table.md").read_text()
    assert {machine["torch_threads"] for machine in made["made"]["machines"]} == {1}

    again = write(tmp_path, axes=axes[:1], seeds=[0], held_out_images=1)
    code = job.main([str(again), "--at-once", "1"])
    assert capsys.readouterr().out.count(": found ") == 2


def batch(size: int) -> dict[str, dict[str, int]]:
    """Settings; of four images there is no batch of nine."""
    return {"distillation": {"batch_size": size}}


class Fixed(torch.nn.Module):
    """A student that gives the distances it was made with, image after image."""

    def __init__(self, distances: Tensor) -> None:
        super().__init__()
        self.distances = iter(distances)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.stack([next(self.distances) for _ in pixels])


def test_agreement_is_the_share_of_images_with_the_same_nearest_class(tmp_path: Path) -> None:
    images = Stream(publish(Manifest.read(write_manifest(tmp_path))), 32, 1, seed=0)
    answers = torch.cat([batch.distances for batch in images.batches(0)])
    assert agreement(Fixed(answers), images, CPU) == 1.0
    answers[:6] = -answers[:6]  # which moves the least to the largest
    assert agreement(Fixed(answers), images, CPU) == pytest.approx(18 / 24)
