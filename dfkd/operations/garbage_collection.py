"""Garbage collection: a plan of what may be removed from a root, which `sweep.py` follows.

The plan keeps the last versions of each method by their numbers in `current`; versions that a lease
or an unfinished regeneration names; unfinished versions that are not abandoned, and the versions
that they carry shards over from; everything younger than the grace; and all shards that any of
these refer to. `kept_versions.py` finds the versions that stay. Only the folders that dfkd makes
are considered (`listing.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dfkd.config.hashing import fingerprint
from dfkd.config.manifest import Manifest
from dfkd.dataset.published import read_json
from dfkd.distillation.student_names import student_names
from dfkd.errors import CorruptionError, ManifestError
from dfkd.operations.attempts import Attempt
from dfkd.operations.kept_versions import KeptVersions
from dfkd.operations.listing import VERSION_NAME, Listing, Objects, age, folder
from dfkd.storage import layout, lease
from dfkd.storage.base import SMALL_OBJECT, Storage, StoredObject


@dataclass(frozen=True)
class Removal:
    """Objects that are removed together."""

    what: str
    why: str
    entries: tuple[StoredObject, ...]
    version: str = ""
    """`{method}/{id}` of the version that the objects are, or belong to."""
    mark: str = ""
    """Key of the object that is written before the removal and announces it."""
    begun: bool = False
    """Whether an earlier removal of this version was killed after its first deletion."""
    of_student: bool = False
    """Whether `mark` is that of a student, which names the student's version."""

    @property
    def bytes(self) -> int:
        """Size of all the objects."""
        return sum(entry.size for entry in self.entries)


@dataclass(frozen=True)
class RemovalPlan:
    """What is kept, with the reason, and what is removed."""

    kept: dict[str, str]
    """The reason by `{method}/{id}`."""
    removals: tuple[Removal, ...]
    """Students come before the versions that they were trained on."""

    def as_dict(self) -> dict[str, Any]:
        """Everything that would be removed, object by object."""
        return {
            "objects": sum(len(removal.entries) for removal in self.removals),
            "bytes": sum(removal.bytes for removal in self.removals),
            "keep": self.kept,
            "remove": [
                {
                    "what": removal.what,
                    "why": removal.why,
                    "bytes": removal.bytes,
                    "objects": {entry.key: entry.size for entry in removal.entries},
                }
                for removal in self.removals
            ],
        }


def plan(root: Storage, manifest: Manifest, keep: int, grace: float) -> RemovalPlan:
    """What may be removed now; changes nothing.

    Args:
        manifest: of the run; its settings tell whose students are unfinished.
        keep: number of versions of each method to keep, by their numbers in `current`.
        grace: seconds for which everything that is written is left alone.

    Raises:
        CorruptionError: an object that says what is to be kept is damaged.
        ManifestError: the root is one of studies.
    """
    listing = Listing.read(root)
    kept = KeptVersions.read(root, listing, keep, grace)
    planner = _Planner(root, manifest, listing, kept, grace)
    versions = list(planner.versions())
    gone = [removal.version for removal in versions]
    removals = [
        *planner.students(gone),
        *planner.regenerations(),
        *planner.labels(gone),
        *versions,
        *planner.marks(),
        planner.leases(),
    ]
    return RemovalPlan(kept.reasons, tuple(removal for removal in removals if removal.entries))


@dataclass(frozen=True)
class _Planner:
    """Finds what may be removed, kind by kind."""

    root: Storage
    manifest: Manifest
    listing: Listing
    kept: KeptVersions
    grace: float

    def versions(self) -> Iterator[Removal]:
        """Versions that are not kept, without the shards that others refer to."""
        for key, objects in self.listing.versions.items():
            begun = key in self.kept.begun
            # The young objects of a removal that has begun are those of a kill.
            if key in self.kept.reasons or (age(objects) < self.grace and not begun):
                continue
            free = (entry for entry in objects.values() if entry.key not in self.kept.shards)
            what, why = f"version {key}", "older than the versions to keep"
            # An earlier sweep left only shards here, which some version referred to at the time.
            if all(name.startswith((layout.SHARDS, layout.REMOVING)) for name in objects):
                what, why = f"shards of removed version {key}", "no version refers to them"
            elif layout.ABANDONED in objects:
                why = "abandoned"
            mark = f"{folder(key)}/{layout.REMOVING}"
            yield Removal(what, why, tuple(free), key, mark, begun)

    def students(self, gone: Sequence[str]) -> Iterator[Removal]:
        """Students of versions that are gone or will go, and the marks of students that are kept.

        Args:
            gone: the versions that will go.
        """
        expected = self._expected_students(gone)
        for name, objects in self.listing.students.items():
            version = self._version_of(name, objects) or expected.get(name, "")
            if not VERSION_NAME.fullmatch(version):  # a damaged card or mark names none
                continue
            if version in self.kept.reasons:
                yield Removal(f"mark of student {name}", "it is kept", _marks(objects))
                continue
            absent = version not in self.listing.versions or version in gone
            # Once the version is gone, nothing says any more that an unfinished student was its
            # own.
            marked = layout.REMOVING in objects
            if absent and (marked or name in expected or age(objects) >= self.grace):
                why, mark = f"of version {version}", f"{layout.student(name)}/{layout.REMOVING}"
                entries = tuple(objects.values())
                yield Removal(f"student {name}", why, entries, version, mark, of_student=True)

    def _version_of(self, name: str, objects: Objects) -> str:
        """The version that a student's card names or, as cards are removed first, its mark; empty
        if there is neither.
        """
        home = layout.student(name)
        if layout.STUDENT_CARD in objects:
            card = read_json(self.root, f"{home}/{layout.STUDENT_CARD}")
            return f"{name.rsplit('-', 2)[0]}/{str(card.get('version'))[:16]}"
        if layout.REMOVING in objects:
            mark = self.root.get(f"{home}/{layout.REMOVING}", SMALL_OBJECT)
            return mark.decode(errors="replace")
        return ""

    def _expected_students(self, gone: Sequence[str]) -> dict[str, str]:
        """The version of each student that the manifest's settings train on versions that go."""
        found: dict[str, str] = {}
        for key in gone:
            method = key.partition("/")[0]
            try:
                identity = read_json(self.root, f"{folder(key)}/{layout.IDENTITY}")
                names = student_names(self.manifest, fingerprint(identity), method)
                found |= dict.fromkeys(names, key)
            except (CorruptionError, ManifestError):
                continue  # without its identity or the initial weights nothing is attributed to it
        return found

    def regenerations(self) -> Iterator[Removal]:
        """Results and pages about candidates that are gone; claims and decisions stay."""
        for number, objects in self.listing.regenerations.items():
            attempt = Attempt(self.root, int(number))
            if not attempt.claimed:
                continue  # this folder is not dfkd's
            version = f"{attempt.method}/{attempt.challenger}"
            unused = attempt.finished and version not in self.kept.reasons
            if unused and age(objects) >= self.grace:
                what = f"pages of regeneration {attempt.number}"
                yield Removal(what, f"of version {version}", tuple(objects.values()), version)

    def labels(self, gone: Sequence[str]) -> Iterator[Removal]:
        """What is stored of the labels of versions that are gone or will go."""
        left = {version.partition("/")[2] for version in self.listing.versions.keys() - {*gone}}
        for version, objects in self.listing.labels.items():
            if version not in left and age(objects) >= self.grace:
                what, why = f"labels of version {version}", "the version is gone"
                yield Removal(what, why, tuple(objects.values()))

    def marks(self) -> Iterator[Removal]:
        """The marks of removal of versions that are kept."""
        for key in self.kept.reasons:
            marks = _marks(self.listing.versions.get(key, {}))
            yield Removal(f"mark of version {key}", "it is kept", marks)

    def leases(self) -> Removal:
        """Leases that have ended."""
        held = lease.held_leases(self.root)
        # The highest number of each name stays, since the next lease counts on from it.
        names = self.root.folders(layout.LEASES)
        needed = {*held, *(lease.newest_lease(self.root, name)[0] for name in names)}
        ended = (e for e in self.listing.leases if e.key not in needed and e.age >= self.grace)
        return Removal("leases", "ended", tuple(ended))


def _marks(objects: Objects) -> tuple[StoredObject, ...]:
    """The mark of removal among the objects, if there is one."""
    return (objects[layout.REMOVING],) if layout.REMOVING in objects else ()
