"""Public data sets in the layouts that people have on disk, of tiny images made on the spot.

An image shows which class it is of: `class_of` reads that back, so that a test can hold a label
against the picture.
"""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from dfkd.config.distillation import Evaluation
from dfkd.evaluation.data import Domains, open_data

PACS = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
VLCS = ("bird", "car", "chair", "dog", "person")
OFFICE_HOME = tuple(f"Thing_{index:02}" for index in range(65))
DOMAIN_NET = tuple(f"thing_{index:03}" for index in range(345))
CLEF = (
    *("aeroplane", "bike", "bird", "boat", "bottle", "bus"),
    *("car", "dog", "horse", "monitor", "motorbike", "people"),
)
VISDA = (
    *("aeroplane", "bicycle", "bus", "car", "horse", "knife"),
    *("motorcycle", "person", "plant", "skateboard", "train", "truck"),
)
STEP = 18
"""Grey levels between two classes of a JPEG, which changes levels a little."""


def picture(index: int, suffix: str) -> bytes:
    """A 4 x 4 image of the class at a position."""
    kind, colour = "PNG", (index // 256, index % 256, 0)
    if suffix.lower() in (".jpg", ".jpeg"):
        kind, colour = "JPEG", (STEP * index,) * 3
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(stream, kind)
    return stream.getvalue()


def class_of(encoded: bytes) -> int:
    """The position of the class that an image shows."""
    with Image.open(io.BytesIO(encoded)) as image:
        red, green, _ = image.convert("RGB").getpixel((0, 0))
        return round(red / STEP) if image.format == "JPEG" else 256 * red + green


def put(path: Path, index: int) -> None:
    """An image file with the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(index, path.suffix))


def folders(
    root: Path, domains: Sequence[str], classes: Sequence[str], name: str = "1.png"
) -> Path:
    """`domain/class/name`, one of each; a domain may have parts (`CALTECH/test`)."""
    for domain in domains:
        for index, word in enumerate(classes):
            put(root / domain / word / name, index)
    return root


def write_list(path: Path, lines: Sequence[str], end: str = "\n", head: str = "") -> Path:
    """A list file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + "".join(line + end for line in lines), encoding="utf-8", newline="")
    return path


def lines(
    domain: str, classes: Sequence[str], name: str = "1.png", *, first: int = 0, prefix: str = ""
) -> list[str]:
    """`path label` of every class."""
    return [
        f"{prefix}{domain}/{word}/{name} {label}" for label, word in enumerate(classes, start=first)
    ]


def dassl_pacs(root: Path) -> Path:
    """`images/` and `splits/`, labels from 1; all images are in the list for tests too."""
    for domain in ("art_painting", "cartoon", "photo", "sketch"):
        for name, split in (("1.png", "train"), ("2.png", "crossval")):
            folders(root / "images", [domain], PACS, name)
            names = lines(domain, PACS, name, first=1)
            write_list(root / "splits" / f"{domain}_{split}_kfold.txt", names)
        every = [line for name in ("1.png", "2.png") for line in lines(domain, PACS, name, first=1)]
        write_list(root / "splits" / f"{domain}_test_kfold.txt", every)
    return root


def dassl_vlcs(root: Path) -> Path:
    """`DOMAIN/split/label`, and JigenDG's `full` beside them."""
    for domain in ("CALTECH", "LABELME", "PASCAL", "SUN"):
        for split in ("train", "crossval", "test"):
            folders(root, [f"{domain}/{split}"], "01234", f"{split}_imgs_1.jpg")
            if split != "test":
                folders(root, [f"{domain}/full"], "01234", f"{split}_imgs_1.jpg")
    return root


def clef(root: Path, prefix: str = "/xxxx/image-clef/", end: str = "\n") -> Path:
    """NOUN's lists beside folders without classes; Bing (b) is no domain of the published task."""
    for domain in "bcip":
        names = []
        for index in range(12):
            put(root / domain / f"{index}_07.JPEG", index)
            names.append(f"{prefix}{domain}/{index}_07.JPEG {index}")
        write_list(root / f"{domain}_list.txt", names, end)
    return root


def visda(root: Path) -> Path:
    """As it was published: a list in each domain's folder; the test set has no class folders."""
    for domain, name in (("train", "src_1__10_10_150.png"), ("validation", "aeroplane 7.jpg")):
        folders(root, [domain], VISDA, name)
        names = [f"{word}/{name} {label}" for label, word in enumerate(VISDA)]
        write_list(root / domain / "image_list.txt", names)
    put(root / "test" / "trunk00" / "hash.jpg", 0)
    return root


def listed(root: Path, classes: Sequence[str], names: Mapping[str, str], prefix: str = "") -> Path:
    """Folders of domains with the lists that `names` gives each of them."""
    for domain, name in names.items():
        folders(root, [domain], classes)
        write_list(root / name, lines(domain, classes, prefix=prefix))
    return root


def opened(root: Path, classes: tuple[str, ...], **settings: object) -> Domains:
    """The evaluation data below `root`."""
    return open_data(Evaluation(data=str(root), **settings), classes)  # type: ignore[arg-type]


def counts(data: Domains) -> Counter[str]:
    """Number of images by domain."""
    return Counter(item.domain for item in data.items)
