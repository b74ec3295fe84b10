"""The members of a tar whose headers are the very ones that `write_shard` writes.

Python's tarfile takes longer for the four headers of a sample than a decoder for its image. Here a
header is compared with what it must be, byte for byte, and whatever else a tar may hold is left to
tarfile.
"""

import tarfile
from collections.abc import Iterator

OWNER, MODE = "dfkd", 0o444
BLOCK = tarfile.BLOCKSIZE

_SIZE_FIELD = slice(124, 135)
"""Where a header has the member's size: 11 octal digits."""


def _template() -> bytes:
    info = tarfile.TarInfo("")
    info.mode, info.uname, info.gname = MODE, OWNER, OWNER
    return info.tobuf(tarfile.USTAR_FORMAT)


_TEMPLATE = _template()
_BEFORE_SIZE, _AFTER_SIZE, _AFTER_CHECKSUM = _TEMPLATE[100:124], _TEMPLATE[135:148], _TEMPLATE[156:]
"""What no member's header differs in: before the size, behind it, and behind the checksum."""
_BASE_CHECKSUM = sum(_BEFORE_SIZE) + sum(_AFTER_SIZE) + sum(_AFTER_CHECKSUM) + 8 * ord(" ")
"""The checksum of a header without name and size; its own field counts as blanks."""
_OCTAL_DIGITS = frozenset(b"01234567")
MAX_NAME_BYTES = 100


def members(data: bytes) -> list[tuple[str, slice]] | None:
    """Name and place in `data` of each member, in order; None if any byte outside of them differs.

    A last member that is cut short has a place that ends behind `data`.
    """
    found = []
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
        found.append((name.decode(), slice(begin, end)))
        start = end + -end % BLOCK
        if data[end:start].strip(b"\0"):
            return None
    return None if data[start:].strip(b"\0") else found


def member_slices(data: bytes) -> Iterator[tuple[str, slice]]:
    """Name and place of each member of a tar that is known to be whole: only its sizes are read.

    A place may end behind `data` where that is not so.

    Raises:
        ValueError: a size is no octal number, or a name is not ASCII.
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
