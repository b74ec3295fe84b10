"""Published versions: what readers open, from `current` down, verifying what they read."""

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError

from dfkd.config import fingerprint as fingerprints
from dfkd.dataset import publication
from dfkd.dataset.shards import Receipt, Sample, SampleLocation, read_located, verify_bytes
from dfkd.errors import CorruptionError, InfrastructureError
from dfkd.storage import layout
from dfkd.storage.local import MissingObject, Storage
from dfkd.utils import parquet, strict_json
from dfkd.utils.strict_json import canonical
from dfkd.utils.types import Sha256, Size

POINTER_PATTERN = re.compile(r"current/([0-9]{8})\.json")
MAX_POINTER_NUMBER = 10**8 - 2
"""The highest number of a pointer that is read: after it comes one more of eight digits."""

FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]


class _Manifest(BaseModel, strict=True):
    """The parts of manifest.json that readers rely on; it holds more."""

    fingerprint: Sha256
    identity: dict[str, Any]
    environment: dict[str, Any]
    weights: dict[str, str]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    samples: Size
    bytes: Size
    failed: Size
    quarantined: tuple[str, ...]
    shards: tuple[Receipt, ...]
    files: dict[str, Sha256]
    label_mean: FiniteFloat
    label_std: FiniteFloat
    prompts: Sha256 | None = None


class _Pointer(BaseModel, strict=True):
    """The content of an object under `current/`."""

    number: Annotated[int, Field(ge=1, le=MAX_POINTER_NUMBER)]
    version: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    manifest: Sha256


REMOVAL_MARK = "removing"
"""The object in a version's folder that says that jobs/clean.py has begun to remove it."""


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
        return self.home.child(layout.version(self.id))

    def fetch(self, receipt: Receipt) -> bytes:
        """A shard's bytes, verified against its receipt (`CorruptionError` if they differ)."""
        data = self.home.get(receipt.key, receipt.bytes + 1)
        verify_bytes(data, receipt)
        return data

    def samples(self, receipt: Receipt) -> Iterator[Sample]:
        """The samples of a shard, verified before the first."""
        return (sample for sample, _ in self.placed(receipt))

    def placed(self, receipt: Receipt) -> Iterator[tuple[Sample, SampleLocation]]:
        """What `samples` yields, each sample with its place in the shard."""
        return read_located(self.home.get(receipt.key, receipt.bytes + 1), receipt)

    def index(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Columns of index.parquet, some rows at a time; `CorruptionError` unless it is whole."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, publication.INDEX_KEY)
            self.storage.get_file(publication.INDEX_KEY, path)
            if fingerprints.sha256_file(path) != self.files.get(publication.INDEX_KEY):
                raise self._damaged_index()
            with pq.ParquetFile(path) as file:
                if not file.schema_arrow.equals(publication.INDEX_SCHEMA):
                    raise self._damaged_index()
                yield from file.iter_batches(columns=list(columns))

    def _damaged_index(self) -> CorruptionError:
        return CorruptionError(
            f"{self.storage.location(publication.INDEX_KEY)}: is not the index that was published; "
            "run jobs/synthesize.py again, which restores it"
        )

    def prompt_part(self, name: str) -> pa.Table:
        """All rows of prompts/{name}.parquet; `CorruptionError` unless they are as published."""
        key = layout.prompts(name)
        sealed, data = self.storage.get(publication.PROMPTS_KEY), self.storage.get(key)
        where, digest = self.storage.location(key), hashlib.sha256(data).hexdigest()
        remedy = "restore it from a copy, or give another storage.root and synthesise again"
        whole = hashlib.sha256(sealed).hexdigest() == self.manifest.get("prompts")
        parts = parse_json(sealed, self.storage.location(publication.PROMPTS_KEY)).get("parts")
        if not whole or not isinstance(parts, dict) or parts.get(name) != digest:
            raise CorruptionError(f"{where}: is not what was published; {remedy}")
        return parquet.read(data, ("class_index", "index"), where, remedy)

    def settle(self) -> None:
        """Fix index and data card where a racing publisher wrote others than the manifest's."""
        if any(sha256_object(self.storage, key) != digest for key, digest in self.files.items()):
            publication.restore(self.home, self.manifest, self.shards)

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
    key = f"{layout.version(name)}/manifest.json"
    data = storage.get(key)
    manifest = parse_json(data, storage.location(key))
    try:
        checked = _Manifest.model_validate_json(data)
        whole = _consistent(checked, name)
    except (ValidationError, RecursionError):
        whole = False
    if not whole or (sha256 and hashlib.sha256(data).hexdigest() != sha256):
        raise CorruptionError(
            f"{storage.location(key)}: is not the manifest that was published; "
            "restore it, or give another storage.root and synthesise again"
        )
    return PublishedVersion(storage, manifest, checked.shards)


def _consistent(manifest: _Manifest, name: str) -> bool:
    """Whether a manifest is of the identity that names it, and each shard of one of its classes."""
    found = fingerprints.fingerprint(manifest.identity)
    rows = [int(receipt.task.partition("-")[0]) for receipt in manifest.shards]
    return (
        manifest.fingerprint == found
        and found[:16] == name
        and manifest.identity.get("classes") == list(manifest.classes)
        and all(receipt.fingerprint == found for receipt in manifest.shards)
        and len({receipt.task for receipt in manifest.shards}) == len(rows)
        and max(rows, default=0) < len(manifest.classes)
    )


def current(storage: Storage) -> PublishedVersion | None:
    """The version that readers use, or None before the first is published."""
    pointer = _pointer(storage)
    return open_version(storage, pointer.version, pointer.manifest) if pointer else None


def _pointer(storage: Storage) -> _Pointer | None:
    keys = [key for key in storage.list("current/") if POINTER_PATTERN.fullmatch(key)]
    if not keys:
        return None
    data = storage.get(keys[-1])
    parse_json(data, storage.location(keys[-1]))
    try:
        pointer = _Pointer.model_validate_json(data)
    except ValidationError:
        pointer = None
    if pointer is None or keys[-1] != f"current/{pointer.number:08d}.json":
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
        InfrastructureError: jobs/clean.py is just removing the version.
    """
    digest = sha256_object(storage, f"{layout.version(name)}/manifest.json")
    written = False
    while not written:
        held = _pointer(storage)
        if held and (held.version, held.manifest) == (name, digest):
            return
        fence()
        refuse_removal(storage, name)
        number = held.number + 1 if held else 1
        data = canonical({"version": name, "manifest": digest, "number": number})
        written = storage.put_if_absent(f"current/{number:08d}.json", data)


def refuse_removal(storage: Storage, name: str) -> None:
    """Raise `InfrastructureError` if jobs/clean.py has begun to remove the version `name`.

    It marks a version, then looks whether a lease names it; whoever is to use one names it in a
    lease, then looks for the mark. So one of the two always sees the other.
    """
    if storage.exists(f"{layout.version(name)}/{REMOVAL_MARK}"):
        raise InfrastructureError(
            f"{storage.location(f'versions/{name}')}: is being removed; "
            "run jobs/clean.py once more, then the same command again"
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
    return parse_json(storage.get(key), storage.location(key))


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """The mapping in JSON bytes; `CorruptionError` naming `where` if they hold none."""
    try:
        tree = strict_json.parse(data)
    except ValueError as error:
        tree, problem = None, f" ({error})"
    else:
        problem = ""
    if not isinstance(tree, dict):
        raise CorruptionError(
            f"{where}: no readable JSON mapping{problem}; restore it, "
            "or give another storage.root and synthesise again"
        )
    return tree
