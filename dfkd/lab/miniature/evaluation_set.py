"""The bundled evaluation set: held-out drawings, painted in the looks of its domains.

Classes were chosen by how distinct the objects look and how many held-out drawings show them. Names
whose drawings show something else were removed by hand; no model was involved.
"""

import hashlib
import io
import tarfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from dfkd.lab.miniature import clipart
from dfkd.lab.miniature.drawings import Cache, DrawingRow, Pixels, painted
from dfkd.lab.miniature.icons import EMOJI, shuffle_key
from dfkd.lab.miniature.looks import DOMAINS, domain_look
from dfkd.utils.pixels import to_bytes

_ITS_OWN_NAME = (
    "anchor backpack battery bed bicycle bomb briefcase broom bus calendar cloud coin "
    "compass crown drum gear gift glasses helicopter joystick keyboard magnet moon "
    "newspaper pizza printer radio rainbow robot rocket shield ship snowflake stopwatch "
    "sun thermometer trophy truck watch"
)
"""Classes whose drawings have one name, that of the class."""
NAMES: dict[str, str] = {
    "airplane": "airplane/plane/small airplane/airplane departure/airplane arrival/plane alt/"
    "plane departure/plane arrival/plane inflight/plane tilt/transportation plane",
    "bell": "bell/bell ring/bell ringing/bell school/alert alarm bell",
    "book": "book/open book/closed book/blue book/green book/orange book/book open/book type/"
    "book text/book open text/book marked/content files book/content files open book/"
    "content files close book bookmark/content files open book bookmark/book bookmark/"
    "book flip page",
    "camera": "camera/camera with flash/camera retro/camera selfie/camera rotate/camera add/"
    "photography camera/retro camera/camera double/camera mode photo/camera tripod/"
    "vintage camera polaroid",
    "car": "car/automobile/oncoming automobile/police car/oncoming police car/racing car/"
    "sport utility vehicle/taxi/oncoming taxi/car side/car front/car suv/car taxi front/"
    "car rear",
    "cat": "cat/cat face/black cat/grinning cat/pouting cat/weary cat/kissing cat/pet animals cat/"
    "business metaphor lucky cat",
    "clock": "clock/alarm clock/mantelpiece clock/timer clock/twelve oclock/three oclock/"
    "nine oclock/ten oclock/clock hour/clock four/interface essential clock/"
    "alert alarm clock/time clock circle/time clock square/"
    "time clock nine twenty five/alarm",
    "dog": "dog/dog face/guide dog/service dog/poodle/pet animals dog",
    "fish": "fish/tropical fish/blowfish/food drink fish",
    "guitar": "guitar",
    "heart": "heart/red heart/heart suit/black heart/blue heart/green heart/yellow heart/"
    "beating heart/growing heart/heart with arrow/heart with ribbon/sparkling heart/"
    "interface essential heart favorite/hearts",
    "hourglass": "hourglass/hourglass done/hourglass not done/hourglass empty/hourglass high/"
    "hourglass low/hourglass start/hourglass half/hourglass end/hourglass top/"
    "hourglass bottom/interface essential waiting hourglass loading/"
    "time hourglass triangle",
    "house": "house/home/house with garden/house chimney/house chimney window/"
    "home lg/home smile/building real eastate house/"
    "interface essential home/home chimney/derelict house",
    "key": "key/old key/key round/interface essential key/login logout key",
    "laptop": "laptop/device laptop/laptop minimal/computers devices electronics laptop/"
    "laptop computer/laptop code",
    "microphone": "microphone/studio microphone/microphone lines/interface essential microphone/"
    "music microphone/microphone karaoke/podcast microphone international/mic/"
    "mic vocal",
    "scissors": "scissors/copy paste cut scissors/cut/black scissors",
    "star": "star/glowing star/social rewards rating star",
    "tree": "tree/deciduous tree/evergreen tree/palm tree/christmas tree/tree deciduous/tree pine/"
    "tree palm/trees/tree broadleaved/tree needleleaved/tree leafless/leafless tree/"
    "ecology tree/travel wayfinding beach coconut tree",
    "umbrella": "umbrella/closed umbrella/umbrella with rain drops/umbrella on ground/"
    "umbrella closed/umbrella beach/weather umbrella/weather umbrella snowing/"
    "beach with umbrella/travel wayfinding beach umbrella",
    "balloon": "balloon/party balloon",
    "bug": "bug/computer bug",
    "castle": "castle/amusement park castle",
    "eye": "eye/view eye",
    "feather": "feather/edit quill feather",
    "hammer": "hammer/settings hammer",
    "paperclip": "paperclip/link paperclip",
    "pencil": "pencil/edit pencil",
    "skull": "skull/delete skull",
    "tent": "tent/circus tent",
    "leaf": "leaf/leaf fluttering in wind/leaf maple/maple leaf",
    **{name: name for name in _ITS_OWN_NAME.split()},
}
"""Names of drawings by class, separated by "/". A drawing belongs to a class if its whole name
without style words and numbers is here: `clock-3-filled` has the name `clock`. Names of objects
with a badge are left out."""
EXCLUDED_WORDS = frozenset(("broken", "off"))
"""Words in the names of drawings that show something else: `heart-broken` is no heart."""
OFFICIAL = (
    *("airplane", "book", "camera", "car", "cat", "clock"),
    *("dog", "fish", "heart", "house", "leaf", "tree"),
)
"""The classes of the demo and the studies: things of which each domain has drawings. They were
chosen by their look and their number of drawings, before any model was trained."""
OFFICIAL_IMAGES = 20
"""Images of an official class in each domain; a class with fewer drawings shows them again in other
poses and colours."""
OTHER_IMAGES = 3
"""Maximum number of images of another class in each domain, each of another drawing."""
_POSE = 0.4
"""Strength of random poses; training has 1."""
_CLIPART = "clipart"
"""The domain that shows each drawing once, because it has few of them."""


@dataclass(frozen=True)
class EvaluationImage:
    """One image of the set; its domain, its class (`label`) and its drawing."""

    domain: str
    label: str
    row: DrawingRow
    number: int
    """Position among the images of its class and domain."""
    pixels: Pixels
    """RGB, uint8 [64, 64, 3]."""

    @property
    def member(self) -> str:
        """Path in the bundle, a tar: `domain/class/collection_name_number.webp`."""
        name = f"{self.row.collection}_{self.row.name}_{self.number}"
        return f"{self.domain}/{self.label}/{name}.webp"


def select(cache: Cache, left_out: Collection[DrawingRow] = ()) -> list[EvaluationImage]:
    """Paint the set; returns its images, sorted by their paths in the bundle.

    Args:
        cache: the held-out icons and clip art.
        left_out: drawings that must not be shown, because training has the same.
    """
    rows = [row for row in cache.rows if row not in left_out]
    mono = by_class([row for row in rows if not row.colour])
    # Most domains paint drawings in one ink; these two show drawings in their own colours.
    sources = {
        _CLIPART: by_class([row for row in rows if row.collection == clipart.EVALUATION]),
        "color_emoji": by_class([row for row in rows if row.collection in EMOJI]),
    }
    images = []
    for domain in DOMAINS:
        for label, drawings in sources.get(domain, mono).items():
            count = min(OTHER_IMAGES, len(drawings))
            if label in OFFICIAL:
                count = OFFICIAL_IMAGES if domain != _CLIPART else len(drawings)
            # After the last drawing the first one comes again.
            selected = [drawings[i % len(drawings)] for i in range(count)]
            # Each class of each domain has its own seed, so no other class or domain changes it.
            seed = hashlib.sha256(f"{domain}/{label}".encode()).digest()[:7]
            gen = torch.Generator().manual_seed(int.from_bytes(seed))
            looks = [domain_look(domain, gen) for _ in selected]
            pixels = to_bytes(painted(cache, selected, looks, gen, _POSE)).numpy()
            images += [
                EvaluationImage(domain, label, row, number, pixels[number])
                for number, row in enumerate(selected)
            ]
    return sorted(images, key=lambda image: image.member)


def by_class(rows: Sequence[DrawingRow]) -> dict[str, list[DrawingRow]]:
    """The rows of each class, in an order that mixes the collections (`shuffle_key`)."""
    classes = {name: label for label, text in NAMES.items() for name in text.split("/")}
    groups: dict[str, list[DrawingRow]] = {}
    for row in sorted(rows, key=shuffle_key):
        label = classes.get(row.concept)
        if label and EXCLUDED_WORDS.isdisjoint(row.name.split("-")):
            groups.setdefault(label, []).append(row)
    return groups


def official_names() -> frozenset[str]:
    """The names of drawings of all official classes."""
    return frozenset(name for label in OFFICIAL for name in NAMES[label].split("/"))


def write(images: Sequence[EvaluationImage], path: Path) -> None:
    """Write the bundle, a tar of WebP images; the same images give the same bytes."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as bundle:
        for image in images:
            # A new TarInfo has no time and no owner, so the bytes are always the same.
            data = io.BytesIO()
            Image.fromarray(image.pixels).save(data, "WEBP", quality=90, method=6)
            entry = tarfile.TarInfo(image.member)
            entry.size, entry.mode = data.tell(), 0o644
            data.seek(0)
            bundle.addfile(entry, data)
