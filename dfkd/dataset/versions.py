"""Versions of a synthesised data set: begun, filled task by task, published once, then only read.

Keys under a method's storage (`data/{method}` of a run):

    versions/{id}/identity.json    everything that is hashed; written first
                  prompts/         Parquet, before any shard
                  prompts.json     their summary and sha256, before any shard
                  state/           of a chained method, between two parts; gone when all are made
                  shards/          {task}.tar
                  receipts/        {task}.json: the shard counts from here on
                  index.parquet, README.md
                  manifest.json    written last, once: the version is published
                  abandoned        an unfinished version that stands in nobody's way
                  removing         jobs/clean.py has begun to remove it
    current/{n:08d}.json           names a version; the highest number holds
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from dfkd.config import fingerprint as fingerprints
from dfkd.config.plan import Task, sample_key
from dfkd.dataset import prompt_tables, publication
from dfkd.dataset.publication import PROMPTS_KEY
from dfkd.dataset.published import (
    REMOVAL_MARK,
    PublishedVersion,
    advance,
    current,
    open_version,
    read_json,
    refuse_removal,
    sha256_object,
)
from dfkd.dataset.shards import Receipt, decode_receipt, encode_receipt, parse_shard
from dfkd.dataset.verification import verify
from dfkd.errors import CorruptionError, PartialError
from dfkd.storage import layout
from dfkd.storage.local import Storage
from dfkd.utils.strict_json import canonical

__all__ = [
    "PublishedVersion",
    "Receipt",
    "Version",
    "begin",
    "current",
    "open_version",
    "verify",
]

CONCURRENT_READS = 16
"""Receipts read at once: over a network each is a round trip."""


def begin(storage: Storage, identity: Mapping[str, Any], abandon: bool = False) -> "Version":
    """The version of an identity, begun or resumed.

    Args:
        storage: of one method.
        identity: from `dfkd.config.fingerprint.identity`.
        abandon: leave unfinished versions of other identities behind instead of refusing.

    Raises:
        FingerprintError: another identity's work is unfinished; the text shows the difference.
        InfrastructureError: jobs/clean.py is just removing this version.
    """
    wanted = json.loads(canonical(dict(identity)))
    version = Version(storage, fingerprints.fingerprint(wanted))
    for other in _unfinished(storage):
        if other == version.id:
            continue
        if not abandon:
            found = read_json(storage, f"{layout.version(other)}/identity.json")
            fingerprints.refuse_difference(found, wanted, storage.location(layout.version(other)))
        storage.put(f"{layout.version(other)}/abandoned", b"")
    if not version.storage.put_if_absent("identity.json", canonical(wanted)):
        fingerprints.refuse_difference(version.identity, wanted, version.storage.location())
    version.storage.delete("abandoned")
    refuse_removal(storage, version.id)
    return version


def _unfinished(storage: Storage) -> list[str]:
    def unfinished(name: str) -> bool:
        head = layout.version(name)
        ended = ("manifest.json", "abandoned", REMOVAL_MARK)
        return storage.exists(f"{head}/identity.json") and not any(
            storage.exists(f"{head}/{mark}") for mark in ended
        )

    return [name for name in storage.folders(layout.VERSIONS) if unfinished(name)]


@dataclass(frozen=True)
class Version:
    """A version while it is filled. Every method may be called by many writers, and again."""

    home: Storage
    """Of the method: holds all versions and `current`."""
    fingerprint: str

    @property
    def id(self) -> str:
        """The version's name: the first 16 digits of its fingerprint."""
        return self.fingerprint[:16]

    @property
    def storage(self) -> Storage:
        """The version's own objects."""
        return self.home.child(layout.version(self.id))

    @property
    def identity(self) -> dict[str, Any]:
        """What was hashed, as it is stored."""
        return read_json(self.storage, "identity.json")

    def base(self) -> PublishedVersion | None:
        """The version that all but regenerated tasks are carried over from; None without one."""
        found = self.identity.get("carried.from")
        return open_version(self.home, str(found)[:16]) if found else None

    def carry(self, fresh: Iterable[Task]) -> None:
        """Give each of the base's tasks but the fresh ones a receipt that refers to its shard.

        Nothing is copied, and a chain of carried versions ends at the one that holds the bytes.
        """
        base = self.base()
        if base is None:
            return
        known = {layout.receipt(task.id) for task in fresh} | set(
            self.storage.list(layout.RECEIPTS)
        )

        def refer(receipt: Receipt) -> None:
            holder = receipt.version or base.id
            carried = replace(receipt, fingerprint=self.fingerprint, version=holder)
            self.storage.put_if_absent(layout.receipt(receipt.task), encode_receipt(carried))

        missing = [r for r in base.shards if layout.receipt(r.task) not in known]
        with ThreadPoolExecutor(CONCURRENT_READS) as pool:
            list(pool.map(refer, missing))

    @property
    def published(self) -> bool:
        """Whether manifest.json is there, and so nothing will change any more."""
        return self.storage.exists("manifest.json")

    def done(self) -> frozenset[str]:
        """The ids of all tasks that have a receipt; from a listing, without reading any."""
        keys = self.storage.list(layout.RECEIPTS)
        return frozenset(key.removeprefix(layout.RECEIPTS).removesuffix(".json") for key in keys)

    def receipts(self) -> dict[str, Receipt]:
        """The receipts of all complete shards, by task id, in order."""
        storage = self.storage
        keys = list(storage.list(layout.RECEIPTS))
        with ThreadPoolExecutor(CONCURRENT_READS) as pool:
            found = list(pool.map(lambda key: _read_receipt(storage, key, self.fingerprint), keys))
        return {receipt.task: receipt for receipt in found}

    def receipt(self, task: Task) -> Receipt:
        """The receipt of a complete shard; `MissingObject` if it has none."""
        return _read_receipt(self.storage, layout.receipt(task.id), self.fingerprint)

    def commit(self, task: Task, tar: Path, failed: Collection[int] = ()) -> Receipt:
        """Make a task's shard count, once: returns the receipt that holds, ours or an earlier one.

        Args:
            task: whose images the shard has.
            tar: a local file from `write_shard`.
            failed: the image indices that are not in it.

        Raises:
            CorruptionError: the tar, or the shard that another attempt has stored before, is not
                this task's.
        """
        storage = self.storage
        key = layout.receipt(task.id)
        if storage.exists(key):
            return _read_receipt(storage, key, self.fingerprint)
        data = tar.read_bytes()
        receipt = self._receipt(task, data, failed)
        if not storage.put_if_absent(receipt.shard, tar):
            stored = storage.get(receipt.shard)  # of an attempt that died before its receipt
            receipt = self._receipt(task, stored, failed)
        if not storage.put_if_absent(key, encode_receipt(receipt)):
            return _read_receipt(storage, key, self.fingerprint)
        return receipt

    def _receipt(self, task: Task, data: bytes, failed: Collection[int]) -> Receipt:
        shard = layout.shard(task.id)
        missing = {sample_key(task.class_index, index): index for index in task.indices}
        count = 0
        for sample in parse_shard(data, shard):
            if missing.pop(sample.key, None) is None:
                raise CorruptionError(
                    f"{self.storage.location(shard)}: sample {sample.key!r} is not of this task; "
                    "delete it, run again"
                )
            count += 1
        if set(missing.values()) != set(failed):
            raise CorruptionError(
                f"{self.storage.location(shard)}: images {tuple(missing.values())} are not in it, "
                f"but {tuple(sorted(failed))} failed; delete it, run again"
            )
        digest = hashlib.sha256(data).hexdigest()
        lost = tuple(missing.values())
        return Receipt(task.id, shard, digest, len(data), count, lost, self.fingerprint)

    def put_prompts(self, name: str, table: pa.Table) -> bool:
        """Store prompts once as prompts/{name}.parquet; False if they were there already.

        `name` is `{shard_index:05d}`: the rows of that shard of every class, with `class_index`
        and `index` at least.
        """
        return self.storage.put_if_absent(layout.prompts(name), prompt_tables.encode(table))

    def seal_prompts(self, names: Iterable[str], facts: Mapping[str, Any]) -> None:
        """Write prompts.json: `facts` about all prompts, and the sha256 of each part in `parts`."""
        digests = {name: sha256_object(self.storage, layout.prompts(name)) for name in names}
        self.storage.put(PROMPTS_KEY, canonical({**facts, "parts": digests}))

    def has_prompts(self, name: str) -> bool:
        """Whether prompts/{name}.parquet is there."""
        return self.storage.exists(layout.prompts(name))

    def prompt_part(self, name: str) -> pa.Table:
        """All rows of prompts/{name}.parquet; `MissingObject` if they were never written."""
        return prompt_tables.read(self.storage, layout.prompts(name))

    def prompts(self, task: Task) -> pa.Table:
        """The rows of a task's images in the order of `index`, one for each.

        Raises:
            CorruptionError: they are not all there, or were never written (`MissingObject`).
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
            tasks: all of the run.
            environment: library versions and the like; the same on resuming.
            quarantined: ids of tasks that may be missing.
            make_current: False leaves the version that readers use as it is.

        Raises:
            PartialError: another task has no receipt.
        """
        if not self.published:
            receipts = self.receipts()
            planned = [task.id for task in tasks]
            missing = [name for name in planned if name not in receipts]
            self._refuse_missing(missing, quarantined, len(planned))
            chosen = [receipts[name] for name in planned if name in receipts]
            publication.publish(
                self.home, self.identity, self.fingerprint, environment, chosen, missing
            )
        version = open_version(self.home, self.id)
        version.settle()
        if make_current:
            advance(self.home, self.id)
        return version

    def _refuse_missing(self, missing: list[str], quarantined: Collection[str], total: int) -> None:
        unknown = [name for name in missing if name not in quarantined]
        if unknown:
            shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            raise PartialError(
                f"version {self.id}: {len(unknown)} of {total} tasks have no receipt ({shown}); "
                "run the same command again, it resumes"
            )


def _read_receipt(storage: Storage, key: str, fingerprint: str) -> Receipt:
    receipt = decode_receipt(storage.get(key), storage.location(key))
    if key != layout.receipt(receipt.task) or receipt.fingerprint != fingerprint:
        raise CorruptionError(
            f"{storage.location(key)}: is about task {receipt.task} of version "
            f"{receipt.fingerprint[:16]}; delete it and run again"
        )
    return receipt
