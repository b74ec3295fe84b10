import io
import struct
from pathlib import Path
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from dfkd.utils import images
from dfkd.utils.images import batch, decode_image, header_size, read_picture


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(300, 200), (227, 227), (64, 64), (101, 333), (50, 70)])
@pytest.mark.parametrize("image_size", [64, 224])
def test_pixels_are_those_of_clips_own_preprocessing(
    size: tuple[int, int], image_size: int
) -> None:
    image = noise(*size)
    clip = Compose([Resize(image_size, InterpolationMode.BICUBIC), CenterCrop(image_size)])
    np.testing.assert_array_equal(decode_image(encode(image), image_size), np.asarray(clip(image)))


def test_transparency_is_white() -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (decode_image(encode(clear), 8) == 255).all()
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    assert decode_image(encode(half), 8)[0, 0].tolist() == [255, 127, 127]
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 255])
    assert (decode_image(encode(palette, transparency=0), 8) == 255).all()
    assert decode_image(encode(palette), 8)[0, 0].tolist() == [0, 0, 255]


def test_other_modes_become_rgb() -> None:
    assert decode_image(encode(Image.new("L", (8, 8), 77)), 8)[0, 0].tolist() == [77, 77, 77]
    deep = Image.fromarray(np.full((8, 8), 77 * 256, dtype=np.uint16))
    assert decode_image(encode(deep), 8)[0, 0].tolist() == [77, 77, 77]
    assert decode_image(encode(Image.new("1", (8, 8), 1)), 8)[0, 0].tolist() == [255, 255, 255]
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert decode_image(encode(cmyk, "JPEG"), 8)[0, 0].tolist() == pytest.approx([255, 0, 0], abs=2)


def test_an_image_is_turned_upright() -> None:
    image, exif = noise(16, 16), Image.Exif()
    exif[0x0112] = 6  # a camera held upright: a quarter turn to the right
    found = decode_image(encode(image, exif=exif), 16)
    np.testing.assert_array_equal(found, np.rot90(np.asarray(image), -1))


def tiff(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF data with entries (tag, type, count, value), which need not be valid."""
    fields = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + fields + bytes(4)


@pytest.mark.parametrize(
    "exif",
    [
        tiff((0x112, 3, 1, b"\6\0"), (0x11A, 2, 4, b"72")),
        tiff((0x112, 2, 4, b"6")),
        b"Exif\0\0no TIFF header",
    ],
    ids=["resolution is text", "orientation is text", "no TIFF header"],
)
def test_odd_exif_data_never_make_an_image_unreadable(exif: bytes) -> None:
    image = Image.new("RGB", (16, 16), "black")
    image.paste((255, 255, 255), (0, 0, 16, 8))
    pixels = decode_image(encode(image, exif=exif), 16)
    assert (pixels[:8] == 255).all()


def test_a_thin_strip_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its longer side is cut to eight times the shorter one before it is scaled."""
    resize = create_autospec(Image.Image.resize, side_effect=Image.Image.resize)
    monkeypatch.setattr(Image.Image, "resize", resize)
    strip = Image.new("RGB", (1, 30_000), "red")
    assert decode_image(encode(strip), 224)[0, 0].tolist() == [255, 0, 0]
    decode_image(encode(strip.transpose(Image.Transpose.ROTATE_90)), 224)
    assert [size for (_, size, *_), _ in resize.call_args_list] == [(224, 8 * 224), (8 * 224, 224)]


def test_a_file_that_is_too_long_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_ENCODED", 10)
    file = tmp_path / "picture"
    file.write_bytes(b"x" * 10)
    assert read_picture(file) == b"x" * 10
    file.write_bytes(b"x" * 11)
    with pytest.raises(ValueError, match="has more than 10 bytes"):
        read_picture(file)


def test_a_header_tells_width_and_height_of_its_own_format_alone() -> None:
    for kind, other in (("PNG", "JPEG"), ("JPEG", "PNG")):
        encoded = encode(Image.new("RGB", (3, 5)), kind)
        assert header_size(encoded, kind) == header_size(memoryview(encoded), kind) == (3, 5)
        with pytest.raises(ValueError, match=rf"{other} file"):
            header_size(encoded, other)


def test_a_png_with_more_than_pixels_is_refused_where_it_would_be_inflated() -> None:
    """A thousand texts of 8 MB each fit into one image."""
    texts = PngInfo()
    texts.add_text("comment", "x" * 1000, zip=True)
    stream = io.BytesIO()
    Image.new("RGB", (3, 5)).save(stream, "PNG", pnginfo=texts)
    with pytest.raises(ValueError, match="a PNG with a chunk b'zTXt'"):
        header_size(stream.getvalue(), "PNG")


def test_a_truncated_image_is_refused_and_so_is_another_file() -> None:
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        whole = encode(noise(64, 64), kind)
        with pytest.raises(ValueError, match=r"\w"):
            decode_image(whole[: len(whole) // 2], 64)
    with pytest.raises(ValueError, match=r"^is no PNG, JPEG, WEBP or BMP file$"):
        decode_image(b"no image", 64)


def test_a_batch_is_planes_in_the_unit_range_as_torch_divides() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    images = [np.stack([values, values.T, 255 - values], axis=2)] * 2
    found = batch(images)
    assert (found.dtype, found.shape) == (np.float32, (2, 3, 16, 16))
    assert found.flags.c_contiguous
    expected = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div(255)
    np.testing.assert_array_equal(found, expected.numpy())
