"""A version is built within a budget, and the same call goes on where it stopped."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from dfkd.cluster import connection, making
from dfkd.cluster.connection import require_shared_storage
from dfkd.cluster.engine import Engine
from dfkd.cluster.making import build, demand, identify, is_published, write_missing
from dfkd.cluster.worker import Worker, synthesis_engine
from dfkd.config.manifest import Cluster, Manifest
from dfkd.config.plan import PromptPart, PromptSummary, estimated_bytes
from dfkd.dataset.published import current, read_json
from dfkd.dataset.verification import verify
from dfkd.dataset.versions import Version, begin
from dfkd.errors import (
    BudgetError,
    CorruptionError,
    DfkdError,
    Exit,
    FingerprintError,
    ManifestError,
    PartialError,
    WeightsError,
)
from dfkd.storage import layout
from dfkd.storage.cost_records import record_cost
from dfkd.storage.lease import held_leases
from dfkd.storage.local import open_storage
from tests.helpers import small_manifest
from tests.helpers.inversion_runs import read as inversion
from tests.helpers.jobs import run_here
from tests.helpers.tiny_models import RESNET, model_config, write_teacher
from tests.helpers.workers import own_worker


def read_file(folder: Path) -> Path:
    return small_manifest.write(
        folder,
        storage={"root": str(folder / "run")},
        prompts={"method": "vanilla"},
        synthesis={"images_per_class": 4, "shard_size": 2, "image_size": 64},
        generator=small_manifest.vqgan(steps=1),
        cluster={"workers": 1},
    )


def read(folder: Path) -> Manifest:
    return Manifest.read(read_file(folder))


@pytest.fixture(scope="module")
def actors(two_cpus: None) -> Iterator[Engine[Any]]:
    """Actors for tests whose question is not how they start: a start takes seconds."""
    with synthesis_engine(Cluster()) as engine:
        yield engine


def make_prompts(manifest: Manifest) -> None:
    """Make all prompts in this process, so that a budget is spent on shards alone."""
    home = open_storage(manifest.storage.root).child("data/vanilla")
    worker = own_worker(manifest, begin(home, identify(manifest)), Worker)
    for unit in (*map(PromptPart, range(2)), PromptSummary()):
        worker.run(unit)


def receipts(folder: Path) -> int:
    return len(list(folder.glob("run/data/vanilla/versions/*/receipts/*.json.gz")))


def test_a_budget_stops_a_run_cleanly_and_the_next_call_resumes(
    actors: Engine[Any], tmp_path: Path
) -> None:
    manifest = read(tmp_path)
    identity = identify(manifest)
    make_prompts(manifest)
    limit = r"2 images and \d+ worker-seconds .* limit is 1e-09 worker-seconds"
    with pytest.raises(BudgetError, match=limit) as caught:
        build(manifest, identity, engine=actors, worker_seconds=1e-9)
    assert caught.value.exit_code == Exit.PARTIAL
    assert "the same command again, it resumes" in str(caught.value)
    assert receipts(tmp_path) == 1
    assert not is_published(manifest, identity)
    with pytest.raises(BudgetError, match="0 images and 0 worker-seconds"):
        build(manifest, identity, engine=actors, worker_seconds=0.0)
    assert receipts(tmp_path) == 1
    built = build(manifest, identity, engine=actors, worker_seconds=1e6)
    assert built.images == 8
    assert verify(built.version) == []
    assert is_published(manifest, identity)


def test_unfinished_work_of_another_manifest_is_abandoned_if_asked(
    two_cpus: None, tmp_path: Path
) -> None:
    manifest = read(tmp_path)
    home = open_storage(manifest.storage.root).child("data/vanilla")
    other = begin(home, identify(dataclasses.replace(manifest, seed=1)))
    with pytest.raises(FingerprintError, match="seed: 1 there, 0 here"):
        build(manifest, identify(manifest))
    with pytest.raises(BudgetError):
        build(manifest, identify(manifest), abandon=True, worker_seconds=0.0)
    assert other.storage.exists("abandoned")


def test_why_a_task_is_quarantined_is_known_until_it_is_tried_again(
    two_cpus: None, tmp_path: Path
) -> None:
    """A foreign object lies where its shard belongs, as of a store that was damaged."""
    manifest = Manifest.read(read_file(tmp_path), ("cluster.attempts=1",))
    identity = identify(manifest)
    home = open_storage(manifest.storage.root).child("data/vanilla")
    version = begin(home, identity)
    version.storage.put("shards/0001-00001.tar", b"not a shard")
    with pytest.raises(PartialError, match="1 of 4 tasks quarantined") as caught:
        build(manifest, identity)
    note = read_json(version.storage, "quarantined/0001-00001.json")
    assert note["task"] == "0001-00001"
    assert note["reason"] in str(caught.value)
    assert list(version.storage.list("quarantined/")) == ["quarantined/0001-00001.json"]

    shutil.copytree(tmp_path / "run", tmp_path / "partial")
    there = f"storage.root={tmp_path}/partial"
    options = "--set", "cluster.attempts=1", "--set", there, "--accept-partial"
    assert run_here("synthesize", tmp_path / "manifest.yaml", *options).returncode == 0
    published = current(open_storage(str(tmp_path / "partial")).child("data/vanilla"))
    assert published is not None
    tasks = [receipt.task for receipt in published.receipts()]
    assert tasks == ["0000-00000", "0000-00001", "0001-00000"]
    assert verify(published) == []

    version.storage.delete("shards/0001-00001.tar")
    assert build(manifest, identity).images == 8
    assert list(version.storage.list("quarantined/")) == []


def test_a_damaged_part_of_the_prompts_that_was_deleted_is_made_again(
    actors: Engine[Any], tmp_path: Path
) -> None:
    manifest = read(tmp_path)
    make_prompts(manifest)
    (part,) = tmp_path.glob("run/data/vanilla/versions/*/prompts/00001.parquet")
    before = part.read_bytes()
    part.unlink()
    assert verify(build(manifest, identify(manifest), engine=actors).version) == []
    assert part.read_bytes() == before


def test_parallel_prompts_are_the_same_whoever_makes_them(
    actors: Engine[Any], tmp_path: Path
) -> None:
    """On one worker, here in this process, and on two, which wait for what each part knows."""
    settings = (
        "prompts.method=contrastive",
        "prompts.contrastive={updates: 2, batch_size: 4, bank: 4}",
        "synthesis.images_per_class=6",
        "generator.vqgan.steps=1",
    )
    found = []
    for workers in (1, 2):
        root = tmp_path / str(workers)
        own = (*settings, f"cluster.workers={workers}", f"storage.root={root}")
        manifest = Manifest.read(read_file(tmp_path), own)
        if workers == 1:
            home = open_storage(str(root)).child("data/contrastive")
            worker = own_worker(manifest, begin(home, identify(manifest)), Worker)
            for unit in (*map(PromptPart, range(3)), PromptSummary()):
                worker.run(unit)
        else:
            assert verify(build(manifest, identify(manifest), engine=actors).version) == []
        (version,) = root.glob("data/contrastive/versions/*")
        parts = sorted(version.glob("prompts/*.parquet"))
        assert len(parts) == 3
        found.append([file.read_bytes() for file in (*parts, version / "prompts.json")])
    assert found[0] == found[1]


def test_prompts_that_fail_at_every_attempt_end_the_run_with_their_error(
    actors: Engine[Any], tmp_path: Path
) -> None:
    class Mute(Worker):
        def make_prompts(self, unit: PromptPart | PromptSummary) -> int | None:
            raise CorruptionError("part 0 is damaged")

    manifest = read(tmp_path)
    root = open_storage(manifest.storage.root)
    version = begin(root.child("data/vanilla"), identify(manifest))
    actors.close()  # they hold what this one needs
    with (
        synthesis_engine(Cluster(), Mute) as mute,
        record_cost(root, "synthesize", "vanilla") as cost,
        pytest.raises(DfkdError, match="prompts: part 0 is damaged; fix it and run again") as found,
    ):
        write_missing(manifest, version, cost, mute)
    assert found.value.exit_code == Exit.FAILED
    assert list(version.storage.list("quarantined/")) == ["quarantined/prompts.json"]


def test_a_run_is_as_large_as_the_work_and_as_patient_as_its_units_need(tmp_path: Path) -> None:
    settings = ("cluster.workers=3", "cluster.task_timeout=30")
    manifest = Manifest.read(read_file(tmp_path), settings)
    assert demand(manifest, ()) == (3, 30.0)
    assert demand(manifest, ("0000-00000", "0001-00001")) == (2, 30.0)
    # One unit of all four shards.
    chained = inversion("synthesis.source=cmi", *settings, root=str(tmp_path))
    assert demand(chained, ()) == (1, 120.0)


def test_room_is_needed_for_missing_shards_only(
    actors: Engine[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(making, "require_root_space", lambda root, size: asked.append(size))
    manifest = read(tmp_path)
    identity = identify(manifest)
    make_prompts(manifest)
    with pytest.raises(BudgetError):
        build(manifest, identity, engine=actors, worker_seconds=1e-9)
    for _ in range(2):
        assert build(manifest, identity, engine=actors).images == 8
    assert asked == [estimated_bytes(manifest, 8), estimated_bytes(manifest, 6)]


def test_a_version_in_the_making_is_kept_from_removal(
    actors: Engine[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read(tmp_path)
    identity = identify(manifest)
    root = open_storage(manifest.storage.root)
    found = []

    def write_and_look(*arguments: Any) -> dict[str, str]:
        found.extend(name for record in held_leases(root).values() for name in record.versions)
        return write_missing(*arguments)

    monkeypatch.setattr(making, "write_missing", write_and_look)
    built = build(manifest, identity, engine=actors)
    assert found == [f"vanilla/{built.version.id}"]
    assert held_leases(root) == {}


def test_a_version_whose_removal_has_begun_meanwhile_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a dfkd clean that found the lease of a suspended driver expired."""
    manifest = read(tmp_path)
    identity = identify(manifest)

    def suspended(_: Manifest, version: Version, *__: object) -> dict[str, str]:
        version.storage.put(layout.REMOVING, b"")
        return {}

    monkeypatch.setattr(making, "write_missing", suspended)
    engine: Any = SimpleNamespace()
    with pytest.raises(DfkdError, match="is being removed"):
        build(manifest, identity, engine=engine)
    assert not is_published(manifest, identity)


def test_a_node_with_other_weights_is_refused(two_cpus: None, tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "teacher", model_config(RESNET))
    settings = (f"teacher.model={teacher.model}", f"teacher.weights={teacher.weights}")
    manifest = Manifest.read(read_file(tmp_path), settings)
    identity = identify(manifest)
    other = {name: tensor + 1 for name, tensor in load_file(teacher.weights).items()}
    save_file(other, teacher.weights)  # as on another node
    with pytest.raises(WeightsError, match=r"teacher\.weights: must be the same on every node"):
        build(manifest, identity)
    assert receipts(tmp_path) == 0


def test_several_nodes_need_a_root_that_all_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "count_nodes", lambda: 2)
    for root in ("s3://bucket/run", "az://container/run", "/shared/run"):
        require_shared_storage(root)
    with pytest.raises(ManifestError, match=r"storage\.root: must be s3://.*got 'runs/mine'"):
        require_shared_storage("runs/mine")
    monkeypatch.setattr(connection, "count_nodes", lambda: 1)
    require_shared_storage("runs/mine")
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr(connection, "has_autoscaler", lambda: True)  # nodes may join later
    with pytest.raises(ManifestError, match=r"storage\.root"):
        require_shared_storage("runs/mine")
