"""The audit: what it says of classes whose pictures are known, and that it disturbs no run."""

import json
from pathlib import Path

import numpy as np
import pytest

import dfkd
from dfkd.commands import audit as command
from dfkd.config.manifest import Manifest
from dfkd.errors import CorruptionError, Exit, WeightsError
from dfkd.operations import audit
from tests.helpers import jobs
from tests.helpers.published import published
from tests.helpers.small_manifest import vqgan
from tests.helpers.tiny_version import write_manifest


@pytest.mark.parametrize(
    ("named", "others", "images", "expected"),
    [
        (1.0, [], 8, "recognised"),
        (audit.NAMED, [3], 8, "recognised"),
        (0.5, [4], 8, "rename"),
        (0.25, [3, 3], 8, "not drawn"),
        (0.0, [], 0, "not drawn"),  # all of its images failed
    ],
)
def test_one_other_name_for_most_images_asks_for_another_name(
    named: float, others: list[int], images: int, expected: str
) -> None:
    assert audit.verdict(named, others, images) == expected


def test_the_worst_class_comes_first_with_what_it_is_taken_for() -> None:
    texts = np.eye(4)  # crane, car, and the nouns bird and stone
    embeddings = texts[[2, 2, 0, 2, 1, 1, 1, 3]]
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    far = 1 - embeddings @ texts.T
    nouns = ["bird", "stone"]
    crane, car = audit.judge(["crane", "car"], nouns, texts, embeddings, far, labels)
    assert (crane["name"], crane["verdict"], crane["named"]) == ("crane", "rename", 0.25)
    assert crane["taken_for"] == {"bird": 3}
    assert crane["cosine"] == pytest.approx(0.5)  # three of six pairs are the same
    assert (car["verdict"], car["named"], car["taken_for"]) == ("recognised", 0.75, {"stone": 1})
    said = audit.answer([crane, car])
    assert "crane (taken for bird)" in said
    assert "car" not in said.split()
    assert audit.answer([car], "dfkd pipeline mine.yaml") == "go on: dfkd pipeline mine.yaml"


def test_a_common_noun_that_a_class_holds_is_no_rival() -> None:
    nouns = audit.references(["Bird house", "car"])
    assert not {"bird", "house", "car"} & {*nouns}
    assert "tree" in nouns


def test_a_link_in_place_of_its_folder_is_refused(tmp_path: Path) -> None:
    """It could lead to files of the machine, where the audit would write."""
    manifest = Manifest.read(write_manifest(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "private").mkdir()
    (tmp_path / "run/audit").symlink_to(tmp_path / "private")
    with pytest.raises(CorruptionError, match="through a link"):
        audit.audit(manifest, 2)
    assert not [*(tmp_path / "private").iterdir()]


@pytest.mark.heavy
@pytest.mark.usefixtures("two_cpus")
def test_an_audit_is_made_once_and_disturbs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_manifest(
        tmp_path,
        classes=["clock", "book", "key"],
        synthesis={
            "images_per_class": 4, "shard_size": 4, "image_size": 64, "batch_size": 4, "views": 0,
        },
        generator=vqgan(steps=1),
    )  # fmt: skip
    manifest, root = Manifest.read(path), tmp_path / "run"
    dfkd.synthesize(manifest)
    before = jobs.contents(root / "data")
    found = audit.audit(manifest, 2)
    assert [row["images"] for row in found["classes"]] == [2, 2, 2]
    assert found["images"] == 12
    assert found["hours"] > 0
    assert jobs.contents(root / "data") == before
    assert json.loads((root / "audit/audit.json").read_bytes()) == found
    page = (root / "audit/audit.html").read_text()
    assert page.count("<img ") == 6
    assert "data:image/" in page

    # They are the first images of the run itself.
    few, whole = (
        {s.key: s.image for receipt in each.receipts() for s in each.samples(receipt)}
        for each in (published(root / "audit"), published(root))
    )
    assert few.items() <= whole.items()

    monkeypatch.setattr(audit, "connected", lambda: pytest.fail("made once more"))
    assert audit.audit(manifest, 2) == found
    kept = jobs.contents(root / "audit")
    job = jobs.run_here("audit", path, "--images=2")
    assert job.returncode == 0
    assert job.stdout.splitlines()[-1] == audit.answer(found["classes"], f"dfkd pipeline {path}")
    for other in ("verify", "status", "clean"):
        assert jobs.run_here(other, path).returncode == 0
    assert jobs.contents(root / "audit") == kept


def test_no_images_are_no_audit(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["miniature", "--images=0"])
    assert stop.value.code == Exit.USAGE
    assert "--images: must be 1 or more" in capsys.readouterr().err


def test_a_labeller_that_is_not_there_is_refused_before_an_image_is_made(tmp_path: Path) -> None:
    labeller = {"model": "RN50", "weights": str(tmp_path / "none.safetensors")}
    path = write_manifest(tmp_path, distillation={"labeller": labeller})
    with pytest.raises(WeightsError, match=r"^distillation\.labeller\.weights: "):
        audit.audit(Manifest.read(path), 2)
    assert not (tmp_path / "run/audit").exists()
