"""Versions of a synthesised data set: begun, filled task by task, published once, then only read.

`dfkd.storage.layout` shows the keys of a version. Whatever counts is written by put-if-absent, so
any number of processes may fill a version at the same time, and each may be killed.
"""

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dfkd.config.hashing import fingerprint
from dfkd.config.identity import refuse_difference
from dfkd.config.plan import Task
from dfkd.dataset import prompt_tables, publication
from dfkd.dataset.published import (
    PublishedVersion,
    advance,
    open_version,
    read_json,
    refuse_removal,
    sha256_object,
)
from dfkd.dataset.receipts import Receipt, encode, read
from dfkd.dataset.shards import describe
from dfkd.errors import CorruptionError, conceal
from dfkd.storage import layout
from dfkd.storage.base import Storage, in_order
from dfkd.utils.strict_json import canonical


def begin(home: Storage, identity: Mapping[str, Any], abandon: bool = False) -> "Version":
    """Begin or resume the version of an identity.

    Args:
        home: the storage of one method.
        identity: from `dfkd.config.identity.identity`; plain values, as JSON gives them.
        abandon: mark unfinished versions of other identities as abandoned instead of refusing.

    Raises:
        FingerprintError: a version of another identity is unfinished; the text shows the
            difference.
        DfkdError: dfkd clean is removing this version.
    """
    version = Version(home, fingerprint(identity))
    if abandon:
        for other in _unfinished(home):
            if other != version.id:
                home.put(f"{layout.version(other)}/{layout.ABANDONED}", b"")
    else:
        refuse_unfinished(home, identity)
    # Before anything is written, so that no object stays behind a removal that goes on.
    refuse_removal(home, version.id)
    # The name is a prefix of the fingerprint, so a stored identity could differ by a collision.
    if not version.storage.put_if_absent(layout.IDENTITY, canonical(identity)):
        refuse_difference(version.identity, identity, version.storage.location())
    version.storage.delete(layout.ABANDONED)
    return version


def refuse_unfinished(home: Storage, identity: Mapping[str, Any]) -> None:
    """Raise `FingerprintError` if a version of another identity is unfinished in the storage of one
    method; the text shows the difference.
    """
    for other in _unfinished(home):
        stored = read_json(home, f"{layout.version(other)}/{layout.IDENTITY}")
        refuse_difference(stored, identity, home.location(layout.version(other)))


def _unfinished(home: Storage) -> list[str]:
    """The ids of the versions that were begun and neither published, abandoned nor removed."""

    def unfinished(name: str) -> bool:
        """Whether a version was begun and has none of the marks that end it."""
        head = layout.version(name)
        ended = (layout.PUBLISHED, layout.ABANDONED, layout.REMOVING)
        return home.exists(f"{head}/{layout.IDENTITY}") and not any(
            home.exists(f"{head}/{mark}") for mark in ended
        )

    return [name for name in home.folders(layout.VERSIONS) if unfinished(name)]


@dataclass(frozen=True)
class Version:
    """A version that is being filled. Methods are idempotent and safe with concurrent writers."""

    home: Storage
    """The storage of the method, with all versions and `current`."""
    fingerprint: str

    @property
    def id(self) -> str:
        """The name of the version: the first 16 digits of its fingerprint."""
        return self.fingerprint[:16]

    @property
    def storage(self) -> Storage:
        """The version's own objects."""
        return self.home.child(layout.version(self.id))

    @property
    def identity(self) -> dict[str, Any]:
        """The stored identity, which the fingerprint hashes."""
        return read_json(self.storage, layout.IDENTITY)

    def base(self) -> PublishedVersion | None:
        """The version whose shards a regeneration carries over; None if there is none."""
        fingerprint = self.identity.get("carried.from")
        return open_version(self.home, str(fingerprint)[:16]) if fingerprint else None

    def carry(self, fresh: Iterable[Task]) -> None:
        """Write receipts that refer to the shards of the base, for all tasks except the fresh ones.

        No shard is copied. A receipt names the version that holds the bytes, also after several
        regenerations.
        """
        base = self.base()
        if base is None:
            return
        done = self.done()
        again = {task.id for task in fresh}

        def refer(entry: publication.Entry) -> None:
            """Write this version's receipt for a shard of the base."""
            receipt, images = entry
            # The base may have carried the shard over itself; then it names the holder.
            holder = receipt.version or base.id
            carried = replace(receipt, fingerprint=self.fingerprint, version=holder)
            self.storage.put_if_absent(layout.receipt(receipt.task), encode(carried, images))

        for block in base.blocks:
            missing = {receipt.task for receipt in base.block_receipts(block)} - again
            if all(task in done for task in missing):
                continue
            entries = publication.block_entries(base, block)
            left = (e for e in entries if e[0].task in missing and e[0].task not in done)
            for _ in in_order(refer, left):
                pass

    @property
    def published(self) -> bool:
        """Whether version.json exists; the version does not change afterwards."""
        return self.storage.exists(layout.PUBLISHED)

    def done(self) -> "TaskSet":
        """The ids of all tasks that have a receipt, from a listing of keys only."""
        return TaskSet(self.storage.list(layout.RECEIPTS))

    def receipt(self, task: Task) -> Receipt:
        """The receipt of a task; `MissingObject` if its shard is not complete."""
        return read(self.storage, layout.receipt(task.id), self.fingerprint)[0]

    def commit(self, task: Task, tar: Path, failed: Collection[int] = ()) -> Receipt:
        """Store the shard and the receipt of a task, unless the task already has a receipt.

        Args:
            task: the task whose images the shard holds.
            tar: a local file from `write_shard`.
            failed: the image indices that are missing in the shard because they diverged.

        Returns:
            The valid receipt: the new one, or that of an earlier attempt.

        Raises:
            CorruptionError: the tar, or the shard that an earlier attempt stored, does not hold the
                images of this task.
        """
        storage = self.storage
        key = layout.receipt(task.id)
        if storage.exists(key):
            return self.receipt(task)
        data = tar.read_bytes()
        where = storage.location(layout.shard(task.id))
        receipt, images = describe(data, task, self.fingerprint, failed, where)
        # Store the bytes that were hashed; the file could have changed since.
        if not storage.put_if_absent(receipt.shard, data):
            # An earlier attempt stored the shard and died before its receipt. Its bytes stay, so
            # the receipt is made from them. They must hold every image that did not fail now: a tar
            # that a full disk has cut off may end in zeros and look whole.
            data = storage.get(receipt.shard)
            receipt, images = describe(data, task, self.fingerprint, failed, where)
        elif (stored := storage.size(receipt.shard)) != receipt.bytes:
            raise CorruptionError(
                f"{where}: {stored} of {receipt.bytes} bytes were stored; delete it, run again"
            )
        # Of two concurrent attempts the first receipt is valid for both.
        if not storage.put_if_absent(key, encode(receipt, images)):
            return self.receipt(task)
        return receipt

    def quarantine(self, task: str, reason: str) -> None:
        """Store why a task failed at every attempt, for dfkd status.

        Args:
            task: id of the task, or `prompts` for a part of the prompts.
        """
        content = {"task": task, "reason": conceal(reason)}
        self.storage.put(layout.quarantined(task), canonical(content))

    def lift_quarantine(self) -> None:
        """Delete all stored reasons, before the tasks are tried again."""
        storage = self.storage
        for key in list(storage.list(layout.QUARANTINED)):
            storage.delete(key)

    def put_prompts(self, name: str, table: pa.Table) -> bool:
        """Store a part of the prompts as prompts/{name}.parquet; returns False if it exists.

        Args:
            name: `{shard_index:05d}`.
            table: the rows of that shard of every class, with at least the columns `class_index`
                and `index`.
        """
        return self.storage.put_if_absent(layout.prompts(name), prompt_tables.encode(table))

    def seal_prompts(self, names: Iterable[str], facts: Mapping[str, Any]) -> None:
        """Write prompts.json: `facts` about all prompts, and under `parts` the sha256 of each.

        A published version keeps its own.
        """
        if self.published:
            return
        digests = {name: sha256_object(self.storage, layout.prompts(name)) for name in names}
        data = canonical({**facts, "parts": digests})
        # The facts have digits that depend on the processor, and version.json holds the file's
        # hash. So the first summary of the same parts stays, also if a second driver is late.
        if not self.storage.put_if_absent(layout.PROMPTS_SUMMARY, data):
            stored = read_json(self.storage, layout.PROMPTS_SUMMARY)
            if stored.get("parts") != digests:  # a part was deleted and made again
                self.storage.put(layout.PROMPTS_SUMMARY, data)

    def prompt_parts(self) -> set[str]:
        """The name of each stored part prompts/{name}.parquet."""
        return {Path(key).stem for key in self.storage.list(layout.PROMPTS)}

    def prompt_part(self, name: str) -> pa.Table:
        """All rows of prompts/{name}.parquet; `MissingObject` if they were never written."""
        return prompt_tables.read(self.storage, layout.prompts(name))

    def prompts(self, task: Task) -> pa.Table:
        """The prompts of a task, one row for each image, ordered by `index`.

        Raises:
            CorruptionError: rows are missing, or the part was never written (`MissingObject`).
        """
        key = layout.prompts(f"{task.shard_index:05d}")
        table = prompt_tables.read_class(self.storage, key, task.class_index)
        if table["index"].to_pylist() != list(task.indices):
            raise CorruptionError(
                f"{self.storage.location(key)}: holds {table.num_rows} prompts of class "
                f"{task.class_index}, not those of images {task.start} to {task.indices[-1]}; "
                "delete it, run again"
            )
        return table

    def publish(
        self,
        blocks: Iterable[tuple[str, Sequence[Task]]],
        environment: Mapping[str, Any],
        quarantined: Collection[str] = (),
        make_current: bool = True,
    ) -> "PublishedVersion":
        """Write blocks, data card and facts, then make the version current. Safe to repeat.

        Args:
            blocks: name and tasks of each block, as `dfkd.config.plan.blocks` gives them.
            environment: library versions and the like; a resumed run passes the same.
            quarantined: ids of tasks that may lack a receipt.
            make_current: False does not change which version readers use.

        Raises:
            PartialError: a task that is not quarantined has no receipt.
        """
        if not self.published:
            publication.publish(
                self.home,
                self.identity,
                self.fingerprint,
                environment,
                blocks,
                self.done(),
                quarantined,
            )
        # Another publisher may have won the race, so the version is read back.
        version = open_version(self.home, self.id)
        publication.repair(version)
        # Whoever lost the race, or was killed, has left blocks that the version does not name.
        named = {key for block in version.blocks for key in (block.receipts_key, block.index_key)}
        for key in [key for key in self.storage.list(layout.INDEX) if key not in named]:
            self.storage.delete(key)
        if make_current:
            advance(self.home, self.id)
        return version


class TaskSet(Container[str]):
    """The ids of the tasks that have a receipt, in eight bytes each: a run may have millions."""

    def __init__(self, keys: Iterable[str]) -> None:
        """`keys` are those of receipts; others are ignored."""
        found = filter(None, map(layout.RECEIPT.fullmatch, keys))
        numbers = ((int(match[1]) << 32) + int(match[2]) for match in found)
        self._numbers = np.sort(np.fromiter(numbers, np.int64))

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, task_id: object) -> bool:
        class_index, _, shard_index = str(task_id).partition("-")
        number = (int(class_index) << 32) + int(shard_index)
        place = np.searchsorted(self._numbers, number)
        return bool(place < len(self._numbers) and self._numbers[place] == number)
