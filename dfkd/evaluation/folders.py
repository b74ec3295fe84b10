"""Folders of images, by their names only: no image is opened, no file asked for its size."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One image that was found."""

    domain: str
    word: str
    """The name of its class folder; its label, counted from 0, where it has none."""
    path: str
    place: str
    """What says so, for a message: the class folder, or `list:line`."""


@dataclass
class Tally:
    """What else was met on the way."""

    beside: Counter[str] = field(default_factory=Counter)
    """How many things were passed over, by what they are."""
    twice: Counter[str] = field(default_factory=Counter)
    """Images of each domain that its list gives to a second class."""


def folders(path: Path) -> list[Path]:
    """The folders in a folder, by name; hidden ones and what macOS leaves in archives do not count.

    Empty where there is no such folder.
    """
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        found = [entry.name for entry in entries if not _hidden(entry.name) and _is_dir(entry)]
    return [path / name for name in sorted(found)]


def others(path: Path) -> int:
    """How much else there is in a folder."""
    return len(os.listdir(path)) - len(folders(path))


def images(folder: Path, tally: Tally) -> Iterator[os.DirEntry[str]]:
    """The image files in a folder; what else is there is counted."""
    with os.scandir(folder) as entries:  # tells files from folders without asking for each
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix in SUFFIXES and not _hidden(entry.name) and _is_file(entry):
                yield entry
            else:
                tally.beside["files that are not png, jpg, jpeg, webp or bmp images"] += 1


def enclosed(home: Path, *, in_classes: bool) -> Mapping[str, frozenset[str]]:
    """The image files in each class folder of a domain, or under '' those in its own folder.

    A link that leads out of the domain's folder is not among them, and no class folder either.
    """
    root, unused = home.resolve(), Tally()
    places = [place for place in folders(home) if _within(root, place)] if in_classes else [home]
    return {
        place.name if in_classes else "": frozenset(
            entry.name
            for entry in images(place, unused)
            if not entry.is_symlink() or _within(root, Path(entry.path))
        )
        for place in places
    }


def _within(root: Path, path: Path) -> bool:
    return not path.is_symlink() or path.resolve().is_relative_to(root)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False
