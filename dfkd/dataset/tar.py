"""The members of a shard's tar: of any bytes with every header checked, of verified ones faster."""

import struct
import tarfile
from collections.abc import Iterator

PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)
"""Kinds of a member that is a plain file."""
HEADER = struct.Struct("100s 24x 11s")
"""The member's name, padded with zeros, and its size: 11 octal digits."""


def members(data: bytes) -> Iterator[tuple[str, slice]]:
    """Yield name and slice of `data` of each member, in order.

    Raises:
        ValueError: no readable tar, a member is no plain file, or something follows the last one.
    """
    end = 0
    try:
        for name, content in member_slices(data):
            header = data[content.start - tarfile.BLOCKSIZE : content.start]
            member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
            # A prefix or a longer size, which only some programs read, would mean another file.
            same = member.name.encode() == name and member.size == content.stop - content.start
            if member.type not in PLAIN or not same:
                raise ValueError(f"member {member.name[:80]!r} is not a plain file")
            end = content.stop
            yield member.name, content
    except (tarfile.TarError, ValueError) as error:
        raise ValueError(f"no readable tar ({error})") from None
    # A header that begins with a zero counts as the end of the archive.
    if data[end:].strip(b"\0"):
        raise ValueError("unreadable bytes after the last member")


def member_slices(data: bytes | bytearray) -> Iterator[tuple[bytes, slice]]:
    """Yield name and slice of each member of bytes that are verified already.

    Only names and sizes are read, because the headers of a sample take tarfile 25 times as long. If
    the tar is not intact, a slice may end after the end of `data`.

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
