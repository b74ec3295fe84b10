"""Tasks cover every image once, and a seed depends on what it is derived from alone."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dfkd.manifest import Manifest, Storage, Synthesis
from dfkd.plan import derive_seed, image_count, image_seed, sample_key, task_count, tasks


def plan(classes: int, images: int, size: int, seed: int = 0) -> Manifest:
    return Manifest(
        name="plan",
        classes=tuple(f"class {i}" for i in range(classes)),
        storage=Storage(root="unused"),
        seed=seed,
        synthesis=Synthesis(images_per_class=images, shard_size=size),
    )


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


def test_ids_and_keys_sort_as_their_numbers_and_hold_no_dots() -> None:
    ids = [task.id for task in tasks(plan(12, 30, 10))]
    assert ids == sorted(ids)
    assert ids[0] == "0000-00000"
    assert sample_key(3, 12) == "0003-0000012"


def test_a_seed_depends_on_manifest_class_index_and_attempt_only() -> None:
    manifest = plan(3, 10, 5)
    seeds = {
        image_seed(manifest, c, i, attempt)
        for c in range(3)
        for i in range(10)
        for attempt in (0, 1)
    }
    assert len(seeds) == 60
    regrouped = plan(3, 10, 2)
    assert image_seed(manifest, 1, 7) == image_seed(regrouped, 1, 7)
    assert image_seed(manifest, 1, 7) != image_seed(plan(3, 10, 5, seed=1), 1, 7)


def test_a_class_keeps_its_seeds_when_others_join(tmp_path: Path) -> None:
    few, many = plan(2, 5, 5), plan(4, 5, 5)
    assert [image_seed(few, 1, i) for i in range(5)] == [image_seed(many, 1, i) for i in range(5)]


@given(st.lists(st.text(), min_size=1), st.lists(st.text(), min_size=1))
def test_different_parts_give_different_seeds(one: list[str], two: list[str]) -> None:
    same = "\x1f".join(one) == "\x1f".join(two)
    assert (derive_seed(*one) == derive_seed(*two)) == same
    assert 0 <= derive_seed(*one) < 2**63


def test_the_derivation_never_changes() -> None:
    """Published versions depend on it: a new value here breaks every resumed run."""
    assert derive_seed("image", 0, "dog", 0, 0) == 7092162310753564152
