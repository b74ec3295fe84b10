"""Evaluation data: labelled images by domain and class, unseen by synthesis and distillation.

Opening a source reads names only and no image, so wrong data is refused before any work.
"""

import dataclasses
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dfkd.config.distillation import Evaluation
from dfkd.config.paths import EVALUATION, local_path
from dfkd.errors import CorruptionError, ManifestError, printable_line
from dfkd.evaluation.image_lists import FIELD, SUFFIXES, Tally, bad_line, read_rows
from dfkd.evaluation.layouts import recognise
from dfkd.evaluation.public_data_sets import normalise_name

LISTS = frozenset({".txt", ".csv"})
"""Suffixes of a list file that `evaluation.data` may name."""

MAX_MEMBER = 1 << 20
"""Largest bundled image in bytes."""

MAX_NAMES = 12
"""Maximum number of names that a note or an error lists."""


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled image, which is read on demand."""

    domain: str
    class_index: int
    """Position in the manifest's classes."""
    name: str
    """Path of the file, or name of the member in the bundle."""
    content: bytes | None = None
    """The encoded image of the bundle; None if `name` is a file."""

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is too large for a picture.
        """
        if self.content is not None:
            return self.content
        from dfkd.utils.images import read_picture  # not for a plan, which decodes nothing

        return read_picture(self.name)


@dataclass(frozen=True)
class Domains:
    """The images to score, and notes about them for the reader of the scores."""

    source: str
    """The folder or list file, or `bundled`."""
    classes: tuple[str, ...]
    """The manifest's classes. A model chooses among all of them, even if some have no image."""
    items: tuple[Item, ...]
    """Sorted by domain (in the manifest's order, else by name), class and name."""
    notes: tuple[str, ...]
    """One line each: layout, missing images, unscored classes, and what was ignored."""

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
    """The labelled items of a source, and what the manifest does not use of it."""

    items: list[Item] = field(default_factory=list)
    foreign: set[str] = field(default_factory=set)
    """Class names of the data that are not in the manifest."""
    remarks: list[str] = field(default_factory=list)
    """Notes about the layout."""
    by_label: tuple[str, ...] = ()
    """The classes in order, if the data identify them by numbers only; else empty."""
    tally: Tally = field(default_factory=Tally)


def open_data(config: Evaluation, classes: Sequence[str]) -> Domains:
    """The data that `evaluation.data` names, labelled with the manifest's `classes`.

    Names of classes and domains are compared by `normalise_name`. Reads names only.

    Raises:
        ManifestError: the data do not exist, have no layout or an ambiguous one, or a bad line in a
            list; a domain does not exist or has a bad name; or a class has no image in any domain.
            (In the bundled set missing classes are a note, unless all are missing.)
        CorruptionError: the bundled set is damaged.
    """
    if config.data == "bundled":
        return open_bundle(EVALUATION, classes, config)
    if config.data == "none":
        raise ManifestError(
            FIELD,
            "must be labelled images of the classes, because this job scores models on them",
            config.data,
            "name a folder, a list file or bundled",
        )
    path, labels = local_path(config.data), _labels(classes, config.aliases)
    if path.is_dir():
        content = _folder(path, labels, config.domains)
    elif path.is_file() and path.suffix.lower() in LISTS:
        content = _list(path, labels)
    else:
        raise ManifestError(
            FIELD,
            "must be a folder root/domain/class/*, a .txt or .csv list file, bundled or none",
            config.data,
            "check the path",
        )
    data = _domains(config, classes, content)
    # A class without an image is most likely one that has another name in the data.
    for name in data.unscored:
        raise ManifestError(
            FIELD,
            "every class needs an image in at least one domain, none has "
            f"{config.aliases.get(name, name)!r}",
            config.data,
            "add images as domain/class/image, rename the class or name it in evaluation.aliases; "
            f"the data also has {_join_names(content.foreign)}",
        )
    return data


def open_bundle(path: Path, classes: Sequence[str], config: Evaluation) -> Domains:
    """A bundled set: a plain tar of `domain/class/image`, read into memory and never unpacked.

    Raises:
        ManifestError: the set has none of the classes.
        CorruptionError: the file is missing or no tar, or a member is not such an image.
    """
    content, labels = _SourceContent(), _labels(classes, config.aliases)
    try:
        with tarfile.open(path, mode="r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                stream = archive.extractfile(member) if member.isreg() else None
                # `domain/class/image`, without `.` or `..` as a part.
                parts = member.name.split("/")
                named = len(parts) == 3 and all(part.strip(".") for part in parts)
                is_image = named and Path(member.name).suffix in SUFFIXES
                # The set is read whole, so a large member could fill the memory.
                if stream is None or member.size > MAX_MEMBER or not is_image:
                    raise CorruptionError(
                        f"bundled set {path}: member {member.name!r} is not a small "
                        "domain/class/image file; reinstall dfkd"
                    )
                domain, word, _ = parts
                if (index := labels.get(normalise_name(word))) is None:
                    content.foreign.add(word)
                else:
                    content.items.append(Item(domain, index, member.name, stream.read()))
    # The file belongs to the package, so a missing file is damage too.
    except (tarfile.TarError, EOFError, FileNotFoundError) as error:
        raise CorruptionError(
            f"bundled set {path} is no readable tar ({error}); reinstall dfkd"
        ) from None
    if not content.items:
        raise ManifestError(
            FIELD,
            f"the bundled set has none of the classes, only {_join_names(content.foreign)}",
            "bundled",
            "choose among those or point evaluation.data at a folder root/domain/class/*",
        )
    return _domains(config, classes, content)


def _labels(classes: Sequence[str], aliases: Mapping[str, str]) -> dict[str, int]:
    """The position of each class, by its normalised name in the data."""
    labels: dict[str, int] = {}
    for index, name in enumerate(classes):
        # Folder names could not tell two classes with the same normalised name apart.
        if (other := labels.setdefault(normalise_name(aliases.get(name, name)), index)) != index:
            raise ManifestError(
                "evaluation.aliases" if name in aliases else "classes",
                f"must differ by more than case, spaces, '_' and '-' from {classes[other]!r}",
                aliases.get(name, name),
                "rename one of them",
            )
    return labels


def _select_domains(available: Iterable[str], requested: Sequence[str]) -> list[str]:
    """The domains to score, in order: the requested ones, or all sorted by name."""
    known: dict[str, str] = {}
    for name in sorted(available):
        # Results are stored as UTF-8, and charts as XML, which has no control characters.
        if not name.isprintable():
            raise ManifestError(
                FIELD,
                "the name of a domain must be printable UTF-8 text",
                name,
                "rename the domain",
            )
        # Otherwise the images of one spelling would be lost silently.
        if (other := known.setdefault(normalise_name(name), name)) != name:
            raise ManifestError(
                FIELD,
                f"domains must differ by more than case, spaces, '_' and '-' from {other!r}",
                name,
                "rename one of them",
            )
    for name in requested:
        if normalise_name(name) not in known:
            raise ManifestError(
                "evaluation.domains",
                f"must be among the domains of the data, {_join_names(known.values())}",
                name,
                "choose among those",
            )
    return [known[normalise_name(name)] for name in requested] or list(known.values())


def _domains(config: Evaluation, classes: Sequence[str], content: _SourceContent) -> Domains:
    """The items of the selected domains in order, with notes."""
    selected = _select_domains({item.domain for item in content.items}, config.domains)
    order = {name: number for number, name in enumerate(selected)}
    items = [item for item in content.items if item.domain in order]
    # File systems list names in any order, and few-shot splits refer to images by position.
    items.sort(key=lambda item: (order[item.domain], item.class_index, item.name))
    data = Domains(config.data, tuple(classes), tuple(items), ())
    return dataclasses.replace(data, notes=tuple(map(printable_line, _notes(data, content))))


def _notes(data: Domains, content: _SourceContent) -> Iterator[str]:
    """Yield what a reader of the scores must know about the data."""
    yield from content.remarks
    if content.by_label:
        names = [f"{label} {name}" for label, name in enumerate(content.by_label)]
        yield f"labels are the manifest's classes in their order: {_first_names(names)}"
    if data.unscored:
        yield (
            f"unscored: the bundled set has no {_join_names(data.unscored)}; it also has "
            f"{_join_names(content.foreign)}, and evaluation.data can point at a folder"
        )
    present = {(item.domain, item.class_index) for item in data.items}
    unscored = frozenset(data.unscored)
    for domain in data.names:
        # The note above already names the classes that no domain has.
        missing = [
            name
            for index, name in enumerate(data.classes)
            if (domain, index) not in present and name not in unscored
        ]
        if missing:
            yield f"domain {domain} has no image of {_join_names(missing)}"
    for domain, count in sorted(content.tally.in_two_classes.items()):
        if count:
            yield f"the list of {domain} gives {count} images to two classes, and each counts"
    # With unscored classes, the note about them has already listed these.
    if content.foreign and not data.unscored:
        yield f"ignored: {len(content.foreign)} other classes ({_join_names(content.foreign)})"
    for description, count in sorted(content.tally.ignored.items()):
        if count:
            yield f"ignored: {count} {description}"


def _join_names(names: Iterable[str]) -> str:
    """As `_first_names`, of the sorted names."""
    return _first_names(sorted(names))


def _first_names(names: Sequence[str]) -> str:
    """The first `MAX_NAMES` names, and how many more there are."""
    hidden = len(names) - MAX_NAMES
    more = f" and {hidden} more" if hidden > 0 else ""
    return (", ".join(names[:MAX_NAMES]) or "nothing") + more


def _folder(root: Path, labels: Mapping[str, int], requested: Sequence[str]) -> _SourceContent:
    """The content of a folder; `requested` domains only, or all if empty."""
    content, counts = _SourceContent(), Counter[str]()
    layout = recognise(root)
    published = layout.data_set.images if layout.data_set else {}
    # A missing domain of a public data set is selected too, so that a note says it has no image.
    selected = (
        _select_domains(layout.homes, requested) if requested else list(published or layout.homes)
    )
    # Numbers are positions in `classes`, unless the manifest names classes by those numbers.
    by_label = layout.numbered and not any(normalise_name(word) in labels for word in layout.words)
    if by_label:
        # A class that the manifest calls by another name cannot be checked, so it passes.
        for index, name in enumerate(layout.data_set.class_order if layout.data_set else ()):
            if (place := labels.get(normalise_name(name), index)) != index:
                raise ManifestError(
                    "classes",
                    f"must be in the published order, as {FIELD} has labels only: {name!r} is "
                    f"label {index}",
                    f"position {place}",
                    "reorder them",
                )
        content.by_label = tuple(labels)
    else:
        content.foreign = {word for word in layout.words if normalise_name(word) not in labels}
    for entry in layout.only(selected).entries(content.foreign, content.tally):
        # Published numbers count all classes, so this comes before foreign ones are dropped.
        counts[entry.domain] += 1
        label = int(entry.word) if by_label else labels.get(normalise_name(entry.word))
        if label is None:
            continue
        if label >= len(labels):
            raise ManifestError(
                f"{FIELD} {entry.source}",
                f"a label must be one of the {len(labels)} classes, from 0",
                entry.word,
                "give all classes, in the published order",
            )
        content.items.append(Item(entry.domain, label, entry.path))
    content.remarks = list(layout.remarks(selected, counts))
    content.tally.ignored["files beside the domain folders"] += layout.other_files
    return content


def _list(path: Path, labels: Mapping[str, int]) -> _SourceContent:
    """The content of a list with three columns, whose paths are relative to its folder."""
    content = _SourceContent()
    seen: dict[Path, int] = {}
    for number, (name, domain, word) in read_rows(path):
        image = path.parent / name
        if image.suffix.lower() not in SUFFIXES or not image.is_file():
            rule = f"must name a png, jpg, jpeg, webp or bmp, relative to {path.parent}"
            raise bad_line(path, number, rule, name)
        # A second label would contradict the first, and a second line would count the image twice.
        if image in seen:
            raise bad_line(path, number, f"repeats the image of line {seen[image]}", name)
        seen[image] = number
        if (index := labels.get(normalise_name(word))) is None:
            content.foreign.add(word)
        else:
            content.items.append(Item(domain, index, str(image)))
    return content
