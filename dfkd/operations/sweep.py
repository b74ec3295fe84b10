"""The sweep of garbage collection: remove what is planned, beside jobs that may be at work."""

import itertools
import time
from collections.abc import Callable, Sequence

from dfkd.config.manifest import Manifest
from dfkd.operations.garbage_collection import Removal, RemovalPlan, plan
from dfkd.operations.kept_versions import BEGUN
from dfkd.storage import layout
from dfkd.storage.base import Storage, StoredObject, in_order

ORDER = {
    layout.PUBLISHED: 0,
    layout.STUDENT_CARD: 0,
    layout.ABANDONED: 2,
    layout.IDENTITY: 3,
    layout.REMOVING: 4,
}
"""The order of removal; other objects have 1. What readers start from goes first, and the mark of
the removal goes last."""
FENCE_SECONDS = 5.0
"""Seconds of deletions after which a removal checks again that it holds its lease."""


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
