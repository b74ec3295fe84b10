"""A task's shard holds each image with the teacher's view of the very bytes that are stored."""

import io
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from dfkd.config.manifest import Manifest
from dfkd.config.plan import Task, Unit, image_seed, tasks
from dfkd.dataset.shards import Sample, parse_shard
from dfkd.models.generators.vqgan import VQGAN
from dfkd.models.labeller import distances
from dfkd.models.teacher import Teacher
from dfkd.prompts.conditions import StoredPrompt
from dfkd.prompts.maker import PromptMaker
from dfkd.synthesis.image_source import Synthesised, initial_batch_size
from dfkd.synthesis.latents import LatentSource
from dfkd.synthesis.shard_maker import ShardMaker
from dfkd.utils.pixels import from_bytes
from tests.helpers import small_manifest
from tests.helpers.sources import source_of, stored
from tests.helpers.tiny_models import TEACHER


def read(tmp_path: Path, *overrides: str) -> Manifest:
    synthesis = {"images_per_class": 5, "shard_size": 3, "batch_size": 2}
    return small_manifest.read(
        tmp_path,
        *overrides,
        classes=["dog", "house"],
        prompts={"method": "random", "random": {"scale": 2.0}},
        generator=small_manifest.vqgan(steps=2),
        synthesis=synthesis | {"image_size": 64},
    )


def make(
    manifest: Manifest,
    teacher: Teacher,
    generator: VQGAN,
    task: Task,
    folder: Path,
    broken: tuple[int, ...] = (),
) -> tuple[tuple[int, ...], list[Sample]]:
    """Make one task's shard; the prompts of the `broken` rows are no numbers."""
    table = PromptMaker(manifest, teacher).part(task.shard_index)
    mine = table.filter(pa.compute.equal(table["class_index"], task.class_index))
    made = ShardMaker(manifest, teacher, source_of(manifest, teacher, generator)).shards(
        alone(task), broken_at(broken, mine), folder
    )
    tar = folder / f"{task.id}.tar"
    written = list(parse_shard(tar.read_bytes(), tar.name))
    assert [(s.key, s.image, s.metadata) for s in made[task].samples] == [
        (s.key, s.image, s.metadata) for s in written
    ]
    return made[task].failed, written


def broken_at(rows: tuple[int, ...], prompts: pa.Table) -> pa.Table:
    embeddings = np.stack(prompts["embedding"].to_numpy()).copy()
    embeddings[list(rows)] = np.nan
    column = pa.array(list(embeddings), pa.list_(pa.float32()))
    return prompts.set_column(prompts.schema.get_field_index("embedding"), "embedding", column)


def alone(task: Task) -> Unit:
    return Unit((task,), (task,))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA error: out of memory")])
def test_a_batch_is_halved_where_memory_is_full(
    error: Exception, tmp_path: Path, teacher: Teacher, generator: VQGAN
) -> None:
    notes, sizes = run_with_an_error(error, tmp_path, teacher, generator)
    assert sizes == [2, 1, 1, 1]
    assert notes == [
        "memory had no room for 2 images at once; this worker makes at most 1 from here on"
    ]


def test_batches_of_the_size_that_most_have_are_compiled(
    tmp_path: Path, teacher: Teacher, generator: VQGAN
) -> None:
    for override, size in (("batch_size=2", 2), ("batch_size=8", 3), ("batch_size=0", 3)):
        manifest = read(tmp_path, f"synthesis.{override}")
        source = source_of(manifest, teacher, generator)
        assert source.full_batch == size
    ShardMaker(manifest, teacher, source)._halve(3)
    assert source.full_batch == 1


def test_another_error_halves_nothing(tmp_path: Path, teacher: Teacher, generator: VQGAN) -> None:
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run_with_an_error(error, tmp_path, teacher, generator)


def run_with_an_error(
    error: Exception, tmp_path: Path, teacher: Teacher, generator: VQGAN
) -> tuple[list[str], list[int]]:
    """Make a shard whose first batch raises; returns the notes and the tried sizes of batches."""
    manifest = read(tmp_path)
    task = next(iter(tasks(manifest)))
    notes: list[str] = []
    sizes: list[int] = []
    source = source_of(manifest, teacher, generator)
    maker, really = ShardMaker(manifest, teacher, source, notes.append), source.make

    def make_or_fail(prompts: list[StoredPrompt], seeds: list[int]) -> Synthesised:
        sizes.append(len(prompts))
        if len(sizes) == 1:
            raise error
        made: Synthesised = really(prompts, seeds)
        return made

    source.make = make_or_fail
    table = PromptMaker(manifest, teacher).part(task.shard_index)
    mine = table.filter(pa.compute.equal(table["class_index"], task.class_index))
    maker.shards(alone(task), mine, tmp_path)
    return notes, sizes


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_samples_tell_all_about_their_image(
    tmp_path: Path, teacher: Teacher, generator: VQGAN, kind: str
) -> None:
    manifest = read(tmp_path, f"synthesis.format={kind}")
    task = list(tasks(manifest))[3]  # the second shard of the second class
    failed, samples = make(manifest, teacher, generator, task, tmp_path)
    assert failed == ()
    assert [s.key for s in samples] == ["0001-0000003", "0001-0000004"]
    texts = teacher.encode_text(["A dog", "A house"])
    for sample in samples:
        facts = sample.metadata
        assert (facts["class"], facts["class_index"], facts["method"]) == ("house", 1, "random")
        assert facts["seed"] == image_seed(manifest, 1, facts["index"])
        assert facts["prompt"] == "house in the style of *"
        assert facts["steps"] == 2
        assert sample.extension == kind
        picture = np.array(Image.open(io.BytesIO(sample.image)))
        assert picture.shape == (64, 64, 3)
        seen = teacher.encode_image(from_bytes(torch.from_numpy(picture)[None]))
        assert np.allclose(sample.arrays["distances"], distances(seen, texts)[0], atol=1e-5)
        assert np.allclose(sample.arrays["embedding"], seen[0], atol=1e-3)
        logits = teacher.logit_scale * seen @ texts.T
        assert facts["confidence"] == pytest.approx(float(logits.softmax(1)[0, 1]), abs=1e-4)


def test_an_image_that_fails_twice_is_counted_and_not_written(
    tmp_path: Path, teacher: Teacher, generator: VQGAN
) -> None:
    manifest = read(tmp_path)
    task = next(tasks(manifest))
    _, clean = make(manifest, teacher, generator, task, tmp_path)
    failed, samples = make(manifest, teacher, generator, task, tmp_path, broken=(1,))
    assert failed == (1,)
    assert [s.metadata["index"] for s in samples] == [0, 2]
    assert samples[1].image == clean[2].image


def test_a_failed_image_is_counted_for_its_own_class_alone(
    tmp_path: Path, teacher: Teacher, generator: VQGAN
) -> None:
    manifest = read(tmp_path)
    both = tuple(task for task in tasks(manifest) if task.shard_index == 0)
    prompts = broken_at((4,), PromptMaker(manifest, teacher).part(0))  # three rows of each class
    maker = ShardMaker(manifest, teacher, source_of(manifest, teacher, generator))
    made = maker.shards(Unit(both, both), prompts, tmp_path)
    assert [made[task].failed for task in both] == [(), (1,)]


def test_labels_are_made_in_float32_whatever_the_precision_of_synthesis(
    tmp_path: Path, teacher: Teacher, generator: VQGAN, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A device that multiplies bfloat16, which this one may not.
    monkeypatch.setattr("dfkd.models.labeller.multiplies_bfloat16", lambda device: True)
    mixed = Teacher.load(TEACHER, torch.device("cpu"), "bfloat16")
    manifest = read(tmp_path)
    _, samples = make(manifest, mixed, generator, next(tasks(manifest)), tmp_path)
    for sample in samples:
        picture = torch.from_numpy(np.array(Image.open(io.BytesIO(sample.image))))
        seen = teacher.encode_image(from_bytes(picture[None]))
        exact = distances(seen, teacher.encode_text(["A dog", "A house"]))[0]
        assert np.allclose(sample.arrays["distances"], exact, atol=1e-5)


def test_a_retry_has_a_seed_of_its_own(
    tmp_path: Path, teacher: Teacher, generator: VQGAN, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "quantised", False)
    manifest = read(tmp_path)
    task = next(tasks(manifest))
    spoil(generator, image_seed(manifest, 0, 1), monkeypatch)
    failed, samples = make(manifest, teacher, generator, task, tmp_path)
    assert failed == ()
    assert [s.metadata["attempt"] for s in samples] == [0, 1, 0]
    assert samples[1].metadata["seed"] == image_seed(manifest, 0, 1, attempt=1)


def spoil(generator: VQGAN, bad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first latent of the seed `bad` is no number."""
    real = generator.init_latents

    def init_latents(seeds: list[int], *arguments: object) -> torch.Tensor:
        latents = real(seeds, *arguments)
        for row, seed in enumerate(seeds):
            if seed == bad:
                latents[row] = torch.nan
        return latents

    monkeypatch.setattr(generator, "init_latents", init_latents)


def test_with_batch_norm_statistics_a_diverged_image_takes_its_batch_to_the_second_seeds(
    tmp_path: Path, teacher: Teacher, generator: VQGAN, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored images are those that the second seeds give, and other batches stay as before."""
    monkeypatch.setattr(generator, "quantised", False)
    manifest = read(tmp_path, "synthesis.source=bn", "synthesis.bn.weight=0.1")
    task = next(tasks(manifest))
    _, clean = make(manifest, teacher, generator, task, tmp_path)
    seeds = [image_seed(manifest, 0, index, attempt=1) for index in (0, 1)]
    table = PromptMaker(manifest, teacher).part(0)
    targets = torch.from_numpy(np.stack(table["embedding"].to_numpy())[:2].copy())
    expected = source_of(manifest, teacher, generator).make(stored(targets), seeds)
    spoil(generator, image_seed(manifest, 0, 1), monkeypatch)
    failed, samples = make(manifest, teacher, generator, task, tmp_path)
    assert failed == ()
    assert [s.metadata["attempt"] for s in samples] == [1, 1, 0]
    kept = [np.array(Image.open(io.BytesIO(s.image))) for s in samples[:2]]
    assert np.array_equal(np.stack(kept), expected.pixels.numpy())
    assert [s.metadata["loss"] for s in samples[:2]] == expected.losses.tolist()
    assert samples[2].image == clean[2].image


def test_images_are_encoded_while_the_next_batch_is_synthesised(
    tmp_path: Path, teacher: Teacher, generator: VQGAN, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first image is not encoded before the second batch begins; without a thread it waits."""
    second, begun, waited = Event(), [], []
    real_make, real_encode = LatentSource.make, ShardMaker._encode

    def synthesise(self: LatentSource, *arguments: Any) -> Synthesised:
        begun.append(arguments)
        if len(begun) == 2:
            second.set()
        return real_make(self, *arguments)

    def encode(self: ShardMaker, picture: np.ndarray) -> bytes:
        waited.append(second.wait(timeout=60))
        return real_encode(self, picture)

    monkeypatch.setattr(LatentSource, "make", synthesise)
    monkeypatch.setattr(ShardMaker, "_encode", encode)
    manifest = read(tmp_path)
    _, samples = make(manifest, teacher, generator, next(tasks(manifest)), tmp_path)
    assert len(samples) == 3
    assert waited == [True, True, True]


def test_prompts_of_more_or_fewer_images_are_refused(
    tmp_path: Path, teacher: Teacher, generator: VQGAN
) -> None:
    manifest = read(tmp_path)
    maker = ShardMaker(manifest, teacher, source_of(manifest, teacher, generator))
    table = PromptMaker(manifest, teacher).part(0)
    for prompts in (table, table[:1]):
        with pytest.raises(ValueError, match="needs the prompts of images"):
            maker.shards(alone(next(tasks(manifest))), prompts, tmp_path)


@pytest.mark.parametrize(
    ("kind", "size", "refined", "tried"),
    [
        ("cpu", 0, 0, 8),
        ("cuda", 0, 0, 50),
        ("cuda", 3, 0, 3),
        ("cuda", 0, 2, 8),
        ("cuda", 20, 2, 20),
    ],
)
def test_the_batch_that_is_tried_first(
    kind: str, size: int, refined: int, tried: int, tmp_path: Path
) -> None:
    sizes = f"synthesis={{batch_size: {size}, shard_size: 50}}"
    model = (
        f"generator={{kind: diffusers, diffusers: {{weights: miniature, refine_steps: {refined}}}}}"
    )
    manifest = small_manifest.read(tmp_path, sizes, model)
    assert initial_batch_size(manifest, torch.device(kind)) == tried
