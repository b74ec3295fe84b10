"""Evaluation data: images that no stage has seen, sorted into domains and classes.

Opening a source reads names only, never an image, so that wrong data is refused before any work.
"""

import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dfkd.config.bundled import EVALUATION
from dfkd.config.manifest import Evaluation
from dfkd.errors import CorruptionError, ManifestError
from dfkd.evaluation.image_lists import FIELD, SUFFIXES, Entry, Tally, bad_line, read_rows
from dfkd.evaluation.layouts import Layout, recognise
from dfkd.evaluation.public_data_sets import normalise_name

LISTS = frozenset({".txt", ".csv"})

MAX_MEMBER = 1 << 20
"""Bytes of one bundled image; a larger member is not one of ours."""


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
    """By domain, in the order that the manifest gives or else by name, class and name."""
    notes: tuple[str, ...]
    """One line each: the layout, missing images and classes, unscored ones, what was ignored."""

    @property
    def names(self) -> tuple[str, ...]:
        """The domains that hold at least one image, in the order of their items."""
        return tuple(dict.fromkeys(item.domain for item in self.items))

    @property
    def unscored(self) -> tuple[str, ...]:
        """Classes without any image (possible with the bundled set only), in manifest order."""
        present = {item.class_index for item in self.items}
        return tuple(name for index, name in enumerate(self.classes) if index not in present)


@dataclass
class _SourceContent:
    """What a source yields: labelled items, and what it had that the manifest does not use."""

    items: list[Item] = field(default_factory=list)
    foreign: set[str] = field(default_factory=set)
    """Class names of the data that the manifest does not have."""
    remarks: list[str] = field(default_factory=list)
    """About the layout."""
    by_label: tuple[str, ...] = ()
    """The classes, where numbers are all that tells them apart."""
    tally: Tally = field(default_factory=Tally)


def open_data(config: Evaluation, classes: Sequence[str]) -> Domains:
    """The data that `evaluation.data` names, with labels of the manifest's `classes`.

    Class names match after case, spaces, `_` and `-` are made alike. Cheap: names only.

    Raises:
        ManifestError: no such data, no layout or more than one, a bad line of a list, a domain that
            is not there, or a class that no domain has (for `bundled`: none of the classes; some
            missing ones become a note).
        CorruptionError: the bundled set is not what was shipped.
    """
    if config.data == "bundled":
        return open_bundle(_bundle(), classes, config)
    path, labels = Path(config.data).expanduser(), _labels(classes, config.aliases)
    if path.is_dir():
        found = _folder(path, labels, config.domains)
    elif path.is_file() and path.suffix.lower() in LISTS:
        found = _list(path, labels)
    else:
        raise ManifestError(
            FIELD,
            "must be a folder root/domain/class/*, a .txt or .csv list file, or bundled",
            config.data,
            "check the path",
        )
    data = _domains(config, classes, found)
    for name in data.unscored:
        raise ManifestError(
            FIELD,
            "every class needs an image in at least one domain, none has "
            f"{config.aliases.get(name, name)!r}",
            config.data,
            "add images as domain/class/image, rename the class or name it in evaluation.aliases; "
            f"the data also has {_join_names(found.foreign)}",
        )
    return data


def open_bundle(path: Path, classes: Sequence[str], config: Evaluation | None = None) -> Domains:
    """A bundled set: a plain tar of `domain/class/name.png`, read into memory, never unpacked.

    Raises:
        ManifestError: the set has none of the classes.
        CorruptionError: no tar, or a member that is not such an image.
    """
    config = config or Evaluation()
    found, labels = _SourceContent(), _labels(classes, config.aliases)
    for name, content in _members(path):
        domain, word, _ = name.split("/")
        if (index := labels.get(normalise_name(word))) is None:
            found.foreign.add(word)
        else:
            found.items.append(Item(domain, index, name, content))
    if not found.items:
        raise ManifestError(
            FIELD,
            f"the bundled set has none of the classes, only {_join_names(found.foreign)}",
            "bundled",
            "choose among those or point evaluation.data at a folder root/domain/class/*",
        )
    return _domains(config, classes, found)


def _labels(classes: Sequence[str], aliases: Mapping[str, str]) -> dict[str, int]:
    """The position of each class by what the data call it."""
    labels: dict[str, int] = {}
    for index, name in enumerate(classes):
        if (other := labels.setdefault(normalise_name(aliases.get(name, name)), index)) != index:
            raise ManifestError(
                "evaluation.aliases" if name in aliases else "classes",
                f"must differ by more than case, spaces, '_' and '-' from {classes[other]!r}",
                aliases.get(name, name),
                "rename one of them",
            )
    return labels


def _select_domains(there: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """The domains that are to be scored, in order: those that are wanted, or all by name."""
    known = {normalise_name(name): name for name in sorted(there)}
    for name in wanted:
        if normalise_name(name) not in known:
            raise ManifestError(
                "evaluation.domains",
                f"must be among the domains of the data, {_join_names(known.values())}",
                name,
                "choose among those",
            )
    return [known[normalise_name(name)] for name in wanted] or list(known.values())


def _domains(config: Evaluation, classes: Sequence[str], found: _SourceContent) -> Domains:
    order = _select_domains({item.domain for item in found.items}, config.domains)
    items = [item for item in found.items if item.domain in order]
    items.sort(key=lambda item: (order.index(item.domain), item.class_index, item.name))
    plain = Domains(config.data, tuple(classes), tuple(items), ())
    return Domains(config.data, tuple(classes), tuple(items), tuple(_notes(plain, found)))


def _notes(data: Domains, found: _SourceContent) -> Iterator[str]:
    yield from found.remarks
    if found.by_label:
        names = (f"{label} {name}" for label, name in enumerate(found.by_label))
        yield f"labels are the manifest's classes in their order: {', '.join(names)}"
    if data.unscored:
        yield (
            f"unscored: the bundled set has no {_join_names(data.unscored)}; it also has "
            f"{_join_names(found.foreign)}, and evaluation.data can point at a folder"
        )
    present = {(item.domain, item.class_index) for item in data.items}
    for domain in data.names:
        missing = [
            name
            for index, name in enumerate(data.classes)
            if (domain, index) not in present and name not in data.unscored
        ]
        if missing:
            yield f"domain {domain} has no image of {_join_names(missing)}"
    for domain, count in sorted(found.tally.twice.items()):
        if count:
            yield f"the list of {domain} gives {count} images to two classes, and each counts"
    if found.foreign and not data.unscored:
        yield f"ignored: {len(found.foreign)} other classes ({_join_names(found.foreign)})"
    for what, count in sorted(found.tally.beside.items()):
        if count:
            yield f"ignored: {count} {what}"


def _join_names(names: Iterable[str], limit: int = 12) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return (", ".join(ordered[:limit]) or "nothing") + more


def _folder(root: Path, labels: Mapping[str, int], wanted: Sequence[str]) -> _SourceContent:
    found, counts = _SourceContent(), Counter[str]()
    layout = recognise(root)
    published = layout.data_set.images if layout.data_set else {}
    asked = _select_domains(layout.homes, wanted) if wanted else list(published or layout.homes)
    by_label = layout.numbered and not any(normalise_name(word) in labels for word in layout.words)
    if by_label:
        _check_order(layout, labels)
        found.by_label = tuple(labels)
    else:
        found.foreign = {word for word in layout.words if normalise_name(word) not in labels}
    for entry in layout.only(asked).entries(found.foreign, found.tally):
        counts[entry.domain] += 1
        index = _label(entry, labels) if by_label else labels.get(normalise_name(entry.word))
        if index is not None:
            found.items.append(Item(entry.domain, index, entry.path))
    found.remarks = list(layout.remarks(asked, counts))
    found.tally.beside["files beside the domain folders"] += layout.other_files
    return found


def _check_order(layout: Layout, labels: Mapping[str, int]) -> None:
    """Refuse classes that are those of a known data set in another order than its labels."""
    for index, name in enumerate(layout.data_set.order if layout.data_set else ()):
        if labels.get(normalise_name(name), index) != index:
            raise ManifestError(
                "classes",
                f"must be in the published order, as {FIELD} has labels only: {name!r} is label "
                f"{index}",
                f"position {labels[normalise_name(name)]}",
                "reorder them",
            )


def _label(entry: Entry, labels: Mapping[str, int]) -> int:
    if int(entry.word) >= len(labels):
        raise ManifestError(
            f"{FIELD} {entry.place}",
            f"a label must be one of the {len(labels)} classes, from 0",
            entry.word,
            "give all classes, in the published order",
        )
    return int(entry.word)


def _list(path: Path, labels: Mapping[str, int]) -> _SourceContent:
    found = _SourceContent()
    seen: dict[Path, int] = {}
    for number, (name, domain, word) in read_rows(path):
        image = path.parent / name
        if image.suffix.lower() not in SUFFIXES or not image.is_file():
            raise bad_line(path, number, "must name an existing png, jpg, jpeg, webp or bmp", name)
        if image in seen:
            raise bad_line(path, number, f"repeats the image of line {seen[image]}", name)
        seen[image] = number
        if (index := labels.get(normalise_name(word))) is None:
            found.foreign.add(word)
        else:
            found.items.append(Item(domain, index, str(image)))
    return found


def _bundle() -> Path:
    path = EVALUATION
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
