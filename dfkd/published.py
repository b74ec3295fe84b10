"""Published versions: what readers open, from `current` down, verifying what they read."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfkd import catalogue
from dfkd import fingerprint as fingerprints
from dfkd.errors import CorruptionError
from dfkd.shards import Receipt, Sample, canonical, decode_receipt, read_shard, verify_bytes
from dfkd.storage import MissingObject, Storage


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
        data = self.storage.get(receipt.shard)
        verify_bytes(data, receipt)
        return data

    def samples(self, receipt: Receipt) -> Iterator[Sample]:
        """The samples of a shard, verified before the first."""
        return read_shard(self.storage.get(receipt.shard), receipt)

    def settle(self) -> None:
        """Make index and data card those of the manifest, if a racing publisher replaced them."""
        try:
            data = self.storage.get("index.parquet")
        except MissingObject:
            data = b""
        if hashlib.sha256(data).hexdigest() == self.manifest["index"]["sha256"]:
            return
        with tempfile.TemporaryDirectory() as folder:
            index = Path(folder, "index.parquet")
            catalogue.write_index(self.storage, self.shards, index)
            self.storage.put("index.parquet", index)
        self.storage.put("README.md", catalogue.card(self.manifest).encode())


def open_version(storage: Storage, name: str) -> PublishedVersion:
    """The published version `name` (16 digits) of a method's storage.

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
        whole = manifest["fingerprint"] == fingerprints.fingerprint(manifest["identity"])
        whole = whole and manifest["fingerprint"][:16] == name
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise CorruptionError(
            f"{storage.location(key)}: does not hold the manifest of version {name}; "
            "restore it, or give another storage.root and synthesise again"
        )
    return PublishedVersion(storage, manifest, shards)


def current(storage: Storage) -> PublishedVersion | None:
    """The version that readers use, or None before the first is published."""
    pointer = _pointer(storage)
    return open_version(storage, pointer[1][:16]) if pointer else None


def _pointer(storage: Storage) -> tuple[int, str] | None:
    keys = list(storage.list("current/"))
    if not keys:
        return None
    number = int(Path(keys[-1]).stem)
    return number, str(read_json(storage, keys[-1])["fingerprint"])


def advance(storage: Storage, fingerprint: str) -> None:
    """Make a published version current, unless it is: a new number, written once."""
    while True:
        number, held = _pointer(storage) or (0, "")
        if held == fingerprint:
            return
        pointer = canonical({"version": fingerprint[:16], "fingerprint": fingerprint})
        if storage.put_if_absent(f"current/{number + 1:08d}.json", pointer):
            return


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
