"""Drawings of the Open Clip Art Library, most of them in colour, with names from their metadata.

The source is the folder of Debian's package ``openclipart-svg``: public-domain SVG files with a
title, subjects and an author. Authors are split, so that no artist is in training and evaluation.
"""

from __future__ import annotations

import html
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from dfkd.miniature.icons import word_set
from dfkd.miniature.rendering import SIZE, Cache, IconRow, Pixels, read, stack, write

#: The collection's name in rows; evaluation drawings have the second one.
TRAINING, EVALUATION = "openclipart", "openclipart-evaluation"

#: Authors of more drawings than this are for training: they would leave little to it.
_MOST_OF_AN_AUTHOR = 60

#: Themes of desktops repeat the icon sets, and these authors made patterns and flags.
_LEFT_OUT_AUTHORS = frozenset(("codifiedivining", "International Code of Signals", "Royal Navy"))
_LEFT_OUT_FOLDERS = word_set("buttons decorations logos shapes geography special")
_GENERIC = word_set(
    "hash icon icons theme action symbol sign simple application shape shapes geometry computer "
    "lemon_theme_icon mimetypes unsorted special menu filesystem animal mammal people food "
    "transport tool tools office recreation work device festive holiday gradients white cartoon "
    "equipment entertainment vehicle logo bordered pattern decoration stock historic collection "
    "lemon flag protein card hotel education software internet instant and led clip art in straight"
)
#: Larger files are photographs in paths, and take seconds to draw.
_MOST_BYTES = 200_000
_MOST_WORDS = 2
_FIELDS = {
    "title": re.compile(r"<cc:Work[^>]*>.*?<dc:title>(.*?)</dc:title>", re.S),
    "author": re.compile(r"<dc:creator>.*?<dc:title>(.*?)</dc:title>", re.S),
    "subjects": re.compile(r"<dc:subject>(.*?)</dc:subject>", re.S),
}
_ITEM = re.compile(r"<rdf:li>(.*?)</rdf:li>", re.S)


@dataclass(frozen=True)
class Drawing:
    """One file with the names that its metadata give."""

    path: Path
    author: str
    names: tuple[tuple[str, ...], ...]
    """Possible names of the object, the best first, as words."""
    folders: tuple[str, ...]

    def row(self, collection: str) -> IconRow:
        """The drawing as a row of a cache; its slot is not known yet."""
        first, *others = self.names
        aliases = tuple(" ".join(name) for name in others)
        return IconRow(
            collection, self.path.stem, first, (), self.folders, aliases, colour=True, slot=0
        )


def build(
    root: Path, nouns: Collection[str], shown: Collection[str], folder: Path, processes: int
) -> tuple[Cache, Cache]:
    """Render the drawings below ``root`` into ``folder``, or read what an earlier call left there.

    Args:
        nouns: names of objects that a drawing may have.
        shown: names of the classes for whose sake an author is held out.

    Returns:
        The drawings for training and those for evaluation, each in the order of their paths.
    """
    usable = list(drawings(root, nouns))
    held_out = evaluation_authors(usable, shown)
    for part in (TRAINING, EVALUATION):
        if not (folder / part / "rows.json").exists():
            chosen = [d for d in usable if (d.author in held_out) == (part == EVALUATION)]
            with ProcessPoolExecutor(processes) as pool:
                pictures = pool.map(rgba, [d.path for d in chosen], chunksize=64)
                pairs = zip(chosen, pictures, strict=True)
                drawn = [(d.row(part), picture) for d, picture in pairs if picture is not None]
            rows = [asdict(row) for row, _ in drawn]
            (folder / part).mkdir(parents=True, exist_ok=True)
            colour = stack([picture for _, picture in drawn], (SIZE, SIZE, 4))
            write(folder / part, [(rows, stack([], (SIZE, SIZE)), colour)])
    return read(folder / TRAINING), read(folder / EVALUATION)


def evaluation_authors(usable: Sequence[Drawing], shown: Collection[str]) -> frozenset[str]:
    """The authors whose drawings are for evaluation: those who drew an object with a name among
    ``shown``, except for the few who drew very much.
    """
    counts = Counter(drawing.author for drawing in usable)
    drew = {drawing.author for drawing in usable if " ".join(drawing.names[0]) in shown}
    return frozenset(author for author in drew if counts[author] <= _MOST_OF_AN_AUTHOR)


def drawings(root: Path, nouns: Collection[str]) -> Iterator[Drawing]:
    """The usable drawings below ``root`` with an author and a name among ``nouns``, each file
    once, in the order of their paths.
    """
    seen: set[str] = set()
    for path in sorted(root.rglob("*.svg")):
        folders = path.relative_to(root).parts[:-1]
        known = path.name in seen or path.stat().st_size > _MOST_BYTES
        if known or not _LEFT_OUT_FOLDERS.isdisjoint(folders):
            continue
        # The library files a drawing under several subjects.
        seen.add(path.name)
        text = path.read_text("utf-8", errors="replace")
        author = _field(text, "author")
        names = tuple(_names(text, nouns))
        if author and names and author not in _LEFT_OUT_AUTHORS:
            yield Drawing(path, author, names, folders[-1:])


def rgba(path: Path) -> Pixels | None:
    """The drawing in a square, as [64, 64, 4] uint8 with colours not premultiplied; None where it
    cannot be drawn or is blank.
    """
    try:
        png = bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=4 * SIZE))
    except ValueError:
        return None
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    # Many files leave most of their page empty.
    box = image.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    if box is None:
        return None
    image = image.crop(box)
    side = int(1.08 * max(image.size)) + 1
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def _field(text: str, name: str) -> str:
    found = _FIELDS[name].search(text)
    return html.unescape(found[1]).strip() if found else ""


def _names(text: str, nouns: Collection[str]) -> Iterator[tuple[str, ...]]:
    """The title if it is a known noun, then the subjects that are."""
    subjects = [html.unescape(item).lower() for item in _ITEM.findall(_field(text, "subjects"))]
    title = re.sub(r"[^a-z ]", " ", _field(text, "title").lower())
    words = [word for word in title.split() if word in nouns and word not in _GENERIC]
    # Longer titles tell a story.
    candidates = [" ".join(words)] if 0 < len(words) <= _MOST_WORDS else []
    candidates += [s for s in subjects if s in nouns and s not in _GENERIC]
    for name in dict.fromkeys(candidates):
        yield tuple(name.split())
