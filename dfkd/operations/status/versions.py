"""How far the versions of a method are, from listings of their objects.

The key of a receipt names its task, and the task's size follows from the identity, so no receipt is
read.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from dfkd.config.hashing import fingerprint
from dfkd.config.identity import as_stored, changed_settings
from dfkd.config.manifest import Manifest
from dfkd.config.methods import Method
from dfkd.config.plan import image_count, part_count, task_count
from dfkd.dataset.published import PublishedVersion, current_id, open_version, read_json
from dfkd.errors import CorruptionError
from dfkd.operations.status.activity import Activity
from dfkd.storage import layout
from dfkd.storage.base import MissingObject, Storage, in_order

RATE_SECONDS = 3600.0
"""Age of the oldest receipt that counts for the present rate."""

State = Literal["absent", "running", "unfinished", "abandoned", "published", "removing"]
UNFINISHED: tuple[State, ...] = ("running", "unfinished")


@dataclass(frozen=True)
class Done:
    """How many of a planned number are done."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class VersionStatus:
    """How far a version of a method is."""

    method: str
    id: str | None
    """None if nothing of it is stored."""
    fingerprint: str | None
    """The whole hash, of which `id` is the beginning."""
    state: State
    """`running`: unfinished, and a lease names it, so a process is at work on it. `abandoned`:
    unfinished, and jobs ignore it until its own manifest is run again. `removing`: dfkd clean
    removes it or is about to, and other jobs refuse to use it."""
    current: bool = False
    """Whether readers use it."""
    own: bool = True
    """Whether it is the manifest's version; True if there is no manifest."""
    regenerated: bool = False
    """Whether it is the manifest's, and dfkd synthesize would make another one: it has another
    salt, or carries shards over."""
    prompts: Done
    """Parts of the prompts: one for each shard of every class."""
    shards: Done
    images: Done
    """Images of finished shards. Until the version is published, images that diverged count too."""
    failed_images: int | None = None
    """Images that diverged at every attempt; None until the version is published."""
    quarantined: Mapping[str, str] = field(default_factory=dict)
    """The reason of each task that failed at every attempt of the last call, by task; `prompts` is
    a part of the prompts."""
    newest_shard_seconds: float | None = None
    """Seconds since the newest receipt was written."""
    images_per_second: float | None = None
    """Of the present call, over an hour at most; of all earlier calls if none is at work."""
    seconds_left: float | None = None
    """Time for the remaining images at this rate."""

    @property
    def ready(self) -> bool:
        """Whether synthesis has nothing left to do for it."""
        return self.state == "published" and self.current


def read_versions(
    root: Storage, method: Method, manifest: Manifest | None, activity: Activity, renewed: bool
) -> Iterator[VersionStatus]:
    """Yield the versions of a method that count.

    Args:
        manifest: its version is yielded first, and then the unfinished versions of others; None
            for all versions.
        renewed: whether `dfkd regenerate` makes the versions. The current one is then that of
            the manifest, even if it has another salt and carries shards over.

    Raises:
        CorruptionError: an object that says how far a version is, is damaged.
    """
    home = root.child(layout.data(method))
    current = current_id(home)
    stored: dict[str, dict[str, Any]] = {}
    states: dict[str, State] = {}
    for name in home.folders(layout.VERSIONS):
        # Without an identity only shards are left, which other versions carry.
        with suppress(MissingObject):
            stored[name] = read_json(home, f"{layout.version(name)}/{layout.IDENTITY}")
            states[name] = _state(home, method, name, activity)
    own = None
    if manifest:
        single = manifest.with_method(method)
        # Weight files are not read, which takes long: a version matches whatever their hashes are.
        matching = [name for name, each in stored.items() if as_stored(single, each) == each]
        # Of versions with different weights, the one in progress is that of the newest call.
        matching.sort(key=lambda name: (states[name] not in UNFINISHED, name != current))
        own = matching[0] if matching else None
        if renewed and current in stored and not changed_settings(single, stored[str(current)]):
            own = current
        if own is None:
            yield VersionStatus(
                method=method,
                id=None,
                fingerprint=None,
                state="absent",
                prompts=Done(0, part_count(manifest)),
                shards=Done(0, task_count(manifest)),
                images=Done(0, image_count(manifest)),
            )
    for name in sorted(stored, key=lambda name: name != own):
        # What others have finished or left behind does not concern the manifest.
        if manifest is not None and name != own and states[name] not in UNFINISHED:
            continue
        identity = stored[name]
        other_salt = manifest is not None and identity.get("salt") != manifest.salt
        carries = "carried.from" in identity
        figures = (
            _published(open_version(home, name), identity)
            if states[name] == "published"
            # Carried receipts are written all at once, so they say nothing about the rate.
            else _unfinished(
                home.child(layout.version(name)),
                identity,
                None if carries else activity.since.get(f"{method}/{name}"),
                activity.rate("synthesize", method),
            )
        )
        yield VersionStatus(
            method=method,
            id=name,
            fingerprint=fingerprint(identity),
            state=states[name],
            current=name == current,
            own=manifest is None or name == own,
            regenerated=manifest is not None and name == own and (carries or other_salt),
            **figures,
        )


def _state(home: Storage, method: Method, name: str, activity: Activity) -> State:
    """The state of a version of which there is an identity."""
    storage = home.child(layout.version(name))
    if storage.exists(layout.REMOVING):
        return "removing"
    if storage.exists(layout.PUBLISHED):
        return "published"
    if storage.exists(layout.ABANDONED):
        return "abandoned"
    return "running" if f"{method}/{name}" in activity.since else "unfinished"


def _sizes(storage: Storage, identity: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """The numbers that an identity plans: classes, images of each, images of a shard, and shards of
    a class; `CorruptionError` if it has none.
    """
    try:
        classes = len(identity["classes"])
        images = int(identity["synthesis.images_per_class"])
        size = int(identity["synthesis.shard_size"])
    except (KeyError, TypeError, ValueError):
        classes = images = size = 0
    if min(classes, images, size) < 1:
        raise CorruptionError(
            f"{storage.location(layout.IDENTITY)}: states no classes and sizes; restore it, "
            "or give another storage.root and synthesise again"
        )
    return classes, images, size, -(-images // size)


def _published(version: PublishedVersion, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `VersionStatus` that a published version tells."""
    classes, each, _, parts = _sizes(version.storage, identity)
    missing = sorted(version.facts["quarantined"])
    reasons = _reasons(version.storage, lambda task: task in missing) if missing else {}
    return {
        "prompts": Done(parts, parts),
        "shards": Done(classes * parts - len(missing), classes * parts),
        "images": Done(version.facts["samples"], classes * each),
        "failed_images": version.facts["failed"],
        "quarantined": dict.fromkeys(missing, "") | reasons,
    }


def _unfinished(
    storage: Storage, identity: Mapping[str, Any], since: float | None, past: float | None
) -> dict[str, Any]:
    """The fields of a `VersionStatus` that follow from the listing of an unfinished version.

    Args:
        since: seconds since the process at work has begun; None if none is at work.
        past: images per second of earlier calls, if known.
    """
    classes, each, size, parts = _sizes(storage, identity)
    done: set[str] = set()
    made: list[tuple[float, int]] = []  # age of the receipt and number of images of each shard
    for entry in storage.entries(layout.RECEIPTS):
        match = layout.RECEIPT.fullmatch(entry.key)
        if match and int(match[1]) < classes and int(match[2]) < parts:
            done.add(f"{match[1]}-{match[2]}")
            made.append((entry.age, min(size, each - int(match[2]) * size)))
    images = Done(sum(count for _, count in made), classes * each)
    rate = past
    if since is not None:
        recent = sorted(each for each in made if each[0] <= min(since, RATE_SECONDS))
        # The oldest shard only marks the time: its images were made before it was written. The span
        # ends now and not with the newest shard, so that a process that hangs becomes slower.
        if len(recent) > 1 and (span := recent[-1][0]):
            rate = sum(count for _, count in recent[:-1]) / span
    # The summary is written after all parts.
    sealed = storage.exists(layout.PROMPTS_SUMMARY)
    return {
        "prompts": Done(parts if sealed else sum(1 for _ in storage.list(layout.PROMPTS)), parts),
        "shards": Done(len(done), classes * parts),
        "images": images,
        "quarantined": _reasons(storage, lambda task: task not in done),
        "newest_shard_seconds": min(made)[0] if made else None,
        "images_per_second": rate,
        "seconds_left": (images.total - images.done) / rate if rate else None,
    }


def _reasons(storage: Storage, counts: Callable[[str], bool]) -> dict[str, str]:
    """The stored reason of each quarantined task for which `counts` is true."""
    folder = layout.QUARANTINED
    tasks = [key.removeprefix(folder).removesuffix(".json") for key in storage.list(folder)]
    counted = [task for task in tasks if counts(task)]

    def read(task: str) -> str:
        """The reason of a task; empty if it is not stored, or has just been deleted."""
        try:
            return str(read_json(storage, layout.quarantined(task)).get("reason", ""))
        except MissingObject:
            return ""

    return dict(zip(counted, in_order(read, counted), strict=True))
