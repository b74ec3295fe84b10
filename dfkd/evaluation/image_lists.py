"""Image lists: text files of strangers that name images, one a line, read line by line.

Two forms: three columns (path, domain, class), which `evaluation.data` can name itself, and the
lists of public data sets (path, label), which lie beside their images.
"""

import csv
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dfkd.errors import ManifestError
from dfkd.evaluation.public_data_sets import PublicDataSet


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


FIELD = "evaluation.data"
HEADER = ["path", "domain", "class"]
MAX_LINE_BYTES = 8192
"""Bytes of a line; Linux takes paths of 4,096."""
MAX_LABEL_DIGITS = 6
"""Of a label at the most."""


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The numbered lines `path, domain, class`, with tabs, commas or spaces throughout.

    Raises:
        ManifestError: the first line that has another form, by its number.
    """
    separator = None
    for number, line in _lines(path):
        separator = separator or next((s for s in "\t, " if len(_split(line, s)) == 3), ",")
        fields = _split(line, separator)
        if len(fields) != 3 or not all(fields):
            raise bad_line(path, number, "must be: path, domain, class", line)
        if [word.lower() for word in fields] != HEADER:
            _names(path, number, fields[0])
            yield number, fields


def read_labelled_lines(path: Path) -> Iterator[tuple[int, list[str], int]]:
    """The numbered lines `path label`: the names along the path, in which spaces count, and label.

    Raises:
        ManifestError: the first line that has another form, by its number.
    """
    for number, line in _lines(path):
        name, *rest = line.rsplit(None, 1)
        label = rest[0] if rest else ""
        if not (label.isascii() and label.isdecimal() and len(label) <= MAX_LABEL_DIGITS):
            raise bad_line(path, number, "must be: path, label (a number)", line)
        yield number, _names(path, number, name), int(label)


def bad_line(path: Path, number: int, rule: str, value: object) -> ManifestError:
    """The error of a list's line, which names file and line."""
    return ManifestError(f"{FIELD} {path}:{number}", rule, value, "fix or remove that line")


def _names(path: Path, number: int, name: str) -> list[str]:
    """The names along a path of any system, without its root."""
    names = [word for word in name.replace("\\", "/").split("/") if word not in ("", ".")]
    if ".." in names:
        raise bad_line(path, number, "must not lead through '..'", name)
    return names


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines that say something: no blank ones, no comments."""
    with path.open("rb") as stream:
        lines = iter(lambda: stream.readline(MAX_LINE_BYTES + 1), b"")
        for number, line in enumerate(lines, start=1):
            if len(line) > MAX_LINE_BYTES:
                raise bad_line(
                    path, number, f"must be at most {MAX_LINE_BYTES} bytes long", line[:40]
                )
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError:
                raise bad_line(path, number, "must be UTF-8 text", line[:40]) from None
            if text and not text.startswith("#"):
                yield number, text


def _split(line: str, separator: str) -> list[str]:
    try:
        records = list(csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True))
    except csv.Error:
        return []
    return [word.strip() for word in records[0]]


def listed_images(
    data_set: PublicDataSet,
    homes: Mapping[str, Path],
    lists: Mapping[str, Sequence[Path]],
    tally: Tally,
    *,
    in_classes: bool,
) -> Iterator[Entry]:
    """The images that the labelled lists of some domains name, each once for each of its labels.

    Args:
        data_set: whose lists they are.
        homes: the folder of each domain.
        lists: of each domain; an image may stand in several, under the same label.
        tally: takes the images that no list names.
        in_classes: whether the images lie in class folders; the class is then the folder's name.

    Raises:
        ManifestError: the first line that is wrong or contradicts the folders, by its number.
    """
    labels = _Labels()
    for domain, home in homes.items():
        reader = _Reader(data_set, domain, images_by_class(home, in_classes=in_classes), labels)
        taken: set[tuple[str, str, int]] = set()
        for path in lists[domain]:
            for number, key in reader.keys(path):
                if key in taken:
                    continue
                taken.add(key)
                word, name, label = key
                place = os.path.join(home, word, name)
                said = word if in_classes else str(label - data_set.first)
                yield Entry(domain, said, place, f"{path}:{number}")
        named = {(word, name) for word, name, _ in taken}
        tally.twice[domain] += len(taken) - len(named)
        tally.beside["images that no list names"] += reader.images - len(named)


@dataclass
class _Labels:
    """Which class folder each label stands for: one, in all lists of a data set."""

    words: dict[int, tuple[str, str]] = field(default_factory=dict)
    labels: dict[str, tuple[int, str]] = field(default_factory=dict)

    def agree(self, path: Path, number: int, word: str, label: int) -> None:
        """Note a line, or refuse it where it contradicts another."""
        here = f"{path}:{number}"
        other, place = self.words.setdefault(label, (word, here))
        if other != word:
            raise bad_line(
                path,
                number,
                f"must agree with the folders: label {label} is {other} in {place}",
                word,
            )
        known, place = self.labels.setdefault(word, (label, here))
        if known != label:
            raise bad_line(
                path,
                number,
                f"must agree with the folders: {word} has label {known} in {place}",
                label,
            )


@dataclass
class _Reader:
    """Reads the lists of one domain against what is in its folder."""

    data_set: PublicDataSet
    domain: str
    there: Mapping[str, frozenset[str]]
    """Names of images by class folder, or all of them under ''."""
    labels: _Labels

    @property
    def images(self) -> int:
        """How many there are."""
        return sum(map(len, self.there.values()))

    def keys(self, path: Path) -> Iterator[tuple[int, tuple[str, str, int]]]:
        """The number of each line with its class folder (or ''), name and label."""
        first, last = self.data_set.first, self.data_set.first + self.data_set.classes - 1
        seen: dict[tuple[str, str, int], int] = {}
        for number, names, label in read_labelled_lines(path):
            word, name = self._located(path, number, names)
            if not first <= label <= last:
                raise bad_line(path, number, f"a label must be from {first} to {last}", label)
            if name not in self.there.get(word, ()):
                if name in self.data_set.broken:
                    continue
                raise bad_line(
                    path,
                    number,
                    "must name an image of that domain, not through links",
                    "/".join(names),
                )
            if word:
                self.labels.agree(path, number, word, label)
            key = (word, name, label)
            if (before := seen.setdefault(key, number)) != number:
                raise bad_line(path, number, f"repeats line {before}", "/".join(names))
            yield number, key

    def _located(self, path: Path, number: int, names: list[str]) -> tuple[str, str]:
        """Class folder and name; what stands before the domain is another machine's."""
        depth = 1 if "" in self.there else 2
        above = names[-depth - 1] if len(names) > depth else self.domain
        if len(names) < depth or self.data_set.domain(above) != self.domain:
            raise bad_line(
                path,
                number,
                f"must lead to {self.domain}/{'image' if depth == 1 else 'class/image'}",
                "/".join(names),
            )
        return ("" if depth == 1 else names[-2]), names[-1]


SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


def subfolders(path: Path) -> list[Path]:
    """The folders in a folder, by name; hidden ones and what macOS leaves in archives do not count.

    Empty where there is no such folder.
    """
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        found = [entry.name for entry in entries if not _hidden(entry.name) and _is_dir(entry)]
    return [path / name for name in sorted(found)]


def count_others(path: Path) -> int:
    """How much else there is in a folder."""
    return len(os.listdir(path)) - len(subfolders(path))


def image_files(folder: Path, tally: Tally) -> Iterator[os.DirEntry[str]]:
    """The image files in a folder; what else is there is counted."""
    with os.scandir(folder) as entries:  # tells files from folders without asking for each
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix in SUFFIXES and not _hidden(entry.name) and _is_file(entry):
                yield entry
            else:
                tally.beside["files that are not png, jpg, jpeg, webp or bmp images"] += 1


def images_by_class(home: Path, *, in_classes: bool) -> Mapping[str, frozenset[str]]:
    """The image files in each class folder of a domain, or under '' those in its own folder.

    A link that leads out of the domain's folder is not among them, and no class folder either.
    """
    root, unused = home.resolve(), Tally()
    places = [place for place in subfolders(home) if _within(root, place)] if in_classes else [home]
    return {
        place.name if in_classes else "": frozenset(
            entry.name
            for entry in image_files(place, unused)
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
