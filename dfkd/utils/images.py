"""Encoded pictures to the pixels that a model takes.

Scoring and `dfkd.export.predict` share this module. It needs only numpy and pillow, so that users
of an exported model need no torch.
"""

import io
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from dfkd.errors import one_line

Array = npt.NDArray[np.float32]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""Formats that are decoded, whatever a file's name says.

Pillow's other readers start programs or are little tested.
"""
MAX_PIXELS = 1 << 26
"""Larger pictures are not decoded, because a file of a few kilobytes could fill the memory."""
MAX_ENCODED = 1 << 28
"""Bytes of a file at most: as many as a picture of `MAX_PIXELS` has without compression."""
MAX_SCANS = 100
"""Scans of a JPEG at most; encoders write some ten. A decoder takes for each as long as for the
whole picture, and a hundred bytes are a scan."""
SCAN = re.compile(rb"\xff\xda\0[\x08\x0a\x0c\x0e][\1-\4]")
"""The first bytes of a scan: its marker, the length of its header, and its number of colours."""
MAX_ASPECT_RATIO = 8
"""The longer side is cut to this multiple of the shorter one before scaling.

Without the cut, scaling a thin strip could fill the memory.
"""


class Resizing(NamedTuple):
    """How a picture becomes a square. The defaults are CLIP's; students have no others."""

    mode: Literal["shortest", "squash"] = "shortest"
    """Scale the shorter side and crop the centre, or scale each side and distort the picture."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"


USUAL = Resizing()


def read_picture(path: str | Path) -> bytes:
    """The encoded picture in a file; `ValueError` if it has more than `MAX_ENCODED` bytes."""
    # The limit also holds for a file that has no size, such as a device.
    with open(path, "rb") as stream:
        data = stream.read(MAX_ENCODED + 1)
    if len(data) > MAX_ENCODED:
        raise ValueError(f"has more than {MAX_ENCODED} bytes")
    return data


def decode_image(
    encoded: bytes, image_size: int, resizing: Resizing = USUAL
) -> npt.NDArray[np.uint8]:
    """The image as `preprocess` gives it: uint8 [H, W, 3] with H = W = `image_size`.

    Raises:
        ValueError: not an image, or a truncated or oversized one; the text says why.
    """
    with open_image(encoded) as image:
        return preprocess(image, image_size, resizing)


def preprocess(
    image: Image.Image, image_size: int, resizing: Resizing = USUAL
) -> npt.NDArray[np.uint8]:
    """An open image as a model's input: uint8 [H, W, 3] with H = W = `image_size`.

    The steps: turn upright by the EXIF orientation, put transparency on white, make a square as
    `resizing` says.

    Raises:
        ValueError: its file is truncated, or its mode has no RGB; the text says why.
    """
    with _value_errors():
        image.load()  # raises an error of its own if the pixels are damaged
        # Pillow fails on damaged EXIF data with errors of many kinds, and the pixels are good.
        with suppress(Exception):
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits per pixel, which Pillow would clip to white
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        return np.asarray(_fit(image.convert("RGB"), image_size, resizing))


@contextmanager
def open_image(
    encoded: bytes | memoryview, formats: tuple[str, ...] = FORMATS
) -> Iterator[Image.Image]:
    """Yield the picture after its header is read; turn decoding errors inside into `ValueError`.

    Raises:
        ValueError: not an image of `formats`, or a truncated or oversized one; the text says why.
    """
    with _value_errors(formats), Image.open(io.BytesIO(encoded), formats=formats) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width} x {height} pixels, at most {MAX_PIXELS} in all")
        # An MPO is a JPEG with more pictures behind the first one.
        if image.format in ("JPEG", "MPO") and len(SCAN.findall(encoded)) > MAX_SCANS:
            raise ValueError(f"a JPEG of more than {MAX_SCANS} scans")
        yield image


@contextmanager
def _value_errors(formats: tuple[str, ...] = FORMATS) -> Iterator[None]:
    """Turn Pillow's decoding errors in the block into `ValueError` with one line of text."""
    try:
        yield
    # Pillow's text has an address in memory, so results.json would differ from run to run.
    except UnidentifiedImageError:
        known = " or ".join(", ".join(formats).rsplit(", ", 1))
        raise ValueError(f"is no {known} file") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(one_line(error)) from None


_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_PNG_HEADER = _PNG_SIGNATURE + b"\0\0\0\rIHDR"
"""The bytes before width and height: PNG's signature, and length and name of its first chunk."""


def header_size(encoded: bytes | memoryview, kind: str) -> tuple[int, int]:
    """Width and height from the header of an image whose format `kind` is `PNG` or `JPEG`.

    Raises:
        ValueError: not such a header, or as `open_image`.
    """
    # Without Pillow this is much faster, and shards of PNGs have one header per image.
    size = len(_PNG_HEADER)
    if kind == "PNG" and encoded[:size] == _PNG_HEADER and len(encoded) >= size + 8:
        width, height = struct.unpack_from(">II", encoded, size)
        # A decoder inflates texts and profiles too, of which a thousand fit into one image. So no
        # chunks are allowed but those that dfkd writes.
        start = len(_PNG_SIGNATURE)
        while start + 8 <= len(encoded):
            length, name = struct.unpack_from(">I4s", encoded, start)
            if name not in _PNG_CHUNKS:
                raise ValueError(f"a PNG with a chunk {name!r}")
            start += length + 12  # with its length, name and checksum
        return width, height
    with open_image(encoded, (kind,)) as image:
        return image.size


def batch(images: Sequence[npt.NDArray[np.uint8]]) -> Array:
    """N images uint8 [S, S, 3] as a student's input: float32 [N, 3, S, S] in [0, 1]."""
    stacked = np.stack(images).astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))


def _fit(image: Image.Image, size: int, resizing: Resizing) -> Image.Image:
    """A square with the side `size`, pixel for pixel as torchvision makes it."""
    kernel = Image.Resampling[resizing.interpolation.upper()]
    if resizing.mode == "squash":
        return image.resize((size, size), kernel)
    short = min(image.size)
    # The ends of a long strip are outside the centre crop anyway, so cutting them is harmless.
    if max(image.size) > MAX_ASPECT_RATIO * short:
        image = _centre(image, [min(side, MAX_ASPECT_RATIO * short) for side in image.size])
    scaled = [size if side == short else int(size * side / short) for side in image.size]
    return _centre(image.resize((scaled[0], scaled[1]), kernel), [size, size])


def _centre(image: Image.Image, size: Sequence[int]) -> Image.Image:
    """The central part of `size` (width, height), with torchvision's rounding."""
    left, top = (round((side - kept) / 2) for side, kept in zip(image.size, size, strict=True))
    return image.crop((left, top, left + size[0], top + size[1]))
