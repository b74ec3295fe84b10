"""Published versions: what readers open, from `current` down, verifying what they read."""

import hashlib
import io
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dfkd import catalogue
from dfkd import fingerprint as fingerprints
from dfkd.errors import CorruptionError, InfrastructureError
from dfkd.shards import Receipt, Sample, canonical, decode_receipt, read_shard, verify_bytes
from dfkd.storage import MissingObject, Storage

POINTER = re.compile(r"current/[0-9]{8}\.json")

REMOVING = "removing"
"""The object in a version's folder that says that jobs/gc.py has begun to remove it."""


@dataclass(frozen=True)
class PublishedVersion:
    """A version that will not change any more: what readers open."""

    home: Storage
    manifest: dict[str, Any]
    """The content of manifest.json."""
    shards: tuple[Receipt, ...]
    """In the order of tasks."""

    @property
    def id(self) -> str:
        """The version's name."""
        return self.fingerprint[:16]

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits."""
        return str(self.manifest["fingerprint"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class index."""
        return tuple(self.manifest["classes"])

    @property
    def storage(self) -> Storage:
        """The version's own objects."""
        return self.home.child(f"versions/{self.id}")

    def fetch(self, receipt: Receipt) -> bytes:
        """A shard's bytes, verified against its receipt (`CorruptionError` if they differ)."""
        data = self.home.get(receipt.key)
        verify_bytes(data, receipt)
        return data

    def samples(self, receipt: Receipt) -> Iterator[Sample]:
        """The samples of a shard, verified before the first."""
        return read_shard(self.home.get(receipt.key), receipt)

    def prompt_part(self, name: str) -> pa.Table:
        """All rows of prompts/{name}.parquet; `CorruptionError` unless they are as published."""
        key = f"prompts/{name}.parquet"
        sealed, data = self.storage.get(catalogue.PROMPTS_KEY), self.storage.get(key)
        whole = hashlib.sha256(sealed).hexdigest() == self.manifest.get("prompts")
        if not whole or json.loads(sealed)["parts"].get(name) != hashlib.sha256(data).hexdigest():
            raise CorruptionError(
                f"{self.storage.location(key)}: is not what was published; restore it from a copy, "
                "or give another storage.root and synthesise again"
            )
        return pq.read_table(io.BytesIO(data))

    def settle(self) -> None:
        """Mend index and data card where a racing publisher wrote others than the manifest's."""
        if any(sha256_object(self.storage, key) != digest for key, digest in self.files.items()):
            catalogue.restore(self.home, self.manifest, self.shards)

    @property
    def files(self) -> dict[str, str]:
        """The sha256 of index and data card, by key."""
        return dict(self.manifest["files"])


def open_version(storage: Storage, name: str, sha256: str | None = None) -> PublishedVersion:
    """The published version `name` (16 digits) of a method's storage.

    Args:
        sha256: what manifest.json must hash to, if known (`current` knows it).

    Raises:
        CorruptionError: it is not published (`MissingObject`), or its manifest is damaged.
    """
    key = f"versions/{name}/manifest.json"
    manifest = read_json(storage, key)
    try:
        shards = tuple(
            decode_receipt(json.dumps(shard).encode(), storage.location(key))
            for shard in manifest["shards"]
        )
        found = fingerprints.fingerprint(manifest["identity"])
        whole = manifest["fingerprint"] == found and found[:16] == name
        whole = whole and all(receipt.fingerprint == found for receipt in shards)
    except (KeyError, TypeError):
        whole = False
    if not whole or (sha256 and sha256_object(storage, key) != sha256):
        raise CorruptionError(
            f"{storage.location(key)}: is not the manifest that was published; "
            "restore it, or give another storage.root and synthesise again"
        )
    return PublishedVersion(storage, manifest, shards)


def current(storage: Storage) -> PublishedVersion | None:
    """The version that readers use, or None before the first is published."""
    pointer = _pointer(storage)
    return open_version(storage, pointer["version"], pointer["manifest"]) if pointer else None


def _pointer(storage: Storage) -> dict[str, Any] | None:
    keys = [key for key in storage.list("current/") if POINTER.fullmatch(key)]
    if not keys:
        return None
    pointer = read_json(storage, keys[-1])
    if not {"number", "version", "manifest"} <= pointer.keys():
        raise CorruptionError(
            f"{storage.location(keys[-1])}: names no version; restore or delete it"
        )
    return pointer


def advance(storage: Storage, name: str, fence: Callable[[], object] = lambda: None) -> None:
    """Make the published version `name` current, unless it is: a new number, written once.

    Args:
        fence: called between reading the number that holds and writing the next one; raises where
            somebody else has taken over in the meantime.

    Raises:
        InfrastructureError: jobs/gc.py is just removing the version.
    """
    pointer = {
        "version": name,
        "manifest": sha256_object(storage, f"versions/{name}/manifest.json"),
    }
    written = False
    while not written:
        held = _pointer(storage) or {"number": 0}
        if held == held | pointer:
            return
        fence()
        number = held["number"] + 1
        data = canonical(pointer | {"number": number})
        written = storage.put_if_absent(f"current/{number:08d}.json", data)
    refuse_removal(storage, name)


def refuse_removal(storage: Storage, name: str) -> None:
    """Raise `InfrastructureError` if jobs/gc.py has begun to remove the version `name`.

    It marks a version, then looks whether one is named as current or in a lease; who names one
    looks for the mark afterwards. So one of the two always sees the other.
    """
    if storage.exists(f"versions/{name}/{REMOVING}"):
        raise InfrastructureError(
            f"{storage.location(f'versions/{name}')}: is being removed; "
            "run jobs/gc.py once more, then the same command again"
        )


def sha256_object(storage: Storage, key: str) -> str | None:
    """The sha256 of an object's bytes, None without such an object; bounded memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "object")
        try:
            storage.get_file(key, path)
        except MissingObject:
            return None
        return fingerprints.sha256_file(path)


def read_json(storage: Storage, key: str) -> dict[str, Any]:
    """The mapping in a JSON object; `CorruptionError` if it holds none."""
    try:
        tree = json.loads(storage.get(key))
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise CorruptionError(
            f"{storage.location(key)}: no readable JSON mapping; restore it, "
            "or give another storage.root and synthesise again"
        )
    return tree
