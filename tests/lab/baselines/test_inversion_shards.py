"""The shards of every method: of the usual form, the same each time, and whole parts at once."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd.config.identity import identity
from dfkd.config.manifest import Manifest
from dfkd.config.plan import Unit, image_seed, units
from dfkd.dataset.shards import Sample, parse_shard
from dfkd.dataset.versions import Version, begin
from dfkd.errors import DfkdError, ManifestError
from dfkd.lab.baselines.deepinversion import DeepInverter
from dfkd.lab.baselines.inverter import PartRequest
from dfkd.models.generators.vqgan import VQGAN
from dfkd.models.labeller import distances
from dfkd.models.teacher import Teacher
from dfkd.operations.preflight import check_synthesis
from dfkd.prompts.maker import PromptMaker
from dfkd.storage.local import open_storage
from dfkd.synthesis.image_source import SourceContext, Synthesised
from dfkd.synthesis.shard_maker import ShardMaker
from dfkd.utils.pixels import from_bytes
from tests.helpers.inversion_runs import CLASSES, METHODS, read
from tests.helpers.tiny_models import model_config, write_teacher

COUPLED = (*METHODS, "vanilla-bn")


def chosen(method: str, *overrides: str) -> Manifest:
    return read(
        "synthesis.source=[bn, deepinversion, dfad, cmi, pre]",
        "synthesis.bn.weight=0.1",
        "generator.vqgan.steps=2",
        "synthesis.batch_size=3",
        *overrides,
    ).with_method(method)


def by_part(manifest: Manifest, *done: str) -> list[Unit]:
    """What is left to make of each part, if some tasks are done."""
    parts = (part for unit in units(manifest, done) for part in unit.by_part())
    return [part for part in parts if part.tasks]


def maker_of(
    manifest: Manifest, teacher: Teacher, generator: VQGAN | None, root: Path
) -> tuple[ShardMaker, Version]:
    """A maker of the shards of a version that is begun below a folder."""
    version = begin(open_storage(str(root)), identity(manifest, {}))
    needed = generator if manifest.method == "vanilla-bn" else None
    source = manifest.source.load(SourceContext(manifest, teacher, needed, version))
    return ShardMaker(manifest, teacher, source), version


def make(
    manifest: Manifest, teacher: Teacher, generator: VQGAN | None, unit: Unit, folder: Path
) -> dict[str, bytes]:
    """The shards of a part by task id, all of whose images were made.

    Of a chained method the parts before it are made first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    maker, version = maker_of(manifest, teacher, generator, folder / "version")
    before = by_part(manifest)[: unit.part] if manifest.source.scope == "run" else []
    for each in [*before, unit]:
        prompts = PromptMaker(manifest, teacher).part(each.part)
        shards = maker.shards(each, prompts, folder)
        assert [shards[task].failed for task in each.tasks] == [()] * len(each.tasks)
        for task in each.tasks:
            version.commit(task, folder / f"{task.id}.tar")
    return {task.id: (folder / f"{task.id}.tar").read_bytes() for task in unit.tasks}


def samples(shards: dict[str, bytes]) -> list[Sample]:
    return [sample for name, data in shards.items() for sample in parse_shard(data, name)]


@pytest.mark.parametrize("method", COUPLED)
def test_a_part_has_labelled_images_and_the_same_bytes_each_time(
    method: str, tmp_path: Path, teacher: Teacher, generator: VQGAN
) -> None:
    manifest = chosen(method)
    first, second = by_part(manifest)
    shards = make(manifest, teacher, generator, first, tmp_path / "one")
    # A run that died between two shards of a part makes the part again, and the same bytes.
    rest = by_part(manifest, "0000-00000")[0]
    assert [task.id for task in rest.tasks] == ["0001-00000"]
    again = make(manifest, teacher, generator, rest, tmp_path / "rest")
    assert again == {"0001-00000": shards["0001-00000"]}
    assert sorted(shards) == ["0000-00000", "0001-00000"]
    found = samples(shards)
    assert sorted(s.key for s in found) == [f"{c:04d}-{i:07d}" for c in (0, 1) for i in (0, 1)]
    texts = teacher.encode_text([f"A {name}" for name in CLASSES])
    for sample in found:
        facts = sample.metadata
        index = facts["index"]
        assert facts["method"] == method
        assert facts["prompt"] == f"A {CLASSES[facts['class_index']]}"
        assert facts["seed"] == image_seed(manifest, facts["class_index"], index)
        assert facts["attempt"] == 0
        picture = np.array(Image.open(io.BytesIO(sample.image)))
        assert picture.shape == (64, 64, 3)
        assert picture.std() > 1
        seen = teacher.encode_image(from_bytes(torch.from_numpy(picture)[None]))
        assert np.allclose(sample.arrays["distances"], distances(seen, texts)[0], atol=1e-5)
    assert len({sample.image for sample in found}) == len(found)
    (one, other) = samples(make(manifest, teacher, generator, second, tmp_path / "second"))
    assert {one.metadata["index"], other.metadata["index"]} == {2}


@pytest.mark.parametrize("method", ["deepinversion", "dfad"])
def test_parts_salts_and_seeds_give_other_images(
    method: str, tmp_path: Path, teacher: Teacher, generator: VQGAN
) -> None:
    def images(name: str, *overrides: str, part: int = 0) -> set[bytes]:
        manifest = chosen(method, *overrides)
        unit = by_part(manifest)[part]
        found = samples(make(manifest, teacher, generator, unit, tmp_path / name))
        return {sample.image for sample in found}

    plain = images("plain")
    assert plain.isdisjoint(images("part", part=1))
    assert plain.isdisjoint(images("salt", "salt=1"))
    assert plain.isdisjoint(images("seed", "seed=1"))


def test_a_part_that_diverges_is_made_again_with_other_seeds(
    tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every image of the first attempt diverges."""
    manifest = chosen("deepinversion")
    (unit, _), real, seen = by_part(manifest), DeepInverter.images, []

    def failing(inverter: DeepInverter, run: PartRequest) -> Synthesised:
        made = real(inverter, run)
        seen.append(made)
        if len(seen) == 1:
            made.diverged[:] = True
        return made

    monkeypatch.setattr(DeepInverter, "images", failing)
    found = samples(make(manifest, teacher, None, unit, tmp_path))
    assert [sample.metadata["attempt"] for sample in found] == [1] * 4
    assert not torch.equal(seen[0].pixels, seen[1].pixels)


@pytest.mark.parametrize(
    ("method", "field"),
    [("cmi", "synthesis.cmi.batch_size"), ("vanilla-bn", "synthesis.batch_size")],
)
def test_a_batch_that_memory_has_no_room_for_is_not_halved(
    method: str,
    field: str,
    tmp_path: Path,
    teacher: Teacher,
    generator: VQGAN,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half a batch would give other images."""

    def full(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    manifest = chosen(method)
    prompts = PromptMaker(manifest, teacher).part(0)
    maker, _ = maker_of(manifest, teacher, generator, tmp_path / "version")
    monkeypatch.setattr(teacher, "encode_image", full)
    with pytest.raises(DfkdError, match=rf"memory had no room .* lower {field}$"):
        maker.shards(by_part(manifest)[0], prompts, tmp_path)


def test_batch_norm_in_the_loss_of_latents_that_are_not_optimised_is_refused() -> None:
    generator = "generator={kind: diffusers, diffusers: {weights: miniature}}"
    settings = ("synthesis.source=bn", generator)
    check_synthesis(read(*settings, "generator.diffusers.refine_steps=1"))
    with pytest.raises(ManifestError, match=r"^synthesis\.source: bn is a loss .* only samples"):
        check_synthesis(read(*settings))


@pytest.mark.parametrize("method", [*METHODS, "bn"])
def test_a_teacher_without_batch_norm_is_refused_before_any_work(
    method: str, tmp_path: Path
) -> None:
    teacher = write_teacher(tmp_path, model_config())
    manifest = read(
        f"synthesis.source={method}",
        f"teacher.model={teacher.model}",
        f"teacher.weights={teacher.weights}",
    )
    label = "vanilla-bn" if method == "bn" else method
    with pytest.raises(ManifestError, match=f"^teacher.model: {label} needs an image tower with"):
        check_synthesis(manifest)


def test_a_method_without_latents_needs_no_generator(tmp_path: Path) -> None:
    nowhere = "generator.vqgan.weights=/nowhere.ckpt"
    check_synthesis(read("synthesis.source=[dfad, cmi]", nowhere, "prompts.method=random"))
    with pytest.raises(ManifestError, match=r"^generator.vqgan.weights"):
        check_synthesis(read("synthesis.source=[dfad, latents]", nowhere))
