"""How far the versions of a method are, from listings of their objects.

The key of a receipt names its task, and the task's size follows from the identity, so no receipt is
read.
"""

from collections.abc import Callable, Iterator, Mapping
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
    unfinished, and jobs ignore it until its own manifest is run again. `removing`: jobs/clean.py
    removes it or is about to, and other jobs refuse to use it."""
    current: bool = False
    """Whether readers use it."""
    own: bool = True
    """Whether it is the manifest's version; True if there is no manifest."""
    regenerated: bool = False
    """Whether it is the manifest's, and jobs/synthesize.py would make another one: it has another
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


@dataclass(frozen=True)
class _Sizes:
    """The numbers of classes, images and shards that an identity plans."""

    classes: int
    images_per_class: int
    shard_size: int

    @property
    def parts(self) -> int:
        """Number of shards of a class."""
        return -(-self.images_per_class // self.shard_size)

    def images(self, class_index: int, shard_index: int) -> int:
        """Number of images of a task; 0 if the plan has no such task."""
        if class_index >= self.classes:
            return 0
        return max(0, min(self.shard_size, self.images_per_class - shard_index * self.shard_size))


def _absent(manifest: Manifest, method: Method) -> VersionStatus:
    """The status of a version of which nothing is stored."""
    return VersionStatus(
        method=method,
        id=None,
        fingerprint=None,
        state="absent",
        prompts=Done(0, part_count(manifest)),
        shards=Done(0, task_count(manifest)),
        images=Done(0, image_count(manifest)),
    )


def _identities(home: Storage) -> dict[str, dict[str, Any]]:
    """The identities of all versions of a method, by id."""

    def read(name: str) -> dict[str, Any] | None:
        """The identity of a version; None if only shards are left, which other versions carry."""
        try:
            return read_json(home, f"{layout.version(name)}/{layout.IDENTITY}")
        except MissingObject:
            return None

    names = home.folders(layout.VERSIONS)
    return {name: found for name in names if (found := read(name)) is not None}


def _own_version(
    manifest: Manifest,
    stored: Mapping[str, Mapping[str, Any]],
    states: Mapping[str, State],
    current: str | None,
    renewed: bool,
) -> str | None:
    """The id of the version that a manifest with one method makes; None if it is not begun.

    Weight files are not read, because that takes long: a version matches whatever their hashes are.

    Args:
        stored: the identities of all versions of the method, by id; `states` has their states.
        current: the id of the current one.
        renewed: see `read_versions`.
    """
    if renewed and current in stored and not changed_settings(manifest, stored[str(current)]):
        return current
    matching = [name for name, each in stored.items() if as_stored(manifest, each) == each]
    # Of versions with different weights, the one in progress is that of the newest call.
    matching.sort(key=lambda name: (states[name] not in UNFINISHED, name != current))
    return matching[0] if matching else None


def read_versions(
    root: Storage, method: Method, manifest: Manifest | None, activity: Activity, renewed: bool
) -> Iterator[VersionStatus]:
    """Yield the versions of a method that count.

    Args:
        manifest: its version is yielded first, and then the unfinished versions of others; None
            for all versions.
        renewed: whether `jobs/regenerate.py` makes the versions. The current one is then that of
            the manifest, even if it has another salt and carries shards over.

    Raises:
        CorruptionError: an object that says how far a version is, is damaged.
    """
    home = root.child(layout.data(method))
    stored, current = _identities(home), current_id(home)
    states = {
        name: _state(home.child(layout.version(name)), f"{method}/{name}" in activity.since)
        for name in stored
    }
    own = None
    if manifest:
        own = _own_version(manifest.with_method(method), stored, states, current, renewed)
        if own is None:
            yield _absent(manifest, method)
    for name in sorted(stored, key=lambda name: name != own):
        # What others have finished or left behind does not concern the manifest.
        if manifest is None or name == own or states[name] in UNFINISHED:
            yield VersionStatus(
                method=method,
                id=name,
                fingerprint=fingerprint(stored[name]),
                state=states[name],
                current=name == current,
                own=manifest is None or name == own,
                regenerated=name == own and _is_regenerated(manifest, stored[name]),
                **_facts(home, method, name, stored[name], states[name], activity),
            )


def _is_regenerated(manifest: Manifest | None, stored: Mapping[str, Any]) -> bool:
    """See `VersionStatus.regenerated`."""
    salt = stored.get("salt")
    return manifest is not None and ("carried.from" in stored or salt != manifest.salt)


def _facts(
    home: Storage,
    method: str,
    name: str,
    stored: Mapping[str, Any],
    state: State,
    activity: Activity,
) -> dict[str, Any]:
    """The fields of a `VersionStatus` that its objects tell."""
    storage = home.child(layout.version(name))
    sizes = _sizes(storage, stored)
    if state == "published":
        return _published(open_version(home, name), sizes)
    # Carried receipts are written all at once, so they say nothing about the rate.
    carries = "carried.from" in stored
    since = None if carries else activity.since.get(f"{method}/{name}")
    return _unfinished(storage, sizes, since, activity.rate("synthesize", method))


def _state(storage: Storage, leased: bool) -> State:
    """The state of a version of which there is an identity."""
    if storage.exists(layout.REMOVING):
        return "removing"
    if storage.exists(layout.MANIFEST):
        return "published"
    if storage.exists(layout.ABANDONED):
        return "abandoned"
    return "running" if leased else "unfinished"


def _sizes(storage: Storage, stored: Mapping[str, Any]) -> _Sizes:
    """The sizes that an identity plans; `CorruptionError` if it has none."""
    try:
        each, size = stored["synthesis.images_per_class"], stored["synthesis.shard_size"]
        sizes = _Sizes(len(stored["classes"]), int(each), int(size))
    except (KeyError, TypeError, ValueError):
        sizes = _Sizes(0, 0, 0)
    if min(sizes.classes, sizes.images_per_class, sizes.shard_size) < 1:
        raise CorruptionError(
            f"{storage.location(layout.IDENTITY)}: states no classes and sizes; restore it, "
            "or give another storage.root and synthesise again"
        )
    return sizes


def _published(version: PublishedVersion, sizes: _Sizes) -> dict[str, Any]:
    """The fields of a `VersionStatus` that the manifest of a published version has."""
    missing = sorted(version.manifest["quarantined"])
    total = sizes.classes * sizes.parts
    reasons = _reasons(version.storage, lambda task: task in missing) if missing else {}
    return {
        "prompts": Done(sizes.parts, sizes.parts),
        "shards": Done(total - len(missing), total),
        "images": Done(version.manifest["samples"], sizes.classes * sizes.images_per_class),
        "failed_images": version.manifest["failed"],
        "quarantined": dict.fromkeys(missing, "") | reasons,
    }


def _unfinished(
    storage: Storage, sizes: _Sizes, since: float | None, past: float | None
) -> dict[str, Any]:
    """The fields of a `VersionStatus` that follow from the listing of an unfinished version.

    Args:
        since: seconds since the process at work has begun; None if none is at work.
        past: images per second of earlier calls, if known.
    """
    done: set[str] = set()
    made: list[tuple[float, int]] = []
    for entry in storage.entries(layout.RECEIPTS):
        match = layout.RECEIPT.fullmatch(entry.key)
        if match and (count := sizes.images(int(match[1]), int(match[2]))):
            done.add(f"{match[1]}-{match[2]}")
            made.append((entry.age, count))
    images = Done(sum(count for _, count in made), sizes.classes * sizes.images_per_class)
    rate = past if since is None else _rate(made, since) or past
    return {
        "prompts": Done(_prompts(storage, sizes), sizes.parts),
        "shards": Done(len(done), sizes.classes * sizes.parts),
        "images": images,
        "quarantined": _reasons(storage, lambda task: task not in done),
        "newest_shard_seconds": min(made)[0] if made else None,
        "images_per_second": rate,
        "seconds_left": (images.total - images.done) / rate if rate else None,
    }


def _prompts(storage: Storage, sizes: _Sizes) -> int:
    """Number of parts of the prompts that are stored; all of them once their summary is."""
    if storage.exists(layout.PROMPTS_SUMMARY):
        return sizes.parts
    return sum(1 for _ in storage.list(layout.PROMPTS))


def _rate(made: list[tuple[float, int]], since: float) -> float | None:
    """Images per second of a process that began `since` seconds ago; None before its second shard.

    Args:
        made: age of the receipt and number of images of each shard.
    """
    recent = sorted(each for each in made if each[0] <= min(since, RATE_SECONDS))
    # The oldest shard only marks the time: its images were made before it was written. The span
    # ends now and not with the newest shard, so that a process that hangs becomes slower.
    if len(recent) < 2 or not (span := recent[-1][0]):
        return None
    return sum(images for _, images in recent[:-1]) / span


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
