"""Tasks cover every image once, and a seed depends on what it is derived from alone."""

import dataclasses
from collections import Counter
from itertools import product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfkd.config.hashing import derive_seed
from dfkd.config.manifest import Manifest, Regeneration, StorageConfig
from dfkd.config.plan import (
    estimated_bytes,
    fresh_tasks,
    image_count,
    image_seed,
    image_steps,
    part_count,
    part_rows,
    sampling_steps,
    task_count,
    tasks,
    units,
)
from dfkd.config.plugins import GeneratorSettings
from dfkd.config.synthesis import GeneratorConfig, Synthesis
from dfkd.dataset.shards import sample_key
from dfkd.models.generators.settings import Diffusers, Vqgan
from tests.helpers.tiny_models import GENERATOR, TEACHER


def plan(classes: int, images: int, size: int, seed: int = 0) -> Manifest:
    return Manifest(
        name="plan",
        classes=tuple(f"class {i}" for i in range(classes)),
        storage=StorageConfig(root="unused"),
        teacher=TEACHER,
        generator=GENERATOR,
        seed=seed,
        synthesis=Synthesis(images_per_class=images, shard_size=size),
    )


def with_kind(kind: str, settings: GeneratorSettings) -> GeneratorConfig:
    return GeneratorConfig(kind=kind, kinds={kind: settings})


def changed(manifest: Manifest, **synthesis: object) -> Manifest:
    return manifest.with_values(synthesis=synthesis)


@given(st.integers(2, 6), st.integers(1, 60), st.integers(1, 25))
def test_tasks_cover_every_image_exactly_once(classes: int, images: int, size: int) -> None:
    manifest = plan(classes, images, size)
    found = list(tasks(manifest))
    covered = [(task.class_index, index) for task in found for index in task.indices]
    assert covered == [(c, i) for c in range(classes) for i in range(images)]
    assert len(found) == task_count(manifest)
    assert len(covered) == image_count(manifest)
    assert len({task.id for task in found}) == len(found)
    assert all(1 <= task.count <= size for task in found)
    rows = [row for part in range(part_count(manifest)) for row in part_rows(manifest, part)]
    assert sorted((row.class_index, row.index) for row in rows) == covered


@given(st.integers(2, 5), st.integers(1, 30), st.integers(1, 12), st.randoms())
def test_units_are_the_work_that_is_left(
    classes: int, images: int, size: int, random: Random
) -> None:
    """Part by part: each task alone, or together where images are coupled."""
    manifest = plan(classes, images, size)
    every = list(tasks(manifest))
    done = {task.id for task in every if random.random() < 0.5}
    left = [task for task in every if task.id not in done]
    found = list(units(manifest, done))
    by_part = sorted(left, key=lambda task: (task.shard_index, task.class_index))
    assert [unit.tasks for unit in found] == [(task,) for task in by_part]
    assert all(unit.generated == unit.tasks for unit in found)

    parts = list(units(changed(manifest, source=("deepinversion",)), done))
    assert sorted((t for unit in parts for t in unit.tasks), key=every.index) == left
    for unit in parts:
        assert unit.generated == tuple(t for t in every if t.shard_index == unit.part)
        assert unit.count == sum(task.count for task in unit.tasks)
    assert len({unit.id for unit in parts}) == len(parts)

    whole = list(units(changed(manifest, source=("cmi",)), done))
    assert [(unit.tasks, unit.generated) for unit in whole] == [
        (tuple(left), tuple(every)) for _ in range(bool(left))
    ]
    for unit in whole:
        everything = [each.generated for each in unit.by_part()]
        assert [tasks for tasks in everything if tasks] == [
            tuple(t for t in every if t.shard_index == part) for part in range(unit.part + 1)
        ]
        assert [each for each in unit.by_part() if each.tasks] == parts


def test_ids_and_keys_sort_as_their_numbers_and_hold_no_dots() -> None:
    ids = [task.id for task in tasks(plan(12, 30, 10))]
    assert ids == sorted(ids)
    assert ids[0] == "0000-00000"
    assert sample_key(3, 12) == "0003-0000012"


@given(st.lists(st.text(), min_size=1), st.lists(st.text(), min_size=1))
def test_different_parts_give_different_seeds(one: list[str], two: list[str]) -> None:
    same = "\x1f".join(one) == "\x1f".join(two)
    assert (derive_seed(*one) == derive_seed(*two)) == same
    assert 0 <= derive_seed(*one) < 2**63


def test_the_derivation_never_changes() -> None:
    """Published versions depend on it: a new value here breaks every resumed run."""
    assert derive_seed("image", 0, "dog", 0, 0) == 7092162310753564152


def test_a_seed_is_derived_from_the_manifest_s_seed_and_the_image_alone() -> None:
    """Neither other classes nor the size of a shard changes it."""
    for manifest in (plan(3, 10, 5), plan(3, 10, 2), plan(5, 10, 5), plan(3, 10, 5, seed=1)):
        for c, i, attempt in product(range(3), range(10), range(2)):
            expected = derive_seed("image", manifest.seed, f"class {c}", i, attempt)
            assert image_seed(manifest, c, i, attempt) == expected
        for row in part_rows(manifest, 1):
            name = f"class {row.class_index}"
            assert row.seed == derive_seed("prompt", manifest.seed, name, row.index)


def test_a_salt_gives_other_seeds_to_every_image_and_prompt() -> None:
    plain, salted = plan(3, 10, 5), dataclasses.replace(plan(3, 10, 5), salt=1)
    for c, i in ((0, 0), (1, 7), (2, 9)):
        assert image_seed(plain, c, i) != image_seed(salted, c, i)
    assert not {r.seed for r in part_rows(plain, 0)} & {r.seed for r in part_rows(salted, 0)}
    assert image_seed(salted, 0, 0) != image_seed(plan(3, 10, 5, seed=1), 0, 0)


@given(
    st.integers(2, 5),
    st.integers(1, 40),
    st.integers(1, 7),
    st.floats(0.01, 1.0),
    st.integers(0, 5),
    st.data(),
)
def test_a_regeneration_makes_the_same_share_of_each_named_class_anew(
    classes: int, images: int, size: int, share: float, salt: int, data: st.DataObject
) -> None:
    manifest = plan(classes, images, size)
    named = data.draw(st.lists(st.sampled_from(manifest.classes), unique=True))
    regeneration = Regeneration(classes=tuple(named), share=share)
    manifest = dataclasses.replace(manifest, salt=salt, regeneration=regeneration)
    fresh = list(fresh_tasks(manifest))
    everything = list(tasks(manifest))
    assert fresh == [task for task in everything if task in set(fresh)]
    shards = -(-images // size)
    counts = Counter(manifest.classes[task.class_index] for task in fresh)
    assert counts.keys() == set(named or manifest.classes)
    assert all(share * shards - 1e-6 <= count < share * shards + 1 for count in counts.values())
    if regeneration.whole:
        assert fresh == everything


@pytest.mark.parametrize(
    ("share", "count"), [(0.07, 7), (0.28, 28), (0.555, 56), (0.001, 1), (1e-9, 1)]
)
def test_a_share_is_rounded_up_but_not_by_the_last_bit_of_a_float(share: float, count: int) -> None:
    manifest = dataclasses.replace(plan(2, 100, 1), regeneration=Regeneration(share=share))
    assert len(list(fresh_tasks(manifest))) == 2 * count


def test_each_class_and_salt_draws_tasks_of_its_own() -> None:
    manifest = dataclasses.replace(plan(6, 40, 2), regeneration=Regeneration(share=0.25))
    drawn: dict[tuple[int, int], list[int]] = {}
    for salt in range(4):
        for task in fresh_tasks(dataclasses.replace(manifest, salt=salt)):
            drawn.setdefault((salt, task.class_index), []).append(task.shard_index)
    assert len(set(map(frozenset, drawn.values()))) == 4 * 6


def test_only_all_tasks_of_all_classes_are_the_whole() -> None:
    assert Regeneration().whole
    assert not Regeneration(share=0.5).whole
    assert not Regeneration(classes=("class 0",)).whole


def test_steps_are_counted_for_each_image_that_the_generator_makes() -> None:
    manifest = plan(2, 10, 5)
    own = Vqgan(config="miniature", weights="miniature", steps=8)
    optimised = dataclasses.replace(manifest, generator=with_kind("vqgan", own))
    assert (image_steps(optimised), sampling_steps(optimised)) == (2 * 10 * 8, 0)
    assert image_steps(changed(optimised, source=("cmi",))) == 0


def test_sampled_images_take_the_steps_of_the_model_and_one_more_than_refine_them() -> None:
    own = Diffusers(weights="miniature", steps=30)
    sampled = dataclasses.replace(plan(2, 10, 5), generator=with_kind("diffusers", own))
    assert (sampling_steps(sampled), image_steps(sampled)) == (2 * 10 * 30, 0)
    assert sampling_steps(changed(sampled, source=("cmi",))) == 0
    more = with_kind("diffusers", dataclasses.replace(own, refine_steps=2))
    refined = dataclasses.replace(sampled, generator=more)
    assert (sampling_steps(refined), image_steps(refined)) == (2 * 10 * 30, 2 * 10 * 3)


def test_an_image_takes_at_most_its_raw_pixels_its_labels_and_its_texts() -> None:
    """Four bytes for each class, two for each of 1,024 dimensions, and 8 KiB."""
    manifest = changed(plan(5, 10, 5), image_size=64)
    rest = 4 * 5 + 2 * 1024 + 8192
    assert estimated_bytes(manifest, 7) == 7 * (3 * 64 * 64 + rest)
    assert estimated_bytes(changed(manifest, format="jpg"), 7) == 7 * (3 * 64 * 32 + rest)
