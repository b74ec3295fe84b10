"""A version is built within a budget, and the same call goes on where it stopped."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dfkd.budget import Budget
from dfkd.cluster.build import build, finished, identify
from dfkd.cluster.connect import connected
from dfkd.dataset import verify
from dfkd.errors import BudgetError, Exit
from dfkd.manifest import Manifest


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connected():
        yield


def read_file(folder: Path) -> Path:
    path = folder / "manifest.yaml"
    path.write_text(
        f"name: budget\nclasses: [dog, house]\nstorage: {{root: {folder / 'run'}}}\n"
        "teacher: {model: miniature, weights: miniature}\nprompts: {method: vanilla}\n"
        "synthesis: {images_per_class: 4, shard_size: 2, image_size: 64, steps: 1}\n"
    )
    return path


def read(folder: Path) -> Manifest:
    return Manifest.read(read_file(folder))


def receipts(folder: Path) -> int:
    return len(list(folder.glob("run/data/vanilla/versions/*/receipts/*.json")))


def test_a_budget_stops_a_run_cleanly_and_the_next_call_resumes(
    cluster: None, tmp_path: Path
) -> None:
    manifest = read(tmp_path)
    identity = identify(manifest)
    with pytest.raises(BudgetError, match=r"4 images and \d+ worker-seconds .* 5 images") as caught:
        build(manifest, identity, budget=Budget(images=5))
    assert caught.value.exit_code == Exit.PARTIAL
    assert "the same command again, it resumes" in str(caught.value)
    assert receipts(tmp_path) == 2
    assert not finished(manifest, identity)
    with pytest.raises(BudgetError, match="0 images and 0 worker-seconds"):
        build(manifest, identity, budget=Budget(worker_seconds=0.0))
    assert receipts(tmp_path) == 2
    built = build(manifest, identity, budget=Budget(images=4, worker_seconds=1e6))
    assert built.images == 8
    assert verify(built.version) == []
    assert finished(manifest, identity)


def test_parallel_prompts_are_the_same_whoever_makes_them(cluster: None, tmp_path: Path) -> None:
    """On one worker and on two, which wait for what each part knows."""
    settings = (
        "prompts.method=contrastive",
        "prompts.contrastive={updates: 2, batch_size: 4, bank: 4, parallel: 2}",
        "synthesis.images_per_class=6",
        "synthesis.steps=1",
    )
    found = []
    for workers in (1, 2):
        root = tmp_path / str(workers)
        root.mkdir()
        own = (*settings, f"cluster.workers={workers}", f"storage.root={root}")
        manifest = Manifest.read(read_file(tmp_path), own)
        built = build(manifest, identify(manifest))
        assert verify(built.version) == []
        parts = sorted(root.glob("data/contrastive/versions/*/prompts/*.parquet"))
        assert len(parts) == 3
        found.append([part.read_bytes() for part in parts] + [str(built.prompts).encode()])
    assert found[0] == found[1]


def test_budgets() -> None:
    assert Budget().covers(10**9, 1e12)
    assert Budget(images=5).covers(5, 1e12)
    assert not Budget(images=5).covers(6, 0.0)
    assert not Budget(worker_seconds=5.0).covers(0, 5.0)
    assert Budget(images=5, worker_seconds=1.5).caps == "5 images and 1.5 worker-seconds"
