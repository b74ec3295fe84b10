"""What things cost: the benchmarks at their smallest sizes, on real parts."""

import json
import math
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from dfkd.config.identity import identity
from dfkd.config.manifest import Manifest
from dfkd.config.plan import tasks
from dfkd.dataset.published import current, open_version
from dfkd.dataset.versions import begin
from dfkd.errors import Exit, ManifestError
from dfkd.lab.benchmarks import scale, streaming, suite, towers
from dfkd.lab.benchmarks.measure import FULL, QUICK
from dfkd.lab.benchmarks.stand_in import StandInMaker, put_prompts, put_shards
from dfkd.storage.base import Request, Storage
from dfkd.storage.local import open_storage
from dfkd.utils.hardware import thread_limit
from tests.helpers import jobs
from tests.helpers.jobs import last_error
from tests.helpers.tiny_version import write_manifest


def record(folder: Path, name: str) -> dict[str, Any]:
    found = json.loads((folder / "run" / "benchmarks" / f"{name}.json").read_text())
    assert found["benchmark"] == name
    assert found["machine"]["cpus"] >= 1
    assert found["environment"]["torch"]
    assert {name, "all"} & set(found["command"].split())
    results: dict[str, Any] = found["results"]
    return results


def test_the_record_names_the_arguments_that_were_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["pytest", "-q"])
    monkeypatch.setattr(suite, "configure_process", lambda threads: None)
    monkeypatch.setattr(scale, "measure", lambda manifest, options: {"figures": []})
    path = str(write_manifest(tmp_path))
    found = jobs.run_here("benchmark", "scale", path, "--set", "generator.vqgan.steps=1")
    assert found.returncode == 0, found.stderr
    kept = json.loads((tmp_path / "run" / "benchmarks" / "scale.json").read_text())
    assert kept["command"] == f"dfkd benchmark scale {path} --set generator.vqgan.steps=1"


def test_versions_of_few_classes_hold_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "SIZES", (64,))
    path = write_manifest(tmp_path)
    manifest = Manifest.read(path, ("classes=[cat, dog]",))
    names = [figure["name"] for figure in streaming.measure(manifest, QUICK)["figures"]]
    assert names == ["stream, 64 px", "bare decoding, 64 px"]
    assert streaming.images_per_class(manifest, QUICK) == 24
    assert streaming.images_per_class(manifest, FULL) == FULL.per_class


def test_made_up_classes_take_nothing_of_the_manifest_s_own(tmp_path: Path) -> None:
    own = {"regeneration": {"classes": ["red"]}, "evaluation": {"aliases": {"red": "rouge"}}}
    path = write_manifest(tmp_path, **own)
    manifest = Manifest.read(path)
    assert scale.sized(manifest, 2).classes == ("thing 0", "thing 1")
    assert scale.sized(manifest, 0).classes == manifest.classes
    chained = Manifest.read(path, ("synthesis.source=dfad",))
    assert scale.sized(chained, 0).method == "vanilla"
    with pytest.raises(ManifestError, match="classes: must be two or more"):
        scale.sized(manifest, 1)
    with pytest.raises(ManifestError, match="--classes: must be at most 1000000, got 1000001"):
        scale.sized(manifest, 1_000_001)
    for options in ([], ["--dry-run"]):
        found = jobs.run_here("benchmark", "all", str(path), "--classes", "1", *options)
        assert found.returncode == Exit.USAGE
        assert "error: classes: must be two or more, got ('thing 0',)" in last_error(found)


@pytest.mark.s3
def test_requests_a_shard_do_not_grow(tmp_path: Path, s3_root: str) -> None:
    """What manifests/benchmarks/scale.md counts."""
    settings = {"images_per_class": 30, "shard_size": 5}
    manifest = Manifest.read(write_manifest(tmp_path)).with_values(synthesis=settings)
    small, large = (requests(manifest, f"{s3_root}/{count}", count) for count in (6, 12))
    for stage, found in large.items():
        more = {name: number - small[stage][name] for name, number in found.items()}
        each = {name: number / 6 for name, number in more.items() if number}
        assert each == PER_SHARD.get(stage, {})


def requests(manifest: Manifest, root: str, shards: int) -> dict[str, Counter[str]]:
    """Requests by operation of each stage of a version of so many shards."""
    sent: list[Request] = []
    home = open_storage(root).observed(sent.append)
    planned = list(islice(tasks(manifest), shards))
    version = begin(home, identity(manifest, {}))
    put_prompts(manifest, version)
    stages: dict[str, Callable[[], object]] = {
        "shards": lambda: put_shards(StandInMaker(manifest), version, planned),
        "resume": version.done,
        "publish": lambda: version.publish([("00000", planned)], {}),
        "open": lambda: open_version(home, version.id),
    }
    found = {}
    for name, work in stages.items():
        sent.clear()
        work()
        found[name] = Counter(request.operation for request in sent)
    return found


PER_SHARD = {
    # Its prompts: size, and Parquet's footer and one row group; its tar and that tar's size; its
    # receipt.
    "shards": {"head": 3, "get": 2, "put": 2},
    "publish": {"get": 1},  # the receipt
}


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.usefixtures("two_cpus")
def test_the_hot_paths_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, whose number of threads the job leaves alone."""
    monkeypatch.setattr(suite, "configure_process", lambda threads: None)
    manifest = write_manifest(
        tmp_path,
        teacher={"model": "miniature", "weights": "miniature"},
        synthesis={"image_size": 64, "batch_size": 2},
        prompts={"contrastive": {"batch_size": 4, "bank": 8}},
        cluster={"workers": 1},
    )
    options = ("--quick", "--classes", "4", "--set", "classes=[clock, cat, bell]")
    with thread_limit(1):
        done = jobs.run_here("benchmark", "all", str(manifest), *options)
    assert done.returncode == 0, done.stderr
    for name, figure in FIGURES.items():
        results = record(tmp_path, name)
        assert 0 < results["memory"]["driver_most"] <= results["memory"]["tree_most"]
        found = {each["name"]: each for each in results["figures"]}
        assert all(each["median"] > 0 for each in found.values())
        assert 0 < found[figure]["share"] < math.inf
        assert figure in done.stdout
    waiting = record(tmp_path, "distillation")["waiting"].values()
    assert all(0 <= share["median"] <= 1 for share in waiting)

    figures = {each["name"]: each for each in record(tmp_path, "prompts")["figures"]}
    assert {f"tokens, {classes} classes" for classes in (7, 65, 345)} <= {*figures}

    check_scale(record(tmp_path, "scale"), open_storage(str(tmp_path / "run")))
    check_towers(record(tmp_path, "towers"))

    # What was built to be timed is gone.
    left = list(open_storage(str(tmp_path / "run" / "benchmarks")).list())
    assert {key for key in left if not key.startswith("scale/")} == {
        "table.md", "scale.json", "towers.json", *(f"{name}.json" for name in FIGURES)
    }  # fmt: skip
    written = (tmp_path / "run" / "benchmarks" / "table.md").read_text()
    assert all(f"## {name}\n" in written for name in FIGURES)


def check_towers(results: dict[str, Any]) -> None:
    assert [figure["name"] for figure in results["figures"]] == [*towers.TOWERS, *towers.STUDENTS]
    assert results["parameters"]["resnet18"] == 11_176_512 + 3 * (512 + 1)  # and its head
    assert results["image_size"]["PE-Core-T-16-384"] == 384
    (own,) = (figure for figure in results["figures"] if figure["name"] == towers.PEER)
    assert own["ratio"] == 1
    assert 0 < own["least"] <= own["median"] <= own["most"]


def check_scale(results: dict[str, Any], root: Storage) -> None:
    assert (results["classes"], results["tasks"], results["samples"]) == (4, 8, 32)
    assert results["found_tasks"] == 0
    steps = ["prompts and shards", "publish", "open", "check", "stream", "status", "plan a removal"]
    assert sorted(results["steps"]) == sorted(steps)
    # Each receipt is read; a block, data card, manifest and pointer are written.
    assert results["steps"]["publish"]["requests"] == {"get": 8 + 6, "put": 5}
    assert results["steps"]["status"]["requests"] == {"get": 3}  # of a folder, lists do not count
    for step in results["steps"].values():
        assert 0 < step["memory"]["driver_most"] < step["memory"]["tree_most"]

    # No reader of the run itself ever meets a stand-in.
    assert current(root.child("data/vanilla")) is None
    version = current(root.child("benchmarks/scale/data/vanilla"))
    assert version is not None
    assert sum(len(list(version.samples(receipt))) for receipt in version.receipts()) == 32


FIGURES = {
    "synthesis": "synthesis",
    "prompts": "contrastive prompts",
    "streaming": "stream, 64 px",
    "distillation": "distillation, live labels",
}
