"""Drawings of the Open Clip Art Library, most of them in colour, with names from their metadata.

The source is the folder of Debian's package `openclipart-svg`: public-domain SVG files with a
title, subjects and an author. The authors are divided, so that nobody's drawings are both in
training and in the evaluation set.
"""

import html
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from dfkd.errors import ManifestError
from dfkd.lab.miniature.drawings import (
    Cache,
    DrawingRow,
    Pixels,
    read,
    refers_outside,
    stack,
    write,
)
from dfkd.lab.miniature.icons import word_set
from dfkd.lab.miniature.painting import SIZE

TRAINING, EVALUATION = "openclipart", "openclipart-evaluation"
"""Names of the two collections in rows: drawings for training, and for evaluation."""

_MOST_OF_AN_AUTHOR = 60
"""Authors of more drawings than this are never held out, because little would be left for training.
"""

_LEFT_OUT_AUTHORS = frozenset(("codifiedivining", "International Code of Signals", "Royal Navy"))
"""Authors of patterns and flags, and folders of what is no picture of a thing."""
_LEFT_OUT_FOLDERS = word_set("buttons decorations logos shapes geography special")
_GENERIC = word_set(
    "hash icon icons theme action symbol sign simple application shape shapes geometry computer "
    "lemon_theme_icon mimetypes unsorted special menu filesystem animal mammal people food "
    "transport tool tools office recreation work device festive holiday gradients white cartoon "
    "equipment entertainment vehicle logo bordered pattern decoration stock historic collection "
    "lemon flag protein card hotel education software internet instant and led clip art in straight"
)
"""Subjects that many files have and that name no object."""
_MOST_BYTES = 200_000
"""Larger files are traced photographs, which take seconds to render."""
_MOST_WORDS = 2
"""A title with more nouns describes a scene and does not name an object."""
_RENDERED_WIDTH = 4 * SIZE
"""Renderings are larger than needed, because they are cropped and then scaled down."""
_MOST_SLENDER = 8
"""Ratio of the sides above which a drawing is a line or a border."""
_VISIBLE = 8
"""Alpha (0-255) that belongs to the drawing; less is the soft edge of a shadow."""
_SQUARE = 1.08
"""Side of the square around a drawing, relative to the drawing's longer side."""
_FIELDS = {
    "title": ("<cc:Work", "<dc:title>", "</dc:title>"),
    "author": ("<dc:creator>", "<dc:title>", "</dc:title>"),
    "subjects": ("<dc:subject>", "</dc:subject>"),
}
"""Tags that lead to a field, and the one that ends it."""
_ITEM = re.compile(r"<rdf:li>([^<]*)</rdf:li>")


@dataclass(frozen=True)
class ClipArt:
    """A file with what its metadata say."""

    path: Path
    author: str
    names: tuple[tuple[str, ...], ...]
    """Possible names of the object, each as its words, the best first."""
    folders: tuple[str, ...]
    """The folder that holds it, which serves as its category; empty at the top."""

    def row(self, collection: str) -> DrawingRow:
        """The row of a cache for this drawing, in a collection; `drawings.write` sets its slot."""
        first, *others = self.names
        aliases = tuple(" ".join(name) for name in others)
        return DrawingRow(
            collection, self.path.stem, first, (), self.folders, aliases, colour=True, slot=0
        )


def build(
    root: Path, nouns: Collection[str], classes: Collection[str], folder: Path, processes: int
) -> tuple[Cache, Cache]:
    """Render the drawings below `root` into `folder`, unless an earlier call has.

    Args:
        nouns: names of objects that a drawing may have.
        classes: names of the objects whose authors are held out; see `evaluation_authors`.
        processes: number of processes that render.

    Returns:
        The drawings for training and those for evaluation, each in the order of their paths.

    Raises:
        ManifestError: one of the two would be empty.
    """
    usable = list(drawings(root, nouns))
    held_out = evaluation_authors(usable, classes)
    for part in (TRAINING, EVALUATION):
        if not (folder / part / "rows.json").exists():
            selected = [d for d in usable if (d.author in held_out) == (part == EVALUATION)]
            if not selected:
                raise ManifestError(
                    "data.clipart",
                    f"must hold drawings of the objects that icons show, for {part}",
                    str(root),
                    "apt-get install openclipart-svg, and give its folder",
                )
            with ProcessPoolExecutor(processes) as pool:
                rendered = pool.map(rgba, [d.path for d in selected], chunksize=64)
                pairs = zip(selected, rendered, strict=True)
                drawn = [(d.row(part), pixels) for d, pixels in pairs if pixels is not None]
            rows = [row for row, _ in drawn]
            (folder / part).mkdir(parents=True, exist_ok=True)
            colour = stack([pixels for _, pixels in drawn], (SIZE, SIZE, 4))
            write(folder / part, [(rows, stack([], (SIZE, SIZE)), colour)])
    return read(folder / TRAINING), read(folder / EVALUATION)


def evaluation_authors(usable: Sequence[ClipArt], classes: Collection[str]) -> frozenset[str]:
    """The authors whose drawings are for evaluation: those who drew one of the `classes`.

    Authors of more than `_MOST_OF_AN_AUTHOR` drawings are not among them.
    """
    counts = Counter(drawing.author for drawing in usable)
    drew = {drawing.author for drawing in usable if " ".join(drawing.names[0]) in classes}
    return frozenset(author for author in drew if counts[author] <= _MOST_OF_AN_AUTHOR)


def drawings(root: Path, nouns: Collection[str]) -> Iterator[ClipArt]:
    """Yield the drawings below `root` with an author and a name among `nouns`, sorted by path.

    Large files, generic folders and copies of a file in a second folder are left out.
    """
    seen: set[str] = set()
    for path in sorted(root.rglob("*.svg")):
        folders = path.relative_to(root).parts[:-1]
        unsuitable = path.stat().st_size > _MOST_BYTES or not _LEFT_OUT_FOLDERS.isdisjoint(folders)
        # The library keeps copies of a file in the folders of all of its subjects.
        if unsuitable or path.name in seen:
            continue
        seen.add(path.name)
        text = path.read_text("utf-8", errors="replace")
        author = _field(text, "author")
        names = tuple(_names(text, nouns))
        if author and names and author not in _LEFT_OUT_AUTHORS:
            yield ClipArt(path, author, names, folders[-1:])


def rgba(path: Path) -> Pixels | None:
    """The drawing, cropped and centred, as RGBA, uint8 [64, 64, 4], colours not premultiplied.

    Returns None for a file that cannot be drawn or is blank.
    """
    # The text that was checked is drawn, because resvg would also read a compressed file.
    text = path.read_text("utf-8", errors="replace")
    if refers_outside(text):
        return None
    side = _RENDERED_WIDTH
    try:
        # With only its width given, a drawing may be of any height, so its shape is tried first.
        small = bytes(resvg_py.svg_to_bytes(svg_string=text, width=side, height=side))
        if min(Image.open(io.BytesIO(small)).size) * _MOST_SLENDER < side:
            return None
        png = bytes(resvg_py.svg_to_bytes(svg_string=text, width=side))
    except ValueError:
        return None
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    # Many drawings fill only a small part of their page.
    box = image.getchannel("A").point(lambda a: 255 * (a > _VISIBLE)).getbbox()
    if box is None:
        return None
    image = image.crop(box)
    side = int(_SQUARE * max(image.size)) + 1
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def _field(text: str, name: str) -> str:
    """The content of a metadata field, with entities resolved; "" if the file lacks it."""
    *leading, end = _FIELDS[name]
    for tag in leading:
        text = text.partition(tag)[2]
    content, found, _ = text.partition(end)
    return html.unescape(content).strip() if found else ""


def _names(text: str, nouns: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Yield the words of each name: the nouns of the title, then the subjects that are nouns."""
    subjects = [html.unescape(item).lower() for item in _ITEM.findall(_field(text, "subjects"))]
    title = re.sub(r"[^a-z ]", " ", _field(text, "title").lower())
    words = [word for word in title.split() if word in nouns and word not in _GENERIC]
    candidates = [" ".join(words)] if 0 < len(words) <= _MOST_WORDS else []
    candidates += [s for s in subjects if s in nouns and s not in _GENERIC]
    for name in dict.fromkeys(candidates):  # each once, in this order
        yield tuple(name.split())
