"""A published version as a run leaves it, and damage to a file of it."""

from pathlib import Path

from dfkd.dataset.published import PublishedVersion, current
from dfkd.dataset.verification import verify
from dfkd.storage.local import open_storage


def published(root: Path | str, method: str = "vanilla") -> PublishedVersion:
    """The version of a method that is current in a root; it is whole."""
    version = current(open_storage(str(root)).child(f"data/{method}"))
    assert version is not None
    assert verify(version) == []
    return version


def flip_bit(path: Path, place: int = 700) -> None:
    """Change one bit of the byte at a place."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
