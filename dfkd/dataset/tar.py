"""The members of a shard's tar: of any tar by tarfile, and of verified bytes much faster."""

import io
import struct
import tarfile
from collections.abc import Iterator

KIND = 156
"""Place of a header's byte for the kind of the member."""
HEADER = struct.Struct("100s 24x 11s")
"""The member's name, padded with zeros, and its size: 11 octal digits."""


def members(data: bytes) -> Iterator[tuple[str, slice]]:
    """Yield name and slice of `data` of each member, in order.

    Raises:
        ValueError: no readable tar, a member is no plain file, or something follows the last one.
    """
    end = 0
    try:
        _require_plain(data)
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                # Before the next header is read: a negative size would lead back to this one.
                if not member.isreg() or member.issparse() or member.pax_headers:
                    raise ValueError(f"member {member.name[:80]!r} is not a plain file")
                end = member.offset_data + member.size
                yield member.name, slice(member.offset_data, end)
    # tarfile raises the last three for a bad number in a header, a size that no file can have, and
    # a long chain of headers that describe the next one.
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"no readable tar ({error})") from None
    # tarfile takes a header that it cannot read for the end of the archive.
    if data[end:].strip(b"\0"):
        raise ValueError("unreadable bytes after the last member")


def _require_plain(data: bytes) -> None:
    """Raise `ValueError` if a member is no plain file.

    tarfile would first read the headers that describe another one, for which some releases of
    Python need hours (CVE-2024-6232).
    """
    for name, content in member_slices(data):
        if data[content.start - tarfile.BLOCKSIZE + KIND] not in b"0\0":
            shown = name.decode(errors="replace")[:80]
            raise ValueError(f"member {shown!r} is not a plain file")


def member_slices(data: bytes | bytearray) -> Iterator[tuple[bytes, slice]]:
    """Yield name and slice of each member of bytes that are verified already.

    Only names and sizes are read, because tarfile needs more time for the headers of a sample than
    the decoder for its image. If the tar is not intact, a slice may end after the end of `data`.

    Raises:
        ValueError: a header is cut, or a size is not an octal number.
    """
    start = 0
    while start < len(data) and data[start]:
        begin = start + tarfile.BLOCKSIZE
        if begin > len(data):
            raise ValueError("a header is cut")
        name, digits = HEADER.unpack_from(data, start)
        if not digits.isdigit():
            raise ValueError("a member without a size")
        end = begin + int(digits, 8)
        yield name.rstrip(b"\0"), slice(begin, end)
        # Members are padded to whole blocks.
        start = end + -end % tarfile.BLOCKSIZE
