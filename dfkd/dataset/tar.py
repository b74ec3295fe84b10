"""A fast parser for tars whose headers are exactly those that `write_shard` writes.

Python's tarfile needs more time for the four headers of a sample than the decoder for its image.
This parser compares each header byte for byte with the expected one; every other tar is left to
tarfile.
"""

import tarfile
from collections.abc import Iterator

OWNER, MODE = "dfkd", 0o444
BLOCK = tarfile.BLOCKSIZE

_SIZE_FIELD = slice(124, 135)
"""Bytes of a header that hold the size of the member: 11 octal digits."""


def _template() -> bytes:
    """The header of an empty member without a name."""
    info = tarfile.TarInfo("")
    info.mode, info.uname, info.gname = MODE, OWNER, OWNER
    return info.tobuf(tarfile.USTAR_FORMAT)


_TEMPLATE = _template()
_BEFORE_SIZE, _AFTER_SIZE, _AFTER_CHECKSUM = _TEMPLATE[100:124], _TEMPLATE[135:148], _TEMPLATE[156:]
"""Header bytes that are the same for all members: before the size, after it, after the checksum."""
_BASE_CHECKSUM = sum(_BEFORE_SIZE) + sum(_AFTER_SIZE) + sum(_AFTER_CHECKSUM) + 8 * ord(" ")
"""Checksum of a header without name and size; the checksum field itself counts as blanks."""
_OCTAL_DIGITS = frozenset(b"01234567")
MAX_NAME_BYTES = 100


def members(data: bytes) -> list[tuple[str, slice]] | None:
    """Name and slice of `data` of each member, in order; None if any other byte is unexpected.

    The slice of a truncated last member ends after the end of `data`.
    """
    slices = []
    start = 0
    while start < len(data) and data[start]:
        name = data[start : start + MAX_NAME_BYTES].rstrip(b"\0")
        digits = data[start + _SIZE_FIELD.start : start + _SIZE_FIELD.stop]
        begin = start + BLOCK
        if not (name.isascii() and _OCTAL_DIGITS.issuperset(digits)):
            return None
        if data[start:begin] != _header(name, digits):
            return None
        end = begin + int(digits, 8)
        slices.append((name.decode(), slice(begin, end)))
        # `write_shard` pads members with zeros to whole blocks; a tar with other bytes is not ours.
        start = end + -end % BLOCK
        if data[end:start].strip(b"\0"):
            return None
    return None if data[start:].strip(b"\0") else slices


def member_slices(data: bytes) -> Iterator[tuple[str, slice]]:
    """Yield name and slice of each member of a tar already verified; only names and sizes are read.

    If the tar is not intact, a slice may end after the end of `data`.

    Raises:
        ValueError: a size is not an octal number, or a name is not ASCII.
    """
    start = 0
    while start < len(data) and data[start]:
        digits = data[start + _SIZE_FIELD.start : start + _SIZE_FIELD.stop]
        if not digits.isdigit():
            raise ValueError("a member without a size")
        name = data[start : start + MAX_NAME_BYTES].rstrip(b"\0")
        begin = start + BLOCK
        end = begin + int(digits, 8)
        yield name.decode("ascii"), slice(begin, end)
        start = end + -end % BLOCK


def _header(name: bytes, digits: bytes) -> bytes:
    """The header of a member whose size is written as `digits`."""
    checksum = b"%06o\0 " % (_BASE_CHECKSUM + sum(name) + sum(digits))
    return b"".join(
        (
            name.ljust(MAX_NAME_BYTES, b"\0"),
            _BEFORE_SIZE,
            digits,
            _AFTER_SIZE,
            checksum,
            _AFTER_CHECKSUM,
        )
    )
