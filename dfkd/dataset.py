"""Versions of a synthesised data set: begun, filled task by task, published once, then only read.

Keys under a method's storage (`data/{method}` of a run):

    versions/{id}/identity.json    everything that is hashed; written first
                  prompts/         Parquet, before any shard
                  shards/          {task}.tar
                  receipts/        {task}.json: the shard counts from here on
                  index.parquet, README.md
                  manifest.json    written last, once: the version is published
    current/{n:08d}.json           names a version; the highest number holds
"""

import hashlib
import io
import json
import tempfile
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dfkd import catalogue
from dfkd import fingerprint as fingerprints
from dfkd.errors import CorruptionError, PartialError
from dfkd.plan import Task, sample_key
from dfkd.published import PublishedVersion, advance, current, open_version, read_json
from dfkd.shards import Receipt, canonical, decode_receipt, encode_receipt, parse_shard
from dfkd.storage import Storage
from dfkd.verification import verify

__all__ = [
    "PublishedVersion",
    "Receipt",
    "Version",
    "begin",
    "current",
    "open_version",
    "verify",
]

READERS = 16
"""Receipts read at once: over a network each is a round trip."""


def begin(storage: Storage, identity: Mapping[str, Any], abandon: bool = False) -> "Version":
    """The version of an identity, begun or resumed.

    Args:
        storage: of one method.
        identity: from `dfkd.fingerprint.identity`.
        abandon: leave unfinished versions of other identities behind instead of refusing.

    Raises:
        FingerprintError: another identity's work is unfinished; the text shows the difference.
    """
    wanted = json.loads(canonical(dict(identity)))
    version = Version(storage, fingerprints.fingerprint(wanted))
    for other in _unfinished(storage):
        if other == version.id:
            continue
        if not abandon:
            found = read_json(storage, f"versions/{other}/identity.json")
            fingerprints.refuse_difference(found, wanted, storage.location(f"versions/{other}"))
        storage.put(f"versions/{other}/abandoned", b"")
    if not version.storage.put_if_absent("identity.json", canonical(wanted)):
        fingerprints.refuse_difference(version.identity, wanted, version.storage.location())
    version.storage.delete("abandoned")
    return version


def _unfinished(storage: Storage) -> list[str]:
    def unfinished(name: str) -> bool:
        head = f"versions/{name}"
        return storage.exists(f"{head}/identity.json") and not (
            storage.exists(f"{head}/manifest.json") or storage.exists(f"{head}/abandoned")
        )

    return [name for name in storage.folders("versions/") if unfinished(name)]


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
        return self.home.child(f"versions/{self.id}")

    @property
    def identity(self) -> dict[str, Any]:
        """What was hashed, as it is stored."""
        return read_json(self.storage, "identity.json")

    @property
    def published(self) -> bool:
        """Whether manifest.json is there, and so nothing will change any more."""
        return self.storage.exists("manifest.json")

    def receipts(self) -> dict[str, Receipt]:
        """The receipts of all complete shards, by task id, in order."""
        storage = self.storage
        keys = list(storage.list("receipts/"))
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(lambda key: _read_receipt(storage, key, self.fingerprint), keys))
        return {receipt.task: receipt for receipt in found}

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
        key = f"receipts/{task.id}.json"
        if storage.exists(key):
            return _read_receipt(storage, key, self.fingerprint)
        data = tar.read_bytes()
        receipt = self._receipt(task, data)
        if set(receipt.failed) != set(failed):
            raise ValueError(
                f"task {task.id}: {sorted(failed)} failed, {receipt.failed} are missing"
            )
        if not storage.put_if_absent(receipt.shard, tar):
            stored = storage.get(receipt.shard)  # an attempt that died before its receipt
            receipt = receipt if stored == data else self._receipt(task, stored)
        if not storage.put_if_absent(key, encode_receipt(receipt)):
            return _read_receipt(storage, key, self.fingerprint)
        return receipt

    def _receipt(self, task: Task, data: bytes) -> Receipt:
        shard = f"shards/{task.id}.tar"
        expected = {sample_key(task.class_index, index): index for index in task.indices}
        found = [sample.key for sample in parse_shard(data, shard)]
        foreign = sorted(set(found) - expected.keys())
        if foreign:
            raise CorruptionError(
                f"shard {shard}: sample {foreign[0]!r} is not of this task; "
                f"delete {self.storage.location(shard)} and run again"
            )
        failed = tuple(sorted(index for key, index in expected.items() if key not in set(found)))
        digest = hashlib.sha256(data).hexdigest()
        return Receipt(task.id, shard, digest, len(data), len(found), failed, self.fingerprint)

    def put_prompts(self, name: str, table: pa.Table) -> bool:
        """Store prompts once as prompts/{name}.parquet; False if they were there already.

        `name` is `{shard_index:05d}`: the rows of that shard of every class, with `class_index`
        and `index` at least.
        """
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        return self.storage.put_if_absent(f"prompts/{name}.parquet", buffer.getvalue())

    def prompts(self, task: Task) -> pa.Table:
        """The rows of a task's images in the order of `index`; `MissingObject` if never written."""
        key = f"prompts/{task.shard_index:05d}.parquet"
        data = self.storage.get(key)
        try:
            table = pq.read_table(io.BytesIO(data))
        except (pa.ArrowException, OSError) as error:
            raise CorruptionError(
                f"{self.storage.location(key)}: no readable Parquet ({error}); delete it, run again"
            ) from None
        mine = pc.and_(
            pc.equal(table["class_index"], task.class_index),
            pc.is_in(table["index"], pa.array(task.indices, table["index"].type)),
        )
        return table.filter(mine).sort_by("index")

    def publish(
        self,
        tasks: Iterable[Task],
        environment: Mapping[str, Any],
        quarantined: Collection[str] = (),
    ) -> "PublishedVersion":
        """Write index, data card and manifest, then make the version current. Safe to repeat.

        Args:
            tasks: all of the run.
            environment: library versions and the like; the same on resuming.
            quarantined: ids of tasks that may be missing.

        Raises:
            PartialError: another task has no receipt.
        """
        if not self.published:
            planned = [task.id for task in tasks]
            receipts = self.receipts()
            missing = [name for name in planned if name not in receipts]
            self._refuse_missing(missing, quarantined, len(planned))
            chosen = [receipts[name] for name in planned if name in receipts]
            with tempfile.TemporaryDirectory() as folder:
                index = Path(folder, "index.parquet")
                moments = catalogue.write_index(self.storage, chosen, index)
                manifest = catalogue.describe(
                    self.identity,
                    self.fingerprint,
                    environment,
                    chosen,
                    missing,
                    moments,
                    {"sha256": fingerprints.sha256_file(index), "bytes": index.stat().st_size},
                )
                self.storage.put("index.parquet", index)
                self.storage.put("README.md", catalogue.card(manifest).encode())
                self.storage.put_if_absent("manifest.json", canonical(manifest))
        published = open_version(self.home, self.id)
        published.settle()
        advance(self.home, self.fingerprint)
        return published

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
    if key != f"receipts/{receipt.task}.json" or receipt.fingerprint != fingerprint:
        raise CorruptionError(
            f"{storage.location(key)}: is about task {receipt.task} of version "
            f"{receipt.fingerprint[:16]}; delete it and run again"
        )
    return receipt
