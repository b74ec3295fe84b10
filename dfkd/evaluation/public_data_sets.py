"""Public data sets of domain generalisation: their domains, their sizes, what labels mean."""

import functools
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field


@functools.lru_cache(4096)  # few names, asked for by every line of a list
def normalise_name(name: str) -> str:
    """A name without case, with `_` and `-` as spaces: `Alarm_clock` is `alarm clock`."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


@dataclass(frozen=True)
class PublicDataSet:
    """What is published about a data set."""

    name: str
    images: Mapping[str, int]
    """How many each domain has; the domains by the names of the paper."""
    classes: int
    also: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Other names of a domain's folder and lists."""
    beside: Sequence[str] = ()
    """Folders that are no domain of it."""
    order: Sequence[str] = ()
    """The classes by label, where some layout has nothing but labels."""
    first: int = 0
    """The lowest label in its lists."""
    broken: Set[str] = frozenset()
    """Images that some copies lack though their lists name them."""

    def domain(self, word: str) -> str:
        """The domain that a folder or list is named after; empty for none of them."""
        for name in self.images:
            if normalise_name(word) in map(normalise_name, (name, *self.also.get(name, ()))):
                return name
        return ""


DATA_SETS = (
    PublicDataSet(  # Li et al. 2017; lists of the authors' train, crossval and test splits
        name="PACS",
        images={"photo": 1670, "art_painting": 2048, "cartoon": 2344, "sketch": 3929},
        classes=7,
        first=1,
        broken=frozenset({"n02103406_4068-1.png"}),  # Dassl's reader passes it over
    ),
    PublicDataSet(  # Fang et al. 2013; DomainBed's and JigenDG's copies have the same numbers
        name="VLCS",
        images={"VOC2007": 3376, "LabelMe": 2656, "Caltech101": 1415, "SUN09": 3282},
        classes=5,
        also={"VOC2007": ["PASCAL"], "Caltech101": ["CALTECH"], "SUN09": ["SUN"]},
        order=("bird", "car", "chair", "dog", "person"),
    ),
    PublicDataSet(  # Venkateswara et al. 2017
        name="Office-Home",
        images={"art": 2427, "clipart": 4365, "product": 4439, "real_world": 4357},
        classes=65,
        also={"real_world": ["RealWorld", "Real"]},
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
    PublicDataSet(  # Caputo et al. 2014; lists of Pascal name 9 of 591 images in two classes
        name="ImageCLEF-DA",
        images={"caltech": 600, "imagenet": 600, "pascal": 600},
        classes=12,
        also={"caltech": ["c"], "imagenet": ["i"], "pascal": ["p"]},
        beside=("b", "bing"),
        order=(
            *("aeroplane", "bike", "bird", "boat", "bottle", "bus"),
            *("car", "dog", "horse", "monitor", "motorbike", "people"),
        ),
    ),
    PublicDataSet(  # Peng et al. 2018; the folders in test/ are no classes
        name="VisDA-2017",
        images={"synthetic": 152397, "real": 55388},
        classes=12,
        also={"synthetic": ["train"], "real": ["validation"]},
        beside=("test",),
    ),
)
