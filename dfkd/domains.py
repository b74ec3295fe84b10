"""Evaluation data: images that no stage has seen, sorted into domains and classes.

Opening a source reads names only, never an image, so that wrong data is refused before any work.
"""

import csv
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from dfkd.errors import CorruptionError, ManifestError
from dfkd.manifest import Evaluation

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
LISTS = frozenset({".txt", ".csv"})
HEADER = ["path", "domain", "class"]

MAX_MEMBER = 1 << 20
"""Bytes of one bundled image; a larger member is not one of ours."""

FIELD = "evaluation.data"


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled image, not yet read."""

    domain: str
    class_index: int
    """Position in the manifest's classes."""
    name: str
    """The file's path, or the member's name in the bundle."""
    content: bytes | None = None
    """The bundled image's bytes; None means that `name` is a file."""

    def read(self) -> bytes:
        """The encoded image. Raises OSError if the file cannot be read."""
        return Path(self.name).read_bytes() if self.content is None else self.content


@dataclass(frozen=True)
class Domains:
    """Everything that will be scored, and what a reader of the scores should know about it."""

    source: str
    """The folder, list file or `bundled`."""
    classes: tuple[str, ...]
    """The manifest's classes: what a model chooses among, also where no image of it exists."""
    items: tuple[Item, ...]
    """Sorted by domain, class and name."""
    notes: tuple[str, ...]
    """One line each: classes missing from a domain, unscored classes, what was ignored."""

    @property
    def names(self) -> tuple[str, ...]:
        """The domains that hold at least one image, sorted."""
        return tuple(sorted({item.domain for item in self.items}))

    @property
    def unscored(self) -> tuple[str, ...]:
        """Classes without any image (possible with the bundled set only), in manifest order."""
        present = {item.class_index for item in self.items}
        return tuple(name for index, name in enumerate(self.classes) if index not in present)


@dataclass
class _Found:
    """What a source yields: labelled items, and what it had that the manifest does not use."""

    items: list[Item] = field(default_factory=list)
    foreign: set[str] = field(default_factory=set)
    """Class names of the data that the manifest does not have."""
    unused: Counter[str] = field(default_factory=Counter)
    """How many things were ignored, by what they are."""


def open_data(config: Evaluation, classes: Sequence[str]) -> Domains:
    """The data that `evaluation.data` names, with labels of the manifest's `classes`.

    Class names match after case, spaces, `_` and `-` are made alike. Cheap: names only.

    Raises:
        ManifestError: no such data, a bad line of a list file, or a class that no domain has (for
            `bundled`: none of the classes; some missing ones become a note).
        CorruptionError: the bundled set is not what was shipped.
    """
    labels = _labels(classes)
    if config.data == "bundled":
        return open_bundle(_bundle(), classes)
    path = Path(config.data).expanduser()
    if path.is_dir():
        found = _folder(path, labels)
    elif path.is_file() and path.suffix.lower() in LISTS:
        found = _list(path, labels)
    else:
        raise ManifestError(
            FIELD,
            "must be a folder root/domain/class/*, a .txt or .csv list file, or bundled",
            config.data,
            "check the path",
        )
    for index, name in enumerate(classes):
        if all(item.class_index != index for item in found.items):
            raise ManifestError(
                FIELD,
                f"every class needs an image in at least one domain, none has {name!r}",
                config.data,
                "add images as domain/class/image or rename the class; the data also has "
                f"{_words(found.foreign)}",
            )
    return _finish(config.data, classes, found)


def open_bundle(path: Path, classes: Sequence[str]) -> Domains:
    """A bundled set: a plain tar of `domain/class/name.png`, read into memory, never unpacked.

    Raises:
        ManifestError: the set has none of the classes.
        CorruptionError: no tar, or a member that is not such an image.
    """
    found = _Found()
    labels = _labels(classes)
    for name, content in _members(path):
        domain, word, _ = name.split("/")
        if (index := labels.get(alike(word))) is None:
            found.foreign.add(word)
        else:
            found.items.append(Item(domain, index, name, content))
    if not found.items:
        raise ManifestError(
            FIELD,
            f"the bundled set has none of the classes, only {_words(found.foreign)}",
            "bundled",
            "choose among those or point evaluation.data at a folder root/domain/class/*",
        )
    return _finish("bundled", classes, found)


def alike(name: str) -> str:
    """A class name without case, with `_` and `-` as spaces: `Alarm_clock` is `alarm clock`."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _labels(classes: Sequence[str]) -> dict[str, int]:
    labels: dict[str, int] = {}
    for index, name in enumerate(classes):
        if (other := labels.setdefault(alike(name), index)) != index:
            raise ManifestError(
                "classes",
                f"must differ by more than case, spaces, '_' and '-' from {classes[other]!r}",
                name,
                "rename one of them",
            )
    return labels


def _finish(source: str, classes: Sequence[str], found: _Found) -> Domains:
    items = tuple(sorted(found.items, key=lambda item: (item.domain, item.class_index, item.name)))
    plain = Domains(source, tuple(classes), items, ())
    return Domains(source, tuple(classes), items, tuple(_notes(plain, found)))


def _notes(data: Domains, found: _Found) -> Iterator[str]:
    if data.unscored:
        yield (
            f"unscored: the bundled set has no {_words(data.unscored)}; it also has "
            f"{_words(found.foreign)}, and evaluation.data can point at a folder"
        )
    present = {(item.domain, item.class_index) for item in data.items}
    for domain in data.names:
        missing = [
            name
            for index, name in enumerate(data.classes)
            if (domain, index) not in present and name not in data.unscored
        ]
        if missing:
            yield f"domain {domain} has no image of {_words(missing)}"
    if found.foreign and not data.unscored:
        yield f"ignored: {len(found.foreign)} other classes ({_words(found.foreign)})"
    for what, count in sorted(found.unused.items()):
        yield f"ignored: {count} {what}"


def _words(names: Iterable[str], limit: int = 12) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return (", ".join(ordered[:limit]) or "nothing") + more


def _folder(root: Path, labels: dict[str, int]) -> _Found:
    found = _Found()
    for domain in sorted(root.iterdir()):
        if not domain.is_dir() or domain.name.startswith("."):
            found.unused["files beside the domain folders"] += 1
            continue
        for folder in sorted(domain.iterdir()):
            if not folder.is_dir() or folder.name.startswith("."):
                found.unused["files beside the class folders"] += 1
            elif (index := labels.get(alike(folder.name))) is None:
                found.foreign.add(folder.name)
            else:
                _take(found, domain.name, index, folder)
    return found


def _take(found: _Found, domain: str, index: int, folder: Path) -> None:
    with os.scandir(folder) as entries:  # tells files from folders without asking for each
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix in SUFFIXES and not entry.name.startswith(".") and entry.is_file():
                found.items.append(Item(domain, index, entry.path))
            else:
                found.unused["files that are not png, jpg, jpeg, webp or bmp images"] += 1


def _list(path: Path, labels: dict[str, int]) -> _Found:
    found = _Found()
    seen: dict[Path, int] = {}
    for number, (name, domain, word) in _lines(path):
        image = path.parent / name
        if image.suffix.lower() not in SUFFIXES or not image.is_file():
            raise _bad_line(path, number, "must name an existing png, jpg, jpeg, webp or bmp", name)
        if image in seen:
            raise _bad_line(path, number, f"repeats the image of line {seen[image]}", name)
        seen[image] = number
        if (index := labels.get(alike(word))) is None:
            found.foreign.add(word)
        else:
            found.items.append(Item(domain, index, str(image)))
    return found


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The numbered, split lines; one separator holds for the file: tab, comma or space."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ManifestError(FIELD, "must be UTF-8 text", str(path), "convert the list") from None
    separator = None
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        separator = separator or next((s for s in "\t, " if len(_split(line, s)) == 3), ",")
        fields = _split(line, separator)
        if len(fields) != 3 or not all(fields):
            raise _bad_line(path, number, "must be: path, domain, class", line)
        if [word.lower() for word in fields] != HEADER:
            yield number, fields


def _split(line: str, separator: str) -> list[str]:
    try:
        rows = list(csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True))
    except csv.Error:
        return []
    return [word.strip() for word in rows[0]]


def _bad_line(path: Path, number: int, rule: str, value: str) -> ManifestError:
    return ManifestError(f"{FIELD} {path}:{number}", rule, value, "mend or remove that line")


def _bundle() -> Path:
    path = Path(str(resources.files("dfkd.miniature").joinpath("assets", "evaluation.tar")))
    if not path.is_file():
        raise CorruptionError(f"the bundled evaluation set {path} is missing; reinstall dfkd")
    return path


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path, mode="r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is None or member.size > MAX_MEMBER or not _is_ours(member.name):
                    raise CorruptionError(
                        f"bundled set {path}: member {member.name!r} is not a small "
                        "domain/class/name.png file; reinstall dfkd"
                    )
                yield member.name, stream.read()
    except (tarfile.TarError, EOFError) as error:
        raise CorruptionError(
            f"bundled set {path} is no readable tar ({error}); reinstall dfkd"
        ) from None


def _is_ours(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 3 and all(part.strip(".") for part in parts) and name.endswith(".png")
