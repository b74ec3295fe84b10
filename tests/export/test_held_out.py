"""Without labelled images: a few more are made to compare on, and nothing else notices them."""

import dataclasses
import json
from pathlib import Path

import pytest

import dfkd
from dfkd.cluster.making import identify
from dfkd.config.manifest import Manifest
from dfkd.dataset.published import PublishedVersion
from dfkd.dataset.versions import begin
from dfkd.export import candidates
from dfkd.operations import attempts
from dfkd.storage import layout
from dfkd.storage.local import open_storage
from tests.helpers import jobs
from tests.helpers.published import published
from tests.helpers.small_manifest import vqgan
from tests.helpers.tiny_version import write_manifest

pytestmark = pytest.mark.usefixtures("two_cpus")


def pictures(version: PublishedVersion) -> list[bytes]:
    return [sample.image for receipt in version.receipts() for sample in version.samples(receipt)]


@pytest.mark.heavy
def test_images_to_agree_on_are_made_once_and_disturb_no_other_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_manifest(
        tmp_path,
        classes=["clock", "book", "key"],
        synthesis={
            "images_per_class": 4, "shard_size": 4, "image_size": 64, "batch_size": 4, "views": 0,
        },
        generator=vqgan(steps=1),
        distillation={"epochs": 1},
        candidates={"towers": []},
        evaluation={"data": "none"},
    )  # fmt: skip
    manifest, root = Manifest.read(path), tmp_path / "run"
    dfkd.synthesize(manifest)
    dfkd.distill(manifest)
    first = published(root)
    # Fewer than a shard has, as with many classes.
    monkeypatch.setattr(candidates, "HELD_OUT_IMAGES", 7)
    # As after a kill of a run with another seed.
    home = open_storage(str(root / "held-out")).child(layout.data("vanilla"))
    begin(home, identify(dataclasses.replace(manifest, seed=1)))

    content = json.loads(Path(dfkd.export_candidates(manifest)).read_text())
    assert (content["measure"], content["images"]) == ("agreement", {"synthesised": 6})
    made = published(root / "held-out")
    assert content["source"].startswith(f"synthesised images of version {made.id}, ")
    assert len(pictures(made)) == 6
    assert not {*pictures(made)} & {*pictures(first)}
    (student,) = content["candidates"]
    assert student["images"] == 12

    monkeypatch.setattr(candidates, "connected", lambda: pytest.fail("made once more"))
    again = json.loads(Path(dfkd.export_candidates(manifest)).read_text())
    means = [each["candidates"][0]["files"]["float32"]["means"] for each in (content, again)]
    assert means[0] == means[1]

    dfkd.write_report(manifest)
    status = jobs.run_here("status", path, "--json")
    found = json.loads(status.stdout)
    assert (found["next"], found["candidates"]["state"]) == (None, "finished")
    assert [each["id"] for each in found["synthesize"]] == [first.id]
    assert len(json.loads(jobs.run_here("status", root, "--json").stdout)["synthesize"]) == 1
    before = jobs.contents(root / "held-out")
    for job, *options in (("verify",), ("clean", "--keep=1", "--grace=0"), ("synthesize",)):
        assert jobs.run_here(job, path, *options).returncode == 0
    assert jobs.contents(root / "held-out") == before
    assert published(root).id == first.id
    assert attempts.next_number(open_storage(str(root)), first, manifest) == 1
