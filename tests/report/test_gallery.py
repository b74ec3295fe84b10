import base64
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfkd.config.manifest import Manifest
from dfkd.dataset.published import PublishedVersion
from dfkd.dataset.shards import Sample
from dfkd.report import gallery as module
from dfkd.report.gallery import data_uri, evenly, gallery, read_index
from tests.helpers.tiny_version import publish, write_manifest


@pytest.fixture
def version(tmp_path: Path) -> PublishedVersion:
    return publish(Manifest.read(write_manifest(tmp_path)))


def encode(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def noise(size: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (10, list(range(10)))]
)
def test_a_choice_is_evenly_spaced(count: int, expected: list[int]) -> None:
    assert evenly(range(10), count) == expected
    assert evenly(range(3), count + 3) == [0, 1, 2]


def test_an_index_is_read_whole_or_every_nth_row(
    version: PublishedVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = read_index(version)
    assert index.total == index.rows == 24
    assert index.class_index.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    shards = [f"shards/{i // 8:04d}-{i // 4 % 2:05d}.tar" for i in range(24)]
    assert index.shard.tolist() == shards
    assert index.block.tolist() == [0] * 24
    monkeypatch.setattr(module, "MAX_ROWS", 10)
    sampled = read_index(version)
    assert sampled.total == 24
    assert sampled.index.tolist() == index.index[::3].tolist()


def test_a_gallery_shows_each_class_and_its_own_images(version: PublishedVersion) -> None:
    found = gallery(version, read_index(version), per_class=4)
    shown = {c: [p.index for p in strip] for c, strip in found.strips.items()}
    assert shown == {c: [0, 2, 5, 7] for c in range(3)}
    for c, strip in found.strips.items():
        for picture in strip:
            with decoded(picture.uri) as image:
                assert np.asarray(image.convert("RGB")).mean(axis=(0, 1)).argmax() == c
            assert picture.predicted == picture.class_index == c
    assert len(found.embeddings) == 24
    assert found.embeddings.shape == (24, 8)
    assert found.labels.tolist() == [c for c in range(3) for _ in range(8)]
    assert found.vendi == pytest.approx(3)  # a direction for each class
    assert found.within.tolist() == pytest.approx([1] * 3 * 28)


def test_twins_are_looked_for_among_all_images_and_not_in_a_sample(
    version: PublishedVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embeddings of a class are all the same, and the sample has one of each class."""
    monkeypatch.setattr(module, "MAX_EMBEDDINGS", 3)
    found = gallery(version, read_index(version), per_class=4)
    assert (found.labels.tolist(), found.twins) == ([0, 1, 2], 1)


def test_the_shard_of_a_doubtful_image_is_opened_and_not_counted(
    version: PublishedVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the second shard of its class, whose images are all taken for another class."""
    monkeypatch.setattr(module, "SHARDS_PER_CLASS", 1)
    monkeypatch.setattr(module, "WORST", 1)

    def predicted(sample: Sample) -> int:
        own: int = sample.metadata["class_index"]
        return (own + (sample.metadata["index"] >= 4)) % 3

    monkeypatch.setattr(module, "predicted", predicted)
    index = read_index(version)
    confidence = index.confidence.copy()
    confidence[14] = 0.1
    doubtful = dataclasses.replace(index, confidence=confidence)
    found = gallery(version, doubtful, per_class=4)
    assert [(p.class_index, p.index) for p in found.unsure] == [(1, 6)]
    assert {p.index for strip in found.strips.values() for p in strip} == {0, 1, 2, 3}
    assert len(found.embeddings) == 12
    assert found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_a_page_shows_small_images_whose_bytes_are_few() -> None:
    large = encode(noise(224))
    uri = data_uri(large)
    with decoded(uri) as image:
        assert image.size == (128, 128)
        assert image.format == "WEBP"
    assert len(uri) < len(large)
    plain = encode(Image.new("RGB", (8, 8), "red"))
    flat = data_uri(plain)
    assert len(flat) <= len(base64.b64encode(plain)) + 30
