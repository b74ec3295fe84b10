"""The bundled evaluation set: drawings that no training saw, painted in the looks of its domains.

Classes were chosen by how distinct the objects look and how many held-out drawings show them. Names
that show something else were removed by hand; no teacher was involved. An icon belongs to a class
if its whole name is in the table. Style words and numbers do not count: ``clock-3-filled`` has the
name ``clock``.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy.fft import dctn

from dfkd.miniature.clipart import EVALUATION as CLIPART
from dfkd.miniature.icons import EMOJI
from dfkd.miniature.looks.domains import DOMAINS
from dfkd.miniature.rendering import Cache, IconRow, Pixels, painted
from dfkd.utils.pixels import to_bytes

#: Icon names by class, separated by "/". Names of objects with a badge are left out.
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
    **{
        name: name
        for name in (
            "anchor",
            "backpack",
            "battery",
            "bed",
            "bicycle",
            "bomb",
            "briefcase",
            "broom",
            "bus",
            "calendar",
            "cloud",
            "coin",
            "compass",
            "crown",
            "drum",
            "gear",
            "gift",
            "glasses",
            "helicopter",
            "joystick",
            "keyboard",
            "magnet",
            "moon",
            "newspaper",
            "pizza",
            "printer",
            "radio",
            "rainbow",
            "robot",
            "rocket",
            "shield",
            "ship",
            "snowflake",
            "stopwatch",
            "sun",
            "thermometer",
            "trophy",
            "truck",
            "watch",
        )
    },
}
#: Parts of icon names that change the object: ``heart-broken`` does not count as a heart.
EXCLUDED_WORDS = frozenset(("broken", "off"))
#: The classes of the demo and the studies: everyday things of which each domain has drawings. They
#: were chosen by their look and the number of drawings, before any model was trained.
OFFICIAL = (
    *("airplane", "book", "camera", "car", "cat", "clock"),
    *("dog", "fish", "heart", "house", "leaf", "tree"),
)
#: Images of a class in each domain. Where a class has fewer drawings, they are shown again in
#: another pose and other colours; classes that are not official never show a drawing twice.
OFFICIAL_IMAGES, OTHER_IMAGES = 20, 3
#: How far drawings are moved, turned and scaled, as a share of what training does.
_POSE = 0.4


@dataclass(frozen=True)
class EvaluationImage:
    """One image of the set."""

    domain: str
    label: str
    row: IconRow
    number: int
    """Position among the images of its class and domain."""
    pixels: Pixels

    @property
    def member(self) -> str:
        """Path in the bundle."""
        name = f"{self.row.collection}_{self.row.name}_{self.number}"
        return f"{self.domain}/{self.label}/{name}.webp"


def select(cache: Cache, left_out: Collection[IconRow] = ()) -> list[EvaluationImage]:
    """The set's images, [64, 64, 3] uint8, sorted by their paths in the bundle.

    Args:
        cache: the held-out icons and clip art.
        left_out: drawings that must not be shown, because training has the same.
    """
    rows = [row for row in cache.rows if row not in left_out]
    mono = by_class([row for row in rows if not row.colour])
    sources = {
        "clipart": by_class([row for row in rows if row.collection == CLIPART]),
        "color_emoji": by_class([row for row in rows if row.collection in EMOJI]),
    }
    pictures = [
        picture
        for domain in DOMAINS
        for label, drawn in sources.get(domain, mono).items()
        for picture in _pictures(domain, label, drawn, cache)
    ]
    return sorted(pictures, key=lambda picture: picture.member)


def by_class(rows: Sequence[IconRow]) -> dict[str, list[IconRow]]:
    """The rows of each class, in an order that does not depend on their collections' names."""
    classes = {name: label for label, text in NAMES.items() for name in text.split("/")}
    groups: dict[str, list[IconRow]] = {}
    for row in sorted(rows, key=_shuffled):
        label = classes.get(row.concept)
        if label and EXCLUDED_WORDS.isdisjoint(row.name.split("-")):
            groups.setdefault(label, []).append(row)
    return groups


def official_names() -> frozenset[str]:
    """All names of drawings that show an official class."""
    return frozenset(name for label in OFFICIAL for name in NAMES[label].split("/"))


def _pictures(
    domain: str, label: str, rows: Sequence[IconRow], cache: Cache
) -> list[EvaluationImage]:
    count = min(OTHER_IMAGES, len(rows))
    if label in OFFICIAL:
        count = OFFICIAL_IMAGES if domain != "clipart" else len(rows)
    shown = [rows[i % len(rows)] for i in range(count)]
    # The seed depends on the place alone, so that one domain's images do not change another's.
    seed = hashlib.sha256(f"{domain}/{label}".encode()).digest()[:7]
    gen = torch.Generator().manual_seed(int.from_bytes(seed))
    looks = [DOMAINS[domain](gen) for _ in shown]
    images = to_bytes(painted(cache, shown, looks, gen, _POSE)).numpy()
    return [
        EvaluationImage(domain, label, row, number, image)
        for number, (row, image) in enumerate(zip(shown, images, strict=True))
    ]


def write(pictures: Sequence[EvaluationImage], path: Path) -> str:
    """Write the bundle, a reproducible tar of WebP images; returns its sha256."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as bundle:
        for picture in pictures:
            # A new TarInfo has no time and no owner, so the bytes are always the same.
            data = io.BytesIO()
            Image.fromarray(picture.pixels).save(data, "WEBP", quality=90, method=6)
            entry = tarfile.TarInfo(picture.member)
            entry.size, entry.mode = data.tell(), 0o644
            data.seek(0)
            bundle.addfile(entry, data)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def counts(pictures: Sequence[EvaluationImage]) -> Mapping[str, dict[str, int]]:
    """Number of images by domain and class."""
    table: dict[str, dict[str, int]] = {domain: dict.fromkeys(NAMES, 0) for domain in DOMAINS}
    for picture in pictures:
        table[picture.domain][picture.label] += 1
    return table


def _shuffled(row: IconRow) -> bytes:
    return hashlib.sha256(f"{row.collection}:{row.name}".encode()).digest()


Bits = npt.NDArray[np.float32]

#: Width of the hash: the lowest ``SIDE`` x ``SIDE`` frequencies of a 64 x 64 cosine transform.
SIDE = 12
_PATH = re.compile(r'\sd="([^"]+)"')
_TOKEN = re.compile(r"[a-zA-Z]|-?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?")


def path_key(body: str, side: float) -> str:
    """The path data of an SVG body, with numbers in thousandths of ``side``; "" if there is
    none.
    """
    paths = []
    for data in _PATH.findall(body):
        tokens = (_scaled(token, side) for token in _TOKEN.findall(data))
        paths.append(" ".join(tokens))
    return "|".join(sorted(paths))


def _scaled(token: str, side: float) -> str:
    return token if token.isalpha() else str(round(1000 * float(token) / side))


def _cropped(grey: Pixels, side: int) -> npt.NDArray[np.float32]:
    """The ink [side, side] of a dark drawing on white, cropped, so that margins and scale do not
    matter.
    """
    ink = 255 - grey
    rows, columns = np.flatnonzero(ink.max(1) > 32), np.flatnonzero(ink.max(0) > 32)
    if len(rows) and len(columns):
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.asarray(Image.fromarray(ink).resize((side, side), Image.Resampling.BOX), np.float32)


def drawings(images: Iterable[Pixels]) -> Bits:
    """Cropped drawings as unit vectors [N, 576]; their inner products are correlations."""
    flat = np.stack([_cropped(image, 24).ravel() for image in images])
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True) + 1e-6
    return flat


def max_correlation(evaluation: Bits, training: Bits) -> Bits:
    """The highest correlation [E] of each evaluation drawing with any training drawing.

    It finds copies that the hash misses: many frequencies of a symmetric drawing vanish, and the
    signs of the remaining values are noise.
    """
    highest: Bits = (evaluation @ training.T).max(axis=1)
    return highest


def perceptual_hash(grey: Pixels) -> Bits:
    """Hash of a [64, 64] image with dark ink on white: +-1 signs [SIDE * SIDE - 1]."""
    square = _cropped(grey, 64)
    low = dctn(square, norm="ortho")[:SIDE, :SIDE].ravel()[1:]
    return np.where(low > np.median(low), 1, -1).astype(np.float32)


@dataclass(frozen=True)
class Match:
    """A training drawing that equals an evaluation drawing (both as positions), and how it was
    found.
    """

    training: int
    evaluation: int
    how: str


def find_matches(
    train_paths: list[str],
    train_bits: Bits,
    eval_paths: list[str],
    eval_bits: Bits,
    max_distance: int,
    chunk: int = 8192,
) -> list[Match]:
    """Every training icon that is the same drawing as an evaluation icon, each listed once.

    Args:
        train_paths, eval_paths: ``path_key`` of each icon.
        train_bits, eval_bits: ``perceptual_hash`` of each icon, [icons, bits].
        max_distance: hashes that differ in at most this many bits count as the same drawing.
    """
    eval_by_path = {path: index for index, path in reversed(list(enumerate(eval_paths))) if path}
    matches = {
        i: Match(i, eval_by_path[p], "path") for i, p in enumerate(train_paths) if p in eval_by_path
    }
    bits = train_bits.shape[1]
    for start in range(0, len(train_bits), chunk):
        # For +-1 vectors the inner product is bits - 2 * Hamming distance.
        distance = (bits - train_bits[start : start + chunk] @ eval_bits.T) / 2
        nearest = distance.argmin(1)
        for offset in np.flatnonzero(distance.min(1) <= max_distance):
            index = start + int(offset)
            matches.setdefault(index, Match(index, int(nearest[offset]), "hash"))
    return sorted(matches.values(), key=lambda match: match.training)


def hashes(images: Iterable[Pixels]) -> Bits:
    """``perceptual_hash`` of each [64, 64] grey image, stacked."""
    return np.stack([perceptual_hash(image) for image in images])
