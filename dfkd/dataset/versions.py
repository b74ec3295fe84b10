"""Versions of a synthesised data set: begun, filled task by task, published once, then only read.

`dfkd.storage.layout` shows the keys of a version. Whatever counts is written by put-if-absent, so
any number of processes may fill a version at the same time, and each may be killed.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from dfkd.dataset.shards import Receipt, decode_receipt, encode_receipt, parse_shard, sample_key
from dfkd.errors import CorruptionError, PartialError, conceal
from dfkd.storage import layout
from dfkd.storage.base import SMALL_OBJECT, Storage, in_order
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
        DfkdError: jobs/clean.py is removing this version.
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
        ended = (layout.MANIFEST, layout.ABANDONED, layout.REMOVING)
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
        present = set(self.storage.list(layout.RECEIPTS))
        excluded = present | {layout.receipt(task.id) for task in fresh}

        def refer(receipt: Receipt) -> None:
            """Write this version's receipt for a shard of the base."""
            # The base may have carried the shard over itself; then it names the holder.
            holder = receipt.version or base.id
            carried = replace(receipt, fingerprint=self.fingerprint, version=holder)
            self.storage.put_if_absent(layout.receipt(receipt.task), encode_receipt(carried))

        missing = [r for r in base.shards if layout.receipt(r.task) not in excluded]
        for _ in in_order(refer, missing):
            pass

    @property
    def published(self) -> bool:
        """Whether manifest.json exists; the version does not change afterwards."""
        return self.storage.exists(layout.MANIFEST)

    def done(self) -> frozenset[str]:
        """The ids of all tasks that have a receipt, from a listing of keys only."""
        keys = self.storage.list(layout.RECEIPTS)
        return frozenset(key.removeprefix(layout.RECEIPTS).removesuffix(".json") for key in keys)

    def receipts(self) -> dict[str, Receipt]:
        """The receipts of all complete shards by task id, in the order of their keys."""
        storage = self.storage
        keys = storage.list(layout.RECEIPTS)
        receipts = in_order(lambda key: _read_receipt(storage, key, self.fingerprint), keys)
        return {receipt.task: receipt for receipt in receipts}

    def receipt(self, task: Task) -> Receipt:
        """The receipt of a task; `MissingObject` if its shard is not complete."""
        return _read_receipt(self.storage, layout.receipt(task.id), self.fingerprint)

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
            return _read_receipt(storage, key, self.fingerprint)
        data = tar.read_bytes()
        receipt = self._receipt(task, data, failed)
        # Store the bytes that were hashed; the file could have changed since.
        if not storage.put_if_absent(receipt.shard, data):
            # An earlier attempt stored the shard and died before its receipt. Its bytes stay, so
            # the receipt is made from them. They must hold every image that did not fail now: a tar
            # that a full disk has cut off may end in zeros and look whole.
            receipt = self._receipt(task, storage.get(receipt.shard), failed)
        # Of two concurrent attempts the first receipt is valid for both.
        if not storage.put_if_absent(key, encode_receipt(receipt)):
            return _read_receipt(storage, key, self.fingerprint)
        return receipt

    def quarantine(self, task: str, reason: str) -> None:
        """Store why a task failed at every attempt, for jobs/status.py.

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

    def _receipt(self, task: Task, data: bytes, failed: Collection[int]) -> Receipt:
        """The receipt of a tar's bytes, which must hold all images of the task but the failed."""
        shard = layout.shard(task.id)
        # All samples are parsed and not only counted, so that a receipt never vouches for a shard
        # that no reader can open.
        missing = {sample_key(task.class_index, index): index for index in task.indices}
        count = 0
        for sample in parse_shard(data, shard):
            if missing.pop(sample.key, None) is None:
                raise CorruptionError(
                    f"{self.storage.location(shard)}: sample {sample.key!r} is not of this task; "
                    "delete it, run again"
                )
            count += 1
        # It may hold more: an earlier attempt may have made what failed now.
        if not set(missing.values()) <= set(failed):
            raise CorruptionError(
                f"{self.storage.location(shard)}: images {tuple(missing.values())} are not in it, "
                f"but {tuple(sorted(failed))} failed; delete it, run again"
            )
        digest = hashlib.sha256(data).hexdigest()
        absent = tuple(missing.values())
        return Receipt(task.id, shard, digest, len(data), count, absent, self.fingerprint)

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
        # The facts have digits that depend on the processor, and the manifest holds the file's
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
        tasks: Iterable[Task],
        environment: Mapping[str, Any],
        quarantined: Collection[str] = (),
        make_current: bool = True,
    ) -> "PublishedVersion":
        """Write index, data card and manifest, then make the version current. Safe to repeat.

        Args:
            tasks: all tasks of the run.
            environment: library versions and the like; a resumed run passes the same.
            quarantined: ids of tasks that may lack a receipt.
            make_current: False does not change which version readers use.

        Raises:
            PartialError: a task that is not quarantined has no receipt.
        """
        if not self.published:
            receipts = self.receipts()
            planned = [task.id for task in tasks]
            missing = [name for name in planned if name not in receipts]
            self._refuse_missing(missing, quarantined, len(planned))
            complete = [receipts[name] for name in planned if name in receipts]
            publication.publish(
                self.home, self.identity, self.fingerprint, environment, complete, missing
            )
        # Another publisher may have won the race, so the version is read back from its manifest.
        version = open_version(self.home, self.id)
        publication.repair(version)
        if make_current:
            advance(self.home, self.id)
        return version

    def _refuse_missing(self, missing: list[str], quarantined: Collection[str], total: int) -> None:
        """Raise `PartialError` if a task without receipt is not quarantined."""
        unexpected = [name for name in missing if name not in quarantined]
        if unexpected:
            shown = ", ".join(unexpected[:5]) + (", ..." if len(unexpected) > 5 else "")
            raise PartialError(
                f"version {self.id}: {len(unexpected)} of {total} tasks have no receipt ({shown}); "
                "run the same command again, it resumes"
            )


def _read_receipt(storage: Storage, key: str, fingerprint: str) -> Receipt:
    """The receipt at a key; `CorruptionError` if it is about another task or version."""
    receipt = decode_receipt(storage.get(key, SMALL_OBJECT), storage.location(key))
    if key != layout.receipt(receipt.task) or receipt.fingerprint != fingerprint:
        raise CorruptionError(
            f"{storage.location(key)}: is about task {receipt.task} of version "
            f"{receipt.fingerprint[:16]}; delete it and run again"
        )
    return receipt
