"""Layouts: how domain-generalisation data are stored on disk, and which layout a folder has.

    domain/class/*          DomainBed's PACS, VLCS, office_home, domain_net, and users' own data
    domain/split/class/*    Dassl's VLCS and office_home_dg; splits are train, crossval, val, test
    image lists             lines `path label`, beside or above the folders of the domains:
        splits/DOMAIN_*.txt       Dassl's pacs (images/DOMAIN/class/*, labels from 1), domainnet
        image_list/DOMAIN*.txt    Transfer-Learning-Library
        DOMAIN/image_list.txt     VisDA-2017, as it was published
        DOMAIN_*.txt              NOUN and CDAN (`_list`): ImageCLEF-DA, Office-Home, VisDA-2017

The sets in `dfkd.evaluation.public_data_sets` are recognised by the names of their domains and the
number of classes. Images of all splits are used, domains get the paper's names in every layout, and
a note states each difference from the published numbers of images. `evaluation.data` may also name
the parent of the data set's folder.

If an image has a class folder, the folder's name is its class, and a list that contradicts it is an
error. If there are only numbers (Dassl's VLCS, ImageCLEF-DA), they are positions in the manifest's
`classes`, which must then be in the published order:

    VLCS            bird, car, chair, dog, person
    ImageCLEF-DA    aeroplane, bike, bird, boat, bottle, bus, car, dog, horse, monitor, motorbike,
                    people

Only the part of a list's path after the domain's name counts, so no line leads out of the domain's
folder. Links out of it are ignored too.
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
"""Names of split folders in a domain; JigenDG's `full` repeats `train` and `crossval`."""
DOMAIN_PARENTS = frozenset({"images", "kfold"})
"""Names of folders that contain the domains: Dassl's `images`, and `kfold` of published PACS."""
LISTS = ("splits", "image_list")
"""Names of folders that contain lists."""
LIST_STEM = re.compile(
    r"(?P<domain>.+?)(?P<end>_list|(?:_(?:train|crossval|val|test|all))?(?:_kfold)?)", re.IGNORECASE
)
"""The file name of a list without `.txt`."""


@dataclass(frozen=True)
class Layout:
    """The layout of a folder; only names of folders and lists have been read."""

    form: str
    """Description for the notes."""
    homes: Mapping[str, Path]
    """The folder of each domain."""
    words: Set[str]
    """Names of the class folders; empty if images are directly in the domain's folder."""
    data_set: PublicDataSet | None = None
    """The public data set, if it is one."""
    lists: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    """The lists of each domain; empty if the folders are sufficient."""
    split: bool = False
    """Whether there are split folders between domain and class."""
    ignored_folders: Sequence[str] = ()
    """Names of the folders that are ignored."""
    other_files: int = 0
    """The number of other ignored entries."""

    @property
    def numbered(self) -> bool:
        """Whether classes are identified by numbers only."""
        return all(word.isascii() and word.isdecimal() for word in self.words)

    def only(self, domains: Sequence[str]) -> "Layout":
        """This layout restricted to some domains."""
        homes = {name: self.homes[name] for name in domains if name in self.homes}
        return dataclasses.replace(self, homes=homes)

    def entries(self, foreign: Set[str], tally: Tally) -> Iterator[Entry]:
        """Yield every image; in an unknown data set those in `foreign` class folders are skipped.

        Raises:
            ManifestError: a line of a list is wrong or contradicts the folders.
        """
        if self.lists and self.data_set:
            in_classes = bool(self.words)
            yield from listed_images(
                self.data_set, self.homes, self.lists, tally, in_classes=in_classes
            )
            return
        # In a known data set foreign classes are counted too, to compare with published numbers.
        skipped = frozenset() if self.data_set else foreign
        for domain, home in self.homes.items():
            tally.ignored["files beside the class folders"] += count_others(home)
            folders = subfolders(home)
            if self.split:
                parts = {folder.name.lower(): folder for folder in folders}
                # Reading both would count each image twice.
                if "train" in parts and "full" in parts:
                    del parts["full"]
                    tally.ignored["folders full/, which repeat train/ and crossval/"] += 1
                for part in parts.values():
                    tally.ignored["files beside the class folders"] += count_others(part)
                folders = [folder for part in parts.values() for folder in subfolders(part)]
            for folder in folders:
                if folder.name not in skipped:
                    for image in image_files(folder, tally):
                        yield Entry(domain, folder.name, image.path, str(folder))

    def remarks(self, selected: Sequence[str], counts: Mapping[str, int]) -> Iterator[str]:
        """Yield notes for the reader of the scores, one line each.

        Args:
            selected: the domains that were read.
            counts: their numbers of images, foreign classes included.
        """
        name = f"{self.data_set.name} as " if self.data_set else ""
        yield f"the layout is {name}{self.form}"
        if known := self.data_set:
            for domain in selected:
                published, present = known.images[domain], counts.get(domain, 0)
                if present != published:
                    yield (
                        f"{known.name} as published has {published:,} images of {domain}, "
                        f"this has {present:,}"
                    )
        if self.ignored_folders:
            yield f"ignored: the folders {', '.join(self.ignored_folders)}"


def recognise(root: Path) -> Layout:
    """The layout of a folder, or of the only public data set in its subfolders.

    Raises:
        ManifestError: no layout fits, or more than one.
    """
    # Public data sets first: their domains and images are also plain domain/class folders.
    if public := _public_layout(root):
        return public
    below = {
        folder.name: layout for folder in subfolders(root) if (layout := _public_layout(folder))
    }
    # Users often name the folder in which they unpacked the archive.
    if len(below) == 1:
        ((name, layout),) = below.items()
        siblings = [folder.name for folder in subfolders(root) if folder.name != name]
        return dataclasses.replace(layout, ignored_folders=[*layout.ignored_folders, *siblings])
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
            "put class folders into a folder of their domain, also if it is the only one",
        )
    if len(set(kinds.values())) > 1:
        split = next(folder.name for folder, is_split in kinds.items() if is_split)
        raise _ambiguous(
            root, f"has splits in {split} and classes in other domains", "lay all out alike"
        )
    return _unnamed_layout(root, kinds, {folder.name: folder for folder in kinds})


def _ambiguous(root: Path, what: str, remedy: str) -> ManifestError:
    """The error about a folder that holds more than one data set or layout."""
    return ManifestError(FIELD, f"must be one data set, {what}", str(root), remedy)


def _public_layout(root: Path) -> Layout | None:
    """The layout of a public data set in its own folder."""
    inner = [folder for folder in subfolders(root) if folder.name.lower() in DOMAIN_PARENTS]
    for home in (root, *inner):
        names = [folder.name for folder in subfolders(home)]
        named = any(data_set.domain(name) for data_set in DATA_SETS for name in names)
        # Lists before folders: they say which of the images in the folders belong to the set.
        if named and (layout := _listed_layout(root, home) or _folder_layout(home)):
            return layout
    return None


def _listed_layout(root: Path, home: Path) -> Layout | None:
    """A public data set whose lists name the images in `home`."""
    folders = subfolders(home)
    # Each list, with the part of its name that stands for the domain.
    files: list[tuple[str, Path]] = []
    for folder in (root, *(root / name for name in LISTS)):
        for path in sorted(folder.glob("*.txt")):
            match = LIST_STEM.fullmatch(path.stem)
            # In the root any text file may lie around: a list there needs a telling end.
            if match and path.is_file() and (match["end"] or folder != root):
                files.append((match["domain"], path))
    for folder in folders:
        if (path := folder / "image_list.txt").is_file():
            files.append((folder.name, path))
    # The lists of each domain, by data set.
    candidates: list[tuple[PublicDataSet, dict[str, list[Path]]]] = []
    for data_set in DATA_SETS:
        # A list whose domain has no folder names no image that could be read.
        present = {data_set.domain(folder.name) for folder in folders} - {""}
        named: dict[str, list[Path]] = {}
        for word, path in files:
            if (domain := data_set.domain(word)) in present:
                named.setdefault(domain, []).append(path)
        if named:
            candidates.append((data_set, named))
    # Data sets share names of domains (clipart, sketch, real): a candidate must explain every list
    # that some candidate explains, and then have the right number of classes.
    words = {
        word for word, _ in files for data_set, its in candidates if data_set.domain(word) in its
    }
    fitting: list[tuple[PublicDataSet, Layout]] = []
    for data_set, named in candidates:
        if not all(data_set.domain(word) for word in words):
            continue
        domains = {folder: data_set.domain(folder.name) for folder in folders}
        homes = {name: folder for folder, name in domains.items() if name in named}
        classes = {inner.name for folder in homes.values() for inner in subfolders(folder)}
        # Folders of lists were read, so a note that they are ignored would be wrong.
        used = {*(folder.name for folder in homes.values()), *LISTS}
        ignored = [folder.name for folder in folders if folder.name not in used]
        layout = Layout("image lists", homes, classes, data_set, named, ignored_folders=ignored)
        fitting.append((data_set, layout))
    # Names and lists fit several sets, so the number of classes decides.
    if len(fitting) > 1:
        fitting = [each for each in fitting if len(each[1].words) == each[0].classes]
    if candidates and len(fitting) != 1:
        known = ", ".join(data_set.name for data_set, _ in candidates)
        raise _ambiguous(root, f"has lists that fit {known}", "keep the lists of one of them")
    return fitting[0][1] if fitting else None


def _folder_layout(home: Path) -> Layout | None:
    """The layout of a public data set that consists of folders only."""
    kinds = _has_splits(home)
    for data_set in DATA_SETS:
        others = [
            folder for folder in kinds if normalise_name(folder.name) in data_set.other_folders
        ]
        own = {folder: kind for folder, kind in kinds.items() if folder not in others}
        homes = {data_set.domain(folder.name): folder for folder in own}
        # Every folder must be a domain, no domain may occur twice, and all must be of one kind.
        if not own or "" in homes or len(homes) < len(own) or len(set(own.values())) > 1:
            continue
        layout = _unnamed_layout(home, own, homes)
        # Users name their own domains photo or sketch too; the number of classes tells them apart.
        words = {normalise_name(word) for word in layout.words}
        if len(words) == data_set.classes and words >= data_set.folders_of_classes:
            ignored = [folder.name for folder in others]
            return dataclasses.replace(layout, data_set=data_set, ignored_folders=ignored)
    return None


def _has_splits(root: Path) -> dict[Path, bool]:
    """Each folder that contains folders, and whether these are splits."""
    below = {folder: subfolders(folder) for folder in subfolders(root)}
    # A class may be called `train` too, but only a split holds folders.
    return {
        folder: {inner.name.lower() for inner in inside} <= SPLITS and any(map(subfolders, inside))
        for folder, inside in below.items()
        if inside
    }


def _unnamed_layout(root: Path, kinds: Mapping[Path, bool], homes: Mapping[str, Path]) -> Layout:
    """The layout of plain folders, which must be all with splits or all without."""
    split = any(kinds.values())
    above = [inner for folder in kinds for inner in (subfolders(folder) if split else [folder])]
    words = {folder.name for home in above for folder in subfolders(home)}
    form = "domain/split/class folders" if split else "domain/class folders"
    # Folders that hold no folders are no domains; notes count them with the files.
    rest = count_others(root) + len(subfolders(root)) - len(_has_splits(root))
    return Layout(form, homes, words, split=split, other_files=rest)
