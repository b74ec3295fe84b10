"""Garbage collection: a plan of what may be removed from a root, and the sweep that follows it.

The plan keeps the last versions of each method by their numbers in `current`; versions that a lease
or an unfinished regeneration names; unfinished versions that are not abandoned, and the versions
that they carry shards over from; everything younger than the grace; and all shards that any of
these refer to. It considers only the folders that dfkd makes (`listing.py`).
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfkd.config.hashing import fingerprint
from dfkd.config.manifest import Manifest
from dfkd.dataset.published import open_version, pointers, read_json
from dfkd.distillation.student_names import student_name
from dfkd.errors import CorruptionError, ManifestError
from dfkd.pipeline.attempts import Attempt, unfinished
from dfkd.pipeline.listing import VERSION_NAME, Listing, Objects
from dfkd.storage import layout, lease
from dfkd.storage.base import SMALL_OBJECT, MissingObject, Storage, StoredObject, in_order

ORDER = {
    layout.MANIFEST: 0,
    layout.STUDENT_CARD: 0,
    layout.ABANDONED: 2,
    layout.IDENTITY: 3,
    layout.REMOVING: 4,
}
"""The order of removal; other objects have 1. What readers start from goes first, and the mark of
the removal goes last."""
BEGUN = b"begun"
"""The content of a version's mark once its objects are being deleted: the removal must go on after
a kill. Until then the mark only announces it, and is withdrawn if the version is in use."""
FENCE_SECONDS = 5.0
"""Seconds of deletions after which a removal checks again that it holds its lease."""


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
    # The listing comes before the references: a version that is begun or named after it is either
    # not in the listing or among the references.
    listing = Listing.read(root)
    kept = _in_use(root)
    # After the leases, because a version may be published and its lease end between the two.
    current = _named_by_pointers(root, keep)
    kept = {name: f"current {number}" for name, number in current.items()} | kept
    begun = _begun_removals(root, listing)
    _keep_unfinished(root, listing, kept, begun, grace)
    # A removal that was killed goes on, whatever is to be kept now. A job that leases the version
    # came later than its mark, and refuses to work on it.
    kept = {key: why for key, why in kept.items() if key not in begun}
    _require_manifests(root, listing, [key for key in current if key in kept])
    referenced = {key for name in kept for key in _shard_keys(root, name)}
    versions = list(_versions(listing, kept, referenced, begun, grace))
    gone = [removal.version for removal in versions]
    removals = [
        *_students(root, listing, manifest, kept, gone, grace),
        *_regenerations(root, listing, kept, grace),
        *versions,
        *_kept_marks(listing, kept),
        *_leases(root, listing, grace),
    ]
    return RemovalPlan(kept, tuple(removal for removal in removals if removal.entries))


def remove(
    root: Storage,
    manifest: Manifest,
    planned: RemovalPlan,
    keep: int,
    grace: float,
    fence: Callable[[], object],
) -> tuple[int, int]:
    """Remove the planned objects except those that have come into use since.

    If this process is killed on the way, the next call finds the marks and goes on.

    Args:
        fence: raises an error if another process may have taken over, see `Lease.fence`.

    Returns:
        The number of removed objects, and their bytes, without marks that this call wrote.
    """
    # A reader takes a lease and then looks for the mark (`refuse_removal`); here the marks are
    # written first, and then the leases are read again. So at least one of the two sees the other.
    marks = _announce(root, planned.removals)
    listed = {entry.key for removal in planned.removals for entry in removal.entries}
    second = plan(root, manifest, keep, grace).removals
    fence()
    for removal in second:
        if removal.mark in marks and not removal.of_student:
            root.put(removal.mark, BEGUN)
    # Of the second plan what was announced, with all that it holds now, and what was listed; and
    # the announcements of what is kept after all.
    known = marks | listed
    due = [
        entry
        for removal in second
        for entry in removal.entries
        if removal.mark in marks or entry.key in known
    ]
    _delete(root, due, fence)
    counted = [entry for entry in due if entry.key in listed or entry.key not in marks]
    return len(counted), sum(entry.size for entry in counted)


def _announce(root: Storage, removals: Sequence[Removal]) -> set[str]:
    """Write the marks of removals that have not begun; returns the keys of all marks."""
    for removal in removals:
        if removal.mark and not removal.begun:
            root.put(removal.mark, removal.version.encode())
    return {removal.mark for removal in removals if removal.mark}


def _delete(root: Storage, entries: Sequence[StoredObject], fence: Callable[[], object]) -> None:
    """Delete objects, and call `fence` before the first of them and every few seconds."""

    def rank(entry: StoredObject) -> int:
        return ORDER.get(entry.key.rpartition("/")[2], 1)

    # All manifests and cards go before the first shard, so no reader finds a version in pieces, and
    # all marks go last. Objects of one rank go several at a time.
    for _, group in itertools.groupby(sorted(entries, key=rank), rank):
        fence()
        checked = time.time()
        for _ in in_order(root.delete, (entry.key for entry in group)):
            # While this process was suspended, another one may have finished the removal, and a
            # version of the same name may have begun. The wall clock goes on meanwhile.
            if time.time() - checked >= FENCE_SECONDS:
                fence()
                checked = time.time()


def _folder(key: str) -> str:
    """The folder of the version `{method}/{id}`, relative to the root."""
    method, _, name = key.partition("/")
    return f"{layout.data(method)}/{layout.version(name)}"


def _in_use(root: Storage) -> dict[str, str]:
    """The versions that a job works with, by `{method}/{id}`, with what names them."""
    found: dict[str, str] = {}
    if attempt := unfinished(root):
        why = f"regeneration {attempt.number} is unfinished"
        names = [attempt.candidate, *([attempt.base[:16]] if attempt.base else [])]
        found |= {f"{attempt.method}/{name}": why for name in names}
    for key, record in lease.held_leases(root).items():
        found |= dict.fromkeys(record.versions, f"held by {record.holder} ({key})")
    return found


def _named_by_pointers(root: Storage, keep: int) -> dict[str, int]:
    """The last `keep` different versions of each method, `{method}/{id}`, by their numbers in
    `current`.
    """
    found: dict[str, int] = {}
    for method in root.folders(layout.DATA):
        names: dict[str, int] = {}
        for pointer in pointers(root.child(layout.data(method))):
            # A roll-back gives a version a second, higher number, which comes first here.
            names.setdefault(f"{method}/{pointer.version}", pointer.number)
            if len(names) == keep:
                break
        found |= names
    return found


def _keep_unfinished(
    root: Storage, listing: Listing, kept: dict[str, str], begun: set[str], grace: float
) -> None:
    """Add to `kept` the unfinished versions, the bases of unpublished ones, and young versions."""
    for key, objects in listing.versions.items():
        if key in begun or layout.IDENTITY not in objects:
            continue
        if layout.MANIFEST not in objects and layout.ABANDONED not in objects:
            kept.setdefault(key, "unfinished")
        elif _age(objects) < grace:
            kept.setdefault(key, f"younger than {grace:g} s")
    # An unpublished version has no receipts yet for all the shards that it carries over.
    for key in [key for key in kept if key in listing.versions]:
        objects = listing.versions[key]
        # Of a removed one there may be shards that others carry.
        if layout.MANIFEST not in objects and layout.IDENTITY in objects:
            identity = read_json(root, f"{_folder(key)}/{layout.IDENTITY}")
            if base := str(identity.get("carried.from", "")):
                method = key.partition("/")[0]
                kept.setdefault(f"{method}/{base[:16]}", f"{key} carries over from it")


def _mark(key: str) -> str:
    """The key of the mark of removal of the version `{method}/{id}`."""
    return f"{_folder(key)}/{layout.REMOVING}"


def _begun_removals(root: Storage, listing: Listing) -> set[str]:
    """The versions of which objects may have been deleted already, as their marks say."""
    begun = set()
    for key, objects in listing.versions.items():
        with contextlib.suppress(MissingObject):  # a sweep has ended since the listing
            if layout.REMOVING in objects and root.get(_mark(key), SMALL_OBJECT) == BEGUN:
                begun.add(key)
    return begun


def _require_manifests(root: Storage, listing: Listing, published: Sequence[str]) -> None:
    """Raise `CorruptionError` if one of these versions, which are or were current, has lost its
    manifest.

    Without it nobody knows which shards in other folders it refers to.
    """
    for key in published:
        objects = listing.versions.get(key, {})
        if layout.IDENTITY in objects and layout.MANIFEST not in objects:
            root.size(f"{_folder(key)}/{layout.MANIFEST}")  # raises `MissingObject`


def _shard_keys(root: Storage, key: str) -> list[str]:
    """Keys of the shards of a published version, which may lie in the folders of other versions;
    none if it is not published.
    """
    method, _, name = key.partition("/")
    folder = layout.data(method)
    try:
        version = open_version(root.child(folder), name)
    except MissingObject:
        return []
    return [f"{folder}/{receipt.key}" for receipt in version.shards]


def _age(objects: Objects) -> float:
    """Age of the youngest object in seconds; a mark of removal does not count."""
    ages = (entry.age for name, entry in objects.items() if name != layout.REMOVING)
    return min(ages, default=0.0)


def _marks(objects: Objects) -> tuple[StoredObject, ...]:
    """The mark of removal among the objects, if there is one."""
    return (objects[layout.REMOVING],) if layout.REMOVING in objects else ()


def _versions(
    listing: Listing, kept: dict[str, str], referenced: set[str], begun: set[str], grace: float
) -> Iterator[Removal]:
    """Versions that are not kept, without the shards that others refer to."""
    for key, objects in listing.versions.items():
        # The young objects of a removal that has begun are those of a kill.
        if key in kept or (_age(objects) < grace and key not in begun):
            continue
        free = (entry for entry in objects.values() if entry.key not in referenced)
        what, why = f"version {key}", "older than the versions to keep"
        # An earlier sweep left only shards here, which some version referred to at the time.
        if all(name.startswith((layout.SHARDS, layout.REMOVING)) for name in objects):
            what, why = f"shards of removed version {key}", "no version refers to them"
        elif layout.ABANDONED in objects:
            why = "abandoned"
        yield Removal(what, why, tuple(free), key, _mark(key), key in begun)


def _students(
    root: Storage,
    listing: Listing,
    manifest: Manifest,
    kept: dict[str, str],
    gone: Sequence[str],
    grace: float,
) -> Iterator[Removal]:
    """Students of versions that are gone or will go, and the marks of students that are kept."""
    expected = _expected_students(root, manifest, gone)
    for name, objects in listing.students.items():
        marked, mark = layout.REMOVING in objects, f"{layout.student(name)}/{layout.REMOVING}"
        # The version of a student is named by its card, which goes first, by its mark, or by the
        # settings.
        if layout.STUDENT_CARD in objects:
            card = read_json(root, f"{layout.student(name)}/{layout.STUDENT_CARD}")
            version = f"{name.rsplit('-', 2)[0]}/{str(card.get('version'))[:16]}"
        elif marked:
            version = root.get(mark, SMALL_OBJECT).decode(errors="replace")
        else:
            version = expected.get(name, "")
        if not VERSION_NAME.fullmatch(version):  # a damaged card or mark names none
            continue
        if version in kept:
            if marked:
                yield Removal(f"mark of student {name}", "it is kept", _marks(objects))
            continue
        absent = version not in listing.versions or version in gone
        # Once the version is gone, nothing says any more that an unfinished student was its own.
        due = marked or name in expected or _age(objects) >= grace
        if absent and due:
            why = f"of version {version}"
            entries = tuple(objects.values())
            yield Removal(f"student {name}", why, entries, version, mark, of_student=True)


def _expected_students(root: Storage, manifest: Manifest, gone: Sequence[str]) -> dict[str, str]:
    """The version of each student that the manifest's settings train on versions that go."""
    found = {}
    for key in gone:
        method = key.partition("/")[0]
        try:
            identity = read_json(root, f"{_folder(key)}/{layout.IDENTITY}")
            for seed in manifest.distillation.seeds:
                name = student_name(manifest, fingerprint(identity), method, seed)  # type: ignore[arg-type]
                found[name] = key
        except (CorruptionError, ManifestError):
            continue  # without its identity or the initial weights nothing is attributed to it
    return found


def _regenerations(
    root: Storage, listing: Listing, kept: dict[str, str], grace: float
) -> Iterator[Removal]:
    """Results and pages about candidates that are gone; claims and decisions stay."""
    for number, objects in listing.regenerations.items():
        attempt = Attempt(root, int(number))
        version = f"{attempt.method}/{attempt.candidate}"
        if attempt.finished and version not in kept and _age(objects) >= grace:
            what = f"pages of regeneration {attempt.number}"
            yield Removal(what, f"of version {version}", tuple(objects.values()), version)


def _kept_marks(listing: Listing, kept: Mapping[str, str]) -> Iterator[Removal]:
    """The marks of removal of versions that are kept."""
    for key in kept:
        marks = _marks(listing.versions.get(key, {}))
        yield Removal(f"mark of version {key}", "it is kept", marks)


def _leases(root: Storage, listing: Listing, grace: float) -> Iterator[Removal]:
    """Leases that have ended."""
    held = lease.held_leases(root)
    # The highest number of each name stays, since the next lease counts on from it.
    last = {lease.newest_lease(root, name)[0] for name in root.folders(layout.LEASES)}
    ended = [e for e in listing.leases if e.key not in held and e.key not in last]
    yield Removal("leases", "ended", tuple(e for e in ended if e.age >= grace))
