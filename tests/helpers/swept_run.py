"""A small run without models whose objects grow old and are swept."""

import os
from collections.abc import Callable
from pathlib import Path

from dfkd.config.manifest import Manifest
from dfkd.dataset.published import PublishedVersion
from dfkd.operations import garbage_collection, sweep
from dfkd.operations.attempts import Attempt
from dfkd.operations.garbage_collection import RemovalPlan
from dfkd.storage.base import Storage
from dfkd.storage.local import open_storage
from dfkd.utils.strict_json import canonical
from tests.helpers.jobs import contents
from tests.helpers.partial_version import TASKS, fill, home, regenerated
from tests.helpers.tiny_version import write_manifest

GRACE = 1000.0
CLAIM = "regenerations/00000001/claim.json"


def held() -> None:
    """The lease is held all the time."""


def age(root: Path, seconds: float = 2 * GRACE) -> None:
    """Make everything in a root so much older, as its file system says."""
    for file in (path for path in root.rglob("*") if path.is_file()):
        then = file.stat().st_mtime - seconds
        os.utime(file, (then, then))


class Run:
    """A run without models."""

    def __init__(self, folder: Path) -> None:
        self.manifest = Manifest.read(write_manifest(folder))
        self.root = Path(self.manifest.storage.root)
        self.storage = open_storage(str(self.root))
        self.home = home(self.root)

    def chain(self, length: int) -> list[PublishedVersion]:
        """Versions that each make the next task anew and carry the others over."""
        versions = [fill(self.root)]
        for salt in range(1, length):
            fresh = [TASKS[salt % len(TASKS)]]
            versions.append(regenerated(self.root, versions[-1], salt, fresh))
        return versions

    def old_chain(self) -> list[PublishedVersion]:
        """Three of them, beyond the grace period."""
        versions = self.chain(3)
        age(self.root)
        return versions

    def plan(self, keep: int = 1) -> RemovalPlan:
        return garbage_collection.plan(self.storage, self.manifest, keep, GRACE)

    def remove(
        self,
        planned: RemovalPlan,
        keep: int = 1,
        fence: Callable[[], object] = held,
        storage: Storage | None = None,
    ) -> tuple[int, int]:
        """Carry a plan out; the number of objects and of bytes."""
        root = storage or self.storage
        return sweep.remove(root, self.manifest, planned, keep, GRACE, fence)

    def sweep(self, keep: int = 1) -> RemovalPlan:
        """Plan and remove; what went is exactly what was planned."""
        before = contents(self.root)
        planned = self.plan(keep)
        assert contents(self.root) == before
        removed = self.remove(planned, keep)
        wanted = {entry.key for removal in planned.removals for entry in removal.entries}
        assert before.keys() - contents(self.root).keys() == wanted
        assert removed == (len(wanted), sum(len(before[key]) for key in wanted))
        assert removed == (planned.as_dict()["objects"], planned.as_dict()["bytes"])
        return planned

    def removed(self) -> set[str]:
        """What a sweep that keeps the current version alone removes."""
        return {removal.what for removal in self.sweep().removals}

    def put_student(self, version: PublishedVersion, name: str, card: bool = True) -> None:
        folder = self.storage.child(f"students/{name}")
        folder.put("checkpoints/0000000003.safetensors", b"weights")
        if card:
            folder.put("student.json", b'{"version": "%s"}' % version.fingerprint.encode())

    def claim(self, candidate: PublishedVersion) -> Attempt:
        """The first attempt of a regeneration, which is of this candidate."""
        claim = {"identity": candidate.facts["identity"]}
        self.storage.put(CLAIM, canonical(claim))
        return Attempt(self.storage, 1)
