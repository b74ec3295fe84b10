"""Read published versions: the current one or one by name, with everything verified on reading.

What is known of a version's shards and images lies in blocks of about a thousand shards, of which
version.json holds only the hashes. So a reader takes no more memory than the blocks that it needs.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from dfkd.config.hashing import fingerprint, sha256_file
from dfkd.config.identity import class_names
from dfkd.config.stored_identity import StoredIdentity
from dfkd.dataset.receipts import Receipt
from dfkd.dataset.shards import Sample, get_shard, read_shard
from dfkd.errors import CorruptionError, DfkdError
from dfkd.storage import layout
from dfkd.storage.base import SMALL_OBJECT, MissingObject, Storage, missing_object
from dfkd.utils import strict_json
from dfkd.utils.strict_json import canonical, read_as
from dfkd.utils.types import Finite, Sha256, Size

INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("class", pa.string(), nullable=False),
        pa.field("class_index", pa.int32(), nullable=False),
        pa.field("index", pa.int64(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),
        pa.field("confidence", pa.float64(), nullable=False),
        pa.field("steps", pa.int32(), nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("extension", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
    ]
)
"""The index, a row for each image: enough to select or count images without opening a shard, and to
read one image alone (`start` and `sha256`, as in `receipts.Images`)."""

INDEX_ROWS = 8192
"""Rows of a row group of the index, which are in memory together while they are written."""

MAX_POINTER_NUMBER = 10**8 - 2
"""The highest pointer number that is accepted, so that its successor also has eight digits."""

BLOCK_REMEDY = "run dfkd verify, which restores it"
PROMPTS_REMEDY = "restore it from a copy, or give another storage.root and synthesise again"
"""What to do about a damaged block or part of the prompts, for messages."""


@dataclass(frozen=True)
class Block:
    """Some shards of a version, whose receipts and index rows are stored together."""

    name: Annotated[str, Field(pattern=f"^{layout.PART}$")]
    receipts: Sha256
    """Hash of the JSON with its receipts, in the order of class and shard."""
    index: Sha256
    """Hash of the Parquet file with a row for each of its images, in the order of receipts."""
    shards: Size
    samples: Size

    @property
    def receipts_key(self) -> str:
        """Key of its receipts, relative to the folder of the version."""
        return layout.block(self.name, self.receipts, "json")

    @property
    def index_key(self) -> str:
        """Key of its part of the index, relative to the folder of the version."""
        return layout.block(self.name, self.index, "parquet")


class _Facts(BaseModel, strict=True):
    """The keys of version.json that readers rely on; the file holds more."""

    schema_: Literal[3] = Field(alias="schema")
    """`publication.SCHEMA_VERSION`: a version of another format could be read wrongly."""
    fingerprint: Sha256
    identity: StoredIdentity
    environment: dict[str, Any]
    weights: dict[str, Sha256]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    shards: Size
    samples: Size
    bytes: Size
    failed: Size
    inconsistent: Size
    class_samples: tuple[Size, ...]
    class_failed: tuple[Size, ...]
    carried: dict[Annotated[str, Field(pattern="^[0-9a-f]{16}$")], Size]
    quarantined: tuple[str, ...]
    blocks: tuple[Block, ...]
    card: Sha256
    label_mean: Finite
    label_std: Finite
    prompts: Sha256 | None = None


class Pointer(BaseModel, strict=True):
    """The content of an object under `current/`."""

    number: Annotated[int, Field(ge=1, le=MAX_POINTER_NUMBER)]
    version: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    sha256: Sha256
    """Of the version's `version.json`."""


_POINTER = TypeAdapter(Pointer)
_RECEIPTS = TypeAdapter(list[Receipt])


@dataclass(frozen=True)
class PublishedVersion:
    """A version that no longer changes; all readers use it."""

    home: Storage
    facts: dict[str, Any]
    """The content of version.json."""
    blocks: tuple[Block, ...]

    def __repr__(self) -> str:
        return f"PublishedVersion({self.storage.location()!r})"

    @property
    def id(self) -> str:
        """The name of the version: the first 16 digits of its fingerprint."""
        return self.fingerprint[:16]

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits."""
        return str(self.facts["fingerprint"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by class index."""
        return tuple(self.facts["classes"])

    @property
    def storage(self) -> Storage:
        """The version's own objects."""
        return self.home.child(layout.version(self.id))

    def samples(self, receipt: Receipt) -> Iterator[Sample]:
        """Yield the samples of a shard, which is verified before the first one.

        Raises:
            CorruptionError: the shard is not what was published.
        """
        return read_shard(get_shard(self.home, receipt), receipt)

    def first_samples(
        self, count: int, class_indices: Sequence[int] | None = None
    ) -> list[list[Sample]]:
        """The first `count` samples of some classes; reads only the shards needed.

        Args:
            count: samples of each class.
            class_indices: the classes, in the order of the result; None for all by class index.

        Raises:
            CorruptionError: a shard differs from its receipt.
        """
        indices = range(len(self.classes)) if class_indices is None else class_indices
        by_class: dict[int, list[Sample]] = {index: [] for index in indices}
        for receipt in self.receipts():
            samples = by_class.get(receipt.class_index)
            if samples is not None and len(samples) < count:
                samples += islice(self.samples(receipt), count - len(samples))
            if all(len(found) == count for found in by_class.values()):
                break  # the receipts of further blocks are not needed
        return [by_class[index] for index in indices]

    def receipts(self) -> Iterator[Receipt]:
        """Yield the receipts of all shards, block by block.

        Raises:
            CorruptionError: a block is not what was published.
        """
        return (receipt for block in self.blocks for receipt in self.block_receipts(block))

    def block_receipts(self, block: Block) -> list[Receipt]:
        """The receipts of a block's shards, in the order of class and shard.

        Raises:
            CorruptionError: they are not what was published.
        """
        data = self._verified(block.receipts_key, block.receipts, BLOCK_REMEDY)
        return _RECEIPTS.validate_json(data)

    def block_index(self, block: Block, columns: Sequence[str]) -> pa.Table:
        """Some columns of the index of a block: a row for each image.

        Raises:
            CorruptionError: it is not what was published.
        """
        data = self._verified(block.index_key, block.index, BLOCK_REMEDY)
        return pq.read_table(pa.BufferReader(data), columns=list(columns))

    def prompt_part(self, name: str) -> pa.Table:
        """All rows of prompts/{name}.parquet.

        Raises:
            CorruptionError: the file, or prompts.json, is not what was published.
        """
        digest = self.prompt_digests().get(name)
        data = self._verified(layout.prompts(name), digest, PROMPTS_REMEDY)
        return pq.read_table(pa.BufferReader(data))

    def prompt_digests(self) -> dict[str, str]:
        """The sha256 of each part of the prompts by its name, from prompts.json.

        Raises:
            CorruptionError: prompts.json is not what was published.
        """
        parts: dict[str, str] = self.prompts_summary()["parts"]
        return parts

    def prompts_summary(self) -> dict[str, Any]:
        """The content of prompts.json: statistics of the prompts, and the sha256 of each part.

        Raises:
            CorruptionError: prompts.json is not what was published.
        """
        key = layout.PROMPTS_SUMMARY
        data = self._verified(key, self.facts.get("prompts"), PROMPTS_REMEDY)
        return parse_json(data, self.storage.location(key))

    def _verified(self, key: str, digest: str | None, remedy: str) -> bytes:
        """The bytes of an object of the version; `CorruptionError` unless they have this sha256."""
        try:
            data = self.storage.get(key)
        except MissingObject:
            data = b""  # the same error: no job writes it again
        if hashlib.sha256(data).hexdigest() != digest:
            where = self.storage.location(key)
            raise CorruptionError(f"{where}: is not what was published; {remedy}")
        return data

    def damaged_files(self) -> list[str]:
        """The keys of identity and data card that are missing or not what was published."""
        identity = hashlib.sha256(canonical(self.facts["identity"])).hexdigest()
        expected = {layout.IDENTITY: identity, layout.CARD: self.facts["card"]}
        return [key for key in expected if sha256_object(self.storage, key) != expected[key]]

    def damaged_blocks(self) -> list[Block]:
        """The blocks of which a file is missing or not what was published."""
        return [
            block
            for block in self.blocks
            if sha256_object(self.storage, block.receipts_key) != block.receipts
            or sha256_object(self.storage, block.index_key) != block.index
        ]


def open_version(home: Storage, name: str, sha256: str | None = None) -> PublishedVersion:
    """Open the published version `name` (16 digits) in the storage of a method.

    Args:
        sha256: the expected sha256 of version.json, if known (`current` knows it).

    Raises:
        CorruptionError: the version is not published (`MissingObject`), or its facts are damaged.
    """
    key = f"{layout.version(name)}/{layout.PUBLISHED}"
    data = home.get(key)
    facts = parse_json(data, home.location(key))
    try:
        # Without `sha256` nothing vouches for the bytes, so the content itself is checked.
        checked = _Facts.model_validate_json(data)
        digest = fingerprint(checked.identity)
        consistent = (
            checked.fingerprint == digest
            and digest[:16] == name
            and class_names(checked.identity) == list(checked.classes)
            and len({block.name for block in checked.blocks}) == len(checked.blocks)
            and len(checked.class_samples) == len(checked.class_failed) == len(checked.classes)
            and checked.shards == sum(block.shards for block in checked.blocks)
            and checked.samples == sum(block.samples for block in checked.blocks)
            and checked.samples == sum(checked.class_samples)
            and checked.failed == sum(checked.class_failed)
        )
    except (ValidationError, RecursionError):
        consistent = False
    if not consistent or (sha256 and hashlib.sha256(data).hexdigest() != sha256):
        raise CorruptionError(
            f"{home.location(key)}: is not what was published; "
            "restore it, or give another storage.root and synthesise again"
        )
    return PublishedVersion(home, facts, checked.blocks)


def current(home: Storage) -> PublishedVersion | None:
    """The version that readers use, or None before the first is published."""
    pointer = next(pointers(home), None)
    return open_version(home, pointer.version, pointer.sha256) if pointer else None


def current_id(home: Storage) -> str | None:
    """The id of the version that readers use, which is not read itself; None if there is none.
    Errors are those of `pointers`.
    """
    pointer = next(pointers(home), None)
    return pointer.version if pointer else None


def pointers(home: Storage) -> Iterator[Pointer]:
    """Yield the objects under `current/`, the newest first; `CorruptionError` if one names no
    version.
    """
    # Keys are listed in the order of their numbers, which all have eight digits.
    keys = [key for key in home.list(layout.CURRENT) if layout.POINTER.fullmatch(key)]
    for key in reversed(keys):
        try:
            pointer = read_as(_POINTER, home.get(key, SMALL_OBJECT))
        except ValueError:  # no JSON, or another one
            pointer = None
        if pointer is None or key != layout.pointer(pointer.number):
            raise CorruptionError(f"{home.location(key)}: names no version; restore or delete it")
        yield pointer


def advance(home: Storage, name: str, fence: Callable[[], object] = lambda: None) -> None:
    """Make the published version `name` current, unless it already is.

    Args:
        fence: called between the read of the newest pointer and the write of the next one; it
            raises if another process has taken over in the meantime.

    Raises:
        DfkdError: dfkd clean is removing the version, or has removed it.
    """
    digest = sha256_object(home, key := f"{layout.version(name)}/{layout.PUBLISHED}")
    if digest is None:
        raise missing_object(home.location(key))
    written = False
    while not written:
        newest = next(pointers(home), None)
        if newest and (newest.version, newest.sha256) == (name, digest):
            return
        fence()
        refuse_removal(home, name)
        # The write fails if another process has used the number. The newest pointer is read again
        # then, so concurrent calls are ordered and none is lost.
        number = newest.number + 1 if newest else 1
        data = canonical({"version": name, "sha256": digest, "number": number})
        written = home.put_if_absent(layout.pointer(number), data)


def refuse_removal(home: Storage, name: str) -> None:
    """Raise `DfkdError` if dfkd clean removes the version `name` or is about to.

    Garbage collection writes the mark and then checks the leases; a reader takes a lease and then
    checks the mark. At least one side sees the other, whatever the interleaving.
    """
    if home.exists(f"{layout.version(name)}/{layout.REMOVING}"):
        # Not the exit code 4: after a kill, only dfkd clean ends the removal.
        raise DfkdError(
            f"{home.location(layout.version(name))}: is being removed; "
            "run dfkd clean once more, then the same command again"
        )


def sha256_object(storage: Storage, key: str) -> str | None:
    """The sha256 of a stored object, or None if it does not exist; memory use is bounded."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "object")
        try:
            storage.get_file(key, path)
        except MissingObject:
            return None
        return sha256_file(path)


def read_json(storage: Storage, key: str) -> dict[str, Any]:
    """The mapping in a stored JSON file; `CorruptionError` if the file holds no mapping."""
    return parse_json(storage.get(key, SMALL_OBJECT), storage.location(key))


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """The mapping in JSON bytes; `CorruptionError` that names `where` if they hold no mapping."""
    try:
        tree, problem = strict_json.parse(data), ""
    except ValueError as error:
        tree, problem = None, f" ({error})"
    if not isinstance(tree, dict):
        raise CorruptionError(
            f"{where}: no readable JSON mapping{problem}; restore it, "
            "or give another storage.root and synthesise again"
        )
    return tree
