"""The parts of a chained method: made one after the other, from the newest state on."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd.config.identity import identity
from dfkd.config.manifest import Manifest
from dfkd.config.plan import Unit, part_name, parts, units
from dfkd.dataset.chain import Chain
from dfkd.dataset.versions import Version, begin
from dfkd.errors import CorruptionError
from dfkd.lab.benchmarks.stand_in import StandInMaker
from dfkd.models.teacher import Teacher
from dfkd.prompts.maker import PromptMaker
from dfkd.storage.checkpoints import Checkpoints
from dfkd.storage.local import open_storage
from tests.helpers.inversion_runs import read


@pytest.fixture
def manifest() -> Manifest:
    """Two classes, three parts of one image each."""
    return read("synthesis.method=cmi", "synthesis.shard_size=1")


@pytest.fixture
def version(tmp_path: Path, manifest: Manifest, teacher: Teacher) -> Version:
    version = begin(open_storage(str(tmp_path)).child("data/cmi"), identity(manifest, {}))
    for part in range(3):
        version.put_prompts(part_name(part), PromptMaker(manifest, teacher).part(part))
    return version


def finish(
    version: Version, manifest: Manifest, unit: Unit, folder: Path, image: bytes = b""
) -> None:
    """Commit a part, perhaps with another image, and write the state that it leaves."""
    maker = StandInMaker(manifest)
    maker.image = image or maker.image
    maker.shards(unit, version.prompt_part(part_name(unit.part)), folder)
    for task in unit.tasks:
        version.commit(task, folder / f"{task.id}.tar")
    Chain(version).keep(manifest, unit.part, {"part": torch.tensor(unit.part)})


def test_a_part_waits_for_the_state_before_it(
    version: Version, manifest: Manifest, tmp_path: Path
) -> None:
    found = Chain(version).units(manifest)
    for number, together in enumerate(parts(manifest)):
        unit = next(found)
        assert unit == Unit(together, together)
        if number < 2:
            assert [next(found), next(found)] == [None, None]
        finish(version, manifest, unit, tmp_path)
    assert next(found, "end") == "end"
    assert Chain(version).states.newest() == 2  # no part needs the state of the last one


def test_a_run_goes_on_from_the_newest_state(
    version: Version, manifest: Manifest, tmp_path: Path
) -> None:
    every = [Unit(together, together) for together in parts(manifest)]
    finish(version, manifest, every[0], tmp_path)
    finish(version, manifest, every[1], tmp_path)
    assert next(Chain(version).units(manifest)) == every[2]
    # Killed between the receipts and the state: the part is made again for its state alone.
    version.storage.delete("state/0000000002.safetensors")
    again = next(Chain(version).units(manifest))
    assert again == Unit((), every[1].generated)
    assert (again.id, again.part, again.count) == ("0000-00001", 1, 0)
    # A receipt of a part before the states is gone: from the beginning.
    version.storage.delete("receipts/0001-00000.json.gz")
    first = next(Chain(version).units(manifest))
    assert [task.id for task in first.tasks] == ["0001-00000"]
    assert Chain(version).states.newest() == 0


def test_another_driver_that_finishes_a_part_meanwhile_keeps_its_states(
    version: Version, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = [Unit(together, together) for together in parts(manifest)]
    newest = Checkpoints.newest

    def late(states: Checkpoints) -> int:
        found = newest(states)
        if not found:
            monkeypatch.setattr(Checkpoints, "newest", newest)
            finish(version, manifest, every[0], tmp_path)
        return found

    monkeypatch.setattr(Checkpoints, "newest", late)
    assert next(Chain(version).units(manifest)) == every[1]
    assert Chain(version).states.newest() == 1


def test_a_failure_is_that_of_every_later_part(
    version: Version, manifest: Manifest, tmp_path: Path
) -> None:
    finish(version, manifest, next(units(manifest, ())), tmp_path)
    reasons = Chain(version).blocked(manifest, "diverged")
    assert sorted(reasons) == ["0000-00001", "0000-00002", "0001-00001", "0001-00002"]
    assert set(reasons.values()) == {"diverged"}


def test_the_images_of_a_part_are_read_as_they_are_stored(
    version: Version, manifest: Manifest, tmp_path: Path
) -> None:
    finish(version, manifest, next(units(manifest, ())), tmp_path)
    images = Chain(version).images(manifest, 0)
    assert images.shape == (2, 64, 64, 3)
    assert set(np.unique(images)) == {128}  # a grey stand-in
    key = "shards/0001-00000.tar"
    version.storage.put(key, version.storage.get(key)[:-1] + b"\1")
    with pytest.raises(CorruptionError, match="sha256"):
        Chain(version).images(manifest, 0)


@pytest.mark.parametrize("kind", ["TIFF", "EPS", ""])
def test_images_of_a_part_that_are_no_pictures_are_refused(
    version: Version, manifest: Manifest, tmp_path: Path, kind: str
) -> None:
    """Pillow hands an EPS to Ghostscript, a language in which one can write files."""
    stream = io.BytesIO(b"no picture")
    if kind:
        Image.new("RGB", (64, 64)).save(stream, kind)
    finish(version, manifest, next(units(manifest, ())), tmp_path, stream.getvalue())
    with pytest.raises(CorruptionError, match="image 0000-0000000 cannot be read"):
        Chain(version).images(manifest, 0)
