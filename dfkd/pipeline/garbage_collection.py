"""What of a root may be removed, and its removal: a plan that can be read first, then the sweep.

Kept are the last versions by their numbers in `current`, versions that a lease or an unfinished
regeneration names, unfinished versions that are not abandoned with their bases, whatever is younger
than the grace, and the shards that any of these has carried over. Only keys of dfkd's own layout
are ever looked at.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dfkd.config import fingerprint as fingerprints
from dfkd.config.manifest import Manifest
from dfkd.dataset.published import POINTER_PATTERN, REMOVAL_MARK, PublishedVersion, read_json
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
CURRENT = re.compile(rf"data/{METHOD}/(?P<name>{POINTER_PATTERN.pattern})")
STUDENT = re.compile(
    rf"students/(?P<id>{METHOD}-s(?P<seed>[0-9]+)-[0-9a-f]{{12}})/(?P<name>student\.json"
    r"|student\.safetensors|removing|checkpoints/[0-9]{10}\.safetensors|tensorboard/[^/]+)"
)
REGENERATION = re.compile(
    r"regenerations/(?P<id>[0-9]{8})/(?P<name>(?:current/|candidate/)?"
    r"(?:results\.json|results\.parquet|report\.json|comparison\.html|contact-sheet\.png))"
)

FIRST = {"manifest.json": 0, "student.json": 0}
LAST = {"abandoned": 2, "identity.json": 3, REMOVAL_MARK: 4}
"""Without a manifest a version, and without its card a student, is no longer there for readers."""


@dataclass(frozen=True)
class Removal:
    """Objects that go together."""

    what: str
    why: str
    entries: tuple[StoredObject, ...]
    """In the order of their removal."""
    version: str = ""
    """`{method}/{id}` of the version that they are, or belong to."""
    mark: str = ""
    """The object that says while they are being removed that they are."""

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return sum(entry.size for entry in self.entries)


@dataclass(frozen=True)
class RemovalPlan:
    """What is kept, with the reason, and what is not."""

    kept: dict[str, str]
    """By `{method}/{id}`."""
    removals: tuple[Removal, ...]
    """Students before the versions that they learned from."""

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


Groups = dict[str, list[tuple[str, StoredObject]]]
"""Name within the folder and entry of each object, by version, student or regeneration."""


@dataclass
class _Listing:
    """The objects of a root by what they belong to; nothing else is looked at."""

    versions: Groups = field(default_factory=lambda: defaultdict(list))
    students: Groups = field(default_factory=lambda: defaultdict(list))
    regenerations: Groups = field(default_factory=lambda: defaultdict(list))
    pointers: Groups = field(default_factory=lambda: defaultdict(list))
    leases: list[StoredObject] = field(default_factory=list)

    @classmethod
    def of(cls, root: Storage) -> "_Listing":
        found = cls()
        for entry in root.entries():
            if match := VERSION.fullmatch(entry.key):
                key = f"{match['method']}/{match['id']}"
                found.versions[key].append((match["name"], entry))
            elif match := STUDENT.fullmatch(entry.key):
                found.students[match["id"]].append((match["name"], entry))
            elif match := REGENERATION.fullmatch(entry.key):
                found.regenerations[match["id"]].append((match["name"], entry))
            elif match := CURRENT.fullmatch(entry.key):
                found.pointers[match["method"]].append((match["name"], entry))
            elif entry.key.startswith(layout.LEASES):
                found.leases.append(entry)
            elif entry.key.startswith(layout.CELLS):
                raise ManifestError(
                    "storage.root",
                    "must not hold studies, whose cells need every version under it",
                    root.location(),
                    "remove it as a whole once they are done",
                )
        return found


def referenced_versions(root: Storage, keep: int) -> dict[str, str]:
    """Versions that something names, by `{method}/{id}`, with what does."""
    found: dict[str, str] = {}
    if attempt := unfinished(root):
        why = f"regeneration {attempt.number} is unfinished"
        names = [attempt.candidate, *([attempt.base[:16]] if attempt.base else [])]
        found |= {f"{attempt.method}/{name}": why for name in names}
    for key, record in lease.held_leases(root).items():
        found |= dict.fromkeys(record.versions, f"held by {record.holder} ({key})")
    for method in root.folders(layout.DATA):
        for number, version in _numbered(root.child(layout.data(method)), keep).items():
            found.setdefault(f"{method}/{version}", f"current {number}")
    return found


def _numbered(home: Storage, keep: int) -> dict[int, str]:
    """The last `keep` different versions by their highest numbers, the current one first."""
    found: dict[int, str] = {}
    for key in reversed([key for key in home.list("current/") if POINTER_PATTERN.fullmatch(key)]):
        pointer = read_json(home, key)
        if pointer["version"] not in found.values():
            found[int(pointer["number"])] = str(pointer["version"])
        if len(found) == keep:
            break
    return found


def plan(root: Storage, manifest: Manifest, keep: int, grace: float) -> RemovalPlan:
    """What may be removed now; changes nothing.

    Args:
        manifest: of the run; its settings tell whose students are unfinished.
        keep: versions of each method, by their numbers in `current`.
        grace: seconds, by the store's clock, for which whatever is written is left alone.

    Raises:
        CorruptionError: something that says what is to be kept is damaged.
        ManifestError: the root is one of studies.
    """
    listing = _Listing.of(root)  # before the roots: what is named later is not in it, or kept
    kept = referenced_versions(root, keep)
    _keep_unfinished(root, listing, kept, grace)
    referenced = {key for name in kept for key in _references(root, name)}
    versions = list(_versions(root, listing, kept, referenced, grace))
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
    """Add unfinished versions with their bases, and whatever is young."""
    for key, objects in listing.versions.items():
        names = {name for name, _ in objects}
        if REMOVAL_MARK in names:
            continue
        if "identity.json" in names and not names & {"manifest.json", "abandoned"}:
            kept.setdefault(key, "unfinished")
        elif "identity.json" in names and _age(objects) < grace:
            kept.setdefault(key, f"younger than {grace:g} s")
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
    """Keys of the shards that a version has, wherever they lie."""
    version = _open(root, key)
    for receipt in version.shards if version else ():
        yield f"data/{key.partition('/')[0]}/{receipt.key}"


def _age(objects: Iterable[tuple[str, StoredObject]]) -> float:
    """Of the youngest object but a mark of removal."""
    return min((entry.age for name, entry in objects if name != REMOVAL_MARK), default=0.0)


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
        if key in kept or (_age(objects) < grace and REMOVAL_MARK not in names):
            continue
        free = [(name, entry) for name, entry in objects if entry.key not in referenced]
        what, why = f"version {key}", "older than the versions to keep"
        if names <= {REMOVAL_MARK, *(name for name in names if name.startswith(layout.SHARDS))}:
            what, why = f"shards of removed version {key}", "no version refers to them"
        elif "abandoned" in names:
            why = "abandoned"
        method, _, name = key.partition("/")
        mark = f"{layout.data(method)}/{layout.version(name)}/{REMOVAL_MARK}"
        yield Removal(what, why, _ordered(free), key, mark)


def _students(
    root: Storage,
    listing: _Listing,
    manifest: Manifest,
    kept: dict[str, str],
    gone: Sequence[str],
    grace: float,
) -> Iterator[Removal]:
    """Students of versions that are gone or go; unfinished ones by the manifest's settings."""
    expected = _expected(root, manifest, gone)
    for name, objects in listing.students.items():
        names = {part for part, _ in objects}
        marked = REMOVAL_MARK in names
        if marked:
            version = root.get(f"{layout.student(name)}/{REMOVAL_MARK}").decode()
        elif "student.json" in names:
            card = read_json(root, f"{layout.student(name)}/student.json")
            version = f"{name.rsplit('-', 2)[0]}/{str(card.get('version'))[:16]}"
        else:
            version = expected.get(name, "")
        if marked and version in kept:
            marks = [each for each in objects if each[0] == REMOVAL_MARK]
            yield Removal(f"mark of student {name}", "it is kept", _ordered(marks))
        present = version in listing.versions and version not in gone
        if version and not present and version not in kept and (marked or _age(objects) >= grace):
            mark = f"{layout.student(name)}/{REMOVAL_MARK}"
            why = f"of version {version}"
            yield Removal(f"student {name}", why, _ordered(objects), version, mark)


def _expected(root: Storage, manifest: Manifest, gone: Sequence[str]) -> dict[str, str]:
    """The version of each student that the manifest's settings make of versions that go."""
    found = {}
    for key in gone:
        method, _, name = key.partition("/")
        try:
            identity = read_json(
                root, f"{layout.data(method)}/{layout.version(name)}/identity.json"
            )
            print_ = fingerprints.fingerprint(identity)
            for seed in manifest.distillation.seeds:
                student = student_name(manifest, print_, method, seed)  # type: ignore[arg-type]
                found[student] = key
        except (CorruptionError, ManifestError):
            continue  # without its identity or the initial weights nothing is attributed to it
    return found


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
    """In published versions that are kept: what belongs to no task that was published."""
    for key in kept:
        marks = [each for each in listing.versions.get(key, []) if each[0] == REMOVAL_MARK]
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
    """Remove what was planned but what is needed by now; returns objects and bytes.

    Everything is marked first and planned once more, so that of this and whoever begins to use a
    version meanwhile one sees the other (`refuse_removal`). Then whatever goes is taken from the
    readers' sight as a whole, before the first shard. Killed on the way, the next call goes on.
    """
    for removal in planned.removals:
        if removal.mark:
            root.put(removal.mark, removal.version.encode())
    marks = {removal.mark for removal in planned.removals}
    wanted = {entry.key: entry for removal in planned.removals for entry in removal.entries}
    again = [
        entry
        for removal in plan(root, manifest, keep, grace).removals
        for entry in removal.entries
        if entry.key in wanted or entry.key in marks
    ]
    for entry in sorted(again, key=lambda entry: entry.key.rpartition("/")[2] not in FIRST):
        root.delete(entry.key)
    root.abort_uploads(grace)
    gone = [wanted[entry.key] for entry in again if entry.key in wanted]
    return len(gone), sum(entry.size for entry in gone)
