"""The contact sheet: one picture with synthesised images of each class and method."""

import functools
import io
import math
from collections.abc import Iterator, Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from dfkd.config.methods import Method
from dfkd.dataset.published import PublishedVersion
from dfkd.storage import layout
from dfkd.storage.base import Storage
from dfkd.utils.images import open_image

Examples = list[list[Image.Image]]
"""A few images for each class."""


def examples(
    version: PublishedVersion, count: int = 8, class_indices: Sequence[int] | None = None
) -> Examples:
    """The first `count` images of some classes of a published version, by default all, as RGB.

    Raises:
        CorruptionError: a shard differs from what was published, or an image cannot be decoded.
    """
    return [
        [sample.decoded(_decode) for sample in samples]
        for samples in version.first_samples(count, class_indices)
    ]


def _decode(encoded: bytes) -> Image.Image:
    """The RGB image in the bytes of a file; `ValueError` if there is none."""
    with open_image(encoded) as image:
        return image.convert("RGB")


def write_contact_sheet(
    storage: Storage, name: str, versions: Mapping[Method, PublishedVersion]
) -> str:
    """Write `contact-sheet.png` with the version of each method; returns its location."""
    classes = next(iter(versions.values())).classes
    count = 8 if len(versions) < 3 else 5
    shown = range(min(len(classes), MAX_CLASSES))
    blocks = {str(method): examples(version, count, shown) for method, version in versions.items()}
    title = f"{name}: images made from class names alone"
    footer = ", ".join(f"{method} version {version.id}" for method, version in versions.items())
    storage.put(layout.CONTACT_SHEET, contact_sheet(title, classes, blocks, footer))
    return storage.location(layout.CONTACT_SHEET)


MARGIN, GAP, BLOCK_GAP = 28, 4, 24
"""Pixels around the sheet, between two images, and between two blocks."""
MAX_WIDTH = 1800
"""Pixels of blocks side by side; more go below, because viewers shrink a much wider picture."""
HEADING = 44
"""Pixels above a line of blocks, for their names."""
MAX_CLASSES = 48
"""Maximum number of rows; many viewers cannot open a much taller picture."""
INK, GREY, LINE, PAPER = "#1a1a1a", "#6b6b6b", "#d9d9d9", "#ffffff"


def contact_sheet(
    title: str, classes: Sequence[str], blocks: Mapping[str, Examples], footer: str = ""
) -> bytes:
    """A PNG with one block of images for each method, in which a row is a class.

    Args:
        title: first line.
        classes: labels of the rows; only the first 48 are shown, and the footer says so.
        blocks: `examples` by method, in the order in which they are shown.
        footer: last line in small print, e.g. the versions.

    Returns:
        The file's bytes; the same images and texts give the same bytes.
    """
    shown = list(classes[:MAX_CLASSES])
    if len(shown) < len(classes):
        footer = f"first {len(shown)} of {len(classes)} classes. {footer}".strip()
    sheet = _Sheet(shown, blocks)
    canvas = Image.new("RGB", sheet.size(title, footer), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN), title, INK, _font(22))
    for method, x, y in sheet.corners():
        draw.text((x, y - 10), method, INK, _font(16), anchor="ls")
        for row, images in enumerate(blocks[method][: len(shown)]):
            for column, image in enumerate(images):
                left, top, cell = x + column * sheet.step, y + row * sheet.step, sheet.cell
                if image.size != (cell, cell):
                    image = image.resize((cell, cell), Image.Resampling.LANCZOS)
                canvas.paste(image, (left, top))
                draw.rectangle((left - 1, top - 1, left + cell, top + cell), outline=LINE)
    for line in range(len(sheet.lines)):
        for row, name in enumerate(shown):
            middle = sheet.top(line) + row * sheet.step + sheet.cell // 2
            draw.text((MARGIN + sheet.label, middle), name, INK, _font(15), anchor="rm")
    draw.text((MARGIN, sheet.bottom + 14), footer, GREY, _font(12))
    stream = io.BytesIO()
    canvas.save(stream, "PNG", optimize=True)
    return stream.getvalue()


class _Sheet:
    """The layout of a contact sheet, in pixels."""

    def __init__(self, classes: Sequence[str], blocks: Mapping[str, Examples]) -> None:
        """Compute the size of a cell from the images, and the rest from the texts."""
        sizes = [image.width for block in blocks.values() for row in block for image in row]
        # Small images keep their pixels; large ones are scaled down so that the sheet stays small.
        self.cell = 64 if max(sizes, default=64) <= 64 else 96
        self.step = self.cell + GAP
        self.label = max(_width(name, 15) for name in classes)
        self.height = len(classes) * self.step - GAP
        # A block is at least as wide as its heading.
        self.widths = {
            method: max(max(map(len, block), default=0) * self.step - GAP, _width(method, 16))
            for method, block in blocks.items()
        }
        self.lines = self._lines()
        self.bottom = self.top(len(self.lines) - 1) + self.height

    def _lines(self) -> list[list[str]]:
        """The methods of each line of blocks, about as many in each."""
        methods = list(self.widths)
        fit = max(1, MAX_WIDTH // (max(self.widths.values()) + BLOCK_GAP))
        count = math.ceil(len(methods) / math.ceil(len(methods) / fit))
        return [methods[start : start + count] for start in range(0, len(methods), count)]

    def top(self, line: int) -> int:
        """The upper edge of the images of a line of blocks."""
        return MARGIN + 30 + HEADING + line * (self.height + HEADING)

    def corners(self) -> Iterator[tuple[str, int, int]]:
        """Yield each method with the left and the upper edge of its images."""
        for line, methods in enumerate(self.lines):
            x = MARGIN + self.label + 14
            for method in methods:
                yield method, x, self.top(line)
                x += self.widths[method] + BLOCK_GAP

    def size(self, title: str, footer: str) -> tuple[int, int]:
        """Width and height of the whole sheet."""
        widest = max(sum(self.widths[m] + BLOCK_GAP for m in line) for line in self.lines)
        body = self.label + 14 + widest - BLOCK_GAP
        width = max(body, _width(title, 22), _width(footer, 12)) + 2 * MARGIN
        return width, self.bottom + (14 + 12 if footer else 0) + MARGIN


@functools.cache  # it decodes the typeface
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which is the same on every machine; it draws a box for a letter that it
    lacks, such as `é`.
    """
    return ImageFont.load_default(size)


def _width(text: str, size: int) -> int:
    """Pixels that a text takes as it is drawn."""
    return math.ceil(_font(size).getlength(text))
