"""What things cost: the benchmarks at their smallest sizes, on real parts."""

import json
import math
import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dfkd import api
from dfkd.benchmarks import driver, loading, scale, stages, suite
from dfkd.benchmarks.driver import RequestCounts, counted
from dfkd.benchmarks.measure import FULL, QUICK
from dfkd.config.manifest import Manifest
from dfkd.dataset.published import current
from dfkd.errors import Exit, ManifestError
from dfkd.storage.base import Storage
from dfkd.storage.local import open_storage
from dfkd.utils.hardware import thread_limit
from dfkd.utils.memory import Memory, Watch, watched
from tests.helpers import jobs
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
    monkeypatch.setitem(suite.BENCHMARKS, "driver", lambda manifest, options: {"figures": []})
    path = str(write_manifest(tmp_path))
    found = jobs.run_here("benchmark", "driver", path, "--set", "synthesis.steps=1")
    assert found.returncode == 0, found.stderr
    kept = json.loads((tmp_path / "run" / "benchmarks" / "driver.json").read_text())
    assert kept["command"] == f"python jobs/benchmark.py driver {path} --set synthesis.steps=1"


def test_requests_a_shard_do_not_grow(tmp_path: Path) -> None:
    manifest = Manifest.read(write_manifest(tmp_path))
    small, large = driver.requests(manifest, [6, 12])

    def of(version: dict[str, Any], stage: str) -> dict[str, int]:
        found: dict[str, int] = version["stages"][stage]["requests"]
        return found

    for stage in ("shards", "publish"):
        once, twice = of(small, stage), of(large, stage)
        assert {name: twice[name] - once[name] for name in twice if twice[name] > once[name]} == (
            {name: 6 * count for name, count in PER_SHARD[stage].items()}
        )
    for stage in ("resume", "open"):
        assert of(small, stage) == of(large, stage)


PER_SHARD = {
    # Its prompts: size, and Parquet's footer and one row group; its tar, its receipt.
    "shards": {"exists": 1, "get_range": 2, "put_if_absent": 2, "size": 1},
    "publish": {"get": 2},  # the receipt and the shard
}


def test_every_request_is_counted_and_answered(tmp_path: Path) -> None:
    counts = RequestCounts()
    storage = counted(open_storage(str(tmp_path)), counts)
    child = storage.child("a")
    assert child.put_if_absent("b", b"123")
    assert child.get("b") == b"123"
    assert child.get_range("b", 1, 3) == b"23"
    assert list(storage.list("a/")) == ["a/b"]
    assert list(storage.list("c/")) == []
    assert storage.location("a/b") == str(tmp_path / "a" / "b")
    assert counts.by_operation == {"put_if_absent": 1, "get": 1, "get_range": 1, "list": 2}


def test_a_run_without_latents_has_no_rate_of_image_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"synthesize": 2.0, "distill": 4.0}
    monkeypatch.setattr(stages, "_timed", lambda manifest: seconds)
    manifest = Manifest.read(write_manifest(tmp_path))

    def names(manifest: Manifest) -> list[str]:
        return [figure.name for figure in stages.measure(manifest, FULL)["figures"]]

    whole = names(manifest)
    assert "image-steps in stage synthesize" in whole
    dfad = replace(manifest, synthesis=replace(manifest.synthesis, method=("dfad",)))
    assert names(dfad) == [name for name in whole if "image-steps" not in name]


@pytest.mark.parametrize("data", ["bundled", "none"])
def test_without_labelled_images_nothing_is_scored_and_no_report_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str
) -> None:
    called: list[str] = []
    for name in ("synthesize", "distill", "evaluate", "take_home", "write_report"):
        monkeypatch.setattr(api, name, lambda manifest, name=name: called.append(name))
    stages._timed(Manifest.read(write_manifest(tmp_path, evaluation={"data": data})))
    every = ["synthesize", "distill", "evaluate", "take_home", "write_report"]
    assert called == (every if data == "bundled" else ["synthesize", "distill", "take_home"])


def test_a_shortened_run_has_one_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"synthesize": 2.0, "distill": 4.0}
    seen: list[Manifest] = []
    monkeypatch.setattr(stages, "_timed", lambda manifest: seen.append(manifest) or seconds)
    manifest = Manifest.read(write_manifest(tmp_path, distillation={"workers": 3}))
    stages.measure(manifest, QUICK)
    assert [each.distillation.rank_limits for each in seen] == [(1, 1)]


def test_versions_of_few_classes_hold_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "SIZES", (64,))
    monkeypatch.setattr(loading, "CLASSES", {})
    path = write_manifest(tmp_path)
    manifest = Manifest.read(path, ("classes=[cat, dog]",))
    names = [figure.name for figure in loading.measure(manifest, QUICK)["figures"]]
    assert names == ["stream, 64 px", "bare decoding, 64 px"]
    assert loading.images_per_class(manifest, QUICK) == 24
    assert loading.images_per_class(manifest, FULL) == FULL.per_class


def test_made_up_classes_take_nothing_of_the_manifest_s_own(tmp_path: Path) -> None:
    own = {"regeneration": {"classes": ["red"]}, "evaluation": {"aliases": {"red": "rouge"}}}
    path = write_manifest(tmp_path, **own)
    manifest = Manifest.read(path)
    assert scale.sized(manifest, 2).classes == ("thing 0", "thing 1")
    assert scale.sized(manifest, 0).classes == manifest.classes
    with pytest.raises(ManifestError, match="classes: must be two or more"):
        scale.sized(manifest, 1)
    with pytest.raises(ManifestError, match="--classes: must be at most 1000000, got 1000001"):
        scale.sized(manifest, 1_000_001)
    for options in ([], ["--dry-run"]):
        found = jobs.run_here("benchmark", "all", str(path), "--classes", "1", *options)
        assert found.returncode == Exit.USAGE
        assert found.stderr.startswith("error: classes: must be two or more, got ('thing 0',)")
        assert found.stderr.count("\n") == 1


def test_memory_is_watched() -> None:
    # mapped, because an allocation may be served from pages that this process has kept
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, 64 << 20, flags=private) as held, watched(interval=0.01) as watch:
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1  # a page counts once it is written to
    first, last = watch.samples[0], watch.samples[-1]
    assert last.driver - first.driver > 48 << 20
    assert last.tree >= last.driver
    assert last.seconds >= first.seconds


def test_a_summary_shows_growth() -> None:
    watch = Watch([Memory(second, second * 10, 100) for second in range(101)])
    summary = watch.summary()
    assert summary["driver_most"] == 1000
    assert summary["tree_most"] == 100
    assert summary["driver_by_tenth"] == sorted(summary["driver_by_tenth"])
    assert len(summary["driver_by_tenth"]) == 10


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

    check_driver(record(tmp_path, "driver"))
    check_scale(record(tmp_path, "scale"), open_storage(str(tmp_path / "run")))

    # What was built to be timed is gone.
    left = list(open_storage(str(tmp_path / "run" / "benchmarks")).list())
    names = [*FIGURES, "driver", "stages"]
    assert {key for key in left if not key.startswith("scale/")} == {
        "table.md", "scale.json", *(f"{name}.json" for name in names)
    }  # fmt: skip
    written = (tmp_path / "run" / "benchmarks" / "table.md").read_text()
    assert all(f"## {name}\n" in written for name in names)


def check_driver(results: dict[str, Any]) -> None:
    assert [pool["tasks"] for pool in results["pool"]] == [200, 400]
    assert all(pool["tasks_per_s"] > 0 for pool in results["pool"])
    assert [version["shards"] for version in results["requests"]] == [12, 24]


def check_scale(results: dict[str, Any], root: Storage) -> None:
    assert (results["classes"], results["tasks"], results["samples"]) == (4, 8, 32)
    assert results["found_tasks"] == 0
    steps = ["prompts and shards", "publish", "open", "check", "stream", "status", "plan a removal"]
    assert sorted(results["steps"]) == sorted(steps)
    # Each receipt and shard is read; index, data card, manifest and pointer are written.
    assert results["steps"]["publish"]["requests"] == {"get": 2 * 8 + 6, "put": 4}
    assert results["steps"]["status"]["requests"] == {"get": 3}  # of a folder, lists do not count
    for step in results["steps"].values():
        assert 0 < step["memory"]["driver_most"] < step["memory"]["tree_most"]

    # No reader of the run itself ever meets a stand-in.
    assert current(root.child("data/vanilla")) is None
    version = current(root.child("benchmarks/scale/data/vanilla"))
    assert version is not None
    assert sum(len(list(version.samples(receipt))) for receipt in version.shards) == 32


FIGURES = {
    "synthesis": "synthesis",
    "prompts": "contrastive prompts",
    "streaming": "stream, 64 px",
    "distillation": "distillation, live labels",
}


def test_the_job_offers_every_benchmark() -> None:
    assert list(jobs.load("benchmark").BENCHMARKS) == list(suite.BENCHMARKS)
