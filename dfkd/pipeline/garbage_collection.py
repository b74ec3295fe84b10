"""Garbage collection: plan which objects of a root can be removed, then remove them.

Kept are: the last versions by their numbers in `current`; versions that a lease or an unfinished
regeneration names; unfinished versions that are not abandoned, with their bases; everything younger
than the grace period; and the shards that any of these versions has carried over. Only keys of
dfkd's own layout are considered.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dfkd.config import fingerprint as fingerprints
from dfkd.config.manifest import Manifest
from dfkd.dataset.published import POINTER, REMOVING, PublishedVersion, read_json
from dfkd.dataset.versions import open_version
from dfkd.distillation.student_store import student_name
from dfkd.errors import CorruptionError, ManifestError
from dfkd.pipeline.attempts import Attempt, unfinished
from dfkd.storage import layout, lease
from dfkd.storage.base import StoredObject
from dfkd.storage.local import MissingObject, Storage

METHOD = r"(?P<method>[a-z]+(?:-bn)?)"
VERSION = re.compile(
    rf"data/{METHOD}/versions/(?P<id>[0-9a-f]{{16}})/(?P<name>(?:identity|manifest|prompts)"
    r"\.json|index\.parquet|README\.md|abandoned|removing|prompts/[0-9]{5}\.parquet"
    r"|state/[0-9]{10}\.safetensors"
    r"|receipts/[0-9]{4}-[0-9]{5}\.json|shards/[0-9]{4}-[0-9]{5}\.tar)"
)
CURRENT = re.compile(rf"data/{METHOD}/(?P<name>{POINTER.pattern})")
STUDENT = re.compile(
    rf"students/(?P<id>{METHOD}-s(?P<seed>[0-9]+)-[0-9a-f]{{12}})/(?P<name>student\.json"
    r"|student\.safetensors|removing|checkpoints/[0-9]{10}\.safetensors|tensorboard/[^/]+)"
)
REGENERATION = re.compile(
    r"regenerations/(?P<id>[0-9]{8})/(?P<name>(?:current/|candidate/)?"
    r"(?:results\.json|results\.parquet|report\.json|comparison\.html|contact-sheet\.png))"
)

FIRST = {"manifest.json": 0, "student.json": 0}
LAST = {"abandoned": 2, "identity.json": 3, REMOVING: 4}
"""Order of removal within a folder: manifests and cards first, because readers no longer see a
version without its manifest or a student without its card; the marks last, so that a killed removal
can be resumed.
"""


@dataclass(frozen=True)
class Removal:
    """Objects that are removed together."""

    what: str
    why: str
    entries: tuple[StoredObject, ...]
    """The objects in the order of their removal."""
    version: str = ""
    """`{method}/{id}` of the version that the objects form or depend on."""
    mark: str = ""
    """Key of the object that marks the folder as being removed."""

    @property
    def bytes(self) -> int:
        """Total size in bytes."""
        return sum(entry.size for entry in self.entries)


@dataclass(frozen=True)
class RemovalPlan:
    """Which versions are kept, with the reason, and which objects are removed."""

    kept: dict[str, str]
    """Reason by `{method}/{id}`."""
    removals: tuple[Removal, ...]
    """Removals in order; students come before the versions that they learned from."""

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain values, with every object that would be removed."""
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


Groups = dict[str, list[tuple[str, StoredObject]]]
"""Objects by version, student or regeneration: (name within the folder, entry)."""


@dataclass
class _Listing:
    """The objects of a root, grouped by what they belong to; unknown keys are ignored."""

    versions: Groups = field(default_factory=lambda: defaultdict(list))
    students: Groups = field(default_factory=lambda: defaultdict(list))
    regenerations: Groups = field(default_factory=lambda: defaultdict(list))
    pointers: Groups = field(default_factory=lambda: defaultdict(list))
    leases: list[StoredObject] = field(default_factory=list)

    @classmethod
    def of(cls, root: Storage) -> "_Listing":
        listing = cls()
        for entry in root.entries():
            if match := VERSION.fullmatch(entry.key):
                key = f"{match['method']}/{match['id']}"
                listing.versions[key].append((match["name"], entry))
            elif match := STUDENT.fullmatch(entry.key):
                listing.students[match["id"]].append((match["name"], entry))
            elif match := REGENERATION.fullmatch(entry.key):
                listing.regenerations[match["id"]].append((match["name"], entry))
            elif match := CURRENT.fullmatch(entry.key):
                listing.pointers[match["method"]].append((match["name"], entry))
            elif entry.key.startswith(layout.LEASES):
                listing.leases.append(entry)
            elif entry.key.startswith(layout.CELLS):
                raise ManifestError(
                    "storage.root",
                    "must not hold studies, whose cells need every version under it",
                    root.location(),
                    "remove it as a whole once they are done",
                )
        return listing


def referenced_versions(root: Storage, keep: int) -> dict[str, str]:
    """Versions that something refers to, by `{method}/{id}`, with what refers to them."""
    reasons: dict[str, str] = {}
    if attempt := unfinished(root):
        reason = f"regeneration {attempt.number} is unfinished"
        ids = [attempt.candidate, *([attempt.base[:16]] if attempt.base else [])]
        reasons |= {f"{attempt.method}/{name}": reason for name in ids}
    for key, record in lease.held_leases(root).items():
        reasons |= dict.fromkeys(record.versions, f"held by {record.holder} ({key})")
    for method in root.folders(layout.DATA):
        for number, version in _numbered(root.child(layout.data(method)), keep).items():
            reasons.setdefault(f"{method}/{version}", f"current {number}")
    return reasons


def _numbered(home: Storage, keep: int) -> dict[int, str]:
    """The last `keep` different versions by their highest numbers, the current one first."""
    by_number: dict[int, str] = {}
    for key in reversed([key for key in home.list("current/") if POINTER.fullmatch(key)]):
        pointer = read_json(home, key)
        if pointer["version"] not in by_number.values():
            by_number[int(pointer["number"])] = str(pointer["version"])
        if len(by_number) == keep:
            break
    return by_number


def plan(root: Storage, manifest: Manifest, keep: int, grace: float) -> RemovalPlan:
    """Plan what can be removed now; changes nothing.

    Args:
        manifest: of the run; its settings identify unfinished students.
        keep: number of versions to keep of each method, by their numbers in `current`.
        grace: seconds, by the store's clock, for which new objects are left alone.

    Raises:
        CorruptionError: an object that determines what is kept is damaged.
        ManifestError: the root belongs to studies.
    """
    # List the objects before reading the references. A version that is published in between is then
    # either not in the list or among the references, and is not removed.
    listing = _Listing.of(root)
    kept = referenced_versions(root, keep)
    _keep_unfinished(root, listing, kept, grace)
    referenced = {key for name in kept for key in _references(root, name)}
    versions = list(_versions(root, listing, kept, referenced, grace))
    # Students and orphans depend on which versions go, but are removed before them.
    gone = [removal.version for removal in versions]
    removals = [
        *_students(root, listing, manifest, kept, gone, grace),
        *_regenerations(root, listing, kept, grace),
        *versions,
        *_orphans(root, listing, kept, referenced, grace),
        *_rest(root, listing, keep, grace),
    ]
    return RemovalPlan(kept, tuple(removal for removal in removals if removal.entries))


def _keep_unfinished(root: Storage, listing: _Listing, kept: dict[str, str], grace: float) -> None:
    """Add unfinished versions, the bases they carry over from, and everything young to `kept`."""
    for key, objects in listing.versions.items():
        names = {name for name, _ in objects}
        # A version that is marked for removal stays marked; only a reference keeps it.
        if REMOVING in names:
            continue
        if "identity.json" in names and not names & {"manifest.json", "abandoned"}:
            kept.setdefault(key, "unfinished")
        elif "identity.json" in names and _age(objects) < grace:
            kept.setdefault(key, f"younger than {grace:g} s")
    # The base of an unfinished version holds shards that its manifest will refer to.
    for key in [key for key in kept if key in listing.versions]:
        method, _, name = key.partition("/")
        if "manifest.json" not in {name for name, _ in listing.versions[key]}:
            identity = read_json(
                root, f"{layout.data(method)}/{layout.version(name)}/identity.json"
            )
            if base := str(identity.get("carried.from", "")):
                kept.setdefault(f"{method}/{base[:16]}", f"{key} carries over from it")


def _open(root: Storage, key: str) -> PublishedVersion | None:
    method, _, name = key.partition("/")
    try:
        return open_version(root.child(layout.data(method)), name)
    except MissingObject:
        return None


def _references(root: Storage, key: str) -> Iterator[str]:
    """Keys of the shards that a version refers to, also those in folders of other versions."""
    version = _open(root, key)
    for receipt in version.shards if version else ():
        yield f"data/{key.partition('/')[0]}/{receipt.key}"


def _age(objects: Iterable[tuple[str, StoredObject]]) -> float:
    """Age in seconds of the youngest object, marks of removal excepted."""
    return min((entry.age for name, entry in objects if name != REMOVING), default=0.0)


def _ordered(objects: Iterable[tuple[str, StoredObject]]) -> tuple[StoredObject, ...]:
    return tuple(
        entry
        for _, entry in sorted(
            objects, key=lambda each: (FIRST.get(each[0], LAST.get(each[0], 1)), each[0])
        )
    )


def _versions(
    root: Storage, listing: _Listing, kept: dict[str, str], referenced: set[str], grace: float
) -> Iterator[Removal]:
    for key, objects in listing.versions.items():
        names = {name for name, _ in objects}
        if key in kept or (_age(objects) < grace and REMOVING not in names):
            continue
        # Shards that a kept version has carried over from this one stay where they are.
        free = [(name, entry) for name, entry in objects if entry.key not in referenced]
        what, why = f"version {key}", "older than the versions to keep"
        if names <= {REMOVING, *(name for name in names if name.startswith(layout.SHARDS))}:
            what, why = f"shards of removed version {key}", "no version refers to them"
        elif "abandoned" in names:
            why = "abandoned"
        method, _, name = key.partition("/")
        mark = f"{layout.data(method)}/{layout.version(name)}/{REMOVING}"
        yield Removal(what, why, _ordered(free), key, mark)


def _students(
    root: Storage,
    listing: _Listing,
    manifest: Manifest,
    kept: dict[str, str],
    gone: Sequence[str],
    grace: float,
) -> Iterator[Removal]:
    """Students whose version is gone or is removed. An unfinished student has no card, so its
    version is found from the manifest's settings.
    """
    expected = _expected(root, manifest, gone)
    for name, objects in listing.students.items():
        names = {part for part, _ in objects}
        marked = REMOVING in names
        if marked:
            version = root.get(f"{layout.student(name)}/{REMOVING}").decode()
        elif "student.json" in names:
            card = read_json(root, f"{layout.student(name)}/student.json")
            version = f"{name.rsplit('-', 2)[0]}/{str(card.get('version'))[:16]}"
        else:
            version = expected.get(name, "")
        # The version came into use again after the mark was written: take the mark back.
        if marked and version in kept:
            marks = [each for each in objects if each[0] == REMOVING]
            yield Removal(f"mark of student {name}", "it is kept", _ordered(marks))
        present = version in listing.versions and version not in gone
        if version and not present and version not in kept and (marked or _age(objects) >= grace):
            mark = f"{layout.student(name)}/{REMOVING}"
            why = f"of version {version}"
            yield Removal(f"student {name}", why, _ordered(objects), version, mark)


def _expected(root: Storage, manifest: Manifest, gone: Sequence[str]) -> dict[str, str]:
    """The version of each student name that the manifest's settings give for removed versions."""
    version_of = {}
    for key in gone:
        method, _, name = key.partition("/")
        try:
            identity = read_json(
                root, f"{layout.data(method)}/{layout.version(name)}/identity.json"
            )
            version_fingerprint = fingerprints.fingerprint(identity)
            for seed in manifest.distillation.seeds:
                student = student_name(manifest, version_fingerprint, method, seed)  # type: ignore[arg-type]
                version_of[student] = key
        except (CorruptionError, ManifestError):
            continue  # no identity or no initial weights: the student's name cannot be computed
    return version_of


def _regenerations(
    root: Storage, listing: _Listing, kept: dict[str, str], grace: float
) -> Iterator[Removal]:
    """Results and pages about candidates that are gone; claims and decisions stay."""
    for number, objects in listing.regenerations.items():
        attempt = Attempt(root, int(number))
        version = f"{attempt.method}/{attempt.candidate}"
        if attempt.finished and version not in kept and _age(objects) >= grace:
            what = f"pages of regeneration {attempt.number}"
            yield Removal(what, f"of version {version}", _ordered(objects), version)


def _orphans(
    root: Storage, listing: _Listing, kept: dict[str, str], referenced: set[str], grace: float
) -> Iterator[Removal]:
    """Objects of tasks that were not published, in kept versions."""
    for key in kept:
        # A kept version may carry a mark from a removal that was called off.
        marks = [each for each in listing.versions.get(key, []) if each[0] == REMOVING]
        yield Removal(f"mark of version {key}", "it is kept", _ordered(marks))
        version = _open(root, key)
        if version is None:
            continue
        known = {layout.receipt(receipt.task) for receipt in version.shards}
        free = [
            (name, entry)
            for name, entry in listing.versions.get(key, [])
            if name.startswith((layout.RECEIPTS, layout.SHARDS))
            and name not in known
            and entry.key not in referenced
            and entry.age >= grace
        ]
        yield Removal(f"orphans in version {key}", "published without them", _ordered(free))


def _rest(root: Storage, listing: _Listing, keep: int, grace: float) -> Iterator[Removal]:
    """Old pointers, and leases that have ended."""
    for method, pointers in listing.pointers.items():
        lowest = min(_numbered(root.child(layout.data(method)), keep), default=0)
        old = [
            (name, entry)
            for name, entry in pointers
            if int(name[-13:-5]) < lowest and entry.age >= grace
        ]
        yield Removal(f"numbers of {method}", "of versions that are not kept", _ordered(old))
    held = lease.held_leases(root)
    last = {lease.newest_lease(root, name)[0] for name in root.folders(layout.LEASES)}
    ended = [e for e in listing.leases if e.key not in held and e.key not in last]
    yield Removal("leases", "ended", tuple(e for e in ended if e.age >= grace))


def remove(
    root: Storage, manifest: Manifest, planned: RemovalPlan, keep: int, grace: float
) -> tuple[int, int]:
    """Delete the planned objects except those that have come into use since.

    All versions and students are marked first and the plan is made again. So a reader that starts
    meanwhile either sees the mark and refuses (`refuse_removal`), or its lease is seen here.
    Manifests and cards are deleted before any shard, so readers never see half a version. If it is
    killed, the next call resumes.

    Returns:
        Number of deleted objects and their total bytes.
    """
    for removal in planned.removals:
        if removal.mark:
            root.put(removal.mark, removal.version.encode())
    marks = {removal.mark for removal in planned.removals}
    planned_entries = {
        entry.key: entry for removal in planned.removals for entry in removal.entries
    }
    removable = [
        entry
        for removal in plan(root, manifest, keep, grace).removals
        for entry in removal.entries
        if entry.key in planned_entries or entry.key in marks
    ]
    # Manifests and cards sort first.
    for entry in sorted(removable, key=lambda entry: entry.key.rpartition("/")[2] not in FIRST):
        root.delete(entry.key)
    root.abort_uploads(grace)
    deleted = [planned_entries[entry.key] for entry in removable if entry.key in planned_entries]
    return len(deleted), sum(entry.size for entry in deleted)
