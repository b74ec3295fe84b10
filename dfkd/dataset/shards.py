"""Samples to tar and back: byte-deterministic WebDataset shards that hold no pickles.

A shard with a flipped bit, or cut at the boundary of two members, reads without any error. So a
reader checks bytes, sha256 and count against the shard's receipt before it yields anything.
"""

import functools
import hashlib
import io
import math
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter, ValidationError
from webdataset import TarWriter

from dfkd.dataset import tar as plain_tar
from dfkd.dataset.tar import MODE, OWNER
from dfkd.errors import CorruptionError
from dfkd.storage import layout
from dfkd.utils import strict_json
from dfkd.utils.strict_json import canonical
from dfkd.utils.types import Sha256, Size

Array = npt.NDArray[Any]

METADATA: dict[str, type] = {
    "class": str,
    "class_index": int,
    "index": int,
    "seed": int,
    "method": str,
    "prompt": str,
    "loss": float,
    "confidence": float,
    "steps": int,
    "attempt": int,
}
"""What every sample says about itself; more keys are allowed, fewer are not."""

ARRAYS: dict[str, np.dtype[Any]] = {"distances": np.dtype("<f4"), "embedding": np.dtype("<f2")}
"""The arrays of a sample: M distances of the teacher, and its image embedding (E)."""

ARRAY_FILES = {f"{name}.npy": dtype for name, dtype in ARRAYS.items()}
NPY_HEADER_BYTES = 128
"""Bytes before the values of an array with one axis."""

EXTENSIONS = {"png", "jpg"}
REQUIRED = {"json", *ARRAY_FILES}
MEMBER_NAME = re.compile(rf"(?P<key>[A-Za-z0-9_-]+)\.(?P<suffix>{'|'.join(EXTENSIONS | REQUIRED)})")
MAX_MEMBER_BYTES = 64 << 20
"""Bytes; an image or array of one sample is far smaller."""

END_MARK_BYTES = 2 * tarfile.BLOCKSIZE
"""Bytes of zeros that end a tar; without them it was cut, perhaps where no reader notices."""


@dataclass(frozen=True)
class Sample:
    """One synthesised image and all that is known about it."""

    key: str
    image: bytes
    """Encoded, as `extension` says."""
    extension: str
    """`png` or `jpg`."""
    metadata: dict[str, Any]
    """JSON values; the keys of `METADATA` at least."""
    arrays: dict[str, Array]
    """`distances` float32 [M], `embedding` float16 [E]."""


@dataclass(frozen=True)
class SampleLocation:
    """Where a sample lies in its shard, and what is there."""

    start: int
    """Of the sample's first header. The sample ends where the next one starts; the last one ends
    with the shard, whose end mark belongs to it."""
    sha256: bytes
    """Of the bytes from there to the sample's end."""


@dataclass(frozen=True, slots=True)
class Example:
    """What a student learns from: a part of a sample."""

    key: str
    image: bytes
    extension: str
    distances: Array
    """float32 [M]."""


@dataclass(frozen=True)
class Receipt:
    """The small object that says a shard is complete. No times: the same work, the same receipt."""

    task: Annotated[str, Field(pattern="^[0-9]{4,9}-[0-9]{5,9}$")]
    shard: str
    """The shard's key within its version."""
    sha256: Sha256
    bytes: Size
    samples: Size
    failed: tuple[Size, ...]
    """Image indices of the task that diverged and are not in the shard."""
    fingerprint: Sha256
    """Of the version."""
    version: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")] = ""
    """Id of another version that holds the shard, which this one has carried over; empty is own."""

    @property
    def key(self) -> str:
        """The shard's key under the method's storage."""
        return f"{layout.version(self.version or self.fingerprint[:16])}/{self.shard}"

    def as_dict(self) -> dict[str, Any]:
        """All fields, but `version` only where it says something."""
        fields = asdict(self)
        return fields if self.version else {k: v for k, v in fields.items() if k != "version"}


_RECEIPT_ADAPTER = TypeAdapter(Receipt)
"""Made once: making it takes longer than reading a receipt with it."""


def encode_receipt(receipt: Receipt) -> bytes:
    """The receipt as JSON bytes, the same for the same receipt."""
    return canonical(receipt.as_dict())


def decode_receipt(data: bytes, where: str) -> Receipt:
    """The receipt in `data`; `CorruptionError` naming `where` if it is none."""
    try:
        strict_json.parse(data)
        return _RECEIPT_ADAPTER.validate_json(data, strict=True)
    except ValueError as error:
        first = error.errors(include_url=False)[0] if isinstance(error, ValidationError) else None
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise CorruptionError(
            f"{where}: not a receipt ({problem}); delete it and synthesise its task again"
        ) from None


def write_shard(samples: Iterable[Sample], path: Path) -> int:
    """Write the samples, sorted by key, as a tar at `path`; returns how many there are.

    The bytes depend on the samples alone.

    Raises:
        ValueError: a sample breaks the format (the caller's defect, so no `DfkdError`).
    """
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
    problem = _problem(sample.metadata, sample.arrays)
    if problem:
        raise ValueError(f"sample {sample.key!r}: {problem}")
    members = {sample.extension: sample.image, "json": canonical(sample.metadata)}
    for name, array in sample.arrays.items():
        members[f"{name}.npy"] = _npy(np.ascontiguousarray(array))
    for suffix, data in members.items():
        if not MEMBER_NAME.fullmatch(f"{sample.key}.{suffix}") or len(data) > MAX_MEMBER_BYTES:
            raise ValueError(
                f"sample {sample.key!r}: no such member {suffix!r} ({len(data)} bytes)"
            )
    return members


def _problem(metadata: Mapping[str, Any], arrays: Mapping[str, Array]) -> str | None:
    for key, kind in METADATA.items():
        if type(metadata.get(key)) is not kind:
            return f"metadata {key!r} must be {kind.__name__}, is {metadata.get(key)!r}"
        if kind is float and not math.isfinite(metadata[key]):
            return f"metadata {key!r} must be finite, is {metadata[key]!r}"
    if arrays.keys() != ARRAYS.keys():
        return f"arrays must be {sorted(ARRAYS)}, are {sorted(arrays)}"
    for name, dtype in ARRAYS.items():
        if arrays[name].dtype != dtype or arrays[name].ndim != 1:
            found = f"{arrays[name].dtype} with {arrays[name].ndim} axes"
            return f"array {name!r} must be {dtype} with 1 axis, is {found}"
        if not np.isfinite(arrays[name]).all():
            return f"array {name!r} must be finite"
    return None


def read_shard(source: Path | bytes, receipt: Receipt) -> Iterator[Sample]:
    """The samples of a shard, after its bytes, sha256 and sample count agree with the receipt.

    Raises:
        CorruptionError: they do not, or a member is none that `write_shard` writes.
    """
    return (sample for sample, _ in read_located(source, receipt))


def read_located(source: Path | bytes, receipt: Receipt) -> Iterator[tuple[Sample, SampleLocation]]:
    """What `read_shard` yields, each sample with its place in the shard."""
    data = source if isinstance(source, bytes) else source.read_bytes()
    verify_bytes(data, receipt)
    for sample, place in _placed(data, receipt.shard, receipt.samples):
        digest = hashlib.sha256(memoryview(data)[place]).digest()
        yield sample, SampleLocation(place.start, digest)


def verify_bytes(data: bytes, receipt: Receipt) -> None:
    """Raise `CorruptionError` unless `data` has the receipt's size and sha256."""
    if len(data) > receipt.bytes:
        _refuse(receipt.shard, f"more than the {receipt.bytes} bytes that its receipt says")
    if len(data) < receipt.bytes:
        _refuse(receipt.shard, f"{len(data)} bytes, its receipt says {receipt.bytes}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != receipt.sha256:
        _refuse(receipt.shard, f"sha256 {digest[:12]}.., its receipt says {receipt.sha256[:12]}..")


def parse_shard(data: bytes, name: str, count: int | None = None) -> Iterator[Sample]:
    """The samples in a tar's bytes; `name` is for messages, `count` is checked before the first."""
    return (sample for sample, _ in _placed(data, name, count))


def _placed(data: bytes, name: str, count: int | None) -> Iterator[tuple[Sample, slice]]:
    """Each sample and where its bytes lie; together these places are the whole tar."""
    if (
        len(data) % tarfile.RECORDSIZE
        or data[-END_MARK_BYTES:].strip(b"\0")
        or len(data) < END_MARK_BYTES
    ):
        _refuse(name, f"{len(data)} bytes without the end mark of a tar")
    groups = _groups(plain_tar.members(data) or _members(data, name), name)
    if count is not None and len(groups) != count:
        _refuse(name, f"{len(groups)} samples, its receipt says {count}")
    start = 0
    for number, (key, places) in enumerate(groups.items(), start=1):
        end = max(place.stop for place in places.values())
        stop = len(data) if number == len(groups) else end + -end % tarfile.BLOCKSIZE
        yield _decode(data, name, key, places), slice(start, stop)
        start = stop


def parse_example(data: bytes, sha256: bytes, name: str) -> Example:
    """The example in the bytes of one sample of shard `name`.

    Whoever wrote `sha256` has checked all that is in these bytes, so its JSON and numbers are not
    checked again.

    Raises:
        CorruptionError: they hash to something else, or are no sample.
    """
    digest = hashlib.sha256(data).digest()
    if digest != sha256:
        sums = f"sha256 {digest.hex()[:12]}.., the index says {sha256.hex()[:12]}.."
        _refuse(name, f"a sample of {len(data)} bytes with {sums}")
    try:
        files = {}
        for member, place in plain_tar.member_slices(data):
            key, _, suffix = member.partition(".")
            files[suffix] = data[place]
        (extension,) = files.keys() & EXTENSIONS
        distances = np.frombuffer(
            files["distances.npy"], ARRAYS["distances"], offset=NPY_HEADER_BYTES
        )
    except (ValueError, KeyError) as error:
        _refuse(name, f"not the members of a sample ({error})")
    return Example(key, files[extension], extension, distances)


def _groups(members: Iterable[tuple[str, slice]], name: str) -> dict[str, dict[str, slice]]:
    """Where the members of each sample lie, by their suffixes."""
    groups: dict[str, dict[str, slice]] = {}
    last = None
    for member, place in members:
        match = MEMBER_NAME.fullmatch(member)
        if not match:
            _refuse(name, f"member {member[:80]!r} is not a plain file of a sample")
        if place.stop - place.start > MAX_MEMBER_BYTES:
            size = place.stop - place.start
            _refuse(name, f"member {member!r} has {size} bytes, at most {MAX_MEMBER_BYTES}")
        if match["key"] in groups and match["key"] != last:
            _refuse(name, f"the members of sample {match['key']!r} are not side by side")
        last = match["key"]
        group = groups.setdefault(last, {})
        if match["suffix"] in group:
            _refuse(name, f"member {member!r} is there twice")
        group[match["suffix"]] = place
    return groups


def _members(data: bytes, name: str) -> Iterator[tuple[str, slice]]:
    """Name and place of each member of a tar that is not as `write_shard` writes them."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for each in tar:
                if not each.isreg() or each.issparse() or each.pax_headers:
                    _refuse(name, f"member {each.name[:80]!r} is not a plain file of a sample")
                yield each.name, slice(each.offset_data, each.offset_data + each.size)
    except (tarfile.TarError, ValueError) as error:  # the latter of numbers in a sparse file
        _refuse(name, f"no readable tar ({error})")


def _decode(data: bytes, name: str, key: str, places: Mapping[str, slice]) -> Sample:
    files = {suffix: _content(data, place, name, key) for suffix, place in places.items()}
    extensions = files.keys() & EXTENSIONS
    if len(extensions) != 1 or files.keys() - extensions != REQUIRED:
        wanted = f"not {sorted(REQUIRED)} and one image"
        _refuse(name, f"sample {key!r} has members {sorted(files)}, {wanted}")
    try:
        metadata = strict_json.parse(files["json"])
        arrays = {kind: _array(kind, files[f"{kind}.npy"]) for kind in ARRAYS}
    except ValueError as error:
        _refuse(name, f"sample {key!r}: {error}")
    problem = (
        _problem(metadata, arrays) if isinstance(metadata, dict) else "metadata is not a mapping"
    )
    if problem:
        _refuse(name, f"sample {key!r}: {problem}")
    (extension,) = extensions
    return Sample(key, files[extension], extension, metadata, arrays)


def _content(data: bytes, place: slice, name: str, key: str) -> bytes:
    content, size = data[place], place.stop - place.start
    if len(content) != size:
        _refuse(name, f"a member of sample {key!r} is cut at {len(content)} of {size} bytes")
    return content


def _npy(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _array(name: str, content: bytes) -> Array:
    """The array in an .npy file, which must be the very bytes that `_npy` gives for its values.

    NumPy's own reader allocates what a header claims and parses it as Python.
    """
    dtype = ARRAYS[name]
    count, rest = divmod(len(content) - NPY_HEADER_BYTES, dtype.itemsize)
    if count < 0 or rest or content[:NPY_HEADER_BYTES] != _npy_header(name, count):
        raise ValueError(f"{name}.npy is no plain array of {dtype} with 1 axis")
    return np.frombuffer(content, dtype, offset=NPY_HEADER_BYTES).copy()


@functools.lru_cache
def _npy_header(name: str, count: int) -> bytes:
    return _npy(np.zeros(count, ARRAYS[name]))[:NPY_HEADER_BYTES]


def _refuse(name: str, difference: str) -> NoReturn:
    raise CorruptionError(
        f"shard {name}: {difference}; restore the file, "
        "or delete the version and synthesise it again"
    )
