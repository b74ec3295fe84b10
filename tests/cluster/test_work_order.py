"""What may start next: images wait for their own prompts only, and prompts never for images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dfkd.cluster.making import identify
from dfkd.cluster.work_order import PromptProgress, ready_work
from dfkd.config.manifest import Manifest
from dfkd.config.plan import PromptPart, PromptSummary, Unit, part_name, units
from dfkd.dataset.versions import Version, begin
from dfkd.storage.local import open_storage
from tests.helpers.tiny_version import write_manifest


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Three classes of three parts, of which one is made at a time."""
    settings = {"images_per_class": 12, "shard_size": 4}
    return Manifest.read(write_manifest(tmp_path, synthesis=settings))


@pytest.fixture
def version(manifest: Manifest) -> Version:
    return begin(open_storage(manifest.storage.root).child("data/vanilla"), identify(manifest))


def names(work: Iterator[Any], count: int) -> list[str | None]:
    """The ids of the next `count` units."""
    return [getattr(next(work), "id", None) for _ in range(count)]


def test_the_images_of_a_part_follow_its_prompts(manifest: Manifest, version: Version) -> None:
    with PromptProgress.of(manifest, version) as prompts:
        work = ready_work(prompts, units(manifest, ()), lambda: False)
        assert names(work, 3) == ["prompts 00000", None, None]
        prompts.record(0)
        # While one worker makes part 1, the others have the images of part 0.
        assert names(work, 2) == ["prompts 00001", "0000-00000"]
        prompts.record(1)
        assert names(work, 2) == ["prompts 00002", "0001-00000"]
        assert names(work, 2) == ["0002-00000", "0000-00001"]
        prompts.record(2)
        assert names(work, 3) == ["prompts summary", "0001-00001", "0002-00001"]
        prompts.record(None)
        assert [unit.id for unit in work if unit] == ["0000-00002", "0001-00002", "0002-00002"]


def test_without_images_left_the_prompts_are_still_made(
    manifest: Manifest, version: Version
) -> None:
    done = {unit.id for unit in units(manifest, ())}
    with PromptProgress.of(manifest, version) as prompts:
        made: list[Any] = []
        for unit in ready_work(prompts, units(manifest, done), lambda: False):
            if unit:
                made.append(unit)
                prompts.record(unit.number if isinstance(unit, PromptPart) else None)
    assert made == [PromptPart(0), PromptPart(1), PromptPart(2), PromptSummary()]


def test_with_stored_prompts_only_images_are_made(manifest: Manifest, version: Version) -> None:
    for part in range(3):
        version.storage.put(f"prompts/{part_name(part)}.parquet", b"")
    version.storage.put("prompts.json", b"{}")
    with PromptProgress.of(manifest, version) as prompts:
        found = list(ready_work(prompts, units(manifest, ()), lambda: False))
    assert found == list(units(manifest, ()))


def test_after_prompts_that_failed_nothing_more_starts(
    manifest: Manifest, version: Version
) -> None:
    failures: list[str] = []
    with PromptProgress.of(manifest, version) as prompts:
        work = ready_work(prompts, units(manifest, ()), lambda: bool(failures))
        assert names(work, 1) == ["prompts 00000"]
        prompts.record(0)
        assert names(work, 2) == ["prompts 00001", "0000-00000"]
        failures.append("no luck")
        assert list(work) == []


def test_a_chain_waits_for_its_part_before_and_for_its_prompts(
    manifest: Manifest, version: Version
) -> None:
    parts = [Unit((task,), (task,)) for unit in units(manifest, ()) for task in unit.tasks]
    first, second = parts[0], parts[3]
    finished: list[Unit] = []

    def chain() -> Iterator[Unit | None]:
        yield first
        while first not in finished:
            yield None
        yield second

    with PromptProgress.of(manifest, version) as prompts:
        work = ready_work(prompts, chain(), lambda: False)
        next(work)
        prompts.record(0)
        assert names(work, 3) == ["prompts 00001", first.id, None]
        prompts.record(1)
        assert names(work, 2) == ["prompts 00002", None]
        finished.append(first)
        assert names(work, 1) == [second.id]
