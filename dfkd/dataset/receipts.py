"""Receipts: the object beside a shard that says that it is complete.

The worker that made the shard writes it, with all that publication must know of each image, so that
nobody reads the shard again to publish it.
"""

import gzip
import zlib
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from dfkd.errors import CorruptionError
from dfkd.storage import layout
from dfkd.storage.base import SMALL_OBJECT, Storage
from dfkd.utils.strict_json import first_problem
from dfkd.utils.types import Finite, Int32, Int64, Sha256, Size


@dataclass(frozen=True)
class Receipt:
    """What is known of a complete shard. It holds no times: the same work gives the same receipt.

    Sums are rounded once (`math.fsum`), so they do not depend on the processor.
    """

    task: Annotated[str, Field(pattern=f"^{layout.TASK}$")]
    shard: str
    """Key of the shard within its version."""
    sha256: Sha256
    bytes: Size
    samples: Size
    failed: tuple[Size, ...]
    """Indices of the task's images that diverged and so are not in the shard."""
    fingerprint: Sha256
    """Fingerprint of the version."""
    labels: Size
    """Number of the teacher's distances in the shard, over all images and classes."""
    label_sum: Finite
    label_squares: Finite
    """Sums of these distances and of their squares."""
    inconsistent: Size
    """Number of images whose nearest class text is not that of their own class."""
    version: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")] = ""
    """Id of the version that holds a carried-over shard; empty if this version holds it itself."""

    @property
    def class_index(self) -> int:
        """The class of the task's images."""
        return int(self.task.partition("-")[0])

    @property
    def key(self) -> str:
        """Key of the shard in the storage of the method."""
        return f"{layout.version(self.version or self.fingerprint[:16])}/{self.shard}"


@dataclass(frozen=True)
class Images:
    """The columns of the index for the images of one shard, in the order of the tar."""

    index: list[Int64]
    seed: list[Int64]
    prompt: list[str]
    loss: list[Finite]
    confidence: list[Finite]
    steps: list[Int32]
    attempt: list[Int32]
    extension: list[Literal["png", "jpg"]]
    start: list[Size]
    """Offset of each image's first header in the shard."""
    sha256: list[Sha256]
    """Digests of the bytes from `start` to the next image's, or to the end of the shard."""


COLUMNS = tuple(field.name for field in fields(Images))


@dataclass(frozen=True)
class _Stored:
    """The content of the object."""

    receipt: Receipt
    images: Images


_STORED = TypeAdapter(_Stored)


def encode(receipt: Receipt, images: Images) -> bytes:
    """A receipt with its images as JSON, compressed with gzip."""
    return gzip.compress(_STORED.dump_json(_Stored(receipt, images)), mtime=0)


def decode(data: bytes, where: str) -> tuple[Receipt, Images]:
    """The receipt and the images that `encode` wrote.

    Raises:
        CorruptionError: `data`, which comes from `where`, is nothing that `encode` writes.
    """
    try:
        # A stranger may have made it of any size.
        stream = zlib.decompressobj(wbits=31)  # gzip's
        content = stream.decompress(data, SMALL_OBJECT)
        if not stream.eof or stream.unused_data:
            raise ValueError("no whole gzip file of one receipt")
        # Not `read_as`, which parses in Python too: a publisher may read millions of these.
        stored = _STORED.validate_json(content, strict=True)
        for name in COLUMNS:
            if (found := len(getattr(stored.images, name))) != stored.receipt.samples:
                raise ValueError(f"images.{name}: {found} of {stored.receipt.samples} images")
    except ValidationError as error:
        problem = "{}: {}".format(*first_problem(error))
    except (ValueError, zlib.error) as error:
        problem = str(error)
    else:
        return stored.receipt, stored.images
    raise CorruptionError(
        f"{where}: not a receipt ({problem}); delete it and run the same command again"
    )


def read(storage: Storage, key: str, fingerprint: str) -> tuple[Receipt, Images]:
    """The receipt under a key of a version's storage, with its images.

    Raises:
        CorruptionError: there is none (`MissingObject`), or it is about another task or version.
    """
    receipt, images = decode(storage.get(key, SMALL_OBJECT), storage.location(key))
    if key != layout.receipt(receipt.task) or receipt.fingerprint != fingerprint:
        raise CorruptionError(
            f"{storage.location(key)}: is about task {receipt.task} of version "
            f"{receipt.fingerprint[:16]}; delete it and run the same command again"
        )
    return receipt, images
