"""Layouts: how domain-generalisation data lie on disk, and which of them a folder has.

    domain/class/*          DomainBed's PACS, VLCS, office_home, domain_net, and anybody's own data
    domain/split/class/*    Dassl's VLCS and office_home_dg; splits are train, crossval, val, test
    image lists             lines `path label`, beside or above the folders of the domains:
        splits/DOMAIN_*.txt       Dassl's pacs (images/DOMAIN/class/*, labels from 1), domainnet
        image_list/DOMAIN*.txt    Transfer-Learning-Library
        DOMAIN/image_list.txt     VisDA-2017, as it was published
        DOMAIN_*.txt              NOUN and CDAN (`_list`): ImageCLEF-DA, Office-Home, VisDA-2017

The sets in `dfkd.evaluation.public_data_sets` are known by the names of the domains that are there
and the number of classes. All splits of them count, their domains go by the paper's names wherever
they come from, and what differs from the published numbers is told. The folder may also be one
above the data set.

The class is the folder's name where an image has a class folder, and a list may not contradict it.
Where all there is is a number (Dassl's VLCS, ImageCLEF-DA), it is the position in the manifest's
`classes`, which are then to be given in the published order:

    VLCS            bird, car, chair, dog, person
    ImageCLEF-DA    aeroplane, bike, bird, boat, bottle, bus, car, dog, horse, monitor, motorbike,
                    people

A list's path counts from the folder of the domain, whatever stands before it, so that no line leads
out of that folder; nor does a link that a line names.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from dfkd.errors import ManifestError
from dfkd.evaluation.image_lists import (
    FIELD,
    Entry,
    Tally,
    count_others,
    image_files,
    listed_images,
    subfolders,
)
from dfkd.evaluation.public_data_sets import DATA_SETS, PublicDataSet, normalise_name

SPLITS = frozenset({"train", "crossval", "val", "test", "full"})
"""Folders below a domain; JigenDG's `full` holds what `train` and `crossval` hold."""
DOMAIN_PARENTS = frozenset({"images", "kfold"})
"""Folders that hold the domains of a set: Dassl's, and the one that PACS was published in."""
LISTS = ("splits", "image_list")
"""Folders that hold lists."""
LIST_STEM = re.compile(
    r"(?P<domain>.+?)(?P<end>_list|(?:_(?:train|crossval|val|test|all))?(?:_kfold)?)", re.IGNORECASE
)
"""The name of a list without `.txt`."""


@dataclass(frozen=True)
class Layout:
    """A recognised folder, of which only the names of folders and lists have been read."""

    form: str
    homes: Mapping[str, Path]
    """The folder of each domain."""
    words: Set[str]
    """Names of the class folders; none where the images lie in the domain's own folder."""
    data_set: PublicDataSet | None = None
    lists: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    """Of each domain; none where the folders tell all."""
    split: bool = False
    """Whether folders of splits stand between domain and class."""
    beside: Sequence[str] = ()
    """Names of the folders that were passed over."""
    other_files: int = 0
    """How much else there was."""

    @property
    def numbered(self) -> bool:
        """Whether numbers are all that tells the classes apart."""
        return all(word.isascii() and word.isdecimal() for word in self.words)

    def only(self, domains: Sequence[str]) -> "Layout":
        """The same without the other domains."""
        homes = {name: self.homes[name] for name in domains if name in self.homes}
        return dataclasses.replace(self, homes=homes)

    def entries(self, foreign: Set[str], tally: Tally) -> Iterator[Entry]:
        """Every image; of an unknown data set without those of the `foreign` class folders.

        Raises:
            ManifestError: a line of a list is wrong or contradicts the folders.
        """
        if self.lists and self.data_set:
            in_classes = bool(self.words)
            yield from listed_images(
                self.data_set, self.homes, self.lists, tally, in_classes=in_classes
            )
            return
        skipped = frozenset() if self.data_set else foreign
        for domain, home in self.homes.items():
            for place in _class_folders(home, self.split, tally):
                if place.name not in skipped:
                    for image in image_files(place, tally):
                        yield Entry(domain, place.name, image.path, str(place))

    def remarks(self, asked: Sequence[str], counts: Mapping[str, int]) -> Iterator[str]:
        """What the reader of the scores should know, a line each.

        Args:
            asked: the domains that were to be read.
            counts: their images, foreign classes included.
        """
        name = f"{self.data_set.name} as " if self.data_set else ""
        yield f"the layout is {name}{self.form}"
        if self.data_set:
            yield from _differences(self.data_set, asked, counts)
        if self.beside:
            yield f"ignored: the folders {', '.join(self.beside)}"


def _differences(
    data_set: PublicDataSet, asked: Sequence[str], counts: Mapping[str, int]
) -> Iterator[str]:
    for domain in asked:
        published, found = data_set.images[domain], counts.get(domain, 0)
        if found != published:
            yield (
                f"{data_set.name} as published has {published:,} images of {domain}, "
                f"this has {found:,}"
            )


def recognise(root: Path) -> Layout:
    """The layout of a folder, or of the one known data set in it.

    Raises:
        ManifestError: none is recognised, or more than one.
    """
    if found := _public_layout(root):
        return found
    below = {place.name: layout for place in subfolders(root) if (layout := _public_layout(place))}
    if len(below) == 1:
        ((name, layout),) = below.items()
        passed = [place.name for place in subfolders(root) if place.name != name]
        return dataclasses.replace(layout, beside=[*layout.beside, *passed])
    if below:
        raise _ambiguous(root, f"holds {', '.join(below)}", "point evaluation.data at one of them")
    kinds = _has_splits(root)
    if not kinds:
        raise ManifestError(
            FIELD,
            "must hold domain/class/*, domain/split/class/*, or lists of a known data set beside "
            "the folders of its domains (looked for splits/, image_list/, DOMAIN/image_list.txt, "
            "DOMAIN_list.txt)",
            str(root),
            "see dfkd/evaluation/layouts.py",
        )
    if len(set(kinds.values())) > 1:
        split = next(place.name for place, is_split in kinds.items() if is_split)
        raise _ambiguous(
            root, f"has splits in {split} and classes in other domains", "lay all out alike"
        )
    return _unnamed_layout(root, kinds, {place.name: place for place in kinds})


def _ambiguous(root: Path, what: str, remedy: str) -> ManifestError:
    return ManifestError(FIELD, f"must be one data set, {what}", str(root), remedy)


def _public_layout(root: Path) -> Layout | None:
    """The layout of a public data set in its own folder."""
    inner = [place for place in subfolders(root) if place.name.lower() in DOMAIN_PARENTS]
    for home in (root, *inner):
        names = [place.name for place in subfolders(home)]
        named = any(data_set.domain(name) for data_set in DATA_SETS for name in names)
        if named and (found := _listed_layout(root, home) or _folder_layout(home)):
            return found
    return None


def _listed_layout(root: Path, home: Path) -> Layout | None:
    """A public data set whose lists name the images in `home`."""
    files = list(_list_files(root, home))
    found = [
        (data_set, named)
        for data_set in DATA_SETS
        if (named := _lists_by_domain(data_set, home, files))
    ]
    words = {word for word, _ in files for data_set, its in found if data_set.domain(word) in its}
    fitting = [
        _with_lists(data_set, home, named)
        for data_set, named in found
        if all(data_set.domain(word) for word in words)
    ]
    if len(fitting) > 1:
        fitting = [x for x in fitting if x.data_set and len(x.words) == x.data_set.classes]
    if found and len(fitting) != 1:
        names = ", ".join(data_set.name for data_set, _ in found)
        raise _ambiguous(root, f"has lists that fit {names}", "keep the lists of one of them")
    return fitting[0] if fitting else None


def _list_files(root: Path, home: Path) -> Iterator[tuple[str, Path]]:
    """Each list with the word that says whose it is."""
    for folder in (root, *(root / name for name in LISTS)):
        for path in sorted(folder.glob("*.txt")):
            found = LIST_STEM.fullmatch(path.stem)
            if found and path.is_file() and (found["end"] or folder != root):
                yield found["domain"], path
    for place in subfolders(home):
        if (path := place / "image_list.txt").is_file():
            yield place.name, path


def _lists_by_domain(
    data_set: PublicDataSet, home: Path, files: Sequence[tuple[str, Path]]
) -> dict[str, list[Path]]:
    """The lists of each domain of a data set that has a folder in `home`."""
    there = {data_set.domain(place.name) for place in subfolders(home)} - {""}
    named: dict[str, list[Path]] = {}
    for word, path in files:
        if (domain := data_set.domain(word)) in there:
            named.setdefault(domain, []).append(path)
    return named


def _with_lists(data_set: PublicDataSet, home: Path, named: Mapping[str, Sequence[Path]]) -> Layout:
    domains = {place: data_set.domain(place.name) for place in subfolders(home)}
    homes = {name: place for place, name in domains.items() if name in named}
    words = {inner.name for place in homes.values() for inner in subfolders(place)}
    used = {*(place.name for place in homes.values()), *LISTS}
    beside = [place.name for place in domains if place.name not in used]
    return Layout("image lists", homes, words, data_set, named, beside=beside)


def _folder_layout(home: Path) -> Layout | None:
    """A public data set as nothing but folders."""
    kinds = _has_splits(home)
    for data_set in DATA_SETS:
        passed = [place for place in kinds if normalise_name(place.name) in data_set.beside]
        own = {place: kind for place, kind in kinds.items() if place not in passed}
        homes = {data_set.domain(place.name): place for place in own}
        if not own or "" in homes or len(homes) < len(own) or len(set(own.values())) > 1:
            continue
        found = _unnamed_layout(home, own, homes)
        if len({normalise_name(word) for word in found.words}) == data_set.classes:
            beside = [place.name for place in passed]
            return dataclasses.replace(found, data_set=data_set, beside=beside)
    return None


def _has_splits(root: Path) -> dict[Path, bool]:
    """Each folder that holds folders, and whether those are splits."""
    below = {place: subfolders(place) for place in subfolders(root)}
    return {
        place: {inner.name.lower() for inner in inside} <= SPLITS and any(map(subfolders, inside))
        for place, inside in below.items()
        if inside
    }


def _unnamed_layout(root: Path, kinds: Mapping[Path, bool], homes: Mapping[str, Path]) -> Layout:
    """The layout of folders alone, all of one kind."""
    split = any(kinds.values())
    above = [inner for place in kinds for inner in (subfolders(place) if split else [place])]
    words = {place.name for home in above for place in subfolders(home)}
    form = "domain/split/class folders" if split else "domain/class folders"
    rest = count_others(root) + len(subfolders(root)) - len(_has_splits(root))
    return Layout(form, homes, words, split=split, other_files=rest)


def _class_folders(home: Path, split: bool, tally: Tally) -> Iterator[Path]:
    """The class folders of a domain; what stands beside them is counted."""
    tally.beside["files beside the class folders"] += count_others(home)
    if not split:
        yield from subfolders(home)
        return
    parts = {place.name.lower(): place for place in subfolders(home)}
    if "train" in parts and "full" in parts:
        del parts["full"]
        tally.beside["folders full/, which repeat train/ and crossval/"] += 1
    for place in parts.values():
        tally.beside["files beside the class folders"] += count_others(place)
        yield from subfolders(place)
