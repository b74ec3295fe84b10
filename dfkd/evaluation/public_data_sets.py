"""Public data sets of domain generalisation: domains, numbers of images, meaning of labels."""

import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field


@functools.lru_cache(4096)  # few distinct names, but one call for every line of a list
def normalise_name(name: str) -> str:
    """The name in lower case with `_` and `-` as spaces: `Alarm_clock` becomes `alarm clock`.

    Letters with accents become one character, as macOS writes two into the names of files.
    """
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", name)).strip().casefold()


@dataclass(frozen=True)
class PublicDataSet:
    """The published facts about a data set."""

    name: str
    images: Mapping[str, int]
    """The number of images of each domain, by the paper's name of the domain."""
    classes: int
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Other names under which folders and lists of a domain are published."""
    other_folders: Sequence[str] = ()
    """Folders that are not domains of the data set."""
    folders_of_classes: Set[str] = frozenset()
    """The names of its class folders, where names and number of domains do not tell enough."""
    class_order: Sequence[str] = ()
    """The classes by label; empty unless a published layout has labels only."""
    first_label: int = 0
    """The lowest label in its lists."""
    missing_images: Set[str] = frozenset()
    """Images that lists name but some published copies lack."""

    def domain(self, word: str) -> str:
        """The domain that the name `word` of a folder or list refers to; empty if none."""
        for name in self.images:
            if normalise_name(word) in map(normalise_name, (name, *self.aliases.get(name, ()))):
                return name
        return ""


DATA_SETS = (
    PublicDataSet(  # Li et al. 2017; lists of the authors' train, crossval and test splits
        name="PACS",
        images={"photo": 1670, "art_painting": 2048, "cartoon": 2344, "sketch": 3929},
        classes=7,
        first_label=1,
        missing_images=frozenset({"n02103406_4068-1.png"}),  # Dassl's reader skips it
    ),
    PublicDataSet(  # Fang et al. 2013; DomainBed's and JigenDG's copies have the same numbers
        name="VLCS",
        images={"VOC2007": 3376, "LabelMe": 2656, "Caltech101": 1415, "SUN09": 3282},
        classes=5,
        aliases={"VOC2007": ["PASCAL"], "Caltech101": ["CALTECH"], "SUN09": ["SUN"]},
        class_order=("bird", "car", "chair", "dog", "person"),
    ),
    PublicDataSet(  # Venkateswara et al. 2017
        name="Office-Home",
        images={"art": 2427, "clipart": 4365, "product": 4439, "real_world": 4357},
        classes=65,
        aliases={"real_world": ["RealWorld", "Real"]},
    ),
    PublicDataSet(  # Peng et al. 2019, the cleaned lists: 409,832 to train, 176,743 to test
        name="DomainNet",
        images={
            "clipart": 48129,
            "infograph": 51605,
            "painting": 72266,
            "quickdraw": 172500,
            "real": 172947,
            "sketch": 69128,
        },
        classes=345,
    ),
    PublicDataSet(  # Caputo et al. 2014; Pascal's lists name 9 of 591 images in two classes
        name="ImageCLEF-DA",
        images={"caltech": 600, "imagenet": 600, "pascal": 600},
        classes=12,
        aliases={"caltech": ["c"], "imagenet": ["i"], "pascal": ["p"]},
        other_folders=("b", "bing"),
        class_order=(
            *("aeroplane", "bike", "bird", "boat", "bottle", "bus"),
            *("car", "dog", "horse", "monitor", "motorbike", "people"),
        ),
    ),
    PublicDataSet(  # Peng et al. 2018; the folders in test/ are not classes
        name="VisDA-2017",
        images={"synthetic": 152397, "real": 55388},
        classes=12,
        aliases={"synthetic": ["train"], "real": ["validation"]},
        other_folders=("test",),
        folders_of_classes=frozenset(  # other data sets too have folders train and test
            (
                *("aeroplane", "bicycle", "bus", "car", "horse", "knife"),
                *("motorcycle", "person", "plant", "skateboard", "train", "truck"),
            )
        ),
    ),
)
