"""Which versions garbage collection keeps, and which shards these need."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from dfkd.dataset.published import open_version, pointers, read_json
from dfkd.operations.attempts import unfinished
from dfkd.operations.listing import Listing, age, folder
from dfkd.storage import layout, lease
from dfkd.storage.base import SMALL_OBJECT, MissingObject, Storage

BEGUN = b"begun"
"""The content of a version's mark once its objects are being deleted: the removal must go on after
a kill. Until then the mark only announces it, and is withdrawn if the version is in use."""


@dataclass(frozen=True)
class KeptVersions:
    """The versions of a root that stay; each version is named `{method}/{id}`."""

    reasons: dict[str, str]
    """Why a version is kept."""
    begun: set[str]
    """Versions whose removal has begun, and was killed; none of them is kept."""
    shards: set[str]
    """Keys of the shards in the folders of other versions that the kept versions refer to."""

    @classmethod
    def read(cls, root: Storage, listing: Listing, keep: int, grace: float) -> "KeptVersions":
        """What stays; `garbage_collection.plan` has the arguments and the errors.

        Args:
            listing: older than this call. So a version that is begun or named after it is either
                not in the listing or among the references that are read here.
        """
        kept: dict[str, str] = {}
        if attempt := unfinished(root):
            why = f"regeneration {attempt.number} is unfinished"
            names = [attempt.challenger, *([attempt.base[:16]] if attempt.base else [])]
            kept |= {f"{attempt.method}/{name}": why for name in names}
        for key, record in lease.held_leases(root).items():
            kept |= dict.fromkeys(record.versions, f"held by {record.holder} ({key})")

        # After the leases, because a version may be published and its lease end between the two.
        current = _named_by_pointers(root, keep)
        kept = {name: f"current {number}" for name, number in current.items()} | kept

        # Versions of which objects may have been deleted already, as their marks say.
        begun = set()
        for key, objects in listing.versions.items():
            if layout.REMOVING in objects:
                with contextlib.suppress(MissingObject):  # a sweep has ended since the listing
                    if root.get(f"{folder(key)}/{layout.REMOVING}", SMALL_OBJECT) == BEGUN:
                        begun.add(key)

        for key, objects in listing.versions.items():
            if key in begun or layout.IDENTITY not in objects:
                continue
            if layout.PUBLISHED not in objects and layout.ABANDONED not in objects:
                kept.setdefault(key, "unfinished")
            elif age(objects) < grace:
                kept.setdefault(key, f"younger than {grace:g} s")
        # An unpublished version has no receipts yet for all the shards that it carries over.
        for key in [key for key in kept if key in listing.versions]:
            objects = listing.versions[key]
            # Of a removed one there may be shards that others carry.
            if layout.PUBLISHED not in objects and layout.IDENTITY in objects:
                identity = read_json(root, f"{folder(key)}/{layout.IDENTITY}")
                if base := str(identity.get("carried.from", "")):
                    method = key.partition("/")[0]
                    kept.setdefault(f"{method}/{base[:16]}", f"{key} carries over from it")

        # A removal that was killed goes on, whatever is to be kept now. A job that leases the
        # version came later than its mark, and refuses to work on it.
        kept = {key: why for key, why in kept.items() if key not in begun}
        # Without the facts of a version that is or was current, nobody knows which shards in
        # other folders it refers to.
        for key in (key for key in current if key in kept):
            objects = listing.versions.get(key, {})
            if layout.IDENTITY in objects and layout.PUBLISHED not in objects:
                root.size(f"{folder(key)}/{layout.PUBLISHED}")  # raises `MissingObject`
        return cls(kept, begun, {key for name in kept for key in _carried_keys(root, name)})


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


def _carried_keys(root: Storage, key: str) -> Iterator[str]:
    """Yield the keys of the shards that a published version has in the folders of other versions;
    none if it is not published.
    """
    method, _, name = key.partition("/")
    home = layout.data(method)
    try:
        version = open_version(root.child(home), name)
    except MissingObject:
        return
    # The receipts of millions of shards take minutes to read, and few versions carry any.
    if version.facts["carried"]:
        for receipt in version.receipts():
            if receipt.version:
                yield f"{home}/{receipt.key}"
