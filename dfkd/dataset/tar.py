"""The members of a shard's tar: of any tar by tarfile, and of verified bytes much faster."""

import io
import tarfile
from collections.abc import Iterator

MAX_NAME_BYTES = 100
"""Bytes at the start of a header that hold the member's name, padded with zeros."""
SIZE_FIELD = slice(124, 135)
"""Bytes of a header that hold the member's size: 11 octal digits."""


def members(data: bytes) -> Iterator[tuple[str, slice]]:
    """Yield name and slice of `data` of each member, in order.

    Raises:
        ValueError: no readable tar, or a member is not a plain file.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                # Before the next header is read: a negative size would lead back to this one.
                if not member.isreg() or member.issparse() or member.pax_headers:
                    raise ValueError(f"member {member.name[:80]!r} is not a plain file")
                yield member.name, slice(member.offset_data, member.offset_data + member.size)
    # tarfile raises the last three for a bad number in a header, a size that no file can have, and
    # a long chain of headers that describe the next one.
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"no readable tar ({error})") from None


def member_slices(data: bytes) -> Iterator[tuple[str, slice]]:
    """Yield name and slice of each member of bytes already verified against their hash.

    Only names and sizes are read, because tarfile needs more time for the headers of a sample than
    the decoder for its image. If the tar is not intact, a slice may end after the end of `data`.

    Raises:
        ValueError: a size is not an octal number, or a name is not ASCII.
    """
    start = 0
    while start < len(data) and data[start]:
        digits = data[start + SIZE_FIELD.start : start + SIZE_FIELD.stop]
        if not digits.isdigit():
            raise ValueError("a member without a size")
        name = data[start : start + MAX_NAME_BYTES].rstrip(b"\0")
        begin = start + tarfile.BLOCKSIZE
        end = begin + int(digits, 8)
        yield name.decode("ascii"), slice(begin, end)
        # Members are padded to whole blocks.
        start = end + -end % tarfile.BLOCKSIZE
