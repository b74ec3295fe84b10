"""The members of a tar whose headers are the very ones that `write_shard` writes.

Python's tarfile takes longer for the four headers of a sample than a decoder for its image. Here a
header is compared with what it must be, byte for byte, and whatever else a tar may hold is left to
tarfile.
"""

import tarfile

OWNER, MODE = "dfkd", 0o444
BLOCK = tarfile.BLOCKSIZE

NAME, SIZE, SUM = slice(0, 100), slice(124, 135), slice(148, 156)
"""Of a header, what differs from member to member: text, and octal numbers of 11 and 6 digits."""


def _template() -> bytes:
    info = tarfile.TarInfo("")
    info.mode, info.uname, info.gname = MODE, OWNER, OWNER
    return info.tobuf(tarfile.USTAR_FORMAT)


TEMPLATE = _template()
FIXED = tuple(slice(*ends) for ends in ((100, 124), (135, 148), (156, BLOCK)))
BASE = sum(TEMPLATE) - sum(TEMPLATE[SUM]) - sum(TEMPLATE[SIZE]) + 8 * ord(" ")
"""The checksum of a header without name and size; its own field counts as blanks."""


def members(data: bytes) -> list[tuple[str, slice]] | None:
    """Name and place in `data` of each member, in order; None if any byte outside of them differs.

    A last member that is cut short has a place that ends behind `data`.
    """
    found = []
    start = 0
    while header := data[start : start + BLOCK].rstrip(b"\0"):
        header = data[start : start + BLOCK]
        name, digits = header[NAME].rstrip(b"\0"), header[SIZE]
        if not (name.isascii() and digits.isdigit() and len(header) == BLOCK):
            return None
        checksum = b"%06o\0 " % (BASE + sum(name) + sum(digits))
        if header[SUM] != checksum or any(header[part] != TEMPLATE[part] for part in FIXED):
            return None
        try:
            size = int(digits, 8)
        except ValueError:
            return None
        begin = start + BLOCK
        found.append((name.decode(), slice(begin, begin + size)))
        start = begin + -(-size // BLOCK) * BLOCK
        if data[begin + size : start].strip(b"\0"):
            return None
    return None if data[start:].strip(b"\0") else found
