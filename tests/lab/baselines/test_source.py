"""The chained methods: one worker makes part after part, and goes on from the newest state."""

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dfkd.cluster.engine import Engine
from dfkd.cluster.making import build, identify, write_missing
from dfkd.cluster.tracking import ShardSummary
from dfkd.cluster.worker import Worker, synthesis_engine
from dfkd.config.identity import identity
from dfkd.config.manifest import Cluster, Manifest
from dfkd.config.plan import PromptPart, Unit, part_count, tasks, units
from dfkd.dataset.receipts import Receipt
from dfkd.dataset.shards import Sample, sample_key, write_shard
from dfkd.dataset.verification import verify
from dfkd.dataset.versions import Version, begin
from dfkd.errors import CorruptionError, DfkdError
from dfkd.lab.baselines.inverter import Inverter, PartRequest
from dfkd.lab.baselines.source import InversionSource
from dfkd.models.teacher import Teacher
from dfkd.storage.checkpoints import Checkpoints
from dfkd.storage.cost_records import record_cost
from dfkd.storage.local import open_storage
from dfkd.synthesis.image_source import SourceContext, Synthesised
from tests.helpers import tiny_version
from tests.helpers.inversion_runs import read
from tests.helpers.jobs import contents
from tests.helpers.partial_version import metadata
from tests.helpers.workers import own_worker


def chain_of(method: str, root: Path) -> Manifest:
    """Three parts of one image of each of two classes.

    In JPEG, so that images of earlier parts must be those that are stored.
    """
    words = (f"synthesis.source={method}", "synthesis.shard_size=1", "synthesis.format=jpg")
    return read(*words, "synthesis.pre.rounds=3", root=str(root))


# What a source keeps, with shards of noise.


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return chain_of("dfad", tmp_path)


@pytest.fixture
def version(manifest: Manifest) -> Version:
    home = open_storage(manifest.storage.root).child("data/dfad")
    return begin(home, identity(manifest, {}))


@pytest.fixture
def load(manifest: Manifest, teacher: Teacher, version: Version) -> Callable[[], InversionSource]:
    """Makes the source that a new worker would have."""

    def load() -> InversionSource:
        source = manifest.source.load(SourceContext(manifest, teacher, None, version))
        assert isinstance(source, InversionSource)
        return source

    return load


def finish(source: InversionSource, part: int) -> dict[str, Tensor]:
    """Commit shards for a part, and keep the state that it leaves, which is returned."""
    made = (task for task in tasks(source.manifest) if task.shard_index == part)
    tiny_version.fill(source.manifest, made, "dfad")
    with torch.no_grad():
        next(source.inverter.networks["student"].parameters()).fill_(part + 1)
    source.finish(part)
    return source.inverter.state()


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_a_run_goes_on_from_the_newest_state(
    version: Version, load: Callable[[], InversionSource]
) -> None:
    first = load()
    start = first.inverter.state()
    assert first.begin(0) == 0
    left = finish(first, 0)
    one = load()
    assert one.begin(1) == 1
    assert same(one.inverter.state(), left)
    left = finish(one, 1)
    two = load()
    assert two.begin(2) == 2
    assert same(two.inverter.state(), left)
    finish(two, 2)
    assert two.states.newest() == 2  # no part needs the state of the last one
    # Killed between the receipts and the state: the part is made again for its state alone.
    version.storage.delete("receipts/0000-00002.json.gz")
    version.storage.delete("state/0000000002.safetensors")
    assert load().begin(2) == 1
    # A receipt of a part before the states is gone: from the beginning.
    version.storage.delete("receipts/0001-00000.json.gz")
    again = load()
    assert again.begin(0) == 0
    assert again.states.newest() == 0
    assert same(again.inverter.state(), start)


def test_a_part_that_is_carried_over_is_made_for_its_state(
    manifest: Manifest, load: Callable[[], InversionSource]
) -> None:
    """The shards of a regeneration's other parts are there before it begins, and no state is."""
    tiny_version.fill(manifest, (t for t in tasks(manifest) if t.shard_index != 1), "dfad")
    assert load().begin(1) == 0


def test_parts_that_an_earlier_attempt_has_finished_stay(
    load: Callable[[], InversionSource],
) -> None:
    """The pool gives the unit as it was before the first attempt to the second one too."""
    first = load()
    first.begin(0)
    finish(first, 0)
    left = finish(first, 1)
    second = load()
    assert second.begin(0) == 2
    assert second.states.newest() == 2
    assert same(second.inverter.state(), left)


def test_another_driver_that_finishes_a_part_meanwhile_keeps_its_states(
    load: Callable[[], InversionSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    other, newest = load(), Checkpoints.newest

    def late(states: Checkpoints) -> int:
        found = newest(states)
        if not found:
            monkeypatch.setattr(Checkpoints, "newest", newest)
            finish(other, 0)
        return found

    monkeypatch.setattr(Checkpoints, "newest", late)
    assert load().begin(0) == 0
    assert other.states.newest() == 1


def test_a_method_whose_parts_are_independent_keeps_no_state(
    tmp_path: Path, teacher: Teacher
) -> None:
    manifest = chain_of("deepinversion", tmp_path)
    version = begin(open_storage(str(tmp_path)).child("version"), identity(manifest, {}))
    source = manifest.source.load(SourceContext(manifest, teacher, None, version))
    assert source.begin(1) == 1
    source.finish(1)
    assert not list(version.storage.list("state/"))


def test_the_images_of_a_part_are_read_as_they_are_stored(
    version: Version, load: Callable[[], InversionSource]
) -> None:
    source = load()
    finish(source, 0)
    images = source.earlier(0)
    assert images.shape == (2, 64, 64, 3)
    means = images.float().mean(dim=(1, 2))
    assert means.argmax(dim=1).tolist() == [0, 1]  # the colours of the classes
    key = "shards/0001-00000.tar"
    version.storage.put(key, version.storage.get(key)[:-1] + b"\1")
    with pytest.raises(CorruptionError, match="sha256"):
        source.earlier(0)


@pytest.mark.parametrize("kind", ["TIFF", "EPS", ""])
def test_images_of_a_part_that_are_no_pictures_are_refused(
    manifest: Manifest,
    version: Version,
    load: Callable[[], InversionSource],
    tmp_path: Path,
    kind: str,
) -> None:
    """Pillow hands an EPS to Ghostscript, a language in which one can write files."""
    stream = io.BytesIO(b"no picture")
    if kind:
        Image.new("RGB", (64, 64)).save(stream, kind)
    arrays = {"distances": np.ones(2, np.float32), "embedding": np.ones(8, np.float16)}
    for task in tasks(manifest):
        facts = metadata("dog", task.class_index, task.start)
        key, tar = sample_key(task.class_index, task.start), tmp_path / f"{task.id}.tar"
        write_shard([Sample(key, stream.getvalue(), "jpg", facts, arrays)], tar)
        version.commit(task, tar)
    with pytest.raises(CorruptionError, match="image 0000-0000000 cannot be read"):
        load().earlier(0)


# What a worker makes, with the methods themselves.


class KilledError(Exception):
    """Stands for the end of a worker."""


def begun(method: str, root: Path) -> tuple[Manifest, Version]:
    """A chain whose prompts are made."""
    manifest = chain_of(method, root)
    home = open_storage(manifest.storage.root).child(f"data/{method}")
    version = begin(home, identify(manifest))
    worker = own_worker(manifest, version, Worker)
    for number in range(part_count(manifest)):
        worker.run(PromptPart(number))
    return manifest, version


def whole_run(manifest: Manifest, *done: str) -> Unit:
    """What a driver gives to a worker."""
    (unit,) = units(manifest, done)
    return unit


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The parts that have been made in this process so far, in their order."""
    found: list[int] = []
    make = Inverter.make

    def noted(inverter: Inverter, request: PartRequest) -> Synthesised:
        found.append(request.part)
        return make(inverter, request)

    monkeypatch.setattr(Inverter, "make", noted)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes the folder of a run that nothing has disturbed, once for each method."""
    folders: dict[str, Path] = {}

    def folder(method: str) -> Path:
        if method not in folders:
            folders[method] = tmp_path_factory.mktemp(method)
            manifest, version = begun(method, folders[method])
            committed = own_worker(manifest, version, Worker).run(whole_run(manifest)).result
            found = [(receipt.task, summary.samples) for receipt, summary in committed]
            # Part by part, as prompts and states are.
            assert found == [(f"000{c}-0000{p}", 1) for p in range(3) for c in range(2)]
            assert len({receipt.sha256 for receipt, _ in committed}) == 6
        return folders[method]

    return folder


def stop(worker: Worker, unit: Unit, patch: pytest.MonkeyPatch, step: str) -> None:
    """Let a worker die in part 1: before or after it keeps the state, or within the part."""
    finish, commit = InversionSource.finish, Version.commit

    def finishing(source: InversionSource, part: int) -> None:
        if part == 1 and step == "before the state":
            raise KilledError
        finish(source, part)
        if part == 1:
            raise KilledError

    def committing(version: Version, task: Any, *words: Any) -> Receipt:
        if task.id == "0001-00001" and step == "between two receipts":
            raise KilledError
        return commit(version, task, *words)

    with patch.context() as patched:
        patched.setattr(InversionSource, "finish", finishing)
        patched.setattr(Version, "commit", committing)
        with pytest.raises(KilledError):
            worker.run(unit)


STEPS = {"between two receipts": [1, 2], "before the state": [1, 2], "after the state": [2]}
"""Where a worker dies, and the parts that are made after that."""


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("method", "step", "by"),
    [
        ("cmi", "between two receipts", "engine"),
        ("cmi", "before the state", "driver"),
        ("cmi", "after the state", "engine"),
        ("dfad", "after the state", "driver"),
        ("pre", "after the state", "engine"),
    ],
)
def test_a_killed_worker_costs_the_part_in_progress(
    method: str,
    step: str,
    by: str,
    tmp_path: Path,
    undisturbed: Callable[[str], Path],
    made: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The engine gives the same unit again, and a new driver one of what is missing."""
    expected = contents(undisturbed(method))
    manifest, version = begun(method, tmp_path)
    unit = whole_run(manifest)
    stop(own_worker(manifest, version, Worker), unit, monkeypatch, step)
    made.clear()
    if by == "driver":
        (unit,) = units(manifest, version.done())
        assert len(unit.tasks) < 6
    own_worker(manifest, version, Worker).run(unit)
    assert made == STEPS[step]
    assert contents(tmp_path) == expected


@pytest.mark.heavy
def test_a_worker_that_goes_on_after_an_error_begins_from_the_state(
    tmp_path: Path,
    undisturbed: Callable[[str], Path],
    made: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its networks are half-way through a part, so they are loaded anew."""
    expected = contents(undisturbed("dfad"))
    manifest, version = begun("dfad", tmp_path)
    worker, unit = own_worker(manifest, version, Worker), whole_run(manifest)
    stop(worker, unit, monkeypatch, "before the state")
    made.clear()
    worker.run(unit)
    assert made == [1, 2]
    assert contents(tmp_path) == expected


@pytest.mark.heavy
def test_a_lost_receipt_comes_back_as_it_was(
    tmp_path: Path, undisturbed: Callable[[str], Path], made: list[int]
) -> None:
    expected = contents(undisturbed("dfad"))
    shutil.copytree(undisturbed("dfad"), tmp_path, dirs_exist_ok=True)
    manifest = chain_of("dfad", tmp_path)
    version = begin(open_storage(str(tmp_path)).child("data/dfad"), identify(manifest))
    version.storage.delete("receipts/0001-00001.json.gz")
    made.clear()
    (unit,) = units(manifest, version.done())
    ((receipt, _),) = own_worker(manifest, version, Worker).run(unit).result
    assert receipt.task == "0001-00001"
    # State 2 is newer than the part, and older ones need not be there.
    assert made == [0, 1]
    assert contents(tmp_path) == expected


def test_no_part_follows_one_that_diverges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, version = begun("dfad", tmp_path)
    real = Inverter.make

    def make(inverter: Inverter, request: PartRequest) -> Synthesised:
        if request.part == 1:
            with torch.no_grad():
                next(inverter.networks["student"].parameters()).fill_(torch.nan)
        return real(inverter, request)

    monkeypatch.setattr(Inverter, "make", make)
    with pytest.raises(DfkdError, match=r"^synthesis\.dfad: diverged in part 1, on which all"):
        own_worker(manifest, version, Worker).run(whole_run(manifest))
    done = version.done()
    assert [task.id for task in tasks(manifest) if task.id in done] == ["0000-00000", "0001-00000"]
    assert Checkpoints(version.storage.child("state/")).newest() == 1


# What a driver and its workers make of it.


@pytest.fixture(scope="module")
def actors(two_cpus: None) -> Iterator[Engine[Any]]:
    with synthesis_engine(Cluster()) as engine:
        yield engine


def test_a_run_that_was_stopped_between_two_parts_is_finished_by_other_processes(
    actors: Engine[Any],
    tmp_path: Path,
    undisturbed: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = open_storage(str(undisturbed("cmi"))).child("data/cmi")
    manifest, version = begun("cmi", tmp_path)
    stop(own_worker(manifest, version, Worker), whole_run(manifest), monkeypatch, "after the state")
    assert len(version.done()) == 4
    built = build(manifest, identify(manifest), engine=actors)
    assert verify(built.version) == []
    assert not list(version.storage.list("state/"))
    version.storage.put("state/0000000005.safetensors", b"")  # left by a kill
    assert build(manifest, identify(manifest)).version == built.version
    assert not list(version.storage.list("state/"))
    whole = Version(original, version.fingerprint)
    receipts = [whole.receipt(task) for task in tasks(manifest)]
    assert sorted((r.task, r.sha256) for r in built.version.receipts()) == sorted(
        (r.task, r.sha256) for r in receipts
    )


def test_of_a_run_that_fails_at_every_attempt_the_unfinished_tasks_are_quarantined(
    actors: Engine[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stuck(Worker):
        def make_shards(self, unit: Unit) -> list[tuple[Receipt, ShardSummary]]:
            raise CorruptionError("the state is damaged")

    manifest, version = begun("dfad", tmp_path)
    stop(
        own_worker(manifest, version, Worker), whole_run(manifest), monkeypatch, "before the state"
    )
    with record_cost(open_storage(manifest.storage.root), "synthesize", "dfad") as cost:
        actors.close()  # they hold what these need
        with synthesis_engine(Cluster(), Stuck) as stuck:
            found = write_missing(manifest, version, cost, stuck)
    assert sorted(found) == ["0000-00002", "0001-00002"]
    assert set(found.values()) == {"the state is damaged"}
