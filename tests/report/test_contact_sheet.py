import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfkd.config.manifest import Manifest
from dfkd.report import contact_sheet as contact_sheet_module
from dfkd.report.contact_sheet import contact_sheet, examples, write_contact_sheet
from dfkd.storage.local import open_storage
from tests.helpers.tiny_version import publish, write_manifest


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return Manifest.read(write_manifest(tmp_path, prompts={"method": ["vanilla", "mix"]}))


def test_examples_are_the_first_images_of_each_class(manifest: Manifest) -> None:
    version = publish(manifest)
    found = examples(version, 6)
    assert [len(images) for images in found] == [6, 6, 6]
    for channel, images in enumerate(found):
        for image in images:
            assert image.size == (32, 32)
            assert np.asarray(image).mean(axis=(0, 1)).argmax() == channel
    shards = [
        sample for receipt in list(version.receipts())[:2] for sample in version.samples(receipt)
    ]
    for image, sample in zip(found[0], shards, strict=False):
        with Image.open(io.BytesIO(sample.image)) as stored:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(stored))


def test_examples_read_no_more_shards_than_they_need(manifest: Manifest) -> None:
    version = publish(manifest)
    for receipt in version.receipts():
        if receipt.task.endswith("00001"):
            version.storage.delete(receipt.shard)
    assert [len(images) for images in examples(version, 4)] == [4, 4, 4]


def test_only_the_classes_that_are_shown_are_read(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, storage = publish(manifest), open_storage(manifest.storage.root)
    all_classes = examples(version)
    for receipt in version.receipts():
        if receipt.class_index == 1:
            version.storage.delete(receipt.shard)
    assert examples(version, class_indices=[2, 0]) == [all_classes[2], all_classes[0]]
    monkeypatch.setattr(contact_sheet_module, "MAX_CLASSES", 1)
    write_contact_sheet(storage, "tiny", {"vanilla": version})


def plain(colour: str, size: int = 64) -> Image.Image:
    return Image.new("RGB", (size, size), colour)


def drawn(classes: Sequence[str], blocks: dict[str, list[list[Image.Image]]]) -> np.ndarray:
    with Image.open(io.BytesIO(contact_sheet("title", classes, blocks))) as image:
        return np.asarray(image.convert("RGB"))


def test_rows_are_classes_and_blocks_are_methods() -> None:
    blocks = {
        "vanilla": [[plain("#ff0000")] * 2, [plain("#00ff00")] * 2],
        "mix": [[plain("#0000ff")] * 2, [plain("#ff00ff")] * 2],
    }
    sheet = drawn(("cat", "dog"), blocks)
    assert (sheet[0] == 255).all()
    assert (sheet[-1] == 255).all()
    assert (sheet[:, :16] == 255).all()
    places = {}
    for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255)):
        where = np.argwhere((sheet == colour).all(axis=2))
        assert len(where) == 2 * 64 * 64
        places[colour] = where.min(axis=0)
    red, green, blue, pink = places.values()
    assert red[0] == blue[0] < green[0] == pink[0]
    assert red[1] == green[1] < blue[1] == pink[1]


def test_a_sheet_of_many_classes_and_large_images_stays_a_picture() -> None:
    classes = [f"class {index}" for index in range(100)]
    height, width, _ = drawn(classes, {"mix": [[plain("red", 224)] * 8 for _ in classes]}).shape
    assert width < 1100
    assert height < 5100


def test_a_class_without_images_keeps_its_row() -> None:
    sheet = drawn(("cat", "dog"), {"mix": [[], [plain("#ff0000")]]})
    assert np.argwhere((sheet == (255, 0, 0)).all(axis=2)).min(axis=0)[0] > 64 + 28


def test_blocks_that_do_not_fit_beside_each_other_stand_in_lines_of_equal_length() -> None:
    colours = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255))
    names = ("vanilla", "random", "mix", "contrastive")
    blocks = {
        name: [[Image.new("RGB", (64, 64), colour)] * 8]
        for name, colour in zip(names, colours, strict=True)
    }
    sheet = drawn(("cat",), blocks)
    first, second, third, fourth = (
        np.argwhere((sheet == colour).all(axis=2)).min(axis=0) for colour in colours
    )
    assert first[0] == second[0] < third[0] == fourth[0]
    assert first[1] == third[1] < second[1] == fourth[1]
    assert sheet.shape[1] < 1300
