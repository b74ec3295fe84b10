"""Methods of all kinds in one run, as a user runs it: one version each, whatever is killed."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from dfkd.dataset.published import current
from dfkd.dataset.verification import verify
from dfkd.storage.local import open_storage
from tests.helpers.inversion_runs import METHODS, TREE
from tests.helpers.jobs import ROOT, contents, run_here

pytestmark = pytest.mark.usefixtures("two_cpus")

FOUND = ("deepinversion", "vanilla-bn")
WORDS = (
    "--set", "synthesis.source=[deepinversion, bn]",
    "--set", "synthesis.bn.weight=0.1",
    "--set", "generator.vqgan.steps=2",
)  # fmt: skip


def write(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump(TREE | {"storage": {"root": str(folder / "run")}}))
    return path


@pytest.fixture(scope="module")
def undisturbed(two_cpus: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    found = run_here("synthesize", write(folder), *WORDS)
    assert found.returncode == 0, found.stderr
    return folder


def test_each_method_has_a_version(undisturbed: Path) -> None:
    root = open_storage(str(undisturbed / "run"))
    assert set(root.folders("data/")) == set(FOUND)
    for method in FOUND:
        version = current(root.child(f"data/{method}"))
        assert verify(version) == []
        assert sum(receipt.samples for receipt in version.receipts()) == 6
        assert f"- method: {method}\n" in version.storage.get("README.md").decode()
        identity = version.facts["identity"]
        assert ("generator.vqgan.weights.sha256" in identity) == (method != "deepinversion")
    records = sorted(path.name for path in (undisturbed / "run/records").iterdir())
    assert records == sorted(f"synthesize-{method}.json" for method in FOUND)


def test_a_run_that_died_within_a_part_resumes_to_the_same_bytes(
    undisturbed: Path, tmp_path: Path
) -> None:
    """Nothing is published, one shard of a part has its receipt, and another has lost its own."""
    manifest = write(tmp_path)
    shutil.copytree(undisturbed / "run" / "data", tmp_path / "run" / "data")
    for version in (tmp_path / "run" / "data").glob("*/versions/*"):
        for name in ("version.json", "README.md", "receipts/0001-00000.json.gz"):
            (version / name).unlink()
        shutil.rmtree(version / "index")
        if version.parts[-3] != "vanilla-bn":  # there the shard had come as far as storage
            (version / "shards" / "0001-00000.tar").unlink()
        shutil.rmtree(version.parents[1] / "current")
    found = run_here("synthesize", manifest, *WORDS)
    assert found.returncode == 0, found.stderr
    assert contents(tmp_path / "run" / "data") == contents(undisturbed / "run" / "data")


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_table_5_is_one_command(tmp_path: Path) -> None:
    small = {name: json.dumps(TREE["synthesis"][name]) for name in METHODS}
    settings = [
        f"storage.root={tmp_path / 'run'}",
        "classes=[clock, house]",
        *(f"synthesis.{name}={values}" for name, values in small.items()),
        "synthesis.images_per_class=4",
        "synthesis.shard_size=2",
        "generator.vqgan.steps=2",
        "prompts.contrastive.updates=2",
        "distillation.student=timm:test_resnet",
        "distillation.epochs=1",
        "distillation.batch_size=4",
        "evaluation.models=student",
        "cluster.workers=1",
    ]
    words = [word for setting in settings for word in ("--set", setting)]
    found = run_here("pipeline", ROOT / "manifests" / "dfkd_miniature.yaml", *words)
    assert found.returncode == 0, found.stderr
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["rows"]
    students = list(dict.fromkeys(row["method"] for row in rows if row["model"] == "student"))
    assert students == ["contrastive", "cmi", "contrastive-bn", "deepinversion", "dfad", "pre"]
    (heading,) = (line for line in found.stdout.splitlines() if line.startswith("accuracy, %"))
    assert heading.split()[2:] == [*students, "images"]
    assert "contrastive-bn" in (tmp_path / "run" / "report.html").read_text()
