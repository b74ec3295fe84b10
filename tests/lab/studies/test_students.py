"""Students of a study that fail or not, and how they agree with their teacher."""

import dataclasses
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.dataset.batch import Batch
from dfkd.dataset.loader import Stream
from dfkd.errors import Exit
from dfkd.lab.studies.reproduce import agreement
from dfkd.utils.device import CPU
from tests.helpers import jobs
from tests.helpers.tiny_study import write
from tests.helpers.tiny_version import publish, write_manifest

job = jobs.load("reproduce")


@pytest.mark.usefixtures("two_cpus")
def test_a_bad_student_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The bad one is then refused only where it is trained.
    monkeypatch.setattr("dfkd.lab.studies.reproduce.check_batches", lambda manifest: None)
    axes = [{"name": "Batch", "values": {str(n): batch(n) for n in (4, 2, 9)}}]
    axes[0]["values"]["2"]["distillation"]["target"] = "embedding"
    more = {"held_out_images": 1, "teacher": "CLIP", "unseen": ["house", "tree"]}
    code = job.main([str(write(tmp_path, axes=axes, seeds=[0], **more))])
    printed = capsys.readouterr()
    assert code == Exit.PARTIAL, printed.err
    assert "1 of 3 cells failed (9 seed 0: distillation.batch_size: " in printed.err
    assert printed.out.count(": finished ") == 2
    assert "\n9 seed 0: failed: distillation.batch_size: " in f"\n{printed.out}"
    made = json.loads((tmp_path / "results.json").read_text())
    assert [len(row["cells"]) for row in made["rows"]] == [1, 1, 1]
    teacher, distances, embedding = (row["cells"][0] for row in made["rows"])
    for cell in (distances, embedding):
        assert cell["outcome"]["agreement"] in (0.0, 0.5, 1.0)  # of two classes, an image each
    # The student of distances knows only its own classes.
    assert distances["outcome"]["unseen"] is None
    assert teacher["outcome"]["unseen"] > 0.7  # of two classes
    scored = json.loads(
        (tmp_path / "root" / embedding["folder"] / "unseen/results.json").read_text()
    )
    assert scored["classes"] == ["house", "tree"]
    # All images count alike, and the domains have different numbers of them.
    total = sum(row["images"] for row in scored["rows"])
    right = sum(row["accuracy"] * row["images"] for row in scored["rows"])
    assert embedding["outcome"]["unseen"] == pytest.approx(right / total)
    assert "| agreement |" in (tmp_path / "table.md").read_text()

    again = write(tmp_path, axes=axes[:1], seeds=[0], **more)
    code = job.main([str(again)])
    assert capsys.readouterr().out.count(": found ") == 2


@pytest.mark.parametrize(
    ("other", "rule"),
    [("book", "classes that no student learns"), ("zeppelin", "classes of the evaluation data")],
)
def test_classes_that_students_learn_or_nobody_shows_are_not_unseen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: str, rule: str
) -> None:
    assert job.main([str(write(tmp_path, unseen=["house", other]))]) == Exit.USAGE
    assert f"unseen: must name {rule}" in capsys.readouterr().err


def test_a_single_unseen_class_is_refused_before_any_student_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    axes = [{"name": "Target", "values": {"E": {"distillation": {"target": "embedding"}}}}]
    path = write(tmp_path, axes=axes, unseen=["house"])
    assert job.main([str(path), "--dry-run"]) == Exit.USAGE
    assert "error: unseen: must be empty, or name two classes or more" in capsys.readouterr().err


def batch(size: int) -> dict[str, dict[str, Any]]:
    """Settings; of four images there is no batch of nine."""
    return {"distillation": {"batch_size": size}}


class Fixed(torch.nn.Module):
    """A student that gives the distances it was made with, image after image."""

    def __init__(self, distances: Tensor) -> None:
        super().__init__()
        self.distances = iter(distances)

    def forward(self, pixels: Tensor) -> Tensor:
        assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1
        return torch.stack([next(self.distances) for _ in pixels])


class Mislabelled(Stream):
    """Images that were all made for another class than the one that the teacher sees."""

    def batches(self, epoch: int, step: int = 0) -> Generator[Batch]:
        for each in super().batches(epoch, step):
            yield dataclasses.replace(each, labels=(each.labels + 1) % 3)


def test_agreement_is_the_share_of_images_with_the_same_nearest_class(tmp_path: Path) -> None:
    images = Mislabelled(publish(Manifest.read(write_manifest(tmp_path))), 32, 1, seed=0)
    answers = torch.cat([batch.distances for batch in images.batches(0)])
    assert agreement(Fixed(answers), images, CPU) == 1.0
    answers[:6] = -answers[:6]  # which moves the least to the largest
    assert agreement(Fixed(answers), images, CPU) == pytest.approx(18 / 24)
