"""Image lists: untrusted text files with one image a line, read line by line.

There are two forms: lists with three columns (path, domain, class), which `evaluation.data` can
name itself, and the lists of public data sets (path, label), which are stored beside their images.
"""

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dfkd.errors import ManifestError
from dfkd.evaluation.public_data_sets import PublicDataSet


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of the data."""

    domain: str
    word: str
    """The name of its class folder, or its label counted from 0 if it has no class folder."""
    path: str
    source: str
    """Where this is stated, for error messages: the class folder, or `list:line`."""


@dataclass
class Tally:
    """Counts for the notes on the data."""

    ignored: Counter[str] = field(default_factory=Counter)
    """The number of ignored things, by their description."""
    in_two_classes: Counter[str] = field(default_factory=Counter)
    """The number of images that a domain's lists assign to a second class, by domain."""


FIELD = "evaluation.data"
HEADER = ["path", "domain", "class"]
MAX_LINE_BYTES = 8192
"""Longest accepted line in bytes; a path on Linux has at most 4,096."""
MAX_LABEL_DIGITS = 6
"""Longest accepted label in digits."""


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield number and fields of each line `path, domain, class`, the path with `/` and no root.

    The first line decides whether tabs, commas or spaces separate the fields of the whole list.

    Raises:
        ManifestError: a line has another form; the message names its number.
    """
    separator = None
    for number, line in _lines(path):
        # A comma as the fallback makes the error message name the usual form.
        separator = separator or next((s for s in "\t, " if len(_split(line, s)) == 3), ",")
        fields = _split(line, separator)
        if len(fields) != 3 or not all(fields):
            raise bad_line(path, number, "must be: path, domain, class", line)
        if [word.lower() for word in fields] != HEADER:
            yield number, ["/".join(_names(path, number, fields[0])), *fields[1:]]


def read_labelled_lines(path: Path) -> Iterator[tuple[int, list[str], int]]:
    """Yield number, path components and label of each line `path label`; paths may have spaces.

    Raises:
        ManifestError: a line has another form; the message names its number.
    """
    for number, line in _lines(path):
        name, *rest = line.rsplit(None, 1)
        label = rest[0] if rest else ""
        if not (label.isascii() and label.isdecimal() and len(label) <= MAX_LABEL_DIGITS):
            raise bad_line(path, number, "must be: path, label (a number)", line)
        yield number, _names(path, number, name), int(label)


def bad_line(path: Path, number: int, rule: str, value: object) -> ManifestError:
    """The error about a line of a list, with file and line number."""
    return ManifestError(f"{FIELD} {path}:{number}", rule, value, "fix or remove that line")


def _names(path: Path, number: int, name: str) -> list[str]:
    """The components of a path with `/` or `\\`, without its root; `..` is an error."""
    names = [word for word in name.replace("\\", "/").split("/") if word not in ("", ".")]
    if ".." in names:
        raise bad_line(path, number, "must not lead through '..'", name)
    return names


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is neither blank nor a comment."""
    with path.open("rb") as stream:
        # Bounded reads: a file without line ends must not fill the memory.
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
    """The fields of a line; none if quotes do not match."""
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
    """Yield the images that the lists of some domains name, once for each of their labels.

    Args:
        data_set: the data set of the lists.
        homes: the folder of each domain.
        lists: the lists of each domain; several may name an image with the same label.
        tally: counts images that no list names, and images with two labels.
        in_classes: whether the images are in class folders, whose name is then the class.

    Raises:
        ManifestError: a line is wrong or contradicts the folders; the message names its number.
    """
    first, last = data_set.first_label, data_set.first_label + data_set.classes - 1
    # `folder NAME` of each `label NUMBER` and the reverse, each with the `list:line` of the first.
    # Across all domains: in each of them a label must mean the same class.
    stated: dict[str, tuple[str, str]] = {}
    # Without class folders the images lie directly in the folder of the domain.
    form, depth = ("class/image", 2) if in_classes else ("image", 1)
    for domain, home in homes.items():
        existing = images_by_class(home, in_classes=in_classes)
        listed: set[tuple[str, str, int]] = set()
        for path in lists[domain]:
            seen: dict[tuple[str, str, int], int] = {}
            for number, names, label in read_labelled_lines(path):
                # What stands before the domain is ignored, because lists are often written with the
                # paths of another machine.
                above = names[-depth - 1] if len(names) > depth else domain
                if len(names) < depth or data_set.domain(above) != domain:
                    raise bad_line(path, number, f"must lead to {domain}/{form}", "/".join(names))
                word, name = names[-2] if in_classes else "", names[-1]
                if not first <= label <= last:
                    rule = f"a label must be from {first} to {last}"
                    raise bad_line(path, number, rule, label)
                if name not in existing.get(word, ()):
                    # Published lists name a few images that published copies do not have.
                    if name in data_set.missing_images:
                        continue
                    rule = "must name an image of that domain, not through links"
                    raise bad_line(path, number, rule, "/".join(names))
                if in_classes:
                    here, pair = f"{path}:{number}", (f"label {label}", f"folder {word}")
                    # In both directions, so neither two labels share a folder nor two folders a
                    # label.
                    for one, other in (pair, pair[::-1]):
                        before, line = stated.setdefault(one, (other, here))
                        if before != other:
                            told = f"{one} goes with {before} in {line}"
                            rule = f"must agree with the folders: {told}"
                            raise bad_line(path, number, rule, other)
                key = (word, name, label)
                if (earlier := seen.setdefault(key, number)) != number:
                    raise bad_line(path, number, f"repeats line {earlier}", "/".join(names))
                if key in listed:  # train and crossval lists of one domain may overlap
                    continue
                listed.add(key)
                # Built from checked parts, because the line's own path may lead anywhere.
                image = os.path.join(home, word, name)
                class_word = word if in_classes else str(label - first)
                yield Entry(domain, class_word, image, f"{path}:{number}")
        named = {(word, name) for word, name, _ in listed}
        tally.in_two_classes[domain] += len(listed) - len(named)
        tally.ignored["images that no list names"] += sum(map(len, existing.values())) - len(named)


SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


def subfolders(path: Path) -> list[Path]:
    """The folders in a folder, sorted by name, without hidden ones and `__MACOSX`.

    Returns an empty list if there is no such folder.
    """
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        names = [e.name for e in entries if not _hidden(e.name) and _succeeds(e.is_dir)]
    return [path / name for name in sorted(names)]


def count_others(path: Path) -> int:
    """The number of entries in a folder that `subfolders` does not return."""
    return len(os.listdir(path)) - len(subfolders(path))


def image_files(folder: Path, tally: Tally) -> Iterator[os.DirEntry[str]]:
    """Yield the image files in a folder; everything else is counted in `tally`."""
    with os.scandir(folder) as entries:  # knows files from folders without a stat for each
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix in SUFFIXES and not _hidden(entry.name) and _succeeds(entry.is_file):
                yield entry
            elif _succeeds(entry.is_dir):
                tally.ignored["folders in class folders, with all that they hold"] += 1
            else:
                tally.ignored["files that are not png, jpg, jpeg, webp or bmp images"] += 1


def images_by_class(home: Path, *, in_classes: bool) -> Mapping[str, frozenset[str]]:
    """Names of image files by class folder of a domain, or under '' those in its own folder.

    Links to files or folders outside the domain's folder are left out, since a list of a stranger
    must not reach other files.
    """
    root, unused = home.resolve(), Tally()
    parents = [folder for folder in subfolders(home) if _within(root, folder)]
    return {
        parent.name if in_classes else "": frozenset(
            entry.name
            for entry in image_files(parent, unused)
            if not entry.is_symlink() or _within(root, Path(entry.path))
        )
        for parent in (parents if in_classes else [home])
    }


def _within(root: Path, path: Path) -> bool:
    """Whether a path is in `root` after following a link."""
    return not path.is_symlink() or path.resolve().is_relative_to(root)


def _hidden(name: str) -> bool:
    """Whether a name belongs to the system: a dot file, or what macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


def _succeeds(check: Callable[[], bool]) -> bool:
    """The result of an entry's `is_dir` or `is_file`; False for a link to itself."""
    try:
        return check()
    except OSError:
        return False
