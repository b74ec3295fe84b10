"""Hostile content of files and objects that runs read: each is refused in one line.

dfkd/README.md says whom the system trusts. Archives and arrays are tried in test_shards, weights in
test_weights, manifests, receipts and pointers of any content in test_fuzz, students in
test_hostile_students, a generator's configuration in test_vqgan; test_credentials has what is not
told.
"""

import dataclasses
import hashlib
import io
import json
import os
import pickle
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dfkd.config.identity import identity
from dfkd.config.manifest import Manifest
from dfkd.config.plan import blocks, tasks
from dfkd.dataset.loader import Stream
from dfkd.dataset.publication import block_entries
from dfkd.dataset.published import PublishedVersion, current
from dfkd.dataset.receipts import encode
from dfkd.dataset.shards import Sample, sample_key, write_shard
from dfkd.dataset.verification import verify
from dfkd.dataset.versions import Version, begin
from dfkd.errors import CorruptionError
from dfkd.export.folder import synthesised_images
from dfkd.report.contact_sheet import examples
from dfkd.report.gallery import data_uri
from dfkd.storage.local import open_storage
from dfkd.utils.images import USUAL, decode_image
from dfkd.utils.strict_json import canonical
from tests.helpers.partial_version import TASKS, fill, home, make_sample
from tests.helpers.tiny_version import write_manifest

# --- pictures -------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png_bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes that claims `side` x `side` pixels, of which it has some."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(100_000), 9)
    parts = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def encoded(kind: str, side: int = 32, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (side, side)).save(stream, kind)
    return stream.getvalue()


def jpeg_bomb() -> bytes:
    """A JPEG of 8 x 8 that claims 65,500 pixels a side."""
    data = bytearray(encoded("JPEG", 8))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"
"""Pillow hands this to Ghostscript, a language in which one can write files."""


def endless_jpeg() -> bytes:
    """A JPEG that repeats its last scan, which takes as long as the whole picture each time."""
    stream = io.BytesIO()
    Image.new("L", (32, 32)).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    picture, scan, end = data[:-2], data[data.rindex(b"\xff\xda") : -2], data[-2:]
    return picture + 200 * scan + end


def in_an_mpo(jpeg: bytes) -> bytes:
    """The same with the segment by which a JPEG says that more pictures follow it."""
    stream = io.BytesIO()
    first, second = (Image.new("RGB", (32, 32)) for _ in range(2))
    first.save(stream, "MPO", save_all=True, append_images=[second])
    data = stream.getvalue()
    begin = data.index(b"\xff\xe2")
    length = int.from_bytes(data[begin + 2 : begin + 4]) + 2
    return jpeg[:2] + data[begin : begin + length] + jpeg[2:]


STRANGE = {
    "png bomb": png_bomb(60_000),
    "jpeg bomb": jpeg_bomb(),
    "jpeg of 209 scans": endless_jpeg(),
    "several pictures in a jpeg of 209 scans": in_an_mpo(endless_jpeg()),
    "postscript": POSTSCRIPT,
    "tiff": encoded("TIFF"),
    "icon": encoded("ICO"),
    "nothing": b"",
    "gif": b"GIF89a",
    "pickle": pickle.dumps([0]),
    "header": encoded("PNG")[:40],
}


@pytest.mark.parametrize("content", STRANGE.values(), ids=STRANGE)
def test_pictures_that_are_bombs_or_programs_are_not_decoded(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        decode_image(content, 32)
    with pytest.raises(CorruptionError, match="image x cannot be read"):
        Sample("x", content, "png", {}, {}).decoded(data_uri)


def test_a_picture_is_judged_by_its_header_before_it_is_decoded() -> None:
    with pytest.raises(ValueError, match="8193 x 8193 pixels, at most 67108864"):
        decode_image(png_bomb(8193), 32)


def hostile_version(
    folder: Path, extension: str = "png", image: bytes = b"", class_index: int | None = None
) -> PublishedVersion:
    """A version that is whole by its hashes, with such an image in all of its samples."""
    manifest = Manifest.read(write_manifest(folder))
    storage = open_storage(manifest.storage.root).child("data/vanilla")
    version = begin(storage, identity(manifest, {}))
    for task in tasks(manifest):
        samples = []
        for index in task.indices:
            like = make_sample(0, index)
            key = sample_key(task.class_index, index)
            own = task.class_index if class_index is None else class_index
            facts = like.metadata | {"class": "red", "class_index": own}
            samples.append(Sample(key, image, extension, facts, like.arrays))
        write_shard(samples, folder / "shard.tar")
        version.commit(task, folder / "shard.tar")
    return version.publish(blocks(manifest), {})


def first_batch(version: PublishedVersion, cache_bytes: int) -> None:
    next(Stream(version, 32, 6, 0, cache_bytes=cache_bytes).batches(0))


@pytest.mark.parametrize("name", ["png bomb", "postscript"])
def test_no_reader_of_few_images_decodes_such_ones(tmp_path: Path, name: str) -> None:
    version = hostile_version(tmp_path, image=STRANGE[name])
    for read in (lambda: synthesised_images(version, 32, USUAL), lambda: examples(version)):
        with pytest.raises(CorruptionError, match="cannot be read"):
            read()


def test_a_shard_far_longer_than_its_receipt_says_is_not_read_whole(tmp_path: Path) -> None:
    version = fill(tmp_path)
    receipt = next(iter(version.receipts()))
    os.truncate(version.storage.location(receipt.shard), 1 << 40)  # more than any memory holds
    with pytest.raises(CorruptionError, match="is not what its receipt says"):
        list(version.samples(receipt))


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "jpeg bomb": (
        {"image": jpeg_bomb(), "extension": "jpg"},
        r"sample .*\.jpg: .*synthesise again",
    ),
    **{
        name: ({"image": STRANGE[name]}, r"sample .*\.png: .*synthesise again")
        for name in ("png bomb", "postscript", "header", "nothing")
    },
    "gif": ({"image": encoded("GIF")}, r"sample .*\.png: "),
    "jpeg as png": ({"image": encoded("JPEG")}, r"sample .*\.png: "),
    "png as jpg": ({"image": encoded("PNG"), "extension": "jpg"}, r"sample .*\.jpg: "),
    "larger": ({"image": encoded("PNG", 64)}, r"sample .*\.png: "),
    "16 bits": ({"image": encoded("PNG", mode="I;16")}, r"sample .*\.png: "),
}


@pytest.mark.parametrize(("parts", "reason"), UNFIT.values(), ids=UNFIT)
def test_samples_that_do_not_fit_their_version_are_not_trained_on(
    tmp_path: Path, parts: dict[str, Any], reason: str
) -> None:
    version = hostile_version(tmp_path, **parts)
    for cache_bytes in (0, 1 << 20):
        with pytest.raises(CorruptionError, match=reason):
            first_batch(version, cache_bytes)


@pytest.mark.parametrize("own", [-1, 1, 3, 1 << 30])
def test_a_sample_of_another_class_than_its_task_is_not_committed(tmp_path: Path, own: int) -> None:
    with pytest.raises(CorruptionError, match="is not of this task"):
        hostile_version(tmp_path, class_index=own)


# --- names ----------------------------------------------------------------------------------------

OUTSIDE = [
    "../../../../outside",
    "/outside",
    "shards/../../outside",
    "a\0b",
    "..",
    "",
    ".partial/x",
    "a//b",
    "a\\b",
    "C:b",
    "x" * 5000,
]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory with a file beside it, which no name leads to."""
    (tmp_path / "outside").write_bytes(b"outside")
    return tmp_path / "root"


@pytest.mark.parametrize("name", [*OUTSIDE, "a/", "a/.hidden", "a b", "a\n", "-rf", "x" * 300])
def test_no_key_leads_outside_the_storage(outside: Path, name: str) -> None:
    storage = open_storage(str(outside))
    for use in (
        storage.get,
        storage.exists,
        storage.delete,
        lambda key: storage.child(f"{key}/"),  # one slash at the end is the folder's own
        lambda key: storage.put(key, b"x"),
        lambda key: storage.put_if_absent(key, b"x"),
        lambda key: storage.get_file(key, outside / "copy"),
    ):
        with pytest.raises(CorruptionError, match="object key"):
            use(name)
    assert (outside.parent / "outside").read_bytes() == b"outside"


def forge(version: PublishedVersion, **changes: Any) -> None:
    """Change the facts of a version, and the pointer so that it states the new hash."""
    content = canonical(version.facts | changes)
    version.storage.put("version.json", content)
    pointer = json.loads(version.home.get("current/00000001.json"))
    pointer["sha256"] = hashlib.sha256(content).hexdigest()
    version.home.put("current/00000001.json", canonical(pointer))


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_shard_of_a_manifest_or_receipt_lies_outside(outside: Path, name: str) -> None:
    version = fill(outside, TASKS[:1])
    (block,) = version.blocks
    ((receipt, images),) = block_entries(version, block)
    forged = dataclasses.replace(receipt, shard=name)
    version.storage.put("receipts/0000-00000.json.gz", encode(forged, images))
    version.storage.delete("version.json")
    version.home.delete("current/00000001.json")
    found = Version(version.home, version.fingerprint).publish([("00000", TASKS[:1])], {})
    with pytest.raises(CorruptionError, match="object key"):
        list(found.samples(forged))
    assert any("object key" in line for line in verify(found))
    with pytest.raises(CorruptionError, match="object key"):
        next(Stream(found, 32, 1, 0).batches(0))


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_part_of_prompts_lies_outside(outside: Path, name: str) -> None:
    version = fill(outside, TASKS[:1])
    content = canonical({"parts": {name: "0" * 64}})
    version.storage.put("prompts.json", content)
    forge(version, prompts=hashlib.sha256(content).hexdigest())
    found = current(home(outside))
    assert any(re.search("object key|is not what was published", line) for line in verify(found))


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ["other", "names"]},
        {"classes": 3},
        {"classes": []},
        {"card": 3},
        {"fingerprint": "../x"},
        {"identity": {}},
        {"blocks": 3},
        {"blocks": [{}]},
        lambda block: {"blocks": [block, block]},
        lambda block: {"blocks": [block | {"name": "../x"}]},
        lambda block: {"blocks": [block | {"index": "x"}]},
        {"samples": -1},
        {"label_mean": "1"},
        {"prompts": "../x"},
        {"weights": []},
        {"weights": {"teacher": "`<img src=x>`"}},
    ],
)
def test_a_forged_manifest_is_refused(
    tmp_path: Path, changes: dict[str, Any] | Callable[[Any], dict[str, Any]]
) -> None:
    version = fill(tmp_path, TASKS[:1])
    forge(version, **(changes(version.facts["blocks"][0]) if callable(changes) else changes))
    with pytest.raises(CorruptionError, match="is not what was published"):
        current(home(tmp_path))
