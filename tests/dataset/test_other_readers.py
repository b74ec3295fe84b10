"""A published version in the hands of `datasets` and of `webdataset`, without a network."""

import io
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pytest
import webdataset
import yaml
from PIL import Image

from dfkd.config.manifest import Manifest
from dfkd.dataset.publication import size_category
from dfkd.dataset.published import PublishedVersion
from dfkd.dataset.shards import Sample
from tests.helpers.tiny_version import publish, write_manifest


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> PublishedVersion:
    return publish(Manifest.read(write_manifest(tmp_path_factory.mktemp("readers"))))


@pytest.fixture(scope="module")
def own(version: PublishedVersion) -> dict[str, Sample]:
    """What dfkd's reader gives, by key."""
    receipts = list(version.receipts())
    return {sample.key: sample for receipt in receipts for sample in version.samples(receipt)}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The library, with its caches in a folder of the test and no way out of this machine."""

    def refused(self: socket.socket, address: object) -> NoReturn:
        raise AssertionError(f"connects to {address}")

    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(home))
        patch.setenv("HF_DATASETS_CACHE", str(home / "datasets"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        import datasets  # reads the environment

        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr(socket.socket, "connect", refused)
        yield datasets


def folder_of(version: PublishedVersion) -> Path:
    return Path(version.storage.location())


def pixels(encoded: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(encoded)))


def require_equal(rows: list[dict[str, Any]], own: dict[str, Sample]) -> None:
    """Images, labels and metadata of rows are those of dfkd's reader, in its order."""
    assert [row["__key__"] for row in rows] == list(own)
    assert len(own) == 24
    for row in rows:
        sample = own[row["__key__"]]
        np.testing.assert_array_equal(np.asarray(row["png"]), pixels(sample.image))
        assert row["json"] == sample.metadata
        for name, expected in sample.arrays.items():
            found = np.asarray(row[f"{name}.npy"], expected.dtype)
            np.testing.assert_array_equal(found, expected)


def test_datasets_reads_the_tars(
    datasets: ModuleType, version: PublishedVersion, own: dict[str, Sample]
) -> None:
    tars = str(folder_of(version) / "shards" / "*.tar")
    rows = datasets.load_dataset("webdataset", data_files=tars, split="train")
    require_equal(list(rows), own)


def test_datasets_finds_the_tars_of_a_folder_by_its_card(
    datasets: ModuleType, version: PublishedVersion, own: dict[str, Sample]
) -> None:
    found = datasets.load_dataset(str(folder_of(version)))
    assert list(found) == ["train"]
    require_equal(list(found["train"]), own)


def test_a_folder_that_lacks_a_shard_is_no_smaller_data_set(
    datasets: ModuleType, version: PublishedVersion, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder_of(version), tmp_path / "copy")
    (copy / "shards" / "0001-00001.tar").unlink()
    with pytest.raises(datasets.exceptions.NonMatchingSplitsSizesError):
        datasets.load_dataset(str(copy))


def test_webdataset_reads_the_tars(version: PublishedVersion, own: dict[str, Sample]) -> None:
    tars = sorted(map(str, (folder_of(version) / "shards").glob("*.tar")))
    rows = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"))
    require_equal(rows, own)


def test_the_card_has_the_hub_s_fields_and_no_licence_that_nobody_gave(
    version: PublishedVersion,
) -> None:
    card = (folder_of(version) / "README.md").read_text()
    _, front, rest = card.split("---\n", 2)
    fields = yaml.safe_load(front)
    assert rest.startswith("\n# Synthetic images of 3 classes\n")
    assert fields["pretty_name"] == "Synthetic images of 3 classes"
    assert fields["task_categories"] == ["image-classification"]
    assert fields["size_categories"] == ["n<1K"]
    assert "license" not in fields


@pytest.mark.parametrize(
    ("samples", "category"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (9_999, "1K<n<10K"),
        (10_000, "10K<n<100K"),
        (1_300_000, "1M<n<10M"),
        (10**12 - 1, "100B<n<1T"),
        (10**12, "n>1T"),
    ],
)
def test_a_size_has_the_hub_s_name(samples: int, category: str) -> None:
    assert size_category(samples) == category
