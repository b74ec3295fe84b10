"""Write and read shards: byte-deterministic WebDataset tars without pickles.

A tar with a flipped bit, or one truncated between two members, reads without an error. So a reader
compares size and sha256 with the receipt before it yields the first sample.
"""

import functools
import hashlib
import io
import math
import re
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from dfkd.config.plan import Task
from dfkd.dataset.receipts import COLUMNS, Images, Receipt
from dfkd.dataset.tar import members
from dfkd.errors import CorruptionError
from dfkd.storage import layout
from dfkd.storage.base import MissingObject, Storage
from dfkd.utils.strict_json import canonical, read_as
from dfkd.utils.types import Finite, Int32, Int64

Array = npt.NDArray[Any]
T = TypeVar("T")

Metadata = TypedDict(
    "Metadata",
    {
        "class": str,
        "class_index": Int32,
        "index": Int64,
        "seed": Int64,
        "method": str,
        "prompt": str,
        "loss": Finite,
        "confidence": Finite,
        "steps": Int32,
        "attempt": Int32,
    },
)
"""Required metadata of a sample; further keys are allowed."""
Metadata.__pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[attr-defined]
_METADATA: TypeAdapter[Any] = TypeAdapter(Metadata)

ARRAYS: dict[str, np.dtype[Any]] = {"distances": np.dtype("<f4"), "embedding": np.dtype("<f2")}
"""Arrays of a sample: the teacher's distances [M] and its image embedding [E]."""

ARRAY_FILES = {f"{name}.npy": dtype for name, dtype in ARRAYS.items()}
NPY_HEADER_BYTES = 128
"""Bytes of an .npy file before the values, for an array with one axis."""

EXTENSIONS = {"png", "jpg"}
REQUIRED = {"json", *ARRAY_FILES}
OWNER, MODE = "dfkd", 0o444
"""Owner, group and permissions of every member."""
MEMBER_NAME = re.compile(rf"(?P<key>[A-Za-z0-9_-]+)\.(?P<suffix>{'|'.join(EXTENSIONS | REQUIRED)})")
MAX_MEMBER_BYTES = 64 << 20
"""Largest member in bytes; the image or an array of a sample is far smaller."""

END_MARK_BYTES = 2 * tarfile.BLOCKSIZE
"""Zero bytes at the end of a tar; if they are missing, the tar is truncated."""


@dataclass(frozen=True)
class Sample:
    """One synthesised image with its metadata and arrays."""

    key: str
    image: bytes
    """The image file, in the format that `extension` names."""
    extension: str
    """`png` or `jpg`."""
    metadata: dict[str, Any]
    """JSON values, with at least the keys of `Metadata`."""
    arrays: dict[str, Array]
    """`distances` float32 [M], `embedding` float16 [E]."""

    def decoded(self, decode: Callable[[bytes], T]) -> T:
        """The result of `decode` on the image file; its `ValueError` is a `CorruptionError`."""
        try:
            return decode(self.image)
        except ValueError as error:
            raise CorruptionError(
                f"image {self.key} cannot be read ({error}); synthesise it again"
            ) from None


@dataclass(frozen=True)
class MadeShard:
    """The content of a shard that has been written."""

    samples: list[Sample]
    failed: tuple[int, ...] = ()
    """Indices of the task's images that diverged at every attempt."""


def sample_key(class_index: int, index: int) -> str:
    """The WebDataset key of an image; it has no dot, because WebDataset splits names there."""
    return f"{class_index:04d}-{index:07d}"


def write_shard(samples: Iterable[Sample], path: Path) -> int:
    """Write the samples, sorted by key, as a tar at `path`; returns their number.

    The bytes depend on the samples only.

    Raises:
        ValueError: a sample breaks the format; that is a bug of the caller, so not a `DfkdError`.
    """
    from webdataset import TarWriter  # here, because it imports torch, which readers do not need

    # Order, owner and times are fixed, so the same samples give the same bytes on every machine.
    ordered = sorted(samples, key=lambda sample: sample.key)
    if len({sample.key for sample in ordered}) < len(ordered):
        raise ValueError("two samples of a shard have the same key")
    with (
        path.open("wb") as stream,
        TarWriter(stream, user=OWNER, group=OWNER, mode=MODE, mtime=0, encoder=False) as tar,
    ):
        for sample in ordered:
            tar.write({"__key__": sample.key, **_encode(sample)})
    return len(ordered)


def _encode(sample: Sample) -> dict[str, bytes]:
    """The members of a sample by suffix; `ValueError` if it breaks the format."""
    _check_arrays(sample.arrays)
    metadata = canonical(_METADATA.validate_python(sample.metadata))
    members = {sample.extension: sample.image, "json": metadata}
    for name, array in sample.arrays.items():
        members[f"{name}.npy"] = _npy(np.ascontiguousarray(array))
    for suffix, data in members.items():
        if not MEMBER_NAME.fullmatch(f"{sample.key}.{suffix}") or len(data) > MAX_MEMBER_BYTES:
            raise ValueError(
                f"sample {sample.key!r}: no such member {suffix!r} ({len(data)} bytes)"
            )
    return members


def _check_arrays(arrays: Mapping[str, Array]) -> None:
    """Raise `ValueError` unless the arrays of a sample are as in `ARRAYS`, and finite."""
    if arrays.keys() != ARRAYS.keys():
        raise ValueError(f"arrays must be {sorted(ARRAYS)}, are {sorted(arrays)}")
    for name, dtype in ARRAYS.items():
        if arrays[name].dtype != dtype or arrays[name].ndim != 1:
            actual = f"{arrays[name].dtype} with {arrays[name].ndim} axes"
            raise ValueError(f"array {name!r} must be {dtype} with 1 axis, is {actual}")
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"array {name!r} must be finite")


def get_shard(home: Storage, receipt: Receipt) -> bytes:
    """The stored bytes of a shard, unverified, from the storage of its method.

    Of a longer object it reads one byte more than the receipt says, which shows that it is longer.

    Raises:
        CorruptionError: there is no such object.
    """
    try:
        return home.get(receipt.key, receipt.bytes + 1)
    except MissingObject:
        refuse(receipt.key, "missing")


def describe(
    data: bytes, task: Task, fingerprint: str, failed: Collection[int], where: str
) -> tuple[Receipt, Images]:
    """The receipt of a shard's bytes, and what the index says of its images.

    Args:
        fingerprint: that of the version.
        failed: the task's images that may be missing; an earlier attempt may have made them.
        where: the shard's location, for messages.

    Raises:
        CorruptionError: `write_shard` does not write such bytes, or they are not the task's images.
    """
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    values: list[float] = []
    inconsistent = 0
    # All samples are parsed and not only counted, so that a receipt never vouches for a shard that
    # no reader can open.
    missing = {sample_key(task.class_index, index): index for index in task.indices}
    for sample, span in _samples_with_slices(data, where):
        own = sample.metadata["class_index"], sample.metadata["index"]
        if (task.class_index, missing.pop(sample.key, None)) != own:
            raise CorruptionError(
                f"{where}: sample {sample.key!r} is not of this task; delete it, run again"
            )
        digest = hashlib.sha256(memoryview(data)[span]).hexdigest()
        place = {"start": span.start, "sha256": digest}
        row = sample.metadata | {"extension": sample.extension} | place
        for name, column in columns.items():
            column.append(row[name])
        distances = sample.arrays["distances"]
        inconsistent += int(not distances.size or distances.argmin() != task.class_index)
        values += distances.tolist()
    absent = tuple(missing.values())
    if not set(absent) <= set(failed):
        raise CorruptionError(
            f"{where}: images {absent} are not in it, but {tuple(sorted(failed))} failed; "
            "delete it, run again"
        )
    receipt = Receipt(
        task=task.id,
        shard=layout.shard(task.id),
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        samples=len(columns["index"]),
        failed=absent,
        fingerprint=fingerprint,
        labels=len(values),
        label_sum=math.fsum(values),
        label_squares=math.fsum(value * value for value in values),
        inconsistent=inconsistent,
    )
    return receipt, Images(**columns)


def read_shard(data: bytes, receipt: Receipt) -> Iterator[Sample]:
    """Yield each sample of a shard, once the bytes match the receipt.

    Raises:
        CorruptionError: size or sha256 do not match, or `write_shard` would not write such a
            member.
    """
    if len(data) != receipt.bytes or hashlib.sha256(data).hexdigest() != receipt.sha256:
        expected = f"{receipt.bytes} bytes with sha256 {receipt.sha256[:12]}.."
        refuse(receipt.key, f"is not what its receipt says, {expected}")
    yield from parse_shard(data, receipt.key)


def parse_shard(data: bytes, name: str) -> Iterator[Sample]:
    """Yield each sample in the bytes of a tar; `name` is the shard's in error messages."""
    return (sample for sample, _ in _samples_with_slices(data, name))


def _samples_with_slices(data: bytes, name: str) -> Iterator[tuple[Sample, slice]]:
    """Yield each sample with the slice of its bytes; the slices together cover the whole tar."""
    # A tar that is cut between two members has no other mark of it.
    if not data or len(data) % tarfile.RECORDSIZE or data[-END_MARK_BYTES:].strip(b"\0"):
        refuse(name, f"{len(data)} bytes without the end mark of a tar")
    # The slices of each sample's members: by key of the sample, then by suffix.
    groups: dict[str, dict[str, slice]] = {}
    last = None
    try:
        for member, span in members(data):
            match, size = MEMBER_NAME.fullmatch(member), span.stop - span.start
            if not match:
                refuse(name, f"member {member[:80]!r} is not a plain file of a sample")
            if size > MAX_MEMBER_BYTES:
                refuse(name, f"member {member!r} has {size} bytes, at most {MAX_MEMBER_BYTES}")
            if span.stop > len(data):
                refuse(name, f"member {member!r} is cut")
            # A sample is one range of bytes, so its members must be adjacent.
            if match["key"] in groups and match["key"] != last:
                refuse(name, f"the members of sample {match['key']!r} are not side by side")
            last = match["key"]
            group = groups.setdefault(last, {})
            if match["suffix"] in group:
                refuse(name, f"member {member!r} is there twice")
            group[match["suffix"]] = span
    except ValueError as error:
        refuse(name, str(error))
    start = 0
    for number, (key, slices) in enumerate(groups.items(), start=1):
        end = max(span.stop for span in slices.values())
        # The last sample includes the end mark, so that no byte of the tar is without a hash.
        stop = len(data) if number == len(groups) else end + -end % tarfile.BLOCKSIZE
        yield _decode(data, name, key, slices), slice(start, stop)
        start = stop


def _decode(data: bytes, name: str, key: str, slices: Mapping[str, slice]) -> Sample:
    """The sample in its members; `CorruptionError` if `write_shard` would not write it so."""
    files = {suffix: data[span] for suffix, span in slices.items()}
    extensions = files.keys() & EXTENSIONS
    if len(extensions) != 1 or files.keys() - extensions != REQUIRED:
        refuse(name, f"sample {key!r}: {sorted(files)} are not {sorted(REQUIRED)} and one image")
    try:
        metadata = read_as(_METADATA, files["json"])
        arrays = {kind: _array(kind, files[f"{kind}.npy"]) for kind in ARRAYS}
        _check_arrays(arrays)
    except ValueError as error:
        refuse(name, f"sample {key!r}: {error}")
    (extension,) = extensions
    return Sample(key, files[extension], extension, metadata, arrays)


def _npy(array: Array) -> bytes:
    """The array as an .npy file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _array(name: str, content: bytes) -> Array:
    """The array in an .npy file whose header must be exactly the one that `_npy` writes.

    NumPy's own reader evaluates the header as Python and allocates the size that it claims.
    """
    dtype = ARRAYS[name]
    count, rest = divmod(len(content) - NPY_HEADER_BYTES, dtype.itemsize)
    if count < 0 or rest or content[:NPY_HEADER_BYTES] != _npy_header(name, count):
        raise ValueError(f"{name}.npy is no plain array of {dtype} with 1 axis")
    return np.frombuffer(content, dtype, offset=NPY_HEADER_BYTES).copy()


@functools.lru_cache
def _npy_header(name: str, count: int) -> bytes:
    """The header of the .npy file of an array with `count` values."""
    return _npy(np.zeros(count, ARRAYS[name]))[:NPY_HEADER_BYTES]


def refuse(name: str, difference: str) -> NoReturn:
    """Raise the `CorruptionError` for a shard that is not what it should be."""
    raise CorruptionError(
        f"shard {name}: {difference}; restore the file, "
        "or delete the version and synthesise it again"
    )
