"""A whole run whose every object lies on a real S3 server."""

import json

import pytest

from dfkd.storage.local import open_storage
from tests.helpers.jobs import run, run_here
from tests.jobs.test_pipeline import MANIFEST, settings

pytestmark = [pytest.mark.s3, pytest.mark.slow, pytest.mark.timeout(800)]


def test_from_class_names_to_a_report_on_s3(s3_root: str) -> None:
    more = ["classes=[clock, book]", "prompts.method=[contrastive]", "distillation.batch_size=4"]
    arguments = settings(s3_root, *more)
    found = run("pipeline", MANIFEST, *arguments)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == f"wrote {s3_root}/report.html"

    for job, written in {"verify": "verify.json", "report": "report.html"}.items():
        done = run_here(job, MANIFEST, *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"wrote {s3_root}/{written}"

    storage = open_storage(s3_root)
    results = json.loads(storage.get("results.json"))
    assert {row["model"] for row in results["rows"]} == {"teacher", "text-only", "student"}
    versions = "data/contrastive/versions/"
    (version,) = storage.folders(versions)
    (student,) = storage.folders("students/")
    for key in (
        f"{versions}{version}/shards/0001-00001.tar",
        f"{versions}{version}/receipts/0001-00001.json.gz",
        f"{versions}{version}/prompts/00001.parquet",
        "data/contrastive/current/00000001.json",
        f"students/{student}/student.safetensors",
        "candidates/teacher/model.int8.onnx",
        "contact-sheet.png",
    ):
        assert storage.exists(key), key
    assert len(list(storage.list(f"{versions}{version}/index/"))) == 2
    assert any(storage.list(f"students/{student}/tensorboard/"))
    assert any(storage.list("tensorboard/synthesis-contrastive/"))
    assert list(storage.list(f"students/{student}/checkpoints/")) == []

    again = run_here("synthesize", MANIFEST, *arguments)
    assert again.returncode == 0, again.stderr
    assert storage.folders(versions) == (version,)
